"""Expected positive regularisation: unknown labels say only how many positives there are (Cole et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, PlbenchError, Progress, Task, tunable
from plbench.losses_single_positive import expected_positives_penalty, known_cross_entropy


def half_of_classes(task: Task) -> float:
    """Highest k that tuning tries."""
    return max(2.0, task.num_classes / 2)


def positives_of_an_image(task: Task) -> float:
    """K where nobody gave it: what is published of the dataset, or the mean of its complete labels.

    Raises:
        PlbenchError: if its labels are partial as they come.
    """
    if task.expected_positives is None:
        raise PlbenchError(
            "num_positives, the number of positives that an image is expected to have, does not follow from labels "
            "that are partial as they come; give it with -P num_positives=K"
        )
    return task.expected_positives


class EPR(Method):
    """`mean_x 1/C (-sum_P log p) + ((mean_x sum_c p_c - k) / C)^2`, times C as all losses of this benchmark.

    k is the number of positives that an image is expected to have; the mean of the second term is over the batch. In
    the released code, as here, the first term is divided by C once and the second twice. The weight of the second
    (lambda in the paper) is 1. Written for data without verified negatives: where there are some, they add
    `-log(1 - p)` to the first term.
    """

    name = "epr"
    title = "EPR"
    paper = "Cole et al., CVPR 2021, arXiv 2106.09708"
    batch_scope = "batch"
    stackable = True
    tags = frozenset({"single-positive", "reference"})

    class Params(MethodParams):
        """k of COCO is 2.9, of VOC 1.5, of NUS-WIDE 1.9, of CUB 31.4; else that of complete labels, or asked for."""

        num_positives: float | None = tunable(
            None,
            1.0,
            half_of_classes,
            log=True,
            from_task=positives_of_an_image,
            ge=0.0,
            description="k: positives that an image is expected to have; default: the dataset's mean",
        )

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        """Cross-entropy on known labels, and the penalty on the predicted number of positives."""
        num_images, num_classes = output.shape[-2:]
        known = known_cross_entropy(output, batch.labels).sum(dim=-1)
        penalty = expected_positives_penalty(output, num_positives=self.params.num_positives)
        return Loss(known + num_images * num_classes * penalty, float(num_images))
