"""What notebooks 03 and 04 measure: levels, verdicts, thresholds, doubts."""

import re

import numpy as np
import pytest
import torch

from ctseg.config import Config
from ctseg.contest import A0
from ctseg.data import find_cases, read_mask
from ctseg.diagnose import (
    choose_step_case,
    describe_gain,
    divide_scores,
    judge_training,
    list_weak,
    measure_masks,
    pick_cases,
    rank_suspects,
    tabulate_levels,
    tabulate_losses,
    tabulate_seconds,
    tabulate_thresholds,
)
from ctseg.losses import Losses
from ctseg.metrics import bootstrap_interval
from ctseg.model import make_model
from ctseg.postprocess import PostProcess, measure_mask


def test_the_levels_of_a_plain_network_are_listed_from_the_image_down():
    rows = tabulate_levels(make_model(width=4, depth=2), 30)  # padded to 32 inside
    assert [tuple(row.values()) for row in rows] == [
        (1, "32 x 32", 4, 4),
        (2, "16 x 16", 8, 8),
        (4, "8 x 8", 16, None),
    ]


def test_the_levels_of_a_backbone_begin_at_stride_2():
    rows = tabulate_levels(make_model("mobilenet_v2", width=4), 64)
    assert [row["stride"] for row in rows] == [2, 4, 8, 16, 32]
    assert [row["encoder channels"] for row in rows] == [16, 24, 32, 96, 1280]
    assert [row["decoder channels"] for row in rows] == [4, 8, 16, 32, None]


def test_losses_and_seconds_become_rows():
    losses = [Losses(*map(torch.tensor, values)) for values in ((0.7, 0.6, 0.75), (0.5, 0.4, 0.5))]
    assert [list(row.values()) for row in tabulate_losses(losses)] == [
        [0, pytest.approx(0.7), pytest.approx(0.6), 0.25],
        [1, 0.5, pytest.approx(0.4), 0.5],
    ]
    history = [{"seconds": 5.0, "val_seconds": 1.0}, {"seconds": 3.0, "val_seconds": 1.0}]
    assert tabulate_seconds({2: history}) == [
        {"fold": 2, "epochs": 2, "training, s": 6.0, "validation, s": 2.0, "an epoch, s": 4.0}
    ]
    (old,) = tabulate_seconds({0: [{"seconds": 5.0, "val_seconds": 0.0}]})  # of an earlier version
    assert (old["training, s"], old["validation, s"], old["an epoch, s"]) == (None, None, 5.0)


RISING = np.linspace(0.6, 0.9, 20).tolist()
FLAT = [0.5, 0.7, 0.8, *[0.9] * 17]
FALLING = [0.6, 0.8, *[0.9] * 6, *np.linspace(0.89, 0.8, 12)]
ONE_CYCLE = {"schedule": "one_cycle"}


def judge(dice, n=500, **settings):
    """The verdict on a fold whose loss falls to the end."""
    losses = np.linspace(0.9, 0.1, len(dice))
    history = [{"val_dice": score, "loss": loss} for score, loss in zip(dice, losses)]
    return judge_training(history, Config(**settings), n_validation=n)


@pytest.mark.parametrize(
    ("dice", "settings", "n", "expected"),
    [
        ([0.1, 0.3], {}, 500, "Hardly trained: 0.300 at best"),
        ([0.7, 0.8, 0.9], {}, 500, r"Too few epochs to tell \(3\). Try -p epochs 60"),
        (RISING, {}, 500, r"Still improving: \+0.063 in the last 4 epochs. Try a longer run: -p epochs 60"),
        (RISING, {"epochs": 40}, 500, "-p epochs 80"),  # and not less than it was set to
        (RISING, {"epochs": None, "budget_minutes": 25.0}, 500, "-p budget_minutes 50"),
        (FALLING, {}, 500, "Overfitting: validation lost 0.0"),
        (FALLING, ONE_CYCLE, 500, "Overfitting"),
        (FALLING, {}, 1, "No change beyond chance"),  # of one image it is noise
        (FLAT, {}, 500, r"No change beyond chance in the last 4 epochs \(\+0.000, .*-p target_size 384"),
        (FLAT, ONE_CYCLE, 500, "Ended with its schedule, at 0.900. .* does not say whether a longer run"),
        (RISING, ONE_CYCLE, 500, "Ended with its schedule"),
    ],
)
def test_the_verdict_names_what_the_curves_show_and_what_to_try(dice, settings, n, expected):
    assert re.search(expected, judge(dice, n, **settings))


@pytest.mark.parametrize("n", [87, 172, 862])
def test_a_noisy_plateau_is_seldom_taken_for_overfitting_or_improvement(n):
    rng, verdicts = np.random.default_rng(0), []
    for _ in range(200):
        dice = 0.9 - 0.4 * np.exp(-np.arange(30) / 3) + rng.normal(0, 0.01, 30)
        verdicts.append(judge(dice, n))
    assert sum(not verdict.startswith("No change") for verdict in verdicts) <= 10


def test_folds_that_find_hardly_anything_are_named():
    scores, folds = np.array([0.9, 0.8, 0.1, 0.3]), np.array([0, 0, 1, 1])
    assert list_weak(scores, folds, ["fold0", "fold3"]) == [
        "fold3 is hardly trained: its Dice in validation is 0.200, and it is used all the same"
    ]
    # The numbers of a single fold are of groups of its images.
    assert list_weak(scores, folds, ["fold0"]) == [] and len(list_weak(scores[2:], folds[2:], ["fold0"])) == 1


def test_each_threshold_has_its_mean_and_interval_with_the_other_steps_kept():
    seen = []

    def score_each(candidates):
        seen.extend(candidates)
        return np.array([[candidate.threshold, 1.0, 0.5] for candidate in candidates])

    rows = tabulate_thresholds(score_each, PostProcess(fill_holes=True))
    assert all(candidate.fill_holes for candidate in seen)
    assert [row["threshold"] for row in rows] == [candidate.threshold for candidate in seen]
    row = next(row for row in rows if row["threshold"] == 0.3)
    assert row["dice"] == pytest.approx(0.6)
    assert (row["low"], row["high"]) == bootstrap_interval(np.array([0.3, 1.0, 0.5]))


def test_cases_to_show_are_the_lowest_the_middle_and_the_highest():
    scores = np.array([0.9, 0.1, 0.5, 0.7, 0.3, 0.6, 0.8])
    assert pick_cases(scores, n=1) == [1, 5, 0]
    assert pick_cases(scores[:3], n=4) == [1, 2, 0]  # each once
    assert choose_step_case(scores, scores + [0, 0, 0, -0.2, 0.1, 0, 0]) == 3
    assert choose_step_case(scores, scores) == 5  # the middle one


def test_true_masks_are_measured_from_their_files(tiny):
    cases = find_cases(tiny, "train", A0)
    assert measure_masks(cases) == [measure_mask(read_mask(case.mask)) for case in cases]


USUAL = [{"area": 0.1 + 0.001 * k, "components": 1, "at_border": False} for k in range(100)]
FINE = {"area": 0.15, "components": 1, "at_border": False, "agreement": 0.97}


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, ""),
        ({"area": 0.0, "components": 0}, "empty"),
        ({"area": 0.01}, "tiny"),
        ({"area": 0.9}, "huge"),
        ({"components": 3}, "3 components"),
        ({"at_border": True}, "at the border"),
        ({"agreement": 0.5}, "agreement 0.50"),
        ({"agreement": 0.949}, "agreement 0.95"),
        ({"agreement": 0.96}, ""),
        ({"area": 0.01, "components": 2, "agreement": 0.5}, "tiny, 2 components, agreement 0.50"),
    ],
)
def test_what_hardly_any_training_mask_has_is_suspicious(changes, reasons):
    (row,) = rank_suspects({"x": FINE | changes}, USUAL)
    assert row == {"image_id": "x", "suspicious": reasons, **FINE, **changes}


def test_what_is_usual_in_training_is_not_suspicious():
    usual = [row | {"at_border": True, "components": 3} for row in USUAL[:50]]
    usual += [{"area": 0.0, "components": 0, "at_border": False}] * 2000  # most images have nothing
    empty = FINE | {"area": 0.0, "components": 0}
    whole = FINE | {"area": 0.12, "at_border": True, "components": 3}
    rows = rank_suspects({"a": whole, "b": empty}, usual)
    assert [row["suspicious"] for row in rows] == ["", ""]


def test_without_training_masks_only_empty_masks_and_disagreement_are_suspicious():
    predicted = {
        "a": FINE | {"area": 0.9, "components": 9},
        "b": FINE | {"area": 0.0},
        "c": FINE | {"agreement": 0.1},
    }
    rows = rank_suspects(predicted, USUAL[:49])
    assert [row["suspicious"] for row in rank_suspects(predicted, [])] == [row["suspicious"] for row in rows]
    assert [(row["image_id"], row["suspicious"]) for row in rows] == [
        ("c", "agreement 0.10"),
        ("b", "empty"),
        ("a", ""),
    ]


def test_the_most_suspicious_come_first_and_of_as_many_those_that_agree_least():
    predicted = {
        "fine": FINE,
        "doubtful": FINE | {"agreement": 0.96},
        "one": FINE | {"area": 0.01},
        "two": FINE | {"area": 0.01, "at_border": True},
    }
    assert [row["image_id"] for row in rank_suspects(predicted, USUAL)] == ["two", "one", "doubtful", "fine"]


def test_test_scores_are_divided_into_hard_and_plain_cases():
    scores, kinds = {"a": 0.9, "b": 0.5, "c": 0.8}, {"a": "plain", "b": "tiny"}
    assert divide_scores(scores, kinds) == {
        "test": [0.9, 0.5, 0.8],
        "test, hard cases": [0.5],
        "test, plain cases": [0.9, 0.8],
    }


def test_a_gain_is_described_with_its_interval_and_verdict():
    assert describe_gain(np.full(50, 0.01)) == "+0.0100 [+0.0100, +0.0100], better"
    assert describe_gain(np.full(50, -0.01)).endswith("worse")
    assert describe_gain(np.array([-0.1, 0.1] * 25)).endswith("undecided")
    assert describe_gain(np.full(49, 0.01)).endswith("too few images")
