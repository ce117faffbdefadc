"""The training loop, its schedule, its checkpoint, its budget, its validation."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from conftest import Program, load_cases

from ctseg.config import Config
from ctseg.data import read_mask
from ctseg.explore import round_trip_dice
from ctseg.files import lock_folder, read_csv, write_csv
from ctseg.model import load_weights, make_model
from ctseg.predict import predict_training_set
from ctseg.train import (
    Learner,
    _time_pace,
    check_budget,
    check_finite,
    count_batches,
    evaluate_model,
    find_kept,
    fit_steps,
    make_optimizer,
    one_cycle,
    read_history,
    split_batches,
    split_steps,
    train_model,
)
from ctseg.weights import write_torch

SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "lr": 3e-3,
    "schedule": "one_cycle",
    "weight_decay": 0.01,
    "rot90": 0.0,
    "rotation": 10,
}


@pytest.fixture(scope="module")
def training_set(phantom):
    return load_cases(phantom)


def make_learner(config, width=4):
    torch.manual_seed(0)
    return Learner(make_model(width=width, depth=2, dropout=(0.3, 0.2)), config)


def train(training_set, fold_dir, *, seed=(7, 0), budget_seconds=None, width=4, lr=None, **changes):
    """Train a small network on 12 images, validate on 5 others; return it with its history.

    `lr` may be one that `Config` would refuse.
    """
    config = Config(**SETTINGS | changes, budget_minutes=budget_seconds and budget_seconds / 60)
    learner = make_learner(config, width)
    for group in learner.optimizer.param_groups if lr else ():
        group["lr"] = lr
    train, validation = training_set.select(range(12)), training_set.select(range(12, 17))
    history = train_model(learner, train, validation, fold_dir, seed=seed, budget_seconds=budget_seconds)
    return learner.model, history


def same(first, second):
    """Whether two state dicts hold the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read_kept(fold_dir):
    """The weights that are kept, and the row of their epoch."""
    return torch.load(fold_dir / "best_unet_model.pth", weights_only=True)


def read_last(fold_dir):
    """The checkpoint."""
    return torch.load(fold_dir / "last.pth", weights_only=True)


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_a_network_overfits_one_batch(training_set, tmp_path):
    batch = training_set.select(range(4))
    config = Config(epochs=120, batch_size=4, lr=1e-2, schedule="one_cycle", flip=0.0, rot90=0.0)
    torch.manual_seed(0)
    learner = Learner(make_model(width=8, depth=2), config)
    history = train_model(learner, batch, batch, tmp_path, seed=(0,))
    assert (
        history[-1]["train_soft_dice"] > 0.8 and history[-1]["bce"] < 0.05
    )  # soft targets keep Dice below 1
    assert history[-1]["val_dice"] > 0.9  # at native size, from 32 pixels


def test_each_epoch_writes_a_row_pictures_and_the_best_weights(training_set, tmp_path):
    _, history = train(training_set, tmp_path)
    assert list(history[0]) == ["epoch", "train_soft_dice", "bce", "loss", "lr", "val_dice", "seconds"]
    rows = read_csv(tmp_path / "history.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["val_dice"]) for row in rows] == [row["val_dice"] for row in history]
    for epoch in (1, 2, 3):
        names = [path.stem for path in sorted((tmp_path / "val_outputs" / f"epoch_{epoch}").iterdir())]
        assert names == ["train_012", "train_013", "train_014", "train_015"]
    best = max(history, key=lambda row: row["val_dice"])
    model = make_model(width=4, depth=2)
    load_weights(model, tmp_path / "best_unet_model.pth")
    scores = evaluate_model(model, training_set.select(range(12, 17)))
    assert scores.mean() == pytest.approx(best["val_dice"], abs=1e-6)


def test_a_run_of_an_earlier_version_goes_on(training_set, tmp_path):
    """Its histories call soft Dice of training batches dice."""
    _, history = train(training_set, tmp_path)
    old = [{"dice" if name == "train_soft_dice" else name: row[name] for name in row} for row in history[:2]]
    path = tmp_path / "last.pth"
    checkpoint = torch.load(path, weights_only=True)
    write_torch(checkpoint | {"history": old}, path)
    write_csv(old, tmp_path / "history.csv")
    assert read_history(tmp_path) == history[:2]
    _, again = train(training_set, tmp_path)
    assert (
        [list(row) for row in again]
        == [list(history[0])] * 3
        == [list(row) for row in read_history(tmp_path)]
    )


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 3)])
def test_weights_of_the_best_or_the_last_epoch_are_kept(training_set, tmp_path, monkeypatch, keep, epoch):
    scores = iter([[0.3], [0.9], [0.9]])
    monkeypatch.setattr("ctseg.train.evaluate_model", lambda *_, **__: np.array(next(scores)))
    _, history = train(training_set, tmp_path, keep=keep)
    assert read_kept(tmp_path)["epoch"] == find_kept(history, keep)["epoch"] == epoch


def test_the_last_weights_are_kept_where_they_are_asked_for(training_set, tmp_path):
    model, history = train(training_set, tmp_path, keep="last", lr=0.05, schedule="constant")
    kept = read_kept(tmp_path)
    assert kept["epoch"] == 3 and kept["val_dice"] == history[-1]["val_dice"]
    assert same(kept["state_dict"], model.state_dict())


def test_one_seed_gives_the_same_bits_and_another_seed_others(training_set, tmp_path):
    first, history = train(training_set, tmp_path / "a")
    again, history_again = train(training_set, tmp_path / "b")
    other, _ = train(training_set, tmp_path / "c", seed=(8, 0))
    assert same(first.state_dict(), again.state_dict())
    assert without_seconds(history) == without_seconds(history_again)
    assert not same(first.state_dict(), other.state_dict())


STOPPED = """
import os, signal, sys
from pathlib import Path
import ctseg.train as train
import test_train
training_set = test_train.load_cases(Path(sys.argv[1]))
evaluate, calls = train.evaluate_model, []
def stop_at_the_second(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(*args, **kwargs)
train.evaluate_model = stop_at_the_second
test_train.train(training_set, Path(sys.argv[2]))
"""


def test_a_killed_run_that_resumes_ends_at_the_same_bits(training_set, phantom, tmp_path):
    command = [sys.executable, "-c", STOPPED, phantom, tmp_path / "killed"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(command, env=environment)
    assert killed.returncode == -9 and len(read_csv(tmp_path / "killed" / "history.csv")) == 1
    resumed, history = train(training_set, tmp_path / "killed")
    unbroken, expected = train(training_set, tmp_path / "unbroken")
    assert same(resumed.state_dict(), unbroken.state_dict())
    assert without_seconds(history) == without_seconds(expected)
    assert same(*(read_kept(tmp_path / name)["state_dict"] for name in ("killed", "unbroken")))


def test_a_finished_run_returns_its_history_at_once(training_set, tmp_path):
    _, history = train(training_set, tmp_path)
    before = (tmp_path / "last.pth").stat().st_mtime_ns
    assert train(training_set, tmp_path)[1] == history
    assert (tmp_path / "last.pth").stat().st_mtime_ns == before


def test_a_budget_gives_a_number_of_steps_for_the_schedule(training_set, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def take_15_seconds(*_, **__):
        clock.now += 15
        return 1.0, 1.0  # of a step, of a validation

    monkeypatch.setattr("ctseg.train.time", clock)
    monkeypatch.setattr("ctseg.train._time_pace", take_15_seconds)
    _, history = train(training_set, tmp_path, epochs=None, budget_seconds=27.0)
    # (0.95 * 27 - 15 - 1) / (1 + 1 / 3) = 7.2, in 3 + 3 + 1 steps of 4 of the 12 images
    assert len(history) == 3 and read_last(tmp_path)["total_steps"] == 7
    assert history[-1]["lr"] < 0.1 * SETTINGS["lr"]
    # Now 1000 steps and more would fit; but they are fitted once, and kept on resume.
    monkeypatch.setattr("ctseg.train._time_pace", lambda *_, **__: (0.01, 0.01))
    assert train(training_set, tmp_path, epochs=None, budget_seconds=27.0)[1] == history


def make_ticking_clock(seconds):
    """A clock of which each look takes `seconds`."""
    ticks = itertools.count()
    return SimpleNamespace(perf_counter=lambda: seconds * next(ticks))


def test_a_run_far_over_its_budget_stops_with_its_checkpoint(training_set, tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.train.time", make_ticking_clock(50.0))  # so an epoch takes 50 s
    monkeypatch.setattr("ctseg.train._time_pace", lambda *_, **__: (1.0, 1.0))
    monkeypatch.setattr("ctseg.train.fit_steps", lambda *_, **__: 9)
    message = "100 s spent of a budget of 10 s, epoch 2 of 3; raise budget_minutes"
    with pytest.raises(TimeoutError, match=message):
        train(training_set, tmp_path, epochs=None, budget_seconds=10.0)
    assert len(read_last(tmp_path)["history"]) == 2


def test_the_pace_is_timed_on_a_copy(training_set, monkeypatch):
    learner, calls = make_learner(Config(**SETTINGS)), []
    before = {name: values.clone() for name, values in learner.model.state_dict().items()}
    step, evaluate = Learner.step, evaluate_model
    monkeypatch.setattr(Learner, "step", lambda *args: calls.append("step") or step(*args))
    monkeypatch.setattr(
        "ctseg.train.evaluate_model", lambda *args: calls.append(len(args[1])) or evaluate(*args)
    )
    monkeypatch.setattr("ctseg.train.time", make_ticking_clock(1.0))
    pace = partial(_time_pace, learner, training_set.select(range(12)))
    # A step takes 1 s, the validation of all 5 images 1 s.
    assert pace(training_set.select(range(12, 17)), max_seconds=5.0) == (1.0, 1.0)
    assert calls == 5 * ["step"] + [5, 5]
    # Of 64 images 32 are timed.
    assert pace(training_set.select(64 * [0]), max_seconds=0.0) == (1.0, 2.0)
    assert calls[7:] == 4 * ["step"] + [32, 32]
    assert same(before, learner.model.state_dict())


@pytest.mark.parametrize(
    ("budget", "step", "validation", "spent", "steps_per_epoch", "steps"),
    [
        # Of 95 s 15 are spent, 1 s is kept for the last validation; each of the 3 steps of an epoch carries a
        # third of a validation.
        (100, 1, 1, 15, 3, 59),
        (100, 1, 0, 0, 3, 95),
        (100, 1, 10, 0, 10, 42),
        (100, 1, 3, 0, 1.5, 30),
        (100, 200, 1, 15, 3, 1),
        (1, 1, 1, 15, 3, 1),
        (0.6, 100, 100, 500, 3, 1),
    ],
)
def test_steps_that_fit_are_counted_with_their_validation(
    budget, step, validation, spent, steps_per_epoch, steps
):
    pace = {"step_seconds": step, "validation_seconds": validation, "steps_per_epoch": steps_per_epoch}
    assert fit_steps(budget, spent=spent, **pace) == steps


@pytest.mark.parametrize(
    ("total_steps", "steps_per_epoch", "steps"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (1, 3, [1])]
)
def test_the_last_epoch_has_the_remaining_steps(total_steps, steps_per_epoch, steps):
    assert split_steps(total_steps, steps_per_epoch) == steps


@pytest.mark.parametrize(
    ("seconds", "spent", "epoch"), [([50.0, 50.0], 100, 2), ([76.0], 76, 1), ([1e4, 1.0], 10001, 2)]
)
def test_far_over_budget_is_an_error_that_says_how_far(seconds, spent, epoch):
    message = f"fold0: {spent} s spent of a budget of 10 s, epoch {epoch} of 3; raise budget_minutes"
    with pytest.raises(TimeoutError, match=message):
        check_budget([{"seconds": value} for value in seconds], n_epochs=3, budget_seconds=10.0, name="fold0")


@pytest.mark.parametrize(
    ("seconds", "n_epochs", "budget_seconds"),
    [
        ([50.0, 50.0], 2, 10.0),  # finished
        ([1e6], 1, 10.0),
        ([50.0, 50.0], 3, None),  # no budget
        ([1e6], 3, None),
        ([75.0], 3, 10.0),  # not more than half as long again, and a minute
        ([], 3, 10.0),
    ],
)
def test_finished_unlimited_or_nearly_in_time_is_not_an_error(seconds, n_epochs, budget_seconds):
    history = [{"seconds": value} for value in seconds]
    assert check_budget(history, n_epochs=n_epochs, budget_seconds=budget_seconds, name="fold0") is None


def test_of_epochs_and_budget_the_shorter_counts(training_set, tmp_path):
    assert len(train(training_set, tmp_path, epochs=2, budget_seconds=3600)[1]) == 2


def test_only_weights_decay():
    model = make_model(width=4, depth=2)
    groups = make_optimizer(model, lr=0.1, weight_decay=0.01).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        name: 0.01 if p.ndim > 1 else 0 for name, p in model.named_parameters()
    }
    head = model.segmentation_head
    assert decays[id(head.weight)] == 0.01 and decays[id(head.bias)] == 0


def test_factors_that_are_called_layer_scale_do_not_decay():
    block = torchvision.models.convnext.CNBlock(4, layer_scale=1e-6, stochastic_depth_prob=0)
    decayed, others = (group["params"] for group in make_optimizer(block, lr=1, weight_decay=1).param_groups)
    assert any(p is block.layer_scale for p in others) and len(decayed) == 3


def test_a_checkpoint_goes_to_a_machine_of_another_precision_and_back(monkeypatch):
    """Half precision has a scaler's state, other precisions an empty one."""

    def make_learner(dtype):
        monkeypatch.setattr("ctseg.train.choose_precision", lambda device: dtype)
        learner = Learner(make_model(width=2, depth=2), Config())
        learner.set_schedule("constant", 10)
        return learner

    half, full = make_learner(torch.float16), make_learner(torch.float32)
    half.scaler.scale(torch.ones(()))  # makes its state
    states = full.state_dict()
    assert states["scaler"] == {} != half.state_dict()["scaler"]
    half.load_state_dict(states)
    assert half.scaler.get_scale() == 2.0**16  # as new
    full.load_state_dict(half.state_dict())
    assert full.state_dict()["scaler"] == {}


@pytest.mark.parametrize("total_steps", [1, 2, 4, 5, 9, 1000])
def test_one_cycle_rises_to_the_full_rate_and_falls_to_almost_0(total_steps):
    rates = [one_cycle(step, total_steps) for step in range(total_steps + 1)]
    top = int(np.argmax(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert min(rates) >= 0 and max(rates) <= 1
    if total_steps == 1000:
        assert top == 200
        assert rates[top] == pytest.approx(1, abs=1e-4) and rates[-1] == pytest.approx(0, abs=1e-4)


def test_the_rate_of_the_schedule_is_the_one_trained_with(training_set, tmp_path):
    lr = SETTINGS["lr"]
    rates = [row["lr"] for row in train(training_set, tmp_path / "a")[1]]
    assert rates == pytest.approx([lr * one_cycle(step, 9) for step in (2, 5, 8)])
    assert {row["lr"] for row in train(training_set, tmp_path / "b", schedule="constant")[1]} == {lr}


def test_a_loss_that_is_not_finite_stops_and_names_its_images(training_set, tmp_path):
    message = "loss of nan in the batch of train_0.., train_0.., train_0.., train_0..;"
    with pytest.raises(FloatingPointError, match=message):
        train(training_set, tmp_path, lr=1e30, schedule="constant")
    assert not (tmp_path / "best_unet_model.pth").exists()


def test_weights_that_the_last_step_broke_are_not_saved():
    model = make_model(width=4, depth=2)
    check_finite(model, torch.ones(2), [["a"], ["b", "c"]])
    with torch.no_grad():
        model.segmentation_head.bias[0] = torch.inf
    message = "loss of 1 in the batch of b, c; the last checkpoint is intact"
    with pytest.raises(FloatingPointError, match=message):
        check_finite(model, torch.ones(2), [["a"], ["b", "c"]])


def test_a_history_behind_its_checkpoint_catches_up(training_set, tmp_path):
    _, history = train(training_set, tmp_path)
    expected = (tmp_path / "history.csv").read_text()
    # As a kill between the two files, and in the middle of one, leaves them.
    (tmp_path / "history.csv").write_text("".join(expected.splitlines(keepends=True)[:-1]))
    (tmp_path / ".partial-1-last.pth").write_bytes(b"half")
    assert train(training_set, tmp_path)[1] == history
    assert (tmp_path / "history.csv").read_text() == expected and not list(tmp_path.glob(".partial*"))


def test_a_folder_has_one_writer(training_set, tmp_path):
    message = "being written by another process"
    with lock_folder(tmp_path), pytest.raises(RuntimeError, match=message):
        train(training_set, tmp_path)


@pytest.mark.parametrize("kind", ["truncated", "a program"])
def test_a_damaged_checkpoint_or_a_program_is_named_and_not_run(training_set, tmp_path, kind):
    train(training_set, tmp_path, epochs=1)
    path = tmp_path / "last.pth"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save({"learner": Program(tmp_path / "it ran")}, path)
    reason = "is damaged, or not written by torch.save" if kind == "truncated" else "holds _?io.open besides"
    message = f"cannot read .*last.pth: it {reason}.*; delete it to train"
    with pytest.raises(ValueError, match=message):
        train(training_set, tmp_path, epochs=2)
    assert not (tmp_path / "it ran").exists()


def test_checkpoints_of_another_architecture_are_refused(training_set, tmp_path):
    train(training_set, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(training_set, tmp_path, width=8)


def test_validation_is_per_image_and_in_any_order(training_set):
    model = make_model(width=4, depth=2)
    scores = evaluate_model(model, training_set.select(range(6)))
    backwards = evaluate_model(model, training_set.select(range(5, -1, -1)))
    assert scores.shape == (6,) and np.allclose(scores, backwards[::-1], atol=1e-4)


def test_validation_scores_each_image_by_itself_after_the_undo(training_set):
    some = training_set.select(range(4))

    class Known(torch.nn.Module):
        """Its probabilities are the soft targets: what a perfect network would give."""

        def __init__(self):
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))  # says on which device it is

        def forward(self, images):
            return torch.logit(some.pixels[some.rows, 3:].float() / 255, eps=1e-6)

    expected = [round_trip_dice(read_mask(case.mask), 32) for case in some.cases]
    assert evaluate_model(Known(), some).tolist() == pytest.approx(expected, abs=1e-3)
    assert len(set(expected)) == 4


def test_the_size_of_the_evaluation_batch_does_not_matter(training_set, monkeypatch):
    torch.manual_seed(0)
    model = make_model(width=4, depth=2)
    monkeypatch.setattr("ctseg.predict.choose_precision", lambda device: torch.float32)
    means = []
    for size in (1, 3, 16):
        predict = partial(predict_training_set, batch_size=size)
        monkeypatch.setattr("ctseg.train.predict_training_set", predict)
        means.append(evaluate_model(model, training_set).mean())
    assert np.ptp(means) < 1e-4


def test_no_two_steps_of_all_epochs_and_folds_draw_alike(training_set, tmp_path, monkeypatch):
    seeds, step = [], Learner.step

    def note(self, *batch):
        seeds.append(batch[-1].initial_seed())
        return step(self, *batch)

    monkeypatch.setattr(Learner, "step", note)
    for fold in (0, 1):
        train(training_set, tmp_path / str(fold), seed=(7, fold))
    assert len(seeds) == len(set(seeds)) == 2 * 3 * 3


def test_an_image_left_over_joins_the_batch_before_so_that_a_map_of_one_pixel_can_be_normalized(
    training_set, tmp_path
):
    seventeen = training_set.select(range(17))
    size = training_set.pixels.shape[-1]
    depth = int(np.log2(size))  # the deepest map has one pixel
    config = Config(**SETTINGS | {"epochs": 1})
    learner = Learner(make_model(width=1, depth=depth), config)
    history = train_model(learner, seventeen, training_set.select([0]), tmp_path / "joined", seed=(0,))
    assert len(history) == 1 and learner.scheduler.last_epoch == 4
    for images, batch_size in ((seventeen, 1), (training_set.select([3]), 4)):
        learner = Learner(make_model(width=1, depth=depth), replace(config, batch_size=batch_size))
        with pytest.raises(ValueError, match=f"batches of one image of {size} pixels.*larger batch_size"):
            train_model(learner, images, training_set.select([0]), tmp_path / "single", seed=(0,))
    assert not (tmp_path / "single").exists()


@pytest.mark.parametrize("n", range(1, 14))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 20])
def test_batches_hold_every_image_once_and_are_as_many_as_counted(n, batch_size):
    batches = split_batches(torch.arange(n), batch_size)
    assert torch.cat(batches).tolist() == list(range(n)) and len(batches) == count_batches(n, batch_size)
    assert n == 1 or batch_size == 1 or min(map(len, batches)) > 1
