"""The tables of notebooks 01 and 02: properties of the cases, and the cost of the round trip."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ctseg.data import Case, map_threads, read_image, read_mask, read_size
from ctseg.metrics import dice_score
from ctseg.transforms import average_area, make_letterbox


def describe_cases(cases: Sequence[Case], window: tuple[float, float] | None = None) -> list[dict]:
    """Describe each case in a row.

    Height and width in pixels; aspect, height / width; mean and standard deviation of each channel, 0 … 255;
    mask_area, the mask's share of the image, 0 for an empty mask and None without one.
    """
    return list(map_threads(partial(_describe_case, window=window), cases))


def _describe_case(case: Case, window: tuple[float, float] | None) -> dict:
    """Describe one case, as `describe_cases` does."""
    height, width = read_size(case.image)
    pixels = read_image(case.image, min_size=256, window=window).reshape(-1, 3)
    return {
        "image_id": case.image_id,
        "height": height,
        "width": width,
        "aspect": height / width,
        **{f"mean_{channel}": float(value) for channel, value in zip("rgb", pixels.mean(axis=0))},
        **{f"std_{channel}": float(value) for channel, value in zip("rgb", pixels.std(axis=0))},
        "mask_area": None if case.mask is None else float(read_mask(case.mask, case.mask_set).mean()),
    }


def tabulate_round_trip(cases: Sequence[Case], target_sizes: Sequence[int]) -> list[dict]:
    """Tabulate, by target size, the masks' mean Dice after the round trip, thresholded late and early."""
    rows = []
    for size in target_sizes:
        late, early = np.mean(list(map_threads(partial(_round_trips, target_size=size), cases)), axis=0)
        rows.append({"target_size": size, "dice": float(late), "dice_thresholded_early": float(early)})
    return rows


def _round_trips(case: Case, target_size: int) -> tuple[float, float]:
    """Dice of a case's mask after the round trip, with the late threshold and with the early one."""
    mask = read_mask(case.mask, case.mask_set)
    return round_trip_dice(mask, target_size), round_trip_dice(mask, target_size, early=True)


def round_trip_dice(mask: np.ndarray, target_size: int, *, early: bool = False) -> float:
    """Dice of a mask, bool (H, W), with itself after the square and back: a perfect network's score.

    `early` cuts the target to 0 and 1 in the square, as a threshold before the undo would.
    """
    letterbox = make_letterbox(mask.shape, target_size)
    target = np.zeros((target_size, target_size), np.float32)
    target[letterbox.inside] = average_area(mask, letterbox.resized_size)
    if early:
        target = (target > 0.5).astype(np.float32)
    return dice_score(letterbox.undo(target) > 0.5, mask)
