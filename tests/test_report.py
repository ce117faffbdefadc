"""The summary of a run."""

import numpy as np
import pytest

from ctseg.files import read_json, write_csv, write_text
from ctseg.report import print_summary, summarize, write_report, write_summary


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


def test_a_report_needs_executed_notebooks(tmp_path):
    (tmp_path / "notes.ipynb").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=f"no executed notebook in .*; run 'make run RUN={tmp_path.name}'"
    ):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture
def run_dir(tmp_path):
    """A run with the histories of two folds, of which the last one failed."""
    run_dir = tmp_path / "my run"
    for fold, seconds in ((0, [1.5, 2.25]), (2, [4.0])):
        rows = [{"epoch": epoch, "seconds": value} for epoch, value in enumerate(seconds, 1)]
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


def test_the_printed_summary_has_every_score_and_failed_fold(run_dir, capsys):
    scores = {"plain": summarize([0.5]), "chosen": summarize([0.8])}
    write_summary(run_dir, scores=scores, postprocess="fill holes")
    write_text("ID,Mask\n", run_dir / "submission.csv")
    print_summary(run_dir)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "plain Dice 0.5000 [0.5000, 0.5000] 1 images",
        "chosen Dice 0.8000 [0.8000, 0.8000] 1 images",
        "FAILED, left out fold2: MemoryError: größer; try less",
        "applied fill holes",
        f"submission {run_dir / 'submission.csv'}",
        f"report {run_dir / 'report.html'}",
    ]
