"""From a probability to a mask, and the choice of its steps by what validation shows."""

from dataclasses import replace

import numpy as np
import pytest

from ctseg.metrics import dice_score
from ctseg.postprocess import (
    PostProcess,
    choose_postprocess,
    choose_without,
    fill_holes,
    keep_if_earned,
    keep_largest_component,
    make_mask,
    make_probability,
    measure_mask,
    postprocess_mask,
    remove_small_components,
    score_own,
    tabulate_choice,
)
from ctseg.transforms import make_letterbox


def draw(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


RING = draw("###...", "#.#..#", "###...", "......")
FILLED = draw("###...", "###..#", "###...", "......")
LARGEST = draw("###...", "#.#...", "###...", "......")
DIAGONAL = draw("#..##", ".#...", "..#..")
BASELINE = PostProcess()
FILL = PostProcess(fill_holes=True)
BOTH = PostProcess(fill_holes=True, keep_largest_component=True)


def test_holes_are_filled_and_only_holes():
    assert np.array_equal(fill_holes(RING), FILLED)


def test_the_largest_component_stays_and_diagonals_connect():
    assert np.array_equal(keep_largest_component(RING), LARGEST)
    assert keep_largest_component(DIAGONAL).sum() == 3


def test_regions_of_fewer_pixels_than_asked_for_go():
    assert np.array_equal(remove_small_components(RING, 1), RING)
    assert np.array_equal(remove_small_components(RING, 2), LARGEST)
    assert not remove_small_components(RING, 9).any()
    assert np.array_equal(remove_small_components(DIAGONAL, 3), draw("#....", ".#...", "..#.."))


@pytest.mark.parametrize("chosen", [BASELINE, FILL, BOTH, PostProcess(min_area=0.1)])
@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool)])
def test_empty_and_full_masks_stay_as_they_are(mask, chosen):
    assert np.array_equal(postprocess_mask(mask, chosen), mask)


def test_each_step_is_optional_and_area_is_a_share_of_the_image():
    assert np.array_equal(postprocess_mask(RING, BASELINE), RING)
    assert np.array_equal(postprocess_mask(RING, FILL), FILLED)
    assert np.array_equal(postprocess_mask(RING, BOTH), FILLED & (np.arange(6) < 3))
    assert np.array_equal(postprocess_mask(RING, PostProcess(min_area=2 / 24)), LARGEST)
    assert np.array_equal(postprocess_mask(RING, PostProcess(min_area=1 / 24)), RING)


def test_probability_is_smoothed_in_the_square_and_cut_outside():
    probability = np.zeros((16, 16), np.float32)
    probability[8, 8] = 1
    letterbox = make_letterbox((32, 32), 16)
    assert make_probability(probability, letterbox).max() == pytest.approx(1, abs=0.5)
    smooth = make_probability(probability, letterbox, 0.1)
    assert smooth.max() < 0.2 and smooth.sum() == pytest.approx(4, rel=0.05)
    mask = make_mask(probability, letterbox, PostProcess(threshold=0.25))
    assert mask.shape == (32, 32)
    assert np.array_equal(mask, make_probability(probability, letterbox) > 0.25)


def test_the_threshold_comes_after_the_undo():
    probability = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    letterbox = make_letterbox((64, 64), 16)
    mask = make_mask(probability, letterbox, PostProcess(threshold=0.32))
    early = letterbox.undo((probability > 0.32).astype(np.float32)) > 0.5
    assert np.array_equal(mask, letterbox.undo(probability) > 0.32) and not np.array_equal(mask, early)


def test_a_post_processing_reads_as_what_it_does():
    assert str(BASELINE) == "threshold 0.5"
    steps = PostProcess(0.01, 0.45, True, min_area=0.002)
    assert str(steps) == "threshold 0.45 + smoothing 0.01 + fill_holes + min_area 0.002"


def make_scorer(true_masks, pred_mask=RING):
    """Score a prediction that is the ring in every case; smoothing and threshold change nothing."""

    def score_each(candidates):
        pred_masks = [postprocess_mask(pred_mask, candidate) for candidate in candidates]
        return np.array([[dice_score(mask, true_mask) for true_mask in true_masks] for mask in pred_masks])

    return score_each


def test_a_step_is_chosen_where_it_helps_and_only_there():
    assert choose_postprocess(make_scorer([FILLED] * 20), BASELINE) == FILL
    assert choose_postprocess(make_scorer([RING] * 20), BASELINE) == BASELINE


def test_steps_that_help_together_are_found_one_after_the_other():
    chosen = choose_postprocess(make_scorer([FILLED & (np.arange(6) < 3)] * 20), BASELINE)
    assert np.array_equal(postprocess_mask(RING, chosen), FILLED & (np.arange(6) < 3))


def test_the_threshold_is_chosen_as_well():
    def score_each(candidates):
        return np.array([np.full(20, 1 - abs(candidate.threshold - 0.4)) for candidate in candidates])

    assert choose_postprocess(score_each, BASELINE) == PostProcess(threshold=0.4)


def test_many_regions_keep_all_of_them():
    many = draw("##..##", "......", "##..##", "......")
    assert not choose_postprocess(make_scorer([many] * 20, many), BASELINE).keep_largest_component


def test_a_handful_of_images_decides_nothing():
    assert choose_postprocess(make_scorer([FILLED] * 9), BASELINE) == BASELINE
    assert choose_postprocess(make_scorer([FILLED] * 10), BASELINE) == FILL


def test_only_the_cases_that_are_named_decide():
    score_each, is_filled = make_scorer([FILLED] * 10 + [RING] * 10), np.arange(20) < 10
    assert choose_postprocess(score_each, BASELINE, is_filled) == FILL
    assert choose_postprocess(score_each, BASELINE, ~is_filled) == BASELINE
    assert choose_postprocess(score_each, BASELINE, np.arange(20) < 9) == BASELINE


def test_a_gain_that_could_be_chance_is_not_a_gain():
    score_each = make_scorer([FILLED] * 12 + [RING] * 8)
    chosen = choose_postprocess(score_each, BASELINE)
    rows = tabulate_choice(score_each, BASELINE, chosen)
    fill = next(row for row in rows if row["postprocess"] == "threshold 0.5 + fill_holes")
    assert fill["gain"] != 0 and fill["gain_low"] < 0 < fill["gain_high"]
    assert [row["postprocess"] for row in rows if row["chosen"]] == ["threshold 0.5"]
    assert (fill["better"], fill["worse"]) == (12, 8)


def test_each_fold_is_scored_with_the_choice_of_the_others():
    # Filling helps in fold 0 and hurts in fold 1: each fold gets what is right for the other.
    score_each = make_scorer([FILLED] * 20 + [RING] * 20)
    folds = np.repeat([0, 1], 20)
    fitted = score_own(score_each, choose_without(score_each, BASELINE, folds))
    plain, filled = score_each([BASELINE, FILL])
    assert np.array_equal(fitted[folds == 0], plain[folds == 0])
    assert np.array_equal(fitted[folds == 1], filled[folds == 1])
    assert fitted.mean() < max(plain.mean(), filled.mean())


def test_the_chosen_one_is_in_the_table_though_two_changes_away():
    chosen = replace(FILL, threshold=0.4)
    rows = tabulate_choice(make_scorer([FILLED] * 20), BASELINE, chosen)
    assert rows[0]["postprocess"] == "threshold 0.5" and rows[0]["gain"] == 0
    assert [row["postprocess"] for row in rows if row["chosen"]] == ["threshold 0.4 + fill_holes"]


def test_what_loses_where_it_was_not_chosen_is_not_applied():
    steps, plain = PostProcess(min_area=0.01), PostProcess()
    low, high = np.array([0.1, 0.9]), np.array([0.2, 0.9])
    assert keep_if_earned(steps, low, plain, high) == plain
    assert keep_if_earned(steps, low, plain, low) == plain  # no fold chose it without its own images
    assert keep_if_earned(steps, high, plain, low) == steps


def test_a_mask_is_measured_by_area_components_and_border():
    mask = np.zeros((20, 30), bool)
    assert measure_mask(mask) == {"area": 0.0, "components": 0, "at_border": False}
    mask[2:4, 2:4] = mask[4, 4] = mask[10:12, 28:] = True  # the first two touch at a corner
    assert measure_mask(mask) == {"area": 9 / 600, "components": 2, "at_border": True}
    assert measure_mask(np.ones((2000, 1000), bool)) == {"area": 1.0, "components": 1, "at_border": True}


def test_large_masks_are_measured_in_full():
    line, speck, column = np.zeros((3, 2000, 1000), bool)
    rows = np.arange(2000)
    line[rows, rows // 2] = line[rows[1:], rows[:-1] // 2] = True
    assert measure_mask(line)["components"] == 1
    speck[701:703, 501:503] = True
    assert measure_mask(speck) == {"area": 4 / 2e6, "components": 1, "at_border": False}
    column[900, 999] = True
    assert measure_mask(column)["at_border"]
