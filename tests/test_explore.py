"""The measures of notebooks 01 and 02."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_image, write_pair
from PIL import Image

from ctseg.augment import Augment
from ctseg.config import AUGMENTATIONS, Config
from ctseg.contest import A0
from ctseg.data import Case, find_cases, read_mask
from ctseg.explore import (
    average_channels,
    average_masks,
    describe_cases,
    describe_change,
    draw_ends,
    draw_grid,
    find_difference,
    find_near_duplicates,
    find_outliers,
    make_changes,
    make_round_trips,
    measure_auc,
    pick_evenly,
    pick_typical,
    read_example,
    read_examples,
    split_channels,
    tabulate_border_cost,
    tabulate_channels,
    tabulate_round_trip,
)
from ctseg.metrics import dice_score
from ctseg.seeds import make_generator


def make_case(folder: Path, name: str, mask: np.ndarray, image: np.ndarray | None = None) -> Case:
    """A case of a mask, bool (H, W), and an image, black unless given."""
    image = np.zeros((*mask.shape, 3), np.uint8) if image is None else image
    paths = folder / f"{name}.png", folder / f"{name}_mask.png"
    return Case(name, save_image(paths[0], image), save_image(paths[1], mask.astype(np.uint8) * 255))


def test_an_example_is_small_with_its_mask_at_the_same_size(tmp_path):
    mask = np.zeros((40, 80), bool)
    mask[:20, :60] = True
    case = make_case(tmp_path, "a", mask)
    example = read_example(case, side=40)
    assert example.image.shape == (20, 40, 3) and example.mask[:10, :30].all() and example.mask.sum() == 300
    assert read_example(Case("a", case.image)).mask is None
    assert read_example(case).image.shape == (40, 80, 3)  # none is made larger
    other = make_case(tmp_path, "b", mask.T)
    with pytest.raises(ValueError, match=r"is \(80, 40\), its image .* is \(40, 80\)"):
        read_example(Case("a", case.image, other.mask))


def read_ids(root: Path, n: int) -> list[str]:
    """The ids of a data set's examples."""
    return [example.image_id for example in read_examples(Config(data_root=str(root)), n)]


def test_examples_of_a_damaged_set_are_neighbors_that_can_be_read(tiny):
    assert read_ids(tiny, 2) == ["case_0", "case_2"] and len(read_ids(tiny, 12)) == 4
    (tiny / "Train/Image/case_0.png").write_bytes(b"")
    save_image(tiny / "Train/Mask/case_2.png", np.zeros((3, 3), np.uint8))  # not of its image's size
    (tiny / "Train/Mask/case_3.png").unlink()
    assert read_ids(tiny, 2) == ["case_1"]
    (tiny / "Train/Mask/case_1.png").write_bytes(b"no image")
    assert read_ids(tiny, 2) == []


def test_an_example_of_16_bits_has_a_window_of_its_own_unless_one_is_given(tiny):
    values = np.linspace(1000, 2000, 1200).reshape(30, 40).astype(np.uint16)
    save_image(tiny / "Train/Image/case_0.png", values)
    (own,) = read_examples(Config(data_root=str(tiny)), 1)
    assert own.image.min() == 0 and own.image.max() == 255
    (given,) = read_examples(Config(data_root=str(tiny), window_low=1000, window_high=5000), 1)
    assert given.image.max() == pytest.approx(64, abs=1)


@pytest.mark.parametrize(("n", "expected"), [(3, [0, 4, 9]), (1, [0]), (20, list(range(10)))])
def test_items_are_picked_evenly(n, expected):
    assert pick_evenly(range(10), n) == expected and pick_evenly([], n) == []


def make_row(**values) -> dict:
    """A row of `describe_cases`, like all others but for some values."""
    colors = {f"{statistic}_{channel}": 50.0 for statistic in ("mean", "std") for channel in "rgb"}
    row = {"height": 300, "width": 400, "aspect": 0.75, "mask_area": 0.1} | colors
    return row | values


def test_the_most_unusual_rows_are_found_with_the_reason():
    usual = [make_row(mask_area=0.1 + 0.001 * index) for index in range(20)]
    bright = {f"mean_{channel}": 200.0 for channel in "rgb"}
    rows = [*usual, make_row(mask_area=0.002), make_row(**bright), make_row(height=3000, width=4000)]
    found = find_outliers(rows, 5)
    assert {index for index, _ in found[:3]} == {20, 21, 22}
    reasons = {index: reason for index, reason in found}
    assert reasons[20] == "mask 0.2 %\n(median 10.8 %)"
    assert reasons[21] == "brightness 200\n(median 50)"
    assert reasons[22] == "12 megapixels\n(median 0.12)"


def test_small_regions_leave_room_for_other_reasons():
    rows = [make_row() for _ in range(30)] + [make_row(mask_area=0.001)] * 9 + [make_row(aspect=2.0)]
    found = find_outliers(rows, 10)
    assert [index for index, reason in found if "mask" in reason] == [30, 31]
    assert 39 in [index for index, _ in found]


def test_empty_masks_and_masks_that_are_missing_are_not_unusual():
    rows = [make_row() for _ in range(9)] + [make_row(mask_area=0.0), make_row(mask_area=None)]
    assert find_outliers([make_row(mask_area=0.0)] * 2, 5) == find_outliers([make_row()] * 9, 5) == []
    assert all("mask" not in reason for _, reason in find_outliers(rows, 11))


def test_channels_are_averaged_by_row():
    assert average_channels([make_row(mean_r=20.0), make_row()], "mean") == [40, 50]


def test_the_mean_mask_is_the_share_of_masks_at_each_place(tmp_path):
    left, all_of_it = np.zeros((128, 256), bool), np.ones((64, 64), bool)
    left[:, :128] = True
    average = average_masks([make_case(tmp_path, "a", left), make_case(tmp_path, "b", all_of_it)])
    assert average.shape == (64, 64)
    assert (average[:, :32] == 1).all() and (average[:, 32:] == 0.5).all()


def test_a_border_off_by_one_costs_a_small_region_more(tmp_path):
    small, large, none = np.zeros((3, 64, 64), bool)
    small[30:32, 30:32] = True
    large[:, :32] = True  # at the edge of its image it does not shrink
    gone = np.zeros((640, 640), bool)
    gone[:3, :3] = True  # less than half of a pixel in the square
    masks = (small, large, none, gone)
    cases = [make_case(tmp_path, name, mask) for name, mask in zip("abcd", masks)]
    first, second, third = tabulate_border_cost(cases, 64)
    assert (third["image_id"], third["dice_grown"], third["dice_shrunk"]) == ("d", 0, 0)
    assert (first["image_id"], first["mask_area"]) == ("a", 4 / 4096)
    assert first["dice_grown"] == 2 * 4 / (4 + 12) and first["dice_shrunk"] == 0
    assert second["dice_grown"] == 2 * 32 / (32 + 33) and second["dice_shrunk"] == 2 * 31 / (31 + 32)


def test_near_duplicates_across_to_the_test_set_and_within_training_come_in_turn(tiny):
    image = np.asarray(Image.open(tiny / "Train/Image/case_1.png"))
    write_pair(tiny, "again", image[:, ::-1], np.zeros((30, 40), np.uint8))
    for name in ("same", "same_too"):
        save_image(tiny / "Test/Image" / f"{name}.png", image)
    pairs = find_near_duplicates(find_cases(tiny, "train", A0), find_cases(tiny, "test", A0))
    names = [tuple(case.image_id for case in pair) for pair in pairs]
    assert names[1] == ("again", "case_1") and len(names) == 5  # and none of two test images
    assert {names[0], *names[2:]} == {(a, b) for a in ("again", "case_1") for b in ("same", "same_too")}
    assert find_near_duplicates([], []) == []


def test_a_small_region_is_not_lost_in_a_small_picture(tmp_path):
    mask = np.zeros((600, 900), bool)
    mask[300:302, 500:502] = True
    small = read_example(make_case(tmp_path, "a", mask), side=90)
    assert small.mask.shape == (60, 90) and small.mask.sum() == 1
    mask[:, :450] = True
    assert read_example(make_case(tmp_path, "b", mask), side=90).mask.sum() == 60 * 45


def test_the_auc_counts_ties_half():
    mask = np.array([[1, 1, 0, 0]], bool)
    assert measure_auc(np.array([[3, 4, 1, 2]]), mask) == 1
    assert measure_auc(np.array([[1, 2, 3, 4]]), mask) == 0
    assert measure_auc(np.array([[7, 7, 7, 7]]), mask) == 0.5
    assert measure_auc(np.array([[3, 2, 2, 1]]), mask) == (1 + 1 + 0.5 + 1) / 4


def test_reds_on_both_sides_of_zero_are_neighbors_in_hue():
    hue = split_channels(np.array([[[200, 0, 10], [200, 10, 0], [0, 200, 0]]], np.uint8))["hue"][0]
    assert abs(hue[0] - hue[1]) < 0.02 < abs(hue[0] - hue[2])


def test_a_gray_image_has_one_channel_only():
    assert list(split_channels(np.full((2, 2, 3), 7, np.uint8))) == ["gray"]


def test_the_channel_that_tells_a_region_is_first(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), bool)
    mask[8:20, 8:20] = True
    image = rng.integers(100, 140, (32, 32, 3), np.uint8)
    image[mask, 2] = 20
    cases = [make_case(tmp_path, name, mask, image) for name in "ab"]
    cases += [make_case(tmp_path, "empty", ~mask & mask, image)]
    first, *others = tabulate_channels(cases)
    assert len(others) == 9 and others == sorted(others, key=lambda row: -row["auc"])
    rows = {row["channel"]: row for row in (first, *others)}
    assert rows["blue"] == {"channel": "blue", "auc": 1.0, "lower_inside": 1.0, "images": 2}
    assert rows["red"]["auc"] < 0.6 and first["auc"] == 1
    gray = make_case(tmp_path, "gray", mask, np.repeat(image[..., 2:], 3, axis=2))
    rows = {row["channel"]: row for row in tabulate_channels([*cases, gray])}
    assert (rows["gray"]["images"], rows["red"]["images"]) == (3, 2)  # a gray image has no red of its own
    (gray,) = tabulate_channels([make_case(tmp_path, "g", mask, np.repeat(image[..., 2:], 3, axis=2))])
    assert (gray["channel"], gray["auc"], gray["images"]) == ("gray", 1, 1)
    assert tabulate_channels(cases[2:]) == [] == tabulate_channels([])


def test_a_channel_without_a_direction_tells_nothing(tmp_path):
    mask = np.zeros((64, 64), bool)
    mask[8:20, 8:20] = True
    dark, bright = (np.repeat(np.where(mask, *pair)[..., None], 3, axis=2) for pair in ((0, 200), (200, 0)))
    cases = [
        make_case(tmp_path, name, mask, image.astype(np.uint8))
        for name, image in (("a", dark), ("b", bright))
    ]
    (row,) = tabulate_channels(cases)
    assert (row["auc"], row["lower_inside"]) == (0.5, 0.5)
    rng, noisy = np.random.default_rng(0), []
    for index in range(30):
        image = rng.integers(0, 255, (64, 64, 3), np.uint8)
        noisy.append(make_case(tmp_path, f"noise_{index}", mask, image))
    assert max(row["auc"] for row in tabulate_channels(noisy)) < 0.52


def test_a_change_of_ones_own_is_described_by_its_strength():
    assert describe_change("saturation", 0.5) == "saturation: 0.5"


def test_every_change_has_a_description():
    assert all(describe_change(name, 0.5).startswith(f"{name}: ") for name in AUGMENTATIONS)


def test_the_draws_shown_are_the_two_ends_of_a_range():
    first, second = draw_ends(Augment(brightness=0.2), make_generator(1)).split()[4].flatten().tolist()
    assert abs(first) > 0.18 and abs(second) > 0.18 and first * second < 0
    draws = draw_ends(Augment(elastic=0.1), make_generator(1))
    assert draws.values.shape == (2, 141)


def test_changes_are_shown_after_their_original_and_without_those_that_are_off():
    pixels = torch.full((4, 32, 32), 90, dtype=torch.uint8)
    changes = make_changes(pixels, {"flip": 0.5, "noise": 0.0, "brightness": 0.3}, make_generator(1))
    assert list(changes) == ["flip: each axis, in 50 %", "brightness: ± 30 % of white"]
    original, *ends = changes["brightness: ± 30 % of white"]
    assert original.shape == (4, 32, 32) and torch.equal(original, draw_grid(pixels) / 255)
    assert sorted(float(end[0, 8, 8] - original[0, 8, 8]) > 0 for end in ends) == [False, True]
    assert all(torch.allclose(end[3], original[3]) for end in ends)


def test_a_grid_is_drawn_on_the_image_and_not_on_its_target():
    pixels = torch.zeros(4, 16, 16, dtype=torch.uint8)
    drawn = draw_grid(pixels, n=4)
    assert drawn[:3, 2, 0].tolist() == drawn[:3, 0, 14].tolist() == [86, 180, 233]
    assert int((drawn[0] != pixels[0]).sum()) == 256 - 12 * 12
    assert torch.equal(drawn[3], pixels[3]) and int(pixels[0, 2, 0]) == 0  # a copy
    assert draw_grid(torch.zeros(4, 4, 4, dtype=torch.uint8)).shape == (4, 4, 4)


@pytest.mark.parametrize(("areas", "place"), [([0, 0, 9, 1, 4], 4), ([3, 1], 0), ([0, 0], 0), ([0, 2], 1)])
def test_the_typical_target_has_a_region_of_median_size(areas, place):
    targets = torch.zeros(len(areas), 1, 4, 4, dtype=torch.uint8)
    for target, area in zip(targets, areas):
        target.view(-1)[:area] = 255
    assert pick_typical(targets) == place


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
    late, early = (dice_score(mask, disc) for mask in make_round_trips(disc, 64))
    assert late > 0.99 and late > early


def test_a_larger_square_loses_less_in_the_round_trip(phantom):
    cases = find_cases(phantom, "train", A0)[:6]
    small, large = tabulate_round_trip(cases, (32, 128))
    assert (small["target_size"], large["target_size"]) == (32, 128)
    assert 0.8 < small["dice"] < large["dice"] < 1
    assert small["dice_thresholded_early"] < small["dice"]
    masks = [read_mask(case.mask) for case in cases]
    assert small["dice"] == pytest.approx(
        np.mean([dice_score(make_round_trips(mask, 32)[0], mask) for mask in masks])
    )
    early = [dice_score(make_round_trips(mask, 32)[1], mask) for mask in masks]
    assert small["dice_thresholded_early"] == pytest.approx(np.mean(early))


def test_the_square_where_two_masks_differ_most_is_found_within_them():
    one = np.zeros((40, 60), bool)
    other = one.copy()
    other[30:34, 50:55] = True
    rows, columns = find_difference(one, other, 10)
    assert (other[rows, columns]).sum() == 20 and other[rows, columns].shape == (10, 10)
    assert rows.start <= 28 and rows.stop >= 36  # in its middle
    other[30:34, 50:55], other[0, 0] = False, True
    assert find_difference(one, other, 10) == (slice(0, 10), slice(0, 10))
    assert find_difference(one, one, 50) == (slice(0, 50), slice(0, 50))
