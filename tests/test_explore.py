"""The tables of notebooks 01 and 02."""

import numpy as np
import pytest
from PIL import Image

from ctseg.contest import A0
from ctseg.data import find_cases, read_mask
from ctseg.explore import describe_cases, round_trip_dice, tabulate_round_trip


def test_descriptions_give_size_color_and_area(tiny):
    row = describe_cases(find_cases(tiny, "train", A0))[0]
    image = np.asarray(Image.open(tiny / "Train/Image/case_0.png"))
    assert (row["height"], row["width"], row["aspect"]) == (30, 40, 0.75)
    assert row["mean_g"] == pytest.approx(image[..., 1].mean())
    assert row["std_b"] == pytest.approx(image[..., 2].std(), abs=0.01)
    assert row["mask_area"] == 5 * 14 / 1200


def test_a_case_without_a_mask_has_no_area(tiny):
    (row,) = describe_cases(find_cases(tiny, "test", A0))
    assert row["image_id"] == "case_9" and row["mask_area"] is None


@pytest.mark.parametrize("size", [(170, 110), (110, 170), (300, 290)])
def test_a_disc_survives_the_round_trip_best_with_a_late_threshold(size):
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y - 0.6 * size[0], x - 0.4 * size[1]) < 0.25 * min(size)
    late, early = round_trip_dice(disc, 64), round_trip_dice(disc, 64, early=True)
    assert late > 0.99
    assert late > early


def test_a_larger_square_loses_less_in_the_round_trip(phantom):
    cases = find_cases(phantom, "train", A0)[:6]
    small, large = tabulate_round_trip(cases, (32, 128))
    assert (small["target_size"], large["target_size"]) == (32, 128)
    assert 0.8 < small["dice"] < large["dice"] < 1
    assert small["dice_thresholded_early"] < small["dice"]
    masks = [read_mask(case.mask) for case in cases]
    assert small["dice"] == pytest.approx(np.mean([round_trip_dice(mask, 32) for mask in masks]))
    early = [round_trip_dice(mask, 32, early=True) for mask in masks]
    assert small["dice_thresholded_early"] == pytest.approx(np.mean(early))
