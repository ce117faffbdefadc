"""What the values of a mask mean: background and foreground, soft edges between them, or several labels."""

import numpy as np
from scipy import ndimage

_FEW_VALUES = 8  # a mask of more is soft, noisy, or numbers many regions
# In such a mask, values that differ by 2 % of the range count as one, and those up to 16 % from its ends as
# background and foreground: colors bleed that far in JPEG.
_TOLERANCE, _MARGIN = 0.02, 0.16
# The least depth of a label's region: in pixels, among few and among many values; as a share of the region
# around it; in pixels if it is compact. `tests/tools/soft_masks.py` counts what is taken for what.
_LABEL_DEPTH, _NOISY_LABEL_DEPTH, _LABEL_RELATIVE_DEPTH, _COMPACT_DEPTH = 2, 3, 0.17, 4
# Whole numbers in a smaller range count classes; soft edges use the whole range of a byte.
_FEWEST_SHADES = 32
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts color to gray


def find_levels(values: np.ndarray) -> tuple[float, float]:
    """The background's and the foreground's value in a mask (H, W), as far as it tells itself.

    The ends of its values; of many values the most frequent one in each half of the range, if it is frequent:
    JPEG and sharp resizing overshoot it. A single value above 0 is foreground.
    """
    present, counts = np.unique(values, return_counts=True)
    low, high = float(present[0]), float(present[-1])
    if len(present) == 1:
        return min(0.0, low), high
    levels = [low, high]
    if len(present) > _FEW_VALUES:
        is_upper = present > (low + high) / 2
        for end, half in enumerate((~is_upper, is_upper)):
            if counts[half].max() > 0.3 * counts[half].sum():
                levels[end] = float(present[half][counts[half].argmax()])
    return tuple(levels)


def describe_mask(values: np.ndarray, levels: tuple[float, float] | None = None) -> str:
    """Name a mask's kind.

    "empty", "full", "0/1", "0/255", "two values", "anti-aliased" (soft edges: blurred, resized, saved with
    loss, or a mean of several masks), "several labels", or "an image" (most values lie between).

    Args:
        values: (H, W), finite.
        levels: values of background and foreground; None for what `find_levels` finds.
    """
    low, high = levels or find_levels(values)
    present = np.unique(values)
    if high <= low:
        return "empty"
    if len(present) == 1:
        return "full"
    if len(present) == 2 and present[0] == low:
        return {(0, 1): "0/1", (0, 255): "0/255"}.get((low, high), "two values")
    if len(present) > 2 and present[-1] - low < _FEWEST_SHADES and values.dtype.kind in "iu":
        return "several labels"
    step = max(1, max(values.shape) // 1024)  # a label is as thick as before next to its region
    share = (values[::step, ::step].astype(np.float32) - low) / (high - low)
    if len(present) == 2:
        return "anti-aliased" if share.min() > 1 - _MARGIN else "several labels"
    if len(present) <= _FEW_VALUES:
        return "several labels" if _has_third_label(share, 0, 0) else "anti-aliased"
    if _numbers_regions(share):
        return "several labels"
    if np.mean((share > 0.1) & (share < 0.9)) > 0.5:
        return "an image"
    return "several labels" if _has_third_label(share, _TOLERANCE, _MARGIN) else "anti-aliased"


def _numbers_regions(share: np.ndarray) -> bool:
    """Whether much of what is between background, 0, and foreground, 1, is flat, at several values."""
    between = (share > _MARGIN) & (share < 1 - _MARGIN)
    flat = between & (ndimage.maximum_filter(share, 5) == ndimage.minimum_filter(share, 5))
    return bool(flat.sum() > 0.1 * between.sum() and len(np.unique(share[flat])) > 4)


def _has_third_label(share: np.ndarray, tolerance: float, margin: float) -> bool:
    """Whether a value between the background's, 0, and the foreground's, 1, fills a region of its own.

    Soft edges have such values too, but in bands that are thin next to the region.
    """
    between = (share > margin) & (share < 1 - margin)
    regions, _ = ndimage.label(share > margin)
    present, counts = np.unique(share[between], return_counts=True)
    for value in present[np.argsort(-counts, kind="stable")][:_FEW_VALUES]:
        alike = between & (np.abs(share - value) <= tolerance)
        depth = _measure_depth(alike)
        deepest, at = depth.max(), np.unravel_index(depth.argmax(), depth.shape)
        around = _measure_depth(regions == regions[at]).max()
        least = _NOISY_LABEL_DEPTH if tolerance else _LABEL_DEPTH
        if deepest >= max(least, _LABEL_RELATIVE_DEPTH * around):
            return True
        if not tolerance and deepest >= _COMPACT_DEPTH and _is_compact(alike, at, deepest):
            return True
    return False


def _is_compact(mask: np.ndarray, at: tuple[int, int], depth: int) -> bool:
    """Whether the region at a pixel is hardly larger than the square of its depth there."""
    regions, _ = ndimage.label(mask)
    return bool(np.sum(regions == regions[at]) < 2 * (2 * depth) ** 2)


def _measure_depth(region: np.ndarray) -> np.ndarray:
    """How many pixels each pixel of a region, bool (H, W), is from its outside, diagonals counted as one."""
    return ndimage.distance_transform_cdt(np.pad(region, 1), "chessboard")[1:-1, 1:-1]


def is_outline(mask: np.ndarray) -> bool:
    """Whether a mask, bool (H, W), only draws lines, perhaps with small gaps, that enclose its regions."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return False
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if mask.mean() > 0.5:  # most regions fill three quarters of the box around them
        return False
    mask = np.pad(mask, 2)
    closed = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=2)
    filled = ndimage.binary_fill_holes(closed)
    encloses = 2 * (filled.sum() - closed.sum()) > mask.sum()
    return bool(encloses and _measure_depth(mask).max() ** 2 < 0.01 * filled.sum())


def find_border_color(colors: np.ndarray) -> tuple[int, ...]:
    """The most frequent color along the border of uint8 (H, W, C)."""
    border = np.concatenate([colors[0], colors[-1], colors[:, 0], colors[:, -1]])
    present, counts = np.unique(border, axis=0, return_counts=True)
    return tuple(present[counts.argmax()].tolist())


def measure_difference(colors: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """How far each color of uint8 (H, W, 3) is from the background's, float32 (H, W), 0 … 255.

    The channels' differences are weighted as in luma, so that red, green and blue labels differ too.
    """
    levels = np.arange(256, dtype=np.float32)
    # A table for each channel: five times faster than arithmetic on 12 megapixels.
    tables = [np.float32(weight) * np.abs(levels - value) for weight, value in zip(_LUMA, background)]
    return sum(table[colors[..., channel]] for channel, table in enumerate(tables))
