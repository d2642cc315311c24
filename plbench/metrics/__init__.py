"""What scores at known cells come to, and how sure that is: pure functions of arrays."""

from plbench.metrics.evaluate import F1 as F1
from plbench.metrics.evaluate import Metrics as Metrics
from plbench.metrics.evaluate import Predictions as Predictions
from plbench.metrics.evaluate import Ranking as Ranking
from plbench.metrics.evaluate import auroc as auroc
from plbench.metrics.evaluate import average_precision as average_precision
from plbench.metrics.evaluate import calibration_error as calibration_error
from plbench.metrics.evaluate import choose_thresholds as choose_thresholds
from plbench.metrics.evaluate import count_cells as count_cells
from plbench.metrics.evaluate import count_quintiles as count_quintiles
from plbench.metrics.evaluate import evaluate as evaluate
from plbench.metrics.evaluate import evaluate_cells as evaluate_cells
from plbench.metrics.evaluate import f1_scores as f1_scores
from plbench.metrics.evaluate import lowest_average_precision as lowest_average_precision
from plbench.metrics.evaluate import micro_average_precision as micro_average_precision
from plbench.metrics.evaluate import per_class_table as per_class_table
from plbench.metrics.evaluate import precision_at_k as precision_at_k
from plbench.metrics.evaluate import predictions as predictions
from plbench.metrics.evaluate import predictions_at as predictions_at
from plbench.metrics.evaluate import rank_by_class as rank_by_class
from plbench.metrics.evaluate import rank_by_image as rank_by_image
from plbench.metrics.evaluate import rank_cells as rank_cells
from plbench.metrics.evaluate import ranking_loss as ranking_loss
from plbench.metrics.evaluate import run_starts as run_starts
from plbench.metrics.evaluate import thresholds_for_precision as thresholds_for_precision
from plbench.metrics.evaluate import top_f1_scores as top_f1_scores
