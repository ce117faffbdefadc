"""What a kernel does besides the notebooks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from ctseg.contest import A0
from ctseg.data import Case, find_cases, load_training_set
from ctseg.files import read_json, write_json, write_text
from ctseg.folds import train_folds
from ctseg.paths import find_run_dir
from ctseg.runs import find_members, make_config, make_dataset, open_run
from kaggle_kernel.session import attach_run, tidy_run, train_members


@pytest.fixture
def working(tmp_path, monkeypatch, tiny):
    """An empty working folder, next to which `input` is mounted."""
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr("kaggle_kernel.session.KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("CTSEG_DATA", str(tiny))
    return tmp_path / "working"


def attach(working, place, run="best", names=("fold0/best_unet_model.pth", "fold0/oof.npz")):
    """Attach a run's folder at a place below Kaggle's input, read-only."""
    folder = working.parent / "input" / place
    write_json({"run": run, "preset": "quick", "encoder": "unet", "lr": 0.1}, folder / "config.json")
    for name in (*names, "places.json"):
        write_text("weights", folder / name)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    return folder


@pytest.mark.parametrize("place", ["my-weights/runs/best", "my-weights", "datasets/me/weights", "w/best (1)"])
def test_an_attached_run_is_known_by_its_config_and_copied_once(working, place):
    attach(working, place)
    write_json({"architectures": ["Bert"]}, working.parent / "input" / "a-language-model" / "config.json")
    copy = attach_run("best")
    assert copy == working / "runs" / "best"
    assert json.loads((copy / "config.json").read_text())["lr"] == 0.1
    assert (copy / "fold0" / "best_unet_model.pth").read_text() == "weights"
    assert not (copy / "places.json").exists()
    (copy / "fold0" / "history.csv").write_text("it can be written to")
    assert attach_run("best") == copy and (copy / "fold0" / "history.csv").exists()


def test_without_an_attached_run_there_is_nothing_to_copy(working):
    write_json({"architectures": ["Bert"]}, working.parent / "input" / "a-language-model" / "config.json")
    (working.parent / "input" / "a-language-model" / "weights.pth").write_text("")
    assert attach_run("best") is None and attach_run("") is None and not (working / "runs").exists()


@pytest.mark.parametrize("run", ["other", ""])
def test_an_attached_run_of_another_name_is_said_so_rather_than_trained_anew(working, run):
    folder = attach(working, "my-weights")
    with pytest.raises(ValueError, match=f"run: got '{run}', attached is 'best' in {folder}; pass the name"):
        attach_run(run)
    weights = str(folder / "fold0" / "best_unet_model.pth")  # to start from
    assert attach_run(run, weights) is None and attach_run(run, "default", weights) is None
    assert not (working / "runs").exists()


def test_two_attached_runs_of_one_name_are_refused(working):
    attach(working, "a")
    attach(working, "b")
    with pytest.raises(ValueError, match="'best' in .*input/a, 'best' in .*input/b"):
        attach_run("best")


def test_folds_without_their_run_and_a_run_without_folds_are_refused(working):
    attach(working, "a", names=("fold0/last.pth",))
    with pytest.raises(ValueError, match="'best' in .*input/a has no finished fold"):
        attach_run("best")
    write_text("weights", working.parent / "input" / "b" / "fold0" / "best_unet_model.pth")
    with pytest.raises(ValueError, match="b/fold0/best_unet_model.pth is of a fold without its run's config"):
        attach_run("best")
    assert not (working / "runs").exists()


def make_finished(working):
    """A run with a fold that is finished."""
    run_dir = working / "runs" / "best"
    write_json({"keep": "best"}, run_dir / "config.json")
    write_text("ID,Mask\ncase_9,1 5\n", run_dir / "submission.csv")
    for name in (
        "predicted_masks/case_9.png",
        "fold0/last.pth",
        "fold0/oof.npz",
        ".lock",
        "places.json",
        "fold0/.partial-1-x",
    ):
        write_text("", run_dir / name)
    return run_dir


def test_only_files_that_somebody_downloads_are_left(working, tiny):
    run_dir = make_finished(working)
    for name in ("fold0/oof.npz", "places.json", "fold0/.lock"):
        write_text("", working / "runs" / "averaged" / name)
    tidy_run(run_dir, find_cases(tiny, "test", A0), A0)
    left = {path.relative_to(working).as_posix() for path in working.rglob("*") if path.is_file()}
    names = ("config.json", "submission.csv", "fold0/oof.npz", "fold0/last.pth")
    of_best = {f"runs/best/{name}" for name in names}
    assert left == {"submission.csv", "runs/averaged/fold0/oof.npz", *of_best}
    tidy_run(run_dir, find_cases(tiny, "test", A0), A0)  # again, as where a last cell is run twice


def test_a_submission_that_is_not_valid_leaves_everything(working, tiny):
    run_dir = make_finished(working)
    before = {path for path in run_dir.rglob("*")}
    other = [Case("another", case.image) for case in find_cases(tiny, "test", A0)]
    with pytest.raises(ValueError, match="missing or unknown ids"):
        tidy_run(run_dir, other, A0)
    with pytest.raises(ValueError, match="the data have no test images, so there is no submission"):
        tidy_run(run_dir, [], A0)
    assert {path for path in run_dir.rglob("*")} == before


def replace_predictions(config, run_dir, *, invert=False):
    """Put the true masks, or what they leave out, in the place of a run's out-of-fold predictions."""
    training_set = load_training_set(make_dataset(config, "train"))
    true_masks = {
        case.image_id: mask for case, mask in zip(training_set.cases, training_set.pixels[:, 3].numpy())
    }
    for path in run_dir.glob("fold*/oof.npz"):
        with np.load(path) as kept:
            arrays = dict(kept)
        found = np.stack([true_masks[str(image_id)] for image_id in arrays["image_ids"]])
        np.savez_compressed(path, **arrays | {"probabilities": 255 - found if invert else found})


@pytest.fixture
def foresight(monkeypatch):
    """Let further runs predict their validation images perfectly, and the seed 1 the contrary.

    A single epoch teaches nothing.
    """

    def train(config, run_dir):
        train_folds(config, run_dir)
        replace_predictions(config, run_dir, invert=config.seed == 1)

    monkeypatch.setattr("kaggle_kernel.session.train_folds", train)


def train_first(tiny, **settings):
    """The config of a run "a" that is trained, as a kernel has it when its further runs begin."""
    small = {"epochs": 1, "target_size": 32, "width": 4, "n_folds": 2}
    config = make_config(run="a", data_root=str(tiny), **small | settings)
    train_folds(config, open_run(config))
    replace_predictions(config, find_run_dir("a"))
    return config


def test_further_runs_are_trained_in_turn_and_averaged(working, tiny, cores, capsys, foresight):
    cores(1)
    first = train_first(tiny)
    members = [{"target_size": 48}, {"encoder": "resnet18", "weights": "none/of these.pth"}, {"lr": 0.5}]
    config, run_dir = train_members(first, members)
    said = capsys.readouterr().out
    assert "member a-target_size=48" in said and "member a-lr=0.5" in said
    assert "FAILED: a-encoder=resnet18-weights=of-these.pth is left out, FileNotFoundError: " in said
    runs = ["a", "a-target_size=48", "a-lr=0.5"]
    assert (config.run, config.runs, run_dir.name) == ("a-average", ",".join(runs), "a-average")
    trained = [(member.run, member.target_size, member.lr) for member, _ in find_members(config, run_dir)]
    assert trained == [(runs[0], 32, first.lr), (runs[1], 48, first.lr), (runs[2], 32, 0.5)]
    assert all((working / "runs" / run / "fold1" / "oof.npz").is_file() for run in runs)
    kept = working / "runs" / runs[1] / "fold0" / "best_unet_model.pth"
    before = kept.stat().st_mtime_ns
    assert train_members(first, members)[1] == run_dir  # again: nothing to train
    assert kept.stat().st_mtime_ns == before


def test_a_further_run_with_which_the_mean_scores_lower_is_left_out(working, tiny, cores, capsys, foresight):
    cores(1)
    first = train_first(tiny)
    assert train_members(first, [{"seed": 1}, {"seed": 2}])[0].runs == "a,a-seed=2"
    said = capsys.readouterr().out
    assert re.search(
        r"member a-seed=1\n(.*\n)*left out: Dice 1.0000 without it, 0.[0-4]\d+ with it, on 4 valid", said
    )
    assert re.search(r"member a-seed=2\n(.*\n)*Dice 1.0000 without it, 1.0000 with it, on 4 valid", said)


def test_a_further_run_of_few_validation_images_is_left_out(working, tiny, cores, capsys, foresight):
    cores(1)
    first = train_first(tiny)
    assert train_members(first, [{"n_folds": 1}]) == (first, working / "runs" / "a")
    assert "left out: it predicted 1 of 4 validation images, less than half" in capsys.readouterr().out


def test_what_the_first_run_was_told_holds_for_further_ones(working, tiny, cores, foresight):
    cores(1)
    first = make_config(
        run="a",
        data_root=str(tiny),
        epochs=1,
        target_size=32,
        width=4,
        n_folds=2,
        fold=1,
        deadline_minutes=60,
    )
    train_folds(first, open_run(first))
    first = replace(first, submission_columns="id,rle", use_unfinished=True)
    config, _ = train_members(first, [{"budget_minutes": 0.05}])
    assert config.submission_columns == "id,rle" and config.use_unfinished
    member, run_dir = find_members(config, find_run_dir(config.run))[1]
    assert (member.epochs, member.budget_minutes) == (None, 0.05)
    assert [path.name for path in run_dir.glob("fold*/oof.npz")] == ["oof.npz"] and (
        run_dir / "fold1"
    ).is_dir()


def test_without_another_run_that_is_trained_the_first_one_is_submitted(working, tiny, cores, capsys):
    cores(1)
    first = train_first(tiny)
    assert train_members(first, [{"encoder": "none"}]) == (first, working / "runs" / "a")
    assert "FAILED: a-encoder=none is left out, ValueError: unknown encoder 'none'" in capsys.readouterr().out


def test_further_runs_that_are_attached_are_not_trained_again(working, tiny, cores, foresight):
    cores(1)
    first = train_first(tiny)
    _, run_dir = train_members(first, [{"target_size": 48}])
    (working.parent / "input").mkdir()
    attached = (working / "runs" / "a-target_size=48").rename(working.parent / "input" / "a-target_size=48")
    trained = read_json(attached / "config.json"), (attached / "fold0" / "oof.npz").read_bytes()
    for name in ("last.pth", "best_unet_model.pth"):
        assert (attached / "fold0" / name).is_file()
    train_members(first, [{"target_size": 48}])
    copy = working / "runs" / "a-target_size=48"
    assert (read_json(copy / "config.json"), (copy / "fold0" / "oof.npz").read_bytes()) == trained
    seen = (copy / "fold0" / "best_unet_model.pth").read_bytes()
    assert seen == (attached / "fold0" / "best_unet_model.pth").read_bytes()
