"""From a probability map to the mask that is submitted.

Every departure from a plain threshold has to show on validation that it helps.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.measure import label

from ctseg.files import read_json
from ctseg.metrics import bootstrap_interval
from ctseg.transforms import Letterbox, thin_out


@dataclass(frozen=True)
class PostProcess:
    """The steps from a probability map to a mask, in this order.

    Args:
        smoothing: standard deviation of a Gaussian over the square, as a share of its side; 0 for none.
        threshold: a pixel of the image's own size is foreground above it.
        fill_holes: fill background that foreground encloses.
        keep_largest_component: keep the largest 8-connected region only.
        min_area: remove smaller 8-connected regions, as a share of the image.
    """

    smoothing: float = 0.0
    threshold: float = 0.5
    fill_holes: bool = False
    keep_largest_component: bool = False
    min_area: float = 0.0

    def __str__(self) -> str:
        steps = {name: value for name, value in asdict(self).items() if name != "threshold" and value}
        texts = [name if value is True else f"{name} {value:g}" for name, value in steps.items()]
        return " + ".join([f"threshold {self.threshold:g}", *texts])


def make_mask(probability: np.ndarray, letterbox: Letterbox, steps: PostProcess) -> np.ndarray:
    """Turn a probability, float32 (S, S), into a mask, bool (H, W): undo first, then the threshold."""
    full = make_probability(probability, letterbox, steps.smoothing)
    return postprocess_mask(full > steps.threshold, steps)


def make_probability(probability: np.ndarray, letterbox: Letterbox, smoothing: float = 0.0) -> np.ndarray:
    """Smooth a probability, float32 (S, S), and bring it to the image's own size, float32 (H, W)."""
    if smoothing:
        probability = ndimage.gaussian_filter(probability, smoothing * len(probability))
    return letterbox.undo(probability)


def postprocess_mask(mask: np.ndarray, steps: PostProcess) -> np.ndarray:
    """Fill and remove as `steps` says; bool (H, W) to the same, an empty mask stays empty."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return mask
    crop, result = mask[boxes[0]], np.zeros_like(mask)  # outside its bounding box nothing can change
    if steps.fill_holes:
        crop = fill_holes(crop)
    if steps.keep_largest_component:
        crop = keep_largest_component(crop)
    if steps.min_area:
        crop = remove_small_components(crop, steps.min_area * mask.size)
    result[boxes[0]] = crop
    return result


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill background that foreground encloses; bool (H, W) to the same, an empty mask stays empty.

    >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    >>> fill_holes(ring).astype(int)
    array([[1, 1, 1],
           [1, 1, 1],
           [1, 1, 1]])
    """
    return ndimage.binary_fill_holes(mask)


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 8-connected region, the first of equals; bool (H, W) to the same, empty stays empty.

    >>> mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]], bool)
    >>> keep_largest_component(mask).astype(int)  # diagonal neighbors belong together
    array([[1, 0, 0, 0],
           [0, 1, 0, 0]])
    """
    labels = label(mask, connectivity=2)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax() if len(sizes) > 1 else mask


def remove_small_components(mask: np.ndarray, min_pixels: float) -> np.ndarray:
    """Remove 8-connected regions smaller than `min_pixels`; bool (H, W) to the same, empty stays empty.

    >>> mask = np.array([[1, 1, 0, 1]], bool)
    >>> remove_small_components(mask, 2).astype(int)
    array([[1, 1, 0, 0]])
    """
    # scikit-image's remove_small_objects changed its argument and its limit in 0.26.
    labels = label(mask, connectivity=2)
    large = np.bincount(labels.ravel()) >= min_pixels
    large[0] = False
    return large[labels]


def measure_mask(mask: np.ndarray) -> dict:
    """Measure a mask, bool (H, W).

    Its area, as a share of the image; the number of its 8-connected components, where gaps of less than 1/512
    of the longer side do not count; whether it touches the border. An empty mask has 0, 0 and False.
    """
    edges = mask[0], mask[-1], mask[:, 0], mask[:, -1]
    return {
        "area": float(mask.mean()),
        "components": int(label(thin_out(mask), connectivity=2).max()),
        "at_border": bool(np.concatenate(edges).any()),
    }


def read_choice(path: Path, otherwise: PostProcess) -> PostProcess:
    """The post-processing that notebook 04 chose and kept in a file; `otherwise` if it has not run yet."""
    return PostProcess(**read_json(path)["chosen"]) if path.is_file() else otherwise


# The values that are tried, one change at a time.
_OPTIONS = {
    "smoothing": (0.0, 0.005, 0.01, 0.02),
    "threshold": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "fill_holes": (False, True),
    "keep_largest_component": (False, True),
    "min_area": (0.0, 0.0005, 0.002, 0.01),
}
# A bootstrap interval of fewer cases is too narrow, and that of one image has no width at all.
_MIN_CASES = 10
# From C candidates to their Dice of N validation cases, (C, N).
_ScoreEach = Callable[[Sequence[PostProcess]], np.ndarray]


def _find_candidates(current: PostProcess) -> list[PostProcess]:
    """All that differ from `current` in one value."""
    options = [(name, value) for name, values in _OPTIONS.items() for value in values]
    return [replace(current, **{name: value}) for name, value in options if value != getattr(current, name)]


def choose_postprocess(
    score_each: _ScoreEach, baseline: PostProcess, among: np.ndarray | slice = slice(None)
) -> PostProcess:
    """Change `baseline` one value at a time, as long as a change helps on the cases `among`, bool (N,).

    A change helps if the 95 % paired bootstrap interval of its gain lies above zero; if several help, the one
    with the largest mean gain is taken. Fewer than ten cases decide nothing. To keep a step only if
    validation improves is nnU-Net's idea (Isensee et al. 2021).
    """
    current = baseline
    while True:
        candidates = _find_candidates(current)
        scores, *each = score_each([current, *candidates])[:, among]
        gains = {candidate: values - scores for candidate, values in zip(candidates, each)}
        helpful = [candidate for candidate, gain in gains.items() if _helps(gain)]
        if not helpful:
            return current
        current = max(helpful, key=lambda candidate: gains[candidate].mean())


def _helps(gain: np.ndarray) -> bool:
    """Whether a gain of Dice (N,) is more than chance."""
    return len(gain) >= _MIN_CASES and bootstrap_interval(gain)[0] > 0


def keep_if_earned(
    chosen: PostProcess, fitted_scores: np.ndarray, baseline: PostProcess, baseline_scores: np.ndarray
) -> PostProcess:
    """Return `chosen` if its cross-fitted Dice (N,) is above the baseline's in the mean, else `baseline`.

    Otherwise it does not carry over from some folds to the others, as with networks that are hardly trained,
    or few images decided it; then it will not carry over to test images either.
    """
    return chosen if np.mean(fitted_scores) > np.mean(baseline_scores) else baseline


def choose_without(score_each: _ScoreEach, baseline: PostProcess, folds: np.ndarray) -> list[PostProcess]:
    """For each of N cases the post-processing that the cases of other folds choose; `folds` (N,) numbers."""
    chosen = {fold: choose_postprocess(score_each, baseline, folds != fold) for fold in np.unique(folds)}
    return [chosen[fold] for fold in folds]


def score_own(score_each: _ScoreEach, choices: Sequence[PostProcess]) -> np.ndarray:
    """Each case's Dice (N,) under its own of N choices.

    With those of `choose_without` it is the honest score of a choice made on validation.
    """
    candidates = list(dict.fromkeys(choices))
    rows = [candidates.index(choice) for choice in choices]
    return score_each(candidates)[rows, np.arange(len(choices))]


def tabulate_choice(score_each: _ScoreEach, baseline: PostProcess, chosen: PostProcess) -> list[dict]:
    """One row for `baseline`, each change of it, and `chosen`.

    Mean Dice, gain over `baseline` with its 95 % interval, and the numbers of better and worse images.
    """
    candidates = list(dict.fromkeys([baseline, *_find_candidates(baseline), chosen]))
    scores = score_each(candidates)
    rows = []
    for candidate, values in zip(candidates, scores):
        gains = values - scores[0]
        low, high = bootstrap_interval(gains)
        rows.append(
            {
                "postprocess": str(candidate),
                "dice": float(values.mean()),
                "gain": float(gains.mean()),
                "gain_low": low,
                "gain_high": high,
                "better": int((gains > 0).sum()),
                "worse": int((gains < 0).sum()),
                "chosen": candidate == chosen,
            }
        )
    return rows
