from plbench.cli.console import show_progress as show_progress
from plbench.python.comparisons import Comparison as Comparison
from plbench.python.comparisons import compare as compare
from plbench.python.labels import LabelIssues as LabelIssues
from plbench.python.labels import label_issues as label_issues
from plbench.python.results import Result as Result
from plbench.python.results import load as load
from plbench.python.results import run as run
from plbench.python.studies import Study as Study
from plbench.python.studies import advise as advise
from plbench.python.studies import tune as tune
from plbench.runs.listing import runs as runs

__version__: str
__all__: list[str]
