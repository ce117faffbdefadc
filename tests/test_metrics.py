"""Dice of one image, and the interval of a mean."""

import numpy as np
import pytest

from ctseg.metrics import bootstrap_interval, dice_score

A = np.array([[1, 1, 0], [0, 0, 0]], bool)
B = np.array([[0, 1, 1], [1, 0, 0]], bool)
EMPTY = np.zeros((2, 3), bool)


@pytest.mark.parametrize(
    ("pred_mask", "true_mask", "score"),
    [(A, A, 1), (A, B, 0.4), (A, ~A, 0), (EMPTY, EMPTY, 1), (EMPTY, A, 0), (A, EMPTY, 0)],
)
def test_dice_scores_written_by_hand(pred_mask, true_mask, score):
    assert dice_score(pred_mask, true_mask) == pytest.approx(score)


def test_masks_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), true \(3, 2\)"):
        dice_score(A, A.T)


def test_the_interval_holds_the_mean_and_agrees_with_theory():
    scores = np.random.default_rng(0).normal(0.9, 0.1, 400)
    low, high = bootstrap_interval(scores)
    assert low < scores.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert bootstrap_interval(scores) == (low, high)


@pytest.mark.parametrize("scores", [np.array([0.25]), [0.25], np.full(20, 0.25)])
def test_scores_without_spread_have_an_interval_without_width(scores):
    assert bootstrap_interval(scores) == (0.25, 0.25)


def test_no_scores_have_no_interval():
    assert np.isnan(bootstrap_interval([])).tolist() == [True, True]
