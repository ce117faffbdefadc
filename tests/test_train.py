"""The training loop, its schedule, its checkpoint, its budget, its validation."""

import itertools
import math
import os
import subprocess
import sys
import time
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
from ctseg.explore import make_round_trips
from ctseg.files import lock_folder, read_csv, write_csv
from ctseg.losses import DiceBCELoss, Losses
from ctseg.metrics import dice_score
from ctseg.model import load_weights, make_model
from ctseg.predict import predict_training_set, write_oof
from ctseg.schedule import Pace, Plan, one_cycle
from ctseg.seeds import make_generator
from ctseg.train import (
    Learner,
    _time_pace,
    check_finite,
    count_batches,
    evaluate_model,
    find_kept,
    make_optimizer,
    read_history,
    slim_checkpoint,
    split_batches,
    train_model,
    train_one_epoch,
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


def train(training_set, fold_dir, *, seed=(7, 0), ends_at=math.inf, width=4, lr=None, log=None, **changes):
    """Train a small network on 12 images, validate on 5 others; return it with its history.

    `lr` may be one that `Config` would refuse.
    """
    config = Config(**SETTINGS | {"budget_minutes": 1.0} | changes)  # without epochs there has to be one
    learner = make_learner(config, width)
    object.__setattr__(config, "lr", lr or config.lr)  # the config checks no more
    train, validation = training_set.select(range(12)), training_set.select(range(12, 17))
    with lock_folder(fold_dir):
        history = train_model(learner, train, validation, fold_dir, seed=seed, ends_at=ends_at, log=log)
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
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in history]


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
    columns = ["epoch", "skipped_steps", "train_soft_dice", "bce", "loss", "lr", "val_dice"]
    columns += ["seconds", "val_seconds"]
    assert list(history[0]) == columns
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
    """Its histories call soft Dice dice, and its checkpoints know no plan that changes."""
    _, history = train(training_set, tmp_path)
    old = [{"dice" if name == "train_soft_dice" else name: row[name] for name in row} for row in history[:2]]
    for row in old:
        del row["skipped_steps"], row["val_seconds"]
    path = tmp_path / "last.pth"
    checkpoint = read_last(tmp_path)
    for name in ("anchor", "threads"):
        del checkpoint[name]
    write_torch(checkpoint | {"history": old}, path)
    write_csv(old, tmp_path / "history.csv")
    assert read_history(tmp_path) == [row | {"val_seconds": 0.0} for row in history[:2]]
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


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at 0, and that a test sets: training takes no time by it, nor does its timing."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    for module in ("train", "schedule"):
        monkeypatch.setattr(f"ctseg.{module}.time", clock)
    monkeypatch.setattr("ctseg.train._time_pace", lambda *_, **__: Pace(step=1.0, epoch_end=1.0, end=2.0))
    return clock


def let_epochs_take(seconds, clock, monkeypatch):
    """Let the steps of each epoch take so many seconds by the clock, and its validation one more."""
    left = iter(seconds)

    def train_slowly(*arguments, **options):
        clock.now += next(left)
        return train_one_epoch(*arguments, **options)

    def evaluate_slowly(*arguments, **options):
        clock.now += 1
        return evaluate_model(*arguments, **options)

    monkeypatch.setattr("ctseg.train.train_one_epoch", train_slowly)
    monkeypatch.setattr("ctseg.train.evaluate_model", evaluate_slowly)


def test_a_budget_gives_a_number_of_steps_for_the_schedule(training_set, tmp_path, clock, monkeypatch):
    let_epochs_take([3, 3, 1], clock, monkeypatch)
    clock.now = 15.0
    _, history = train(training_set, tmp_path, epochs=None, ends_at=27.5)
    # Of 12.5 s 2 are for the end; two epochs of 3 + 1 s, one of 1 + 1 s.
    assert len(history) == 3 and read_last(tmp_path)["total_steps"] == 7
    assert history[-1]["lr"] < 0.1 * SETTINGS["lr"]
    # A finished training stays as it is, though there is time for more.
    assert train(training_set, tmp_path, epochs=None, ends_at=1000.0)[1] == history


def test_a_slow_epoch_shortens_the_schedule_and_a_fast_one_lengthens_it(
    training_set, tmp_path, clock, monkeypatch
):
    let_epochs_take([7, 5.5, 5.5], clock, monkeypatch)
    _, history = train(training_set, tmp_path / "slow", epochs=None, ends_at=23.5)
    # Planned are 5 epochs of 3 steps. After the first a step is thought to take the mean of 1 and 7/3 s, and
    # of the 15.5 s that are left there are 2 for the end, and enough for 2 epochs of 6 s.
    changed = Plan(15).change(3, 9)
    shares = [Plan(15).locate(2), changed.locate(5), changed.locate(8)]
    assert [row["lr"] for row in history] == pytest.approx([SETTINGS["lr"] * one_cycle(x) for x in shares])
    assert history[2]["lr"] < 0.2 * SETTINGS["lr"]

    clock.now = 0.0
    let_epochs_take(itertools.repeat(0.6), clock, monkeypatch)
    _, history = train(training_set, tmp_path / "fast", epochs=None, ends_at=22.5)
    assert len(history) > 10 and 19 < clock.now <= 21  # 5 epochs were planned; 2 s are for the end
    assert history[-1]["lr"] < 0.2 * SETTINGS["lr"]


def test_where_the_time_is_over_the_epochs_that_are_there_are_kept(
    training_set, tmp_path, clock, monkeypatch, capsys
):
    let_epochs_take([500, 1], clock, monkeypatch)
    _, history = train(training_set, tmp_path, ends_at=100.0)
    assert len(history) == 1 and read_kept(tmp_path)["epoch"] == 1
    line = f"{tmp_path.name} ends here, after 30% of its schedule: its time is over; to go on, delete its oof"
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)


def test_no_time_for_a_step_is_an_error_that_says_what_is_too_long(training_set, tmp_path, clock):
    message = "no time for a step of 1.0 s, a validation of 1.0 s and the out-of-fold predictions of 2.0 s;"
    with pytest.raises(TimeoutError, match=message):
        train(training_set, tmp_path / "fold0", ends_at=3.9)
    assert not list((tmp_path / "fold0").glob("[!.]*"))


def test_too_little_time_for_all_epochs_is_said(training_set, tmp_path, clock, monkeypatch, capsys):
    let_epochs_take([3, 1], clock, monkeypatch)
    _, history = train(training_set, tmp_path / "fold0", ends_at=8.5)
    assert len(history) == 2 and read_last(tmp_path / "fold0")["total_steps"] == 4
    assert capsys.readouterr().out.startswith("fold0 has time for 2 epochs instead of 3\n")


def test_a_schedule_that_was_cut_goes_on_when_there_is_time_again(training_set, tmp_path, clock, monkeypatch):
    let_epochs_take([500, 1, 1], clock, monkeypatch)
    assert len(train(training_set, tmp_path, ends_at=100.0)[1]) == 1
    slim_checkpoint(tmp_path)
    assert "learner" in read_last(tmp_path)
    _, history = train(training_set, tmp_path)  # without a limit
    changed = Plan(9).change(3, 3).change(3, 9)
    rates = [SETTINGS["lr"] * one_cycle(changed.locate(step)) for step in (5, 8)]
    assert [row["lr"] for row in history[1:]] == pytest.approx(rates) and rates[1] < 0.1 * SETTINGS["lr"]
    slim_checkpoint(tmp_path)
    assert "learner" not in read_last(tmp_path)


def test_a_changed_plan_counts_from_the_next_step(training_set):
    learner = make_learner(Config(**SETTINGS))
    learner.plan = Plan(9)
    rates = [learner.set_lr(step) for step in (0, 1, 2)]
    assert rates == pytest.approx([SETTINGS["lr"] * one_cycle(share) for share in (0.1, 0.2, 0.3)])
    learner.plan = learner.plan.change(3, 4)
    assert learner.set_lr(3) == SETTINGS["lr"] * one_cycle(learner.plan.locate(3)) < 0.7 * rates[2]
    assert {group["lr"] for group in learner.optimizer.param_groups} == {learner.set_lr(3)}


def test_a_resumed_training_uses_the_time_it_is_given(training_set, tmp_path, clock, monkeypatch):
    let_epochs_take([3, math.nan], clock, monkeypatch)
    evaluate, calls = evaluate_model, []

    def stop_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr("ctseg.train.evaluate_model", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(training_set, tmp_path, epochs=None, ends_at=100.0)
    kept = read_last(tmp_path)
    clock.now = 0.0
    let_epochs_take([3, 3], clock, monkeypatch)
    _, history = train(training_set, tmp_path, epochs=None, ends_at=10.5)
    assert kept["total_steps"] > 60 and len(history) == 3 and read_last(tmp_path)["total_steps"] == 9
    assert history[1]["lr"] > history[2]["lr"]


def test_the_pace_is_timed_on_a_copy(training_set, monkeypatch):
    learner, calls = make_learner(Config(**SETTINGS)), []
    before = {name: values.clone() for name, values in learner.model.state_dict().items()}
    step, ticks = Learner.step, itertools.count()

    def note(name, function):
        return lambda *args, **options: calls.append(name(*args)) or function(*args, **options)

    monkeypatch.setattr(Learner, "step", note(lambda *_: "step", step))
    monkeypatch.setattr(
        "ctseg.train.evaluate_model", note(lambda _, cases: cases.rows.tolist(), evaluate_model)
    )
    monkeypatch.setattr("ctseg.train.write_oof", note(lambda path, _, cases: len(cases), write_oof))
    monkeypatch.setattr("ctseg.train.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    pace = partial(_time_pace, learner, training_set.select(range(12)))
    # By a clock of which each look takes 1 s: a step, the validation and the end of all 5 images.
    assert pace(training_set.select(range(12, 17)), max_seconds=5.0) == (1.0, 1.0, 1.0)
    assert calls == [*5 * ["step"], *2 * [[12, 13, 14, 15, 16]], 5]
    # Of 64 images 32, and 8, that lie evenly among them: small and large ones.
    assert pace(training_set.select([*range(16), *48 * [16]]), max_seconds=0.0) == (1.0, 2.0, 8.0)
    assert calls[8:12] == 4 * ["step"] and calls[12][:9] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert len(calls[13]) == 32 and calls[14] == 8
    assert same(before, learner.model.state_dict())


def test_of_epochs_and_budget_the_shorter_counts(training_set, tmp_path):
    model, history = train(training_set, tmp_path / "a", epochs=2, ends_at=time.monotonic() + 3600)
    unlimited, expected = train(training_set, tmp_path / "b", epochs=2)
    assert without_seconds(history) == without_seconds(expected)
    assert same(model.state_dict(), unlimited.state_dict())


@pytest.mark.parametrize("changes", [{"bce_weight": 0.9}, {"border_weight": 5.0}, {"bce_weight": 1.0}])
def test_a_learner_minimizes_the_loss_of_its_config(training_set, changes):
    config = Config(batch_size=4, flip=0, rot90=0, **changes)
    learner = make_learner(config)
    pixels = training_set.get_batch(torch.arange(4), learner.device)
    targets = pixels[:, 3:] / 255
    logits = 8 * torch.nn.functional.avg_pool2d(targets, 9, 1, 4) - 4  # least sure at a border
    expected = DiceBCELoss(config.bce_weight, config.border_weight)(logits, targets).loss.item()
    assert abs(expected - DiceBCELoss()(logits, targets).loss.item()) > 0.01
    learner.model.forward = lambda images: logits.clone().requires_grad_()
    losses, _ = learner.step(pixels, make_generator(1))
    assert losses.loss.item() == pytest.approx(expected, abs=1e-5)


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
        return learner

    half, full = make_learner(torch.float16), make_learner(torch.float32)
    half.scaler.scale(torch.ones(()))  # makes its state
    states = full.state_dict()
    assert states["scaler"] == {} != half.state_dict()["scaler"]
    half.load_state_dict(states)
    assert half.scaler.get_scale() == 2.0**16  # as new
    full.load_state_dict(half.state_dict())
    assert full.state_dict()["scaler"] == {}


def test_the_rate_of_the_schedule_is_the_one_trained_with(training_set, tmp_path):
    lr = SETTINGS["lr"]
    rates = [row["lr"] for row in train(training_set, tmp_path / "a")[1]]
    assert rates == pytest.approx([lr * one_cycle(share) for share in (0.3, 0.6, 0.9)])
    assert {row["lr"] for row in train(training_set, tmp_path / "b", schedule="constant")[1]} == {lr}


def test_a_loss_that_is_not_finite_stops_and_names_its_images(training_set, tmp_path):
    message = "loss of nan in the batch of train_0.., train_0.., train_0.., train_0..;"
    with pytest.raises(FloatingPointError, match=message):
        train(training_set, tmp_path, lr=1e30, schedule="constant")
    assert not (tmp_path / "best_unet_model.pth").exists()


IDS = [["a"], ["b", "c"], ["d"]]


def check(learner, losses, skipped=(False, False, False)):
    check_finite(learner, torch.tensor(losses), torch.tensor(skipped), IDS)


def test_weights_that_the_last_step_broke_are_not_saved():
    learner = make_learner(Config())
    check(learner, [1.0, 1.0, 1.0])
    with torch.no_grad():
        learner.model.segmentation_head.bias[0] = torch.inf
    message = "loss of 1 in the batch of d; the last checkpoint is intact"
    with pytest.raises(FloatingPointError, match=message):
        check(learner, [1.0, 1.0, 1.0])


@pytest.fixture
def half(monkeypatch):
    """A network that learns in half precision, and its last batch."""
    monkeypatch.setattr("ctseg.train.choose_precision", lambda device: torch.float16)
    learner = make_learner(Config(**SETTINGS))
    return learner


def test_steps_that_half_precision_skips_are_no_error_unless_nothing_else_happens(half):
    infinite = float("inf")
    check(half, [infinite, 1.0, 1.0], (True, False, False))
    check(half, [1.0, 1.0, 1.0], (True, True, True))  # the scale is still being found
    with pytest.raises(FloatingPointError, match="no longer finite with a loss of inf in the batch of b, c;"):
        check(half, [1.0, infinite, 1.0], (True, False, False))
    message = "in half precision, which overflowed in 3 of 3 steps, with a loss of inf in the batch of a;"
    with pytest.raises(FloatingPointError, match=message):
        check(half, [infinite, infinite, infinite], (True, True, True))
    half.scaler.scale(torch.ones(()))
    half.scaler.update(0.5)
    with pytest.raises(FloatingPointError, match="in half precision, which overflowed in 1 of 3 steps"):
        check(half, [1.0, 1.0, 1.0], (False, True, False))


def find_statistics(learner):
    return [buffer.clone() for buffer in learner.model.buffers() if buffer.is_floating_point()]


def test_an_overflow_of_half_precision_costs_a_step_and_nothing_else(half, training_set):
    """Not the running statistics of batch normalization, of which the scaler knows nothing."""
    batch = training_set.get_batch(torch.arange(4))
    assert not half.step(batch, make_generator(0))[1]
    weights = {name: values.clone() for name, values in half.model.named_parameters()}
    before, first = find_statistics(half), next(half.model.parameters())
    with torch.no_grad():
        first *= 1e6  # beyond 65504, the largest number of half precision, whatever follows
    losses, is_skipped = half.step(batch, make_generator(1))
    assert is_skipped and not losses.loss.isfinite()
    after = find_statistics(half)
    assert all(values.isfinite().all() for values in after)
    with torch.no_grad():
        first /= 1e6
    assert all(torch.allclose(weights[name], values) for name, values in half.model.named_parameters())
    losses, is_skipped = half.step(batch, make_generator(2))
    assert not is_skipped and losses.loss.isfinite()
    assert any(not torch.equal(*pair) for pair in zip(before, find_statistics(half)))


def test_skipped_steps_are_counted_and_left_out_of_the_means(half, training_set, monkeypatch):
    step, calls = Learner.step, itertools.count()

    def overflow(self, *batch):
        losses, is_skipped = step(self, *batch)
        if next(calls) == 1:
            return Losses(*(value * math.nan for value in losses)), torch.tensor(True)
        return losses, is_skipped

    monkeypatch.setattr(Learner, "step", overflow)
    row = train_one_epoch(half, training_set.select(range(12)), steps=range(3), seed=(0,))
    assert row["skipped_steps"] == 1 and math.isfinite(row["loss"])


def test_a_history_behind_its_checkpoint_catches_up(training_set, tmp_path):
    _, history = train(training_set, tmp_path)
    expected = (tmp_path / "history.csv").read_text()
    # As a kill between the two files, and in the middle of one, leaves them.
    (tmp_path / "history.csv").write_text("".join(expected.splitlines(keepends=True)[:-1]))
    (tmp_path / ".partial-1-last.pth").write_bytes(b"half")
    assert train(training_set, tmp_path)[1] == history
    assert (tmp_path / "history.csv").read_text() == expected and not list(tmp_path.glob(".partial*"))


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

    masks = [read_mask(case.mask) for case in some.cases]
    expected = [dice_score(make_round_trips(mask, 32)[0], mask) for mask in masks]
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
    assert len(history) == 1 and read_last(tmp_path / "joined")["total_steps"] == 4
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
