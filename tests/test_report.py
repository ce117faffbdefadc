"""The summary of a run."""

import re
import shutil

import numpy as np
import pytest
from conftest import save_image

from ctseg.config import Config, fill_settings
from ctseg.data import Case
from ctseg.files import read_csv, read_json, write_bytes, write_csv, write_json, write_text
from ctseg.postprocess import PostProcess
from ctseg.report import (
    choose_cases,
    print_summary,
    summarize,
    write_cases,
    write_report,
    write_summary,
)
from ctseg.transforms import make_letterbox


def test_one_score_is_its_own_mean_and_interval():
    assert summarize([0.75]) == {"dice": 0.75, "low": 0.75, "high": 0.75, "n": 1}


def test_several_scores_have_a_mean_inside_its_interval():
    scores = np.random.default_rng(0).uniform(0.6, 1, 50)
    summary = summarize(scores)
    assert summary["dice"] == pytest.approx(scores.mean()) and summary["n"] == 50
    # The normal approximation of the interval, which the bootstrap comes close to.
    margin = 1.96 * scores.std() / np.sqrt(50)
    assert summary["low"] == pytest.approx(scores.mean() - margin, abs=margin / 4)
    assert summary["high"] == pytest.approx(scores.mean() + margin, abs=margin / 4)
    assert summarize(list(scores)) == summary


@pytest.fixture
def run_dir(tmp_path):
    """A run with the histories of two folds, of which the last one failed."""
    run_dir = tmp_path / "my run"
    row = {"train_soft_dice": 0.5, "bce": 0.25, "loss": 0.5, "val_dice": 0.75, "lr": 0.001}
    for fold, seconds in ((0, [1.5, 2.25]), (2, [4.0])):
        rows = [row | {"epoch": epoch, "seconds": value} for epoch, value in enumerate(seconds, 1)]
        write_csv(rows, run_dir / f"fold{fold}" / "history.csv")
    traceback = 'Traceback (most recent call last):\n  File "a.py", line 3\nMemoryError: größer; try less\n'
    write_text(traceback, run_dir / "failed_fold2.txt")
    return run_dir


def test_a_summary_names_failed_folds_and_training_seconds(run_dir):
    scores = {"plain": summarize([0.5, 0.75]), "chosen": summarize([0.8])}
    summary = write_summary(run_dir, scores=scores, postprocess="fill holes")
    assert summary == read_json(run_dir / "summary.json")
    assert summary["run"] == "my run" and summary["postprocess"] == "fill holes"
    assert summary["scores"] == scores
    assert summary["failed"] == {"fold2": "MemoryError: größer; try less"}
    assert summary["train_seconds"] == {"fold0": 3.75, "fold2": 4.0}
    assert summary["versions"].keys() >= {"python", "torch", "numpy"} and summary["device"]


def test_of_an_average_the_folds_of_its_runs_are_named(run_dir, tmp_path):
    average = tmp_path / "both"
    summary = write_summary(average, scores={}, postprocess="", members={"s/a": run_dir, "b": tmp_path / "b"})
    assert summary["failed"] == {"s/a/fold2": "MemoryError: größer; try less"}
    assert summary["train_seconds"] == {"s/a/fold0": 3.75, "s/a/fold2": 4.0}
    page = report(average, members={"s/a": run_dir})
    assert "s/a/fold2 failed in its last try: MemoryError (see s/a/failed_fold2.txt)" in page


def test_the_printed_summary_has_every_score_and_failed_fold(run_dir, capsys):
    scores = {"plain": summarize([0.5]), "chosen": summarize([0.8])}
    write_text("ID,Mask\n", run_dir / "submission.csv")  # of an earlier try
    write_summary(run_dir, scores=scores, postprocess="fill holes")
    print_summary(run_dir)
    assert "submission" not in capsys.readouterr().out
    write_summary(run_dir, scores=scores, postprocess="fill holes", submission="4 rows, valid")
    print_summary(run_dir)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "plain Dice 0.5000 [0.5000, 0.5000] 1 images",
        "chosen Dice 0.8000 [0.8000, 0.8000] 1 images",
        "FAILED fold2: MemoryError: größer; try less",
        "applied fill holes",
        f"submission {run_dir / 'submission.csv'}",
        f"report {run_dir / 'report.html'}",
    ]


def report(run_dir, **given) -> str:
    """The report of a run without pictures."""
    settings = {"preset": "quick", "lr": 0.5, "weights": str(run_dir / "w.pth"), "weights_digest": "d"}
    write_json(Config(**fill_settings(settings)).stored(), run_dir / "config.json")
    scores = {"validation, cross-fitted": summarize([0.5, 0.75])}
    texts = {"postprocess": "fill holes", "submission": "submission.csv: 4 rows, valid"}
    write_summary(run_dir, scores=scores, **texts | given)
    return write_report(run_dir).read_text()


def test_a_report_says_what_was_found_in_files_that_are_there(run_dir):
    page = report(run_dir, notes=["fold1 is not finished, and has 3 epochs"])
    for text in (
        '<p class="big">Dice 0.6250</p><p class="faint">on 2 validation images, cross-fitted; ',
        "95 % interval 0.5000 to 0.7500",
        "Applied after the networks: fill holes.",
        "submission.csv: 4 rows, valid",
        "fold2 failed in its last try: MemoryError (see failed_fold2.txt)",
        "fold1 is not finished, and has 3 epochs",
        "<td>lr</td><td>0.5</td><td>0.002</td>",
        "<td>weights</td><td>w.pth</td><td></td>",
        'alt="validation Dice"',
    ):
        assert text in page
    assert str(run_dir) not in page and "Examples" not in page
    assert "No submission: there are no test images." in report(run_dir, submission="")


def test_a_figure_that_makes_a_report_too_large_stays_in_its_folder(run_dir):
    write_bytes(bytes(2_800_000), run_dir / "figures" / "1 large.webp")
    write_bytes(bytes(2_800_000), run_dir / "figures" / "2 too large.webp")
    page = report(run_dir)
    assert len(page) < 4_000_000 and 'alt="1 large"' in page
    assert "too large for this page: figures/2 too large.webp" in page


def test_of_the_cases_the_two_lowest_the_next_worst_and_four_typical_ones_are_shown():
    kinds = choose_cases(np.linspace(0, 1, 42))
    assert [index for index, kind in kinds.items() if kind == "lowest"] == [0, 1]
    assert [index for index, kind in kinds.items() if kind == "worst"] == [2, 3, 5, 6, 7]
    assert [index for index, kind in kinds.items() if kind == "typical"] == [4, 16, 27, 39]
    assert choose_cases(np.array([0.5])) == {0: "lowest"}
    assert choose_cases(np.array([0.9, 0.0])) == {1: "lowest", 0: "lowest"}


class Predictions:
    """In place of `predict.OutOfFold`: images of one size, each with a square as mask and prediction."""

    def __init__(self, folder, names):
        image = np.full((40, 60, 3), 90, np.uint8)
        path = save_image(folder / "image.png", image)
        self.cases = [Case(name, path) for name in names]
        self.folds = np.zeros(len(names), int)

    def score(self, chosen):
        return np.linspace(0, 1, len(self.cases))

    def read(self, index):
        probability = np.zeros((32, 32), np.float32)
        probability[10:20, 10:20] = index % 2  # every other prediction is empty
        mask = np.zeros((40, 60), bool)
        mask[5:20, 9:30] = index % 3 > 0
        return probability, make_letterbox((40, 60), 32), mask


@pytest.mark.parametrize("n", [1, 2, 20])
def test_cases_are_drawn_whatever_their_names_are(run_dir, tmp_path, n):
    names = ["a b.c", '<i>"&', "50 %s", "größer", "漢" * 90, "x" * 200, *map(str, range(14))][:n]
    write_cases(run_dir, Predictions(tmp_path, names), PostProcess(), None)
    page = report(run_dir)
    assert page.count("predictions magenta.</p>") == (1 if n < 3 else 2)
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/webp', page)
    assert len(pictures) == min(n, 11) and len(set(pictures)) == len(pictures)
    assert all(text.endswith("; true mask green, prediction magenta") for text in pictures)
    assert ("&lt;i&gt;&quot;&amp;, Dice" in page) == (n > 1) and "<i>" not in page
    rows = read_csv(run_dir / "scores.csv")
    assert [row["image_id"] for row in rows] == names


def test_no_path_of_this_machine_gets_into_a_report(run_dir):
    for text in (
        "RuntimeError: a\n\tsize mismatch for enc.0: b",
        "PermissionError at /home/me/data",
        "x /home/me: y",
    ):
        write_text(text, run_dir / "failed_fold2.txt")
        page = report(run_dir)
        assert "fold2 failed in its last try" in page and "/home/me" not in page
    settings = {"weights": "~/secret/w.pth", "weights_digest": "d", "group": "../../secret/g.csv"}
    write_json(Config(**fill_settings(settings)).stored(), run_dir / "config.json")
    assert "secret" not in write_report(run_dir).read_text()


def test_copies_of_folds_and_other_peoples_figures_are_left_out(run_dir):
    shutil.copytree(run_dir / "fold0", run_dir / "fold0_backup")
    shutil.copytree(run_dir / "fold0", run_dir / "fold10")
    write_bytes(b"x", run_dir / "figures" / "5 mine.jpg")
    page = report(run_dir)
    assert list(read_json(run_dir / "summary.json")["train_seconds"]) == ["fold0", "fold2", "fold10"]
    assert "mine" not in page


def test_thousands_of_epochs_fit(run_dir):
    row = {"train_soft_dice": 0.5, "bce": 0.25, "loss": 0.5, "lr": 0.001, "seconds": 1.0}
    noise = np.random.default_rng(0).random(3000)
    rows = [row | {"epoch": epoch, "val_dice": dice, "loss": dice} for epoch, dice in enumerate(noise, 1)]
    for fold in range(5):
        write_csv(rows, run_dir / f"fold{fold}" / "history.csv")
    assert len(report(run_dir)) < 1_500_000
