"""Cross-entropy on known labels, averaged over those labels and not over images."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, Progress
from plbench.losses_single_positive import known_cross_entropy


class BCEMeanKnown(Method):
    """`(-sum_P log p - sum_N log(1 - p)) / n`, sums and n, the number of known labels, over the whole batch.

    The terms are those of `ce-ignore`, which divides by the number of images instead. Where the number of known labels
    differs from batch to batch, a label of a sparsely annotated batch weighs more here. It is the partial BCE in the
    released code of SST and SARB; Durand et al. (2019), who brought partial BCE up, weight each image by its known
    share (`wce-ignore`).
    """

    name = "bce-mean-known"
    title = "BCE, mean over known"
    paper = "Chen et al., AAAI 2022, arXiv 2112.10941"
    needs = frozenset({"negatives"})
    tags = frozenset({"reference"})
    stackable = True

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Partial cross-entropy, whose weight is the number of known labels; a batch without any takes no step."""
        total = known_cross_entropy(output, batch.labels).sum(dim=-1)
        return Loss(total, (batch.labels != 0).sum(dim=(-2, -1)))
