"""What a kernel does besides the notebooks."""

import json

import pytest

from ctseg.data import Case, find_cases
from ctseg.files import write_csv, write_json, write_text
from kaggle_kernel.session import attach_run, tidy_run


@pytest.fixture
def working(tmp_path, monkeypatch, tiny):
    """An empty working folder, next to which `input` is mounted."""
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr("kaggle_kernel.session.KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("CTSEG_DATA", str(tiny))
    return tmp_path / "working"


def test_an_attached_run_is_copied_once_with_the_data_here(working, tiny):
    attached = working.parent / "input" / "my-weights" / "runs" / "best"
    write_json({"data_root": "/elsewhere", "lr": 0.1}, attached / "config.json")
    write_text("weights", attached / "fold0" / "best_unet_model.pth")
    assert attach_run("other") is None and not (working / "runs").exists()
    copy = attach_run("best")
    assert copy == working / "runs" / "best"
    assert json.loads((copy / "config.json").read_text()) == {"data_root": str(tiny), "lr": 0.1}
    assert (copy / "fold0" / "best_unet_model.pth").read_text() == "weights"
    assert attach_run("best") is None


def make_finished(working, kept):
    """A run of four epochs, whose epoch `kept` has the highest Dice."""
    run_dir = working / "runs" / "best"
    write_json({"keep": "best"}, run_dir / "config.json")
    write_text("ID,Mask\ncase_9,1 5\n", run_dir / "submission.csv")
    for name in (
        "predicted_masks/case_9.png",
        "fold0/last.pth",
        "fold0/oof.npz",
        ".lock",
        "fold0/.partial-1-x",
    ):
        write_text("", run_dir / name)
    rows = [{"epoch": epoch, "val_dice": float(epoch == kept)} for epoch in (1, 2, 3, 4)]
    write_csv(rows, run_dir / "fold0" / "history.csv")
    for epoch in (1, 2, 3, 4):
        write_text("", run_dir / "fold0" / "val_outputs" / f"epoch_{epoch}" / "case_0.png")
    return run_dir


def test_only_files_that_somebody_downloads_are_left(working, tiny):
    run_dir = make_finished(working, kept=3)
    tidy_run(run_dir, find_cases(tiny, "test"))
    left = {path.relative_to(working).as_posix() for path in working.rglob("*") if path.is_file()}
    pictures = {f"runs/best/fold0/val_outputs/epoch_{epoch}/case_0.png" for epoch in (1, 3)}
    names = ("config.json", "submission.csv", "fold0/oof.npz", "fold0/history.csv")
    assert left == {"submission.csv", *(f"runs/best/{name}" for name in names), *pictures}


def test_a_submission_that_is_not_valid_leaves_everything(working, tiny):
    run_dir = make_finished(working, kept=3)
    before = {path for path in run_dir.rglob("*")}
    other = [Case("another", case.image) for case in find_cases(tiny, "test")]
    with pytest.raises(ValueError, match="missing or unknown ids"):
        tidy_run(run_dir, other)
    assert {path for path in run_dir.rglob("*")} == before
