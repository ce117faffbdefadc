"""From a probability map to the mask that is submitted; every departure from a plain threshold has to show on validation that it helps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import ndimage
from skimage.measure import label

from ctseg.metrics import bootstrap_interval
from ctseg.transforms import Frame


@dataclass(frozen=True)
class PostProcess:
    """What is done to a probability map, in this order.

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
        changes = {name: value for name, value in asdict(self).items() if name != "threshold" and value}
        return " + ".join([f"threshold {self.threshold:g}", *(n if v is True else f"{n} {v:g}" for n, v in changes.items())])


def make_mask(square: np.ndarray, frame: Frame, chosen: PostProcess) -> np.ndarray:
    """Turn a probability square, float32 (S, S) in [0, 1], into a mask, bool (H, W): the way back first, then the threshold."""
    return postprocess_mask(make_probability(square, frame, chosen.smoothing) > chosen.threshold, chosen)


def make_probability(square: np.ndarray, frame: Frame, smoothing: float = 0.0) -> np.ndarray:
    """Smooth a probability square, float32 (S, S), and bring it to the image's own size, float32 (H, W)."""
    return frame.undo(ndimage.gaussian_filter(square, smoothing * len(square)) if smoothing else square)


def postprocess_mask(mask: np.ndarray, chosen: PostProcess) -> np.ndarray:
    """Fill and remove what `chosen` says; bool (H, W) to the same, an empty mask stays empty."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return mask
    inside, result = mask[boxes[0]], np.zeros_like(mask)  # outside its bounding box nothing can change
    if chosen.fill_holes:
        inside = fill_holes(inside)
    if chosen.keep_largest_component:
        inside = keep_largest_component(inside)
    if chosen.min_area:
        inside = remove_small_components(inside, chosen.min_area * mask.size)
    result[boxes[0]] = inside
    return result


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill background that foreground encloses; bool (H, W) to the same, an empty mask stays empty."""
    return ndimage.binary_fill_holes(mask)


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 8-connected region, the first of equals; bool (H, W) to the same, an empty mask stays empty."""
    labels = label(mask, connectivity=2)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax() if len(sizes) > 1 else mask


def remove_small_components(mask: np.ndarray, min_pixels: float) -> np.ndarray:
    """Remove 8-connected regions of fewer pixels than `min_pixels`; bool (H, W) to the same, an empty mask stays empty."""
    labels = label(mask, connectivity=2)
    large = np.bincount(labels.ravel()) >= min_pixels
    large[0] = False
    return large[labels]


# The values that are tried, one change at a time.
OPTIONS = {
    "smoothing": (0.0, 0.005, 0.01, 0.02),
    "threshold": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "fill_holes": (False, True),
    "keep_largest_component": (False, True),
    "min_area": (0.0, 0.0005, 0.002, 0.01),
}
MIN_CASES = 10  # a bootstrap interval of fewer is narrower than it should be, and of one image it has no width at all
Score = Callable[[Sequence[PostProcess]], Mapping[PostProcess, np.ndarray]]  # each one's Dice of every validation case (N,)


def find_alternatives(start: PostProcess) -> list[PostProcess]:
    """All that differ from `start` in one value."""
    return [replace(start, **{name: value}) for name, values in OPTIONS.items() for value in values if value != getattr(start, name)]


def choose_postprocess(score: Score, start: PostProcess, among: np.ndarray | slice = slice(None)) -> PostProcess:
    """Change `start` one value at a time, as long as a change earns its place on the cases `among` (N,).

    A change does if the 95 % paired bootstrap interval of its gain lies above zero; of several the one with the largest mean gain is
    taken. Fewer than `MIN_CASES` cases decide nothing. To keep a step only if validation improves is nnU-Net's idea (Isensee et al. 2021).
    """
    while True:
        scores = score([start, *find_alternatives(start)])
        gains = {changed: (values - scores[start])[among] for changed, values in scores.items()}
        helpful = [changed for changed, gain in gains.items() if len(gain) >= MIN_CASES and bootstrap_interval(gain)[0] > 0]
        if not helpful:
            return start
        start = max(helpful, key=lambda changed: gains[changed].mean())


def cross_fit(score: Score, start: PostProcess, parts: np.ndarray) -> np.ndarray:
    """Each case's Dice (N,) under what the cases of the other parts choose: the honest figure for a choice made on validation.

    `parts` (N,) numbers the parts, such as folds.
    """
    fitted = np.empty(len(parts))
    for part in np.unique(parts):
        chosen = choose_postprocess(score, start, parts != part)
        fitted[parts == part] = score([chosen])[chosen][parts == part]
    return fitted


def tabulate_choice(score: Score, start: PostProcess, chosen: PostProcess) -> list[dict]:
    """One row for `start`, each change of it, and `chosen`: mean Dice, gain over `start` with its interval, images better and worse."""
    scores = score(list(dict.fromkeys([start, *find_alternatives(start), chosen])))
    rows = []
    for changed, values in scores.items():
        gains = values - scores[start]
        low, high = bootstrap_interval(gains)
        row = {"postprocess": str(changed), "dice": float(values.mean()), "gain": float(gains.mean()), "gain_low": low, "gain_high": high}
        rows.append(row | {"better": int((gains > 0).sum()), "worse": int((gains < 0).sum()), "chosen": changed == chosen})
    return rows
