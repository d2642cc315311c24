"""Exact partial labels of published papers, as their code samples them from numpy's legacy generator.

The procedures follow the papers' released code and assume its row order, which
`plbench.data.dataset.Dataset.published_rows` returns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]

COLE_MASK_SEED, COLE_SPLIT_SEED, COLE_SHARE = 1200, 999, 0.2
MLR_PL_SEED = 0


def single_positive_of_cole(present: BoolArray) -> BoolArray:
    """Return the one positive of each image that Cole et al. (CVPR 2021) observe (preproc/generate_observed_labels.py).

    Their code shuffles the positives of an image and takes the first. It then also shuffles the negatives, which
    advances the generator.

    Args:
        present: [N, C] complete labels, images in their order.
    """
    generator = np.random.RandomState(COLE_MASK_SEED)
    kept = np.zeros(present.shape, bool)
    for row, shown in enumerate(present):
        positives, negatives = np.flatnonzero(shown), np.flatnonzero(~shown)
        generator.shuffle(positives)
        generator.shuffle(negatives)
        kept[row, positives[:1]] = True
    return kept


def validation_of_cole(num_images: int) -> BoolArray:
    """Return a mask [N] of the validation images of Cole et al. (datasets.py): a fifth of train, by a permutation."""
    num_held_out = round(COLE_SHARE * num_images)
    held_out: BoolArray = np.zeros(num_images, bool)
    held_out[np.random.RandomState(COLE_SPLIT_SEED).permutation(num_images)[num_images - num_held_out :]] = True
    return held_out


def known_of_mlr_pl(num_images: int, num_classes: int, share: float) -> BoolArray:
    """Return a mask [N, C] of the known labels of SST and SARB (AAAI 2022, code HCP-MLR-PL); shares are nested."""
    return np.random.RandomState(MLR_PL_SEED).random_sample((num_images, num_classes)) < share
