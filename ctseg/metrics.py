"""Scores: Dice of each image at the image's own size, and intervals for their mean."""

import math

import numpy as np
from scipy.stats import bootstrap


def dice_score(pred_mask: np.ndarray, true_mask: np.ndarray) -> float:
    """Dice of two boolean masks (H, W), in [0, 1].

    Both empty: 1, since there was nothing to find and nothing was found. One empty: 0.

    >>> true_mask = np.array([[1, 1, 0], [0, 0, 0]], bool)
    >>> pred_mask = np.array([[0, 1, 1], [1, 0, 0]], bool)
    >>> dice_score(pred_mask, true_mask)  # 2 * 1 common pixel / (3 + 2)
    0.4
    >>> empty = np.zeros((2, 3), bool)
    >>> dice_score(empty, empty), dice_score(pred_mask, empty)
    (1.0, 0.0)

    Raises:
        ValueError: the shapes differ.
    """
    if pred_mask.shape != true_mask.shape:
        raise ValueError(
            f"masks of different size: predicted {pred_mask.shape}, true {true_mask.shape}; compare at the "
            "image's own size"
        )
    total = np.count_nonzero(pred_mask) + np.count_nonzero(true_mask)
    return float(2 * np.count_nonzero(pred_mask & true_mask) / total) if total else 1.0


MIN_IMAGES = 50  # with fewer, in simulations, no kind of interval held as often as it should
_EQUAL = 1e-12  # smaller differences are rounding


def find_verdict(low: float, high: float, n_images: int) -> str:
    """What the interval of a gain says: better, worse, undecided or, below 50 images, too few images."""
    if n_images < MIN_IMAGES:
        return "too few images"
    return "better" if low > _EQUAL else "worse" if high < -_EQUAL else "undecided"


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `scores` (N,); of differences, it is paired.

    A single score gives an interval of width 0, none gives NaN. The resampling is seeded: the same scores,
    the same interval.
    """
    if len(scores) < 2:  # SciPy refuses so few
        only = float(scores[0]) if len(scores) else math.nan
        return only, only
    resampled = bootstrap((np.asarray(scores, float),), np.mean, n_resamples=2000, method="percentile", rng=0)
    return tuple(map(float, resampled.confidence_interval))
