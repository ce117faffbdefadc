"""Scores: per-image Dice at the image's own size, and intervals for their mean."""

import numpy as np


def dice_score(pred_mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two boolean masks (H, W), in [0, 1].

    Both empty: 1, since nothing was to be found and nothing was. One empty: 0.

    Raises:
        ValueError: the shapes differ.
    """
    if pred_mask.shape != truth.shape:
        raise ValueError(f"masks of different size: predicted {pred_mask.shape}, true {truth.shape}; compare at the image's own size")
    total = np.count_nonzero(pred_mask) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(pred_mask & truth) / total if total else 1.0


def bootstrap_interval(scores: np.ndarray, *, n_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `scores` (N,); differences of two scores make it a paired one."""
    scores = np.asarray(scores, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(scores), size=(n_resamples, len(scores)))
    low, high = np.percentile(scores[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
