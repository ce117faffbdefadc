import itertools
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Program

from ctseg.data import SegmentationDataset, find_cases, load_squares, read_mask
from ctseg.files import lock_folder, read_csv, write_text
from ctseg.model import load_weights, make_model, predict_squares
from ctseg.train import Learner, check_finite, evaluate_model, find_kept, make_generator, make_optimizer, one_cycle, train_model
from ctseg.transforms import Augment, EvalTransform, round_trip_dice

LEARNER = {"augment": Augment(flip=0.5, rotation=10), "lr": 3e-3, "weight_decay": 0.01}
SETTINGS = {"epochs": 3, "batch_size": 4, "seed": (7, 0)}


@pytest.fixture(scope="module")
def squares(phantom):
    return load_squares(SegmentationDataset(find_cases(phantom, "Train"), EvalTransform(32)))


def train(squares, folder, *, width=4, lr=LEARNER["lr"], **changes):
    """Train a small network on 12 squares, validate on 5 others; return it with its history."""
    torch.manual_seed(0)
    learner = Learner(make_model(width=width, depth=2, dropout=(0.3, 0.2)), **{**LEARNER, "lr": lr})
    history = train_model(learner, squares.subset(range(12)), squares.subset(range(12, 17)), folder, **{**SETTINGS, **changes})
    return learner.model, history


def same(first, second):
    """Whether two state dicts hold the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_a_network_can_learn_one_batch_by_heart(squares, tmp_path):
    few = squares.subset(range(4))
    torch.manual_seed(0)
    learner = Learner(make_model(width=8, depth=2), augment=Augment(), lr=1e-2)
    history = train_model(learner, few, few, tmp_path, epochs=120, batch_size=4)
    assert history[-1]["dice"] > 0.8 and history[-1]["bce"] < 0.05  # soft targets keep Dice below 1
    assert history[-1]["val_dice"] > 0.9  # at native size, from squares of 32


def test_each_epoch_leaves_a_row_pictures_and_the_best_weights(squares, tmp_path):
    _, history = train(squares, tmp_path)
    assert list(history[0]) == ["epoch", "dice", "bce", "loss", "lr", "val_dice", "seconds"]
    rows = read_csv(tmp_path / "history.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["val_dice"]) for row in rows] == [row["val_dice"] for row in history]
    for epoch in (1, 2, 3):
        names = [path.stem for path in sorted((tmp_path / "val_outputs" / f"epoch_{epoch}").iterdir())]
        assert names == ["train_012", "train_013", "train_014", "train_015"]
    best = max(history, key=lambda row: row["val_dice"])
    model = make_model(width=4, depth=2)
    load_weights(model, tmp_path / "best_unet_model.pth")
    assert evaluate_model(model, squares.subset(range(12, 17))).mean() == pytest.approx(best["val_dice"], abs=1e-6)


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 3)])
def test_the_weights_of_the_best_or_of_the_last_epoch_are_kept(squares, tmp_path, monkeypatch, keep, epoch):
    scores = iter([[0.3], [0.9], [0.9]])
    monkeypatch.setattr("ctseg.train.evaluate_model", lambda *_, **__: np.array(next(scores)))
    _, history = train(squares, tmp_path, keep=keep)
    assert torch.load(tmp_path / "best_unet_model.pth", weights_only=True)["epoch"] == find_kept(history, keep)["epoch"] == epoch


def test_the_last_weights_are_kept_where_they_are_asked_for(squares, tmp_path):
    model, history = train(squares, tmp_path, keep="last", lr=0.05, schedule="constant")
    kept = torch.load(tmp_path / "best_unet_model.pth", weights_only=True)
    assert kept["epoch"] == 3 and kept["val_dice"] == history[-1]["val_dice"]
    assert same(kept["state_dict"], model.state_dict())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(squares, tmp_path):
    first, history = train(squares, tmp_path / "a")
    again, history_again = train(squares, tmp_path / "b")
    other, _ = train(squares, tmp_path / "c", seed=(8, 0))
    assert same(first.state_dict(), again.state_dict()) and without_seconds(history) == without_seconds(history_again)
    assert not same(first.state_dict(), other.state_dict())


STOPPED = """
import sys
import ctseg.train as train
from ctseg.data import *
from ctseg.transforms import *
from pathlib import Path
sys.path.insert(0, "tests")
import test_train
squares = load_squares(SegmentationDataset(find_cases(Path(sys.argv[1]), "Train"), EvalTransform(32)))
evaluate, calls = train.evaluate_model, []
def stop_at_the_second(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(*args, **kwargs)
train.evaluate_model = stop_at_the_second
test_train.train(squares, Path(sys.argv[2]))
"""


def test_a_killed_run_that_resumes_ends_at_the_same_bits(squares, phantom, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", STOPPED, phantom, tmp_path / "killed"], cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert killed.returncode == -9 and len(read_csv(tmp_path / "killed" / "history.csv")) == 1
    resumed, history = train(squares, tmp_path / "killed")
    unbroken, expected = train(squares, tmp_path / "unbroken")
    assert same(resumed.state_dict(), unbroken.state_dict())
    assert without_seconds(history) == without_seconds(expected)
    best = [torch.load(tmp_path / name / "best_unet_model.pth", weights_only=True)["state_dict"] for name in ("killed", "unbroken")]
    assert same(*best)


def test_a_finished_run_returns_its_history_at_once(squares, tmp_path):
    _, history = train(squares, tmp_path)
    before = (tmp_path / "last.pth").stat().st_mtime_ns
    assert train(squares, tmp_path)[1] == history
    assert (tmp_path / "last.pth").stat().st_mtime_ns == before


def test_a_time_budget_gives_a_number_of_steps_that_the_schedule_ends_at(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.train.fit_steps", lambda *args, **kwargs: 7)
    _, history = train(squares, tmp_path, epochs=None, budget_seconds=1.0)
    assert len(history) == 3  # 3 + 3 + 1 steps of 4 of the 12 images
    assert history[-1]["lr"] < 0.1 * LEARNER["lr"]
    monkeypatch.setattr("ctseg.train.fit_steps", lambda *args, **kwargs: 1000)
    assert train(squares, tmp_path, epochs=None, budget_seconds=1.0)[1] == history  # fitted once, kept on resume


def test_a_run_that_takes_far_longer_than_its_budget_is_given_up_with_its_checkpoint_intact(squares, tmp_path, monkeypatch):
    ticks = itertools.count()  # each look at the clock takes 50 s, so an epoch does
    monkeypatch.setattr("ctseg.train.time.perf_counter", lambda: 50.0 * next(ticks))
    monkeypatch.setattr("ctseg.train.fit_steps", lambda *args, **kwargs: 9)
    with pytest.raises(TimeoutError, match="100 s spent of a budget of 10 s, epoch 2 of 3; raise budget_minutes"):
        train(squares, tmp_path, epochs=None, budget_seconds=10.0)
    assert len(torch.load(tmp_path / "last.pth", weights_only=True)["history"]) == 2


def test_the_steps_that_fit_are_counted_with_their_validation(squares, tmp_path, monkeypatch):
    ticks = itertools.count()  # each look at the clock takes a second: a step 1 s, the validation of all 5 images 1 s
    monkeypatch.setattr("ctseg.train.time.perf_counter", lambda: float(next(ticks)))
    train(squares, tmp_path, epochs=None, budget_seconds=100.0)
    # Of 95 s 5 steps and two validations with their looks at the clock take 15, 1 s is kept for the last validation;
    # each of the 3 steps of an epoch carries a third of a validation.
    assert torch.load(tmp_path / "last.pth", weights_only=True)["total_steps"] == int(79 / (1 + 1 / 3))


def test_of_epochs_and_budget_the_shorter_counts(squares, tmp_path):
    assert len(train(squares, tmp_path, epochs=2, budget_seconds=3600)[1]) == 2


def test_only_weights_decay():
    model = make_model(width=4, depth=2)
    decays = {
        id(p): group["weight_decay"] for group in make_optimizer(model, lr=0.1, weight_decay=0.01).param_groups for p in group["params"]
    }
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        name: 0.01 if p.ndim > 1 else 0 for name, p in model.named_parameters()
    }
    assert decays[id(model.head.weight)] == 0.01 and decays[id(model.head.bias)] == 0


@pytest.mark.parametrize("total_steps", [1, 2, 4, 5, 9, 1000])
def test_one_cycle_rises_to_the_full_rate_and_falls_to_nearly_none(total_steps):
    rates = [one_cycle(step, total_steps) for step in range(total_steps + 1)]
    top = int(np.argmax(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True) and min(rates) >= 0 and max(rates) <= 1
    if total_steps == 1000:
        assert top == 200 and rates[top] == pytest.approx(1, abs=1e-4) and rates[-1] == pytest.approx(0, abs=1e-4)


def test_the_rate_of_the_schedule_is_the_one_trained_with(squares, tmp_path):
    rates = [row["lr"] for row in train(squares, tmp_path / "a")[1]]
    assert rates == pytest.approx([LEARNER["lr"] * one_cycle(step, 9) for step in (2, 5, 8)])
    assert {row["lr"] for row in train(squares, tmp_path / "b", schedule="constant")[1]} == {LEARNER["lr"]}


def test_a_loss_that_is_not_finite_stops_naming_its_images_with_the_last_checkpoint_intact(squares, tmp_path):
    with pytest.raises(FloatingPointError, match="loss of nan in the batch of train_0.., train_0.., train_0.., train_0..;"):
        train(squares, tmp_path, lr=1e30, schedule="constant")
    assert not (tmp_path / "best_unet_model.pth").exists()


def test_weights_that_the_last_step_broke_are_not_saved(squares):
    model = make_model(width=4, depth=2)
    check_finite(model, torch.ones(2), [["a"], ["b", "c"]])
    with torch.no_grad():
        model.head.bias[0] = torch.inf
    with pytest.raises(FloatingPointError, match="loss of 1 in the batch of b, c; the last checkpoint is intact"):
        check_finite(model, torch.ones(2), [["a"], ["b", "c"]])


def test_a_history_that_a_kill_left_behind_the_checkpoint_catches_up(squares, tmp_path):
    _, history = train(squares, tmp_path)
    expected = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").write_text("".join(expected.splitlines(keepends=True)[:-1]))
    (tmp_path / ".partial-1-last.pth").write_bytes(b"half")
    assert train(squares, tmp_path)[1] == history
    assert (tmp_path / "history.csv").read_text() == expected and not list(tmp_path.glob(".partial*"))


def test_what_cannot_be_written_is_an_error_that_says_so_and_replaces_nothing(tmp_path, monkeypatch):
    write_text("before", tmp_path / "a.txt")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="cannot write .*a.txt: .*No space left on device; free space"):
        write_text("after", tmp_path / "a.txt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_folder_has_one_writer(squares, tmp_path):
    with lock_folder(tmp_path), pytest.raises(RuntimeError, match="being written by another process"):
        train(squares, tmp_path)


@pytest.mark.parametrize("kind", ["truncated", "a program"])
def test_a_checkpoint_that_is_damaged_or_a_program_is_named_and_not_run(squares, tmp_path, kind):
    train(squares, tmp_path, epochs=1)
    path = tmp_path / "last.pth"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save({"learner": Program(tmp_path / "it ran")}, path)
    with pytest.raises(ValueError, match="cannot read .*last.pth: it is damaged, or holds more than .*; delete it to train"):
        train(squares, tmp_path, epochs=2)
    assert not (tmp_path / "it ran").exists()


def test_checkpoints_of_another_architecture_are_refused(squares, tmp_path):
    train(squares, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(squares, tmp_path, width=8)


def test_validation_is_per_image_at_native_size_and_does_not_depend_on_the_order(squares):
    model = make_model(width=4, depth=2)
    scores = evaluate_model(model, squares.subset(range(6)))
    backwards = evaluate_model(model, squares.subset(range(5, -1, -1)))
    assert scores.shape == (6,) and np.allclose(scores, backwards[::-1], atol=1e-4)


def test_validation_scores_each_image_by_itself_after_the_way_back(squares):
    some = squares.subset(range(4))

    class Known(torch.nn.Module):
        """Its probabilities are the soft targets: what a perfect network would give."""

        def __init__(self):
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))  # says on which device it is

        def forward(self, images):
            return torch.logit(some.targets.float() / 255, eps=1e-6)

    expected = [round_trip_dice(read_mask(case.mask), 32) for case in some.cases]
    assert evaluate_model(Known(), some).tolist() == pytest.approx(expected, abs=1e-3)
    assert len(set(expected)) == 4


def test_the_size_of_the_evaluation_batch_does_not_matter(squares, monkeypatch):
    torch.manual_seed(0)
    model = make_model(width=4, depth=2)
    monkeypatch.setattr("ctseg.model.choose_precision", lambda device: torch.float32)
    means = []
    for size in (1, 3, 16):
        monkeypatch.setattr("ctseg.train.predict_squares", partial(predict_squares, batch_size=size))
        means.append(evaluate_model(model, squares).mean())
    assert np.ptp(means) < 1e-4


def test_no_two_steps_of_all_epochs_and_folds_draw_the_same_augmentation(squares, tmp_path, monkeypatch):
    seeds, step = [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, *batch: seeds.append(batch[-1].initial_seed()) or step(self, *batch))
    for fold in (0, 1):
        train(squares, tmp_path / str(fold), seed=(7, fold))
    assert len(seeds) == len(set(seeds)) == 2 * 3 * 3


def test_random_streams_of_folds_epochs_and_batches_differ():
    keys = [(seed, fold, epoch, use, batch) for seed in (0, 1) for fold in (0, 1) for epoch in (0, 1) for use in (0, 2) for batch in (0, 1)]
    assert len({torch.rand(1, generator=make_generator(*key)).item() for key in keys}) == len(keys)
