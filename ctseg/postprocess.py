"""From a probability map to the mask that is submitted; each step has to show on validation that it helps."""

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
from scipy import ndimage
from skimage.measure import label

from ctseg.metrics import bootstrap_interval, dice_score


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill background that foreground encloses; bool (H, W) to the same, an empty mask stays empty."""
    return ndimage.binary_fill_holes(mask)


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 8-connected region, the first of equals; bool (H, W) to the same, an empty mask stays empty."""
    labels = label(mask, connectivity=2)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax() if len(sizes) > 1 else mask


STEPS = {"fill_holes": fill_holes, "keep_largest_component": keep_largest_component}


def postprocess_mask(mask: np.ndarray, steps: Iterable[str] = tuple(STEPS)) -> np.ndarray:
    """Apply the named steps to a mask, bool (H, W), in the order of `STEPS`, the reference's."""
    for name, step in STEPS.items():
        if name in steps:
            mask = step(mask)
    return mask


MIN_CASES = 10  # a bootstrap interval of fewer is narrower than it should be, and of one image it has no width at all
Scores = dict[str, float]  # Dice by image_id


def score_steps(cases: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> dict[tuple[str, ...], Scores]:
    """Return the Dice of every case under every combination of steps, {steps: {image_id: Dice}}; () is no step.

    Cases are (image_id, pred_mask, truth), the masks bool (H, W) at the image's own size; a generator keeps only one in memory.
    """
    scores = {names: {} for count in range(len(STEPS) + 1) for names in combinations(STEPS, count)}
    for image_id, pred_mask, truth in cases:
        for names in scores:
            scores[names][image_id] = dice_score(postprocess_mask(pred_mask, names), truth)
    return scores


def gain(scores: Mapping[tuple[str, ...], Scores], steps: tuple[str, ...]) -> np.ndarray:
    """What `steps` add to each case's Dice over no step at all (N,)."""
    return np.array(list(scores[steps].values())) - np.array(list(scores[()].values()))


def choose_steps(scores: Mapping[tuple[str, ...], Scores]) -> tuple[str, ...]:
    """Choose the combination with the best mean gain among those whose 95 % paired bootstrap interval lies above zero; () if there is none.

    Fewer than `MIN_CASES` images decide nothing: (). To keep a step only if validation improves is nnU-Net's idea (Isensee et al. 2021).
    """
    if len(scores[()]) < MIN_CASES:
        return ()
    helpful = [steps for steps in scores if bootstrap_interval(gain(scores, steps))[0] > 0]
    return max(helpful, key=lambda steps: gain(scores, steps).mean(), default=())


def tabulate_steps(scores: Mapping[tuple[str, ...], Scores], chosen: tuple[str, ...]) -> list[dict]:
    """One row a combination: mean Dice, gain over none with its interval, how many images got better and worse, whether it was chosen."""
    rows = []
    for steps in scores:
        gains = gain(scores, steps)
        low, high = bootstrap_interval(gains)
        rows.append(
            {
                "steps": " + ".join(steps) or "none",
                "dice": float(np.mean(list(scores[steps].values()))),
                "gain": float(gains.mean()),
                "gain_low": low,
                "gain_high": high,
                "better": int((gains > 0).sum()),
                "worse": int((gains < 0).sum()),
                "chosen": steps == chosen,
            }
        )
    return rows
