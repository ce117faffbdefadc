"""Runs compared image by image: intervals that hold together, and what being picked is worth."""

import csv
import json
import re

import numpy as np
import pytest

from ctseg.compare import (
    Configuration,
    compare,
    compare_runs,
    correct_for_choice,
    draw_resamples,
    find_gains,
    find_tied,
    main,
    write_leaderboard,
)
from ctseg.files import write_json
from ctseg.folds import find_folds, train_folds
from ctseg.metrics import find_verdict
from ctseg.predict import read_scores
from ctseg.runs import make_config, open_run

IDS = [f"case_{index:02}" for index in range(60)]


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty repository, in which a test makes runs."""
    for name in ("ctseg", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(root, name, dice, n_folds=2, seconds=60.0, mask="m", folds=None):
    """A finished run of these scores {image_id: Dice}, assigned to its folds in turn."""
    run_dir = root / "runs" / name
    for fold in folds or range(n_folds):
        fold_dir = run_dir / f"fold{fold}"
        fold_dir.mkdir(parents=True)
        ids = [image_id for index, image_id in enumerate(dice) if index % n_folds == fold]
        np.savez(fold_dir / "oof.npz", image_ids=ids, scores=[dice[image_id] for image_id in ids])
        (fold_dir / "last.pth").write_bytes(b"")
        (fold_dir / "history.csv").write_text(f"epoch,seconds\n1,{seconds}\n")
    case = {"size": [1, 1], "mask_file": "x", "mask": mask, "fold": 0}
    content = {"window": None, "cases": dict.fromkeys(sorted(dice), case)}
    (run_dir / "training_data.json").write_text(json.dumps(content))
    return run_dir


def write_folds(root, **runs):
    """The folders of the folds of runs, by the scores of each."""
    return [path for name, dice in runs.items() for path in find_folds(write_run(root, name, dice))]


def draw(seed=0, gain=0.0, noise=0.02):
    """Dice of all images; the same hard and easy ones for every seed."""
    base = np.random.default_rng(99).beta(12, 1.5, len(IDS))
    own = np.random.default_rng(seed).normal(gain, noise, len(IDS)) if seed else np.zeros(len(IDS))
    return dict(zip(IDS, np.clip(base + own, 0, 1).tolist()))


def test_equal_runs_tie_at_zero_and_share_the_rank(repository):
    for name in "ab":
        write_run(repository, name, draw())
    rows = compare_runs("a", "b").rows
    assert [row["rank"] for row in rows] == [1, 1] and rows[0]["name"] == "a"
    assert rows[1]["gain"] == rows[1]["gain_low"] == rows[1]["gain_high"] == 0
    assert rows[1]["verdict"] == "undecided" and all(row["tied_with_best"] for row in rows)


def test_a_run_that_is_better_by_two_hundredths_is_found(repository):
    write_run(repository, "base", draw())
    write_run(repository, "better", draw(1, gain=0.03))
    write_run(repository, "worse", draw(2, gain=-0.03))
    comparison = compare_runs("base", "better", "worse")
    assert [(row["name"], row["verdict"]) for row in comparison.rows] == [
        ("better", "better"),
        ("base", "base"),
        ("worse", "worse"),
    ]
    better = comparison.rows[0]
    assert better["gain_low"] < better["gain"] < better["gain_high"] and better["images"] == len(IDS)
    assert [row["tied_with_best"] for row in comparison.rows] == [True, False, False]
    assert better["minutes"] == 2 and better["folds"] == 2 and better["path"] == "runs/better"
    gains = comparison.fold_gains[0]
    assert len(gains) == 2 and np.mean(gains) == pytest.approx(better["gain"])
    assert f"its gain on each fold: {gains[0]:+.4f}, {gains[1]:+.4f}" in comparison.notes


def test_images_are_paired_by_their_ids(repository):
    dice = draw()
    write_run(repository, "a", dice)
    write_run(repository, "b", dict(sorted(dice.items(), key=lambda item: item[1])), n_folds=3)
    assert compare_runs("a", "b").rows[1]["gain_high"] == 0


def test_the_order_of_images_and_of_configurations_does_not_matter(repository):
    runs = {name: draw(seed) for seed, name in enumerate("abc")}
    for name, dice in runs.items():
        write_run(repository, name, dice)
        write_run(repository, f"{name}_reversed", dict(reversed(dice.items())))
    first, again = compare_runs("a", "b", "c"), compare_runs("a_reversed", "c_reversed", "b_reversed")
    for row, other in zip(first.rows, again.rows):
        assert row["name"] == other["name"].removesuffix("_reversed")
        assert row["gain_low"] == pytest.approx(other["gain_low"], abs=1e-12)


def test_runs_on_other_images_are_left_out_and_on_other_masks_refused(repository):
    dice = draw()
    write_run(repository, "a", dice)
    write_run(repository, "half", dice, folds=[1])
    entries = [Configuration(name, find_folds(repository / "runs" / name)) for name in ("a", "half")]
    comparison = compare(entries)
    assert [row["name"] for row in comparison.rows] == ["a"]
    assert comparison.notes[0] == "left out: half, which was scored on 30 images that are not the 60 of a"
    on_common = compare_runs("a", "half", "a")
    assert [row["images"] for row in on_common.rows] == [30] * 3
    assert on_common.notes[0] == "compared on the 30 images that all runs predicted in validation, of 60"
    assert on_common.rows[0]["dice"] == pytest.approx(np.mean([dice[name] for name in IDS[1::2]]))
    write_run(repository, "rest", dice, folds=[0])
    with pytest.raises(ValueError, match="half, rest have no validation image in common; compare runs of"):
        compare_runs("half", "rest")
    write_run(repository, "corrected", dice, mask="another")
    with pytest.raises(ValueError, match="corrected and .*runs/a were trained on different data"):
        compare_runs("a", "corrected")
    with pytest.raises(FileNotFoundError, match="no trained fold in .*none"):
        compare_runs("a", "none")


def test_rounding_is_no_gain():
    assert find_verdict(1e-16, 2e-16, 60) == find_verdict(-2e-16, -1e-16, 60) == "undecided"
    assert (find_verdict(1e-6, 2e-6, 60), find_verdict(-2e-6, -1e-6, 60)) == ("better", "worse")


def test_too_few_images_get_no_verdict(repository):
    for seed, name in enumerate("ab"):
        write_run(repository, name, dict(list(draw(seed, gain=-0.5).items())[:49]))
    comparison = compare_runs("a", "b")
    assert comparison.rows[1]["verdict"] == "too few images"
    assert comparison.notes[0] == "49 images are too few for a verdict; 50 are needed"


def test_repeats_are_one_configuration_by_the_mean_of_each_image(repository):
    first, second = draw(1), draw(2)
    paths = write_folds(repository, a=first, b=second)
    mean = {image_id: (first[image_id] + second[image_id]) / 2 for image_id in IDS}
    base = find_folds(write_run(repository, "mean", mean))
    comparison = compare([Configuration("mean", base), Configuration("repeats", paths)])
    rows = comparison.rows
    assert rows[1]["gain"] == pytest.approx(0, abs=1e-12) and rows[1]["rank"] == 1
    assert rows[1]["folds"] == 4 and rows[1]["minutes"] == 4
    higher = {key: min(value + 0.1, 1) for key, value in first.items()}
    better = write_folds(repository, c=higher, d=second)
    comparison = compare([Configuration("repeats", paths), Configuration("better", better)])
    gains = [f"{gain:+.4f}" for gain in comparison.fold_gains[0]]
    assert len(gains) == 2 and f"its gain on each repeat: {', '.join(gains)}" in comparison.notes


def test_of_a_product_each_values_effect_is_its_gain_with_the_others_averaged(repository):
    entries, gains = [], {("s", 1): 0.0, ("s", 2): 0.04, ("l", 1): 0.02, ("l", 2): 0.06}
    dice = draw()
    for (size, n), gain in gains.items():
        run = {image_id: value * 0.8 + gain for image_id, value in dice.items()}
        path = write_run(repository, f"{size}{n}", run)
        entries.append(Configuration(f"{size}{n}", find_folds(path), {"size": size, "n": n}))
    effects = compare(entries).effects
    found = [(row["setting"], row["value"], row["over"], round(row["gain"], 9)) for row in effects]
    assert found == [("size", "l", "s", 0.02), ("n", "2", "1", 0.04)]
    assert {row["verdict"] for row in effects} == {"better"} and compare(entries[:3]).effects == []


def test_the_leaderboard_is_written_as_table_page_and_picture(repository):
    write_run(repository, "base", draw())
    write_run(repository, "other", draw(1, gain=0.03))
    folders = {name: find_folds(repository / "runs" / name) for name in ("base", "other")}
    comparison = compare([Configuration(name, paths, {"lr": 5e-05}) for name, paths in folders.items()])
    write_leaderboard(repository, comparison)
    with open(repository / "leaderboard.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["other", "base"] and rows[0]["lr"] == "5e-05"
    page = (repository / "leaderboard.html").read_text()
    assert (
        "<td>other</td>" in page
        and "<td>5e-05</td>" in page
        and "data:image/svg+xml;base64" in page
        and "BBC-CV" in page
    )
    printed = repr(comparison).splitlines()
    assert printed[1].split()[:2] == ["1", "other"] and printed[1].endswith("better")


def draw_equal(rng, n_configurations=20, n_images=345):
    """Scores (C, N) of configurations of which none is better than another."""
    hard = rng.beta(12, 1.2, n_images)
    return np.clip(hard + rng.normal(0, 0.03, (n_configurations, n_images)), 0, 1)


def test_in_sweeps_of_equal_configurations_alarms_and_bias_are_rare():
    rng, weights = np.random.default_rng(3), draw_resamples(345)
    alarms, all_tied, naive, corrected, gains = [], [], [], [], []
    for _ in range(100):
        scores = draw_equal(rng)
        bounds = find_gains(scores, weights)[1:]
        alarms.append(np.any((bounds[:, 1] > 0) | (bounds[:, 2] < 0)))
        all_tied.append(find_tied(scores, weights).all())
        dice, gain = correct_for_choice(scores, weights)
        naive.append(scores.mean(axis=1).max() - scores.mean())
        corrected.append(dice - scores.mean())
        gains.append(gain + scores[0].mean() - scores.mean())
    assert np.mean(alarms) <= 0.10 and np.mean(all_tied) >= 0.90
    assert np.mean(naive) > 0.002  # what a plain look at the winner believes
    assert abs(np.mean(corrected)) < 0.0005 and abs(np.mean(gains)) < 0.0005


def test_a_gain_of_its_own_is_kept_by_the_correction():
    scores = draw_equal(np.random.default_rng(4))
    scores[7] += 0.05
    dice, gain = correct_for_choice(scores, draw_resamples(345))
    assert dice == pytest.approx(scores[7].mean(), abs=0.001)
    assert gain == pytest.approx(scores[7].mean() - scores[0].mean(), abs=0.001)
    assert find_tied(scores, draw_resamples(345)).nonzero()[0].tolist() == [7]


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_images_are_no_error(n):
    scores = np.random.default_rng(0).random((3, n))
    weights = draw_resamples(n)
    assert np.isfinite(find_gains(scores, weights)).all() and find_tied(scores, weights).any()
    assert np.isfinite(correct_for_choice(scores, weights)).all()


def test_runs_are_compared_on_a_page_with_the_cases_that_differ_most(phantom, repository, capsys):
    for name, lr in (("a", 0.002), ("b", 0.02)):
        settings = {"epochs": 1, "target_size": 32, "width": 2, "depth": 2, "n_folds": 2}
        config = make_config(data_root=str(phantom), run=name, lr=lr, **settings)
        train_folds(config, open_run(config))
    capsys.readouterr()
    main(["a", "b", "a"])
    printed = capsys.readouterr().out
    assert printed.startswith("rank ") and printed.endswith("runs/compare.html\n")
    page = (repository / "runs" / "compare.html").read_text()
    scores = [read_scores(path) for path in find_oof_files(repository, "ab")]
    dice = [scores[0] | scores[1], scores[2] | scores[3]]
    spread = {image: abs(dice[0][image] - dice[1][image]) for image in dice[0]}
    shown = re.findall(r"<h3>(.*?)</h3>", page)
    assert shown == sorted(sorted(spread), key=spread.get, reverse=True)[:6]
    first = shown[0]
    for name, own in zip("ab", dice):
        assert f"{name}: Dice {own[first]:.4f}" in page and f'alt="{first} as {name} predicts it"' in page


def find_oof_files(repository, names):
    return [path / "oof.npz" for name in names for path in find_folds(repository / "runs" / name)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "compare: got the run a alone; name two or more"),
        (["a", "none"], "compare: no trained fold in "),
        (["a", "both"], "compare: both is the average of a,b and has no folds to compare by; its score "),
        (["a", "other"], "compare: .*other and .*a were trained on"),
    ],
)
def test_runs_that_cannot_be_compared_are_an_error_in_a_line(repository, names, message):
    write_run(repository, "a", draw())
    write_run(repository, "other", draw(), mask="another")
    write_run(repository, "b", draw())
    for name in "ab":
        write_json({"preset": "quick"}, repository / "runs" / name / "config.json")
    write_json({"runs": "a,b"}, repository / "runs" / "both" / "config.json")
    with pytest.raises(SystemExit, match=message):
        main(names)
    assert not (repository / "runs" / "compare.html").exists()
