import numpy as np
import pytest

from ctseg.postprocess import choose_steps, fill_holes, keep_largest_component, postprocess_mask, score_steps, tabulate_steps


def draw(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


RING = draw("###...", "#.#..#", "###...", "......")
FILLED = draw("###...", "###..#", "###...", "......")
LARGEST = draw("###...", "#.#...", "###...", "......")
DIAGONAL = draw("#..##", ".#...", "..#..")


def test_holes_are_filled_and_only_holes():
    assert np.array_equal(fill_holes(RING), FILLED)


def test_the_largest_component_stays_and_diagonal_neighbours_belong_together():
    assert np.array_equal(keep_largest_component(RING), LARGEST)
    assert keep_largest_component(DIAGONAL).sum() == 3


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool)])
def test_empty_and_full_masks_stay_as_they_are(mask):
    assert np.array_equal(postprocess_mask(mask), mask)


def test_each_step_can_be_switched():
    assert np.array_equal(postprocess_mask(RING, ()), RING)
    assert np.array_equal(postprocess_mask(RING, ("fill_holes",)), FILLED)
    assert np.array_equal(postprocess_mask(RING), FILLED & (np.arange(6) < 3))


def cases(truth, n=20):
    """n times the ring as prediction."""
    return [(str(index), RING, truth) for index in range(n)]


def test_a_step_is_chosen_where_it_helps_and_only_there():
    hole_hurts = score_steps(cases(FILLED))
    assert choose_steps(hole_hurts) == ("fill_holes",)
    assert choose_steps(score_steps(cases(FILLED & (np.arange(6) < 3)))) == ("fill_holes", "keep_largest_component")
    assert choose_steps(score_steps(cases(RING))) == ()


def test_a_handful_of_images_decides_nothing():
    assert choose_steps(score_steps(cases(FILLED, 9))) == ()
    assert choose_steps(score_steps(cases(FILLED, 10))) == ("fill_holes",)


def test_a_gain_that_could_be_chance_is_no_gain():
    mixed = [*cases(FILLED, 12), *cases(RING, 8)]
    scores = score_steps([(f"{index}", pred_mask, truth) for index, (_, pred_mask, truth) in enumerate(mixed)])
    rows = tabulate_steps(scores, choose_steps(scores))
    fill = next(row for row in rows if row["steps"] == "fill_holes")
    assert fill["gain"] != 0 and fill["gain_low"] < 0 < fill["gain_high"]
    assert [row["steps"] for row in rows if row["chosen"]] == ["none"]
    assert (fill["better"], fill["worse"]) == (12, 8)
