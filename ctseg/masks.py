"""What the values of a mask mean: background and foreground, soft edges between them, or several labels."""

import numpy as np
from scipy import ndimage

# The least depth of a label of its own, in pixels and as a share of its region's. Of 800 soft masks (blurred,
# resized, saved as JPEG, means of several) and 800 with a third label, of 96 to 1,024 pixels, 2 % and 7 % are
# taken for the other; most of those labels are below seven pixels wide, or nested bands.
_LABEL_DEPTH, _LABEL_RELATIVE_DEPTH = 2, 0.17
# A mask of more values is soft or noisy: values that differ by 2 % of the range count as one, and those up to
# 5 % from its ends as background and foreground.
_FEW_VALUES, _TOLERANCE, _MARGIN = 8, 0.02, 0.05
_FEWEST_SHADES = (
    32  # whole numbers in a smaller range count classes; soft edges use the whole range of a byte
)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts color to gray


def describe_mask(values: np.ndarray, low: float | None = None) -> str:
    """Name a mask's kind.

    "empty", "full", "0/1", "0/255", "two values", "anti-aliased" (soft edges: blurred, resized, saved with
    loss, or a mean of several masks), "several labels", or "an image" (most values lie between).

    Args:
        values: (H, W), finite.
        low: the background's value; None for the lowest, and for 0 where there is only one value.
    """
    present = np.unique(values)
    high = present[-1]
    if low is None:
        low = present[0] if len(present) > 1 else min(0, high)
    if high <= low:
        return "empty"
    if len(present) == 1:
        return "full"
    if len(present) == 2 and present[0] == low:
        return {(0, 1): "0/1", (0, 255): "0/255"}.get((low, high), "two values")
    share = (values - float(low)) / (float(high) - float(low))
    if len(present) == 2:
        return "anti-aliased" if share.min() > 1 - _MARGIN else "several labels"
    if high - low < _FEWEST_SHADES and values.dtype.kind in "iu":
        return "several labels"
    if np.mean((share > 0.1) & (share < 0.9)) > 0.5:
        return "an image"
    return "several labels" if _has_third_label(share, len(present)) else "anti-aliased"


def _has_third_label(share: np.ndarray, n_values: int) -> bool:
    """Whether a value between the background's, 0, and the foreground's, 1, fills a region of its own.

    Soft edges have such values too, but in bands that are thin next to the region.
    """
    step = max(1, max(share.shape) // 1024)  # a label is as thick as before next to its region
    share = share[::step, ::step]
    tolerance, margin = (0, 0) if n_values <= _FEW_VALUES else (_TOLERANCE, _MARGIN)
    between = (share > margin) & (share < 1 - margin)
    regions, _ = ndimage.label(share > margin)
    present, counts = np.unique(share[between], return_counts=True)
    for value in present[np.argsort(-counts, kind="stable")][:_FEW_VALUES]:
        alike = between & (np.abs(share - value) <= tolerance)
        depth = _measure_depth(alike)
        region = regions == regions[np.unravel_index(depth.argmax(), depth.shape)]
        least = max(_LABEL_DEPTH, _LABEL_RELATIVE_DEPTH * _measure_depth(region).max())
        if depth.max() >= least:
            return True
    return False


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
    difference = np.abs(colors.astype(np.float32) - np.float32(background))
    return difference @ np.float32(_LUMA)
