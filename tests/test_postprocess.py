from dataclasses import replace

import numpy as np
import pytest

from ctseg.metrics import dice_score
from ctseg.postprocess import (
    PostProcess,
    choose_postprocess,
    cross_fit,
    fill_holes,
    keep_largest_component,
    make_mask,
    make_probability,
    postprocess_mask,
    remove_small_components,
    tabulate_choice,
)
from ctseg.transforms import make_frame


def draw(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


RING = draw("###...", "#.#..#", "###...", "......")
FILLED = draw("###...", "###..#", "###...", "......")
LARGEST = draw("###...", "#.#...", "###...", "......")
DIAGONAL = draw("#..##", ".#...", "..#..")
PLAIN = PostProcess()
FILL = PostProcess(fill_holes=True)
BOTH = PostProcess(fill_holes=True, keep_largest_component=True)


def test_holes_are_filled_and_only_holes():
    assert np.array_equal(fill_holes(RING), FILLED)


def test_the_largest_component_stays_and_diagonal_neighbours_belong_together():
    assert np.array_equal(keep_largest_component(RING), LARGEST)
    assert keep_largest_component(DIAGONAL).sum() == 3


def test_regions_of_fewer_pixels_than_asked_for_go():
    assert np.array_equal(remove_small_components(RING, 1), RING)
    assert np.array_equal(remove_small_components(RING, 2), LARGEST)
    assert not remove_small_components(RING, 9).any()
    assert np.array_equal(remove_small_components(DIAGONAL, 3), draw("#....", ".#...", "..#.."))


@pytest.mark.parametrize("chosen", [PLAIN, FILL, BOTH, PostProcess(min_area=0.1)])
@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool)])
def test_empty_and_full_masks_stay_as_they_are(mask, chosen):
    assert np.array_equal(postprocess_mask(mask, chosen), mask)


def test_each_step_can_be_switched_and_the_area_is_a_share_of_the_image():
    assert np.array_equal(postprocess_mask(RING, PLAIN), RING)
    assert np.array_equal(postprocess_mask(RING, FILL), FILLED)
    assert np.array_equal(postprocess_mask(RING, BOTH), FILLED & (np.arange(6) < 3))
    assert np.array_equal(postprocess_mask(RING, PostProcess(min_area=2 / 24)), LARGEST)
    assert np.array_equal(postprocess_mask(RING, PostProcess(min_area=1 / 24)), RING)


def test_the_probability_is_smoothed_in_the_square_and_cut_at_full_size():
    square = np.zeros((16, 16), np.float32)
    square[8, 8] = 1
    frame = make_frame((32, 32), 16)
    assert make_probability(square, frame).max() == pytest.approx(1, abs=0.5)
    smooth = make_probability(square, frame, 0.1)
    assert smooth.max() < 0.2 and smooth.sum() == pytest.approx(4, rel=0.05)
    mask = make_mask(square, frame, PostProcess(threshold=0.25))
    assert mask.shape == (32, 32) and np.array_equal(mask, make_probability(square, frame) > 0.25)


def test_the_threshold_comes_after_the_way_back():
    square = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    frame = make_frame((64, 64), 16)
    mask = make_mask(square, frame, PostProcess(threshold=0.32))
    early = frame.undo((square > 0.32).astype(np.float32)) > 0.5
    assert np.array_equal(mask, frame.undo(square) > 0.32) and not np.array_equal(mask, early)


def test_a_way_of_post_processing_reads_as_what_it_does():
    assert str(PLAIN) == "threshold 0.5"
    assert str(PostProcess(0.01, 0.45, True, min_area=0.002)) == "threshold 0.45 + smoothing 0.01 + fill_holes + min_area 0.002"


def make_score(truths, pred_mask=RING):
    """A scorer of masks that are the ring in every case; smoothing and threshold change nothing."""

    def score(choices):
        return {chosen: np.array([dice_score(postprocess_mask(pred_mask, chosen), truth) for truth in truths]) for chosen in choices}

    return score


def test_a_step_is_chosen_where_it_helps_and_only_there():
    assert choose_postprocess(make_score([FILLED] * 20), PLAIN) == FILL
    assert choose_postprocess(make_score([RING] * 20), PLAIN) == PLAIN


def test_steps_that_help_together_are_found_one_after_the_other():
    chosen = choose_postprocess(make_score([FILLED & (np.arange(6) < 3)] * 20), PLAIN)
    assert np.array_equal(postprocess_mask(RING, chosen), FILLED & (np.arange(6) < 3))


def test_the_threshold_is_chosen_as_well():
    def score(choices):
        return {chosen: np.full(20, 1 - abs(chosen.threshold - 0.4)) for chosen in choices}

    assert choose_postprocess(score, PLAIN) == PostProcess(threshold=0.4)


def test_many_regions_keep_all_of_them():
    many = draw("##..##", "......", "##..##", "......")
    assert not choose_postprocess(make_score([many] * 20, many), PLAIN).keep_largest_component


def test_a_handful_of_images_decides_nothing():
    assert choose_postprocess(make_score([FILLED] * 9), PLAIN) == PLAIN
    assert choose_postprocess(make_score([FILLED] * 10), PLAIN) == FILL


def test_a_gain_that_could_be_chance_is_no_gain():
    score = make_score([FILLED] * 12 + [RING] * 8)
    chosen = choose_postprocess(score, PLAIN)
    rows = tabulate_choice(score, PLAIN, chosen)
    fill = next(row for row in rows if row["postprocess"] == "threshold 0.5 + fill_holes")
    assert fill["gain"] != 0 and fill["gain_low"] < 0 < fill["gain_high"]
    assert [row["postprocess"] for row in rows if row["chosen"]] == ["threshold 0.5"]
    assert (fill["better"], fill["worse"]) == (12, 8)


def test_each_part_is_scored_with_what_the_others_choose():
    # Filling helps in part 0 and hurts in part 1: each part gets what is right for the other.
    score = make_score([FILLED] * 20 + [RING] * 20)
    parts = np.repeat([0, 1], 20)
    fitted = cross_fit(score, PLAIN, parts)
    scores = score([PLAIN, FILL])
    assert np.array_equal(fitted[parts == 0], scores[PLAIN][parts == 0]) and np.array_equal(fitted[parts == 1], scores[FILL][parts == 1])
    assert fitted.mean() < max(scores[PLAIN].mean(), scores[FILL].mean())


def test_what_is_chosen_is_in_the_table_though_it_is_two_changes_away():
    chosen = replace(FILL, threshold=0.4)
    rows = tabulate_choice(make_score([FILLED] * 20), PLAIN, chosen)
    assert rows[0]["postprocess"] == "threshold 0.5" and rows[0]["gain"] == 0
    assert [row["postprocess"] for row in rows if row["chosen"]] == ["threshold 0.4 + fill_holes"]
