"""Kinds of masks: two values, soft edges, labels, outlines; colors and their background."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ctseg.masks import describe_mask, find_border_color, find_levels, is_outline, measure_difference

Y, X = np.mgrid[:200, :260]
DISC = (Y - 90) ** 2 + (X - 120) ** 2 < 40**2
WHITE = DISC * np.uint8(255)
SPOT = (Y - 30) ** 2 + (X - 220) ** 2 < 9**2  # away from the disc
CORE = (Y - 95) ** 2 + (X - 110) ** 2 < 20**2  # in the disc


def resize(values: np.ndarray, factor: float, resample: str) -> np.ndarray:
    """A mask at another size."""
    size = [round(side * factor) for side in values.shape[::-1]]
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling[resample]))


def save_as_jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    """A mask saved with loss and read again."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def make_probability() -> np.ndarray:
    """A sigmoid of the distance from the disc's edge."""
    distance = ndimage.distance_transform_edt(DISC) - ndimage.distance_transform_edt(~DISC)
    return 255 / (1 + np.exp(-distance / 4))


SOFT = {
    "blurred": ndimage.gaussian_filter(WHITE, 2),
    "blurred more": ndimage.gaussian_filter(WHITE, 10),
    "blurred floats": ndimage.gaussian_filter(DISC.astype(np.float32), 3),
    "a probability map": make_probability().astype(np.uint8),
    "a probability map of floats": (make_probability() / 255).astype(np.float32),
    "mean of three": (np.mean([DISC, np.roll(DISC, 4, 0), np.roll(DISC, 4, 1)], axis=0) * 255).astype(
        np.uint8
    ),
    "mean of two": (DISC * 127 + np.roll(DISC, 3, 1) * 127).astype(np.uint8),
    "blurred, of 200 and 255": ndimage.gaussian_filter((WHITE // 255) * np.uint8(55) + np.uint8(200), 2),
    **{f"shrunk, {kind}": resize(WHITE, 1 / 3, kind) for kind in ("BOX", "BILINEAR", "BICUBIC", "LANCZOS")},
    **{f"enlarged, {kind}": resize(WHITE, 6, kind) for kind in ("BILINEAR", "BICUBIC", "LANCZOS")},
    **{f"JPEG of 128 and 255, {q}": save_as_jpeg(128 + WHITE // 2, q) for q in (50, 75, 95)},
    "sharply resized, of 128 and 255": resize(128 + WHITE // 2, 0.7, "LANCZOS"),
    **{f"JPEG of quality {quality}": save_as_jpeg(WHITE, quality) for quality in (30, 75, 95, 100)},
}
LABELS = {
    "1 and 2, apart": np.where(SPOT, 1, 2 * DISC).astype(np.uint8),
    "2 in 1": np.where(CORE, 2, DISC).astype(np.uint8),
    "1 in 2": np.where(CORE, 1, 2 * DISC).astype(np.uint8),
    "halves": np.where(X < 120, 127, 255).astype(np.uint8) * DISC,
    "1 in a thin rim around 2": DISC + ndimage.binary_erosion(DISC, iterations=2).astype(np.uint8),
    "instances": (DISC * (1 + (Y // 20) * 13 + X // 20)).astype(np.uint16),
    "a small spot in a large region": np.where(
        (Y - 95) ** 2 + (X - 110) ** 2 < 36, 128, 255 * ((Y > 9) & (Y < 190))
    ).astype(np.uint8),
    "many instances": np.where((Y % 24 > 4) & (X % 24 > 4), 1 + Y // 24 * 11 + X // 24, 0).astype(np.uint16),
    "a middle label over most of the mask": np.where(CORE, 255, 127).astype(np.uint8) * (X > 20),
    "1 and 255": np.where(SPOT, 1, WHITE).astype(np.uint8),
    "254 and 255": np.where(SPOT, 254, WHITE).astype(np.uint8),
    "as JPEG": save_as_jpeg(np.where(CORE, 127, WHITE).astype(np.uint8), 90),
    "blurred": ndimage.gaussian_filter(np.where(CORE, 127, WHITE).astype(np.uint8), 1),
    "shrunk": resize(np.where(CORE, 127, WHITE).astype(np.uint8), 0.5, "BILINEAR"),
    "1, 2 and 3": np.where(SPOT, 3, np.where(CORE, 2, DISC)).astype(np.uint16),
}


def test_a_thick_plateau_that_few_pixels_have_is_a_soft_peak():
    peak = 100 * np.exp(-((Y - 100) ** 2 + (X - 130) ** 2) / (2 * 45**2))
    values = np.maximum(np.round(peak), 255.0 * ((Y < 9) & (X < 9)))
    assert np.sum(values == 100) > 25 and describe_mask(values.astype(np.uint8)) == "anti-aliased"


@pytest.mark.parametrize("kind", SOFT)
def test_soft_edges_are_no_labels(kind):
    assert describe_mask(SOFT[kind]) == "anti-aliased"


@pytest.mark.parametrize("kind", LABELS)
def test_a_third_label_is_not_a_soft_edge(kind):
    assert describe_mask(LABELS[kind]) == "several labels"


def test_levels_are_the_frequent_values_not_the_overshoot():
    assert find_levels(save_as_jpeg(128 + WHITE // 2, 75)) == (128, 255)
    assert find_levels(resize(128 + WHITE // 4, 0.7, "LANCZOS")) == (128, 191)
    assert find_levels(np.array([[0, 100, 255]])) == (0, 255)
    assert find_levels(np.array([[7, 7]])) == (0, 7) and find_levels(np.array([[-1, -1]])) == (-1, -1)


@pytest.mark.parametrize("step", [1, 2])
def test_labels_and_soft_edges_are_told_apart_in_large_masks(step):
    large = {
        name: np.kron(values, np.ones((8 * step, 8 * step), values.dtype)) for name, values in LABELS.items()
    }
    assert describe_mask(large["1 in 2"]) == "several labels"
    assert (
        describe_mask(ndimage.gaussian_filter(np.kron(WHITE, np.ones((8, 8), np.uint8)), 12))
        == "anti-aliased"
    )


@pytest.mark.parametrize(
    ("values", "levels", "kind"),
    [
        ([[0, 0]], None, "empty"),
        ([[7, 7]], None, "full"),
        ([[7, 7]], (7, 7), "empty"),
        ([[-1, -1]], None, "empty"),
        ([[0, 0]], (-1, 0), "full"),
        ([[0, 1]], None, "0/1"),
        ([[0, 255]], None, "0/255"),
        ([[128, 255]], None, "two values"),
        ([[-1, 1]], None, "two values"),
        ([[0, 65535]], None, "two values"),
    ],
)
def test_masks_of_one_or_two_values_are_named(values, levels, kind):
    assert describe_mask(np.array(values), levels) == kind


def test_a_picture_is_not_a_mask():
    assert describe_mask(np.random.default_rng(0).integers(0, 255, (50, 60), np.uint8)) == "an image"
    assert describe_mask((Y + X).astype(np.uint16)) == "an image"


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that are next to its edge."""
    return mask & ~ndimage.binary_erosion(mask, iterations=width)


def cut_gap(mask: np.ndarray) -> np.ndarray:
    """A line with a gap of three pixels."""
    y, x = np.argwhere(mask)[mask.sum() // 2]
    return mask & ((abs(Y - y) > 1) | (abs(X - x) > 1))


@pytest.mark.parametrize(
    ("mask", "drawn"),
    [
        (outline(DISC, 1), True),
        (outline(DISC, 3), True),
        (cut_gap(outline(DISC, 2)), True),
        (outline(DISC, 2) | outline(SPOT, 2), True),
        (outline(SPOT, 1), True),
        (outline(DISC, 15), False),
        (DISC, False),
        (DISC & ~CORE, False),
        (SPOT, False),
        (DISC & (Y == X), False),
        (DISC & False, False),
        (DISC | True, False),
    ],
)
def test_an_outline_is_told_from_a_region(mask, drawn):
    assert is_outline(mask) is drawn


def test_the_border_of_a_color_mask_is_its_background():
    colors = np.uint8([[[0, 255, 0]] * 4] * 2 + [[[255, 0, 0]] + [[0, 255, 0]] * 3])
    assert find_border_color(colors) == (0, 255, 0)


def test_colors_differ_from_the_background_and_from_each_other():
    colors = np.uint8([[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    assert measure_difference(colors, (0, 0, 0)).round().tolist() == [[0, 76, 150, 29]]
    assert measure_difference(colors, (0, 255, 0)).round().tolist() == [[150, 226, 0, 179]]
    assert measure_difference(np.full((1, 1, 3), 255, np.uint8), (255, 255, 254))[0, 0] > 0
