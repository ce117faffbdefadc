"""Folds one after the other and side by side, and what is decided on their out-of-fold predictions."""

import math
import os
import re
import shutil
import signal
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import save_image, wait

from ctseg.contest import A0
from ctseg.data import find_cases, load_training_set
from ctseg.files import FolderBusy, lock_folder, write_csv, write_text
from ctseg.folds import (
    Stopped,
    _plan_stages,
    assign_folds,
    find_folds,
    find_oof,
    load_folds,
    load_predictor,
    train_fold,
    train_folds,
)
from ctseg.metrics import dice_score
from ctseg.phantom import write_phantom
from ctseg.postprocess import PostProcess, make_mask
from ctseg.predict import OutOfFold, Predictor, predict_cases, predict_masks, predict_probabilities, write_oof
from ctseg.report import write_summary
from ctseg.runs import find_members, make_config, make_dataset, open_run
from ctseg.split import split_cases
from ctseg.train import evaluate_model
from ctseg.weights import write_torch
from ctseg.workers import WorkerPool

SETTINGS = {
    "preset": "quick",
    "n_folds": 2,
    "epochs": 1,
    "target_size": 32,
    "width": 2,
    "depth": 2,
    "tta": "flips",
}


@pytest.fixture
def make_run(phantom, tmp_path, monkeypatch):
    """Make a run below a folder of the test's own: (config, run_dir)."""
    monkeypatch.chdir(tmp_path)

    def make(name, **changes):
        config = make_config(**SETTINGS | {"data_root": str(phantom), "run": name} | changes)
        return config, open_run(config)

    return make


@pytest.fixture
def two_gpus(monkeypatch):
    """Make the machine count two GPUs from now on; the workers themselves find none and use the CPU."""

    def pretend():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


def block_fold(run_dir, fold):
    """Put a file where a fold's folder would be."""
    (run_dir / f"fold{fold}").write_text("a file in the way")


def test_folds_side_by_side_learn_as_one_after_the_other(make_run, two_gpus, capsys):
    first = train_folds(*make_run("one_after_the_other"))
    two_gpus()
    second = train_folds(*make_run("side_by_side"))
    assert first.keys() == second.keys() == {0, 1}
    assert all(first[k][0]["val_dice"] == pytest.approx(second[k][0]["val_dice"], abs=1e-6) for k in first)
    printed = {line[:15] for line in capsys.readouterr().out.splitlines()}
    assert {"fold0 epoch 1/1", "fold1 epoch 1/1"} <= printed


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_fold_that_fails_is_reported_and_the_others_go_on(make_run, two_gpus, side_by_side, capsys):
    if side_by_side:
        two_gpus()
    config, run_dir = make_run("broken")
    block_fold(run_dir, 0)
    assert train_folds(config, run_dir).keys() == {1}
    assert "FAILED: fold 0" in capsys.readouterr().out
    assert [path.name for path in find_folds(run_dir)] == ["fold1"]
    failed = write_summary(run_dir, scores={}, postprocess="")["failed"]
    assert failed.keys() == {"fold0"} and failed["fold0"].startswith("FileExistsError")
    (run_dir / "fold0").unlink()
    assert train_folds(config, run_dir).keys() == {0, 1}
    assert not list(run_dir.glob("failed*"))


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_fold_that_another_process_trains_is_no_failure(make_run, two_gpus, side_by_side, capsys):
    if side_by_side:
        two_gpus()
    config, run_dir = make_run("shared")
    with lock_folder(run_dir / "fold0"):
        assert train_folds(config, run_dir).keys() == {1}
        with pytest.raises(FolderBusy):
            train_folds(replace(config, fold=0), run_dir)
    assert "fold 0 is left alone: " in capsys.readouterr().out and not list(run_dir.glob("failed*"))
    assert write_summary(run_dir, scores={}, postprocess="")["failed"] == {}


def test_a_fold_is_held_until_its_predictions_are_there(make_run, monkeypatch):
    config, run_dir = make_run("held", n_folds=1)

    def write(path, *arguments, **options):
        with pytest.raises(FolderBusy), lock_folder(path.parent):
            pass
        write_oof(path, *arguments, **options)

    monkeypatch.setattr("ctseg.folds.write_oof", write)
    assert train_folds(config, run_dir).keys() == {0}


@pytest.mark.parametrize("what", ["settings", "data"])
def test_of_two_processes_that_start_a_run_otherwise_only_one_goes_on(make_run, tmp_path, monkeypatch, what):
    config, run_dir = make_run("shared")
    training_set = load_training_set(make_dataset(config, "train"))

    def start_another(*_, **__):  # while the first epoch of this one runs
        changes = {"lr": 0.1} if what == "settings" else {"data_root": str(other_data)}
        other = make_run("shared", **changes)[0]
        assign_folds(other, run_dir, load_training_set(make_dataset(other, "train")))
        return np.array([0.5])

    other_data = write_phantom(tmp_path / "other", n_train=20, n_test=1)
    monkeypatch.setattr("ctseg.train.evaluate_model", start_another)
    message = "lr: got 0.002, stored 0.1" if what == "settings" else "started .* with other training data"
    with pytest.raises(ValueError, match=message):
        train_folds(config, run_dir, training_set)
    assert not list(run_dir.glob("fold*/*.pth"))


def test_a_run_that_begins_while_another_process_splits_keeps_its_data(make_run, tmp_path, monkeypatch):
    config, run_dir = make_run("shared")
    other = make_run("shared", data_root=str(write_phantom(tmp_path / "other", n_train=20, n_test=1)))[0]
    others_set = load_training_set(make_dataset(other, "train"))

    def begin_meanwhile(training_set, **options):
        monkeypatch.setattr("ctseg.folds.split_cases", split_cases)
        assign_folds(config, run_dir, load_training_set(make_dataset(config, "train")))
        write_text("", run_dir / "fold0" / "last.pth")
        return split_cases(training_set, **options)

    monkeypatch.setattr("ctseg.folds.split_cases", begin_meanwhile)
    with pytest.raises(ValueError, match="was trained on other data"):
        assign_folds(other, run_dir, others_set)
    open_run(config)


def test_where_no_fold_finishes_the_error_is_raised(make_run):
    config, run_dir = make_run("broken")
    for fold in (0, 1):
        block_fold(run_dir, fold)
    with pytest.raises(FileExistsError):
        train_folds(config, run_dir)


def test_a_finished_fold_is_not_trained_again(make_run, monkeypatch):
    config, run_dir = make_run("finished")
    histories = train_folds(config, run_dir)
    for fold in (0, 1):
        (run_dir / f"fold{fold}" / "last.pth").unlink()  # even without its checkpoint
    monkeypatch.setattr("ctseg.folds.train_model", lambda *_, **__: pytest.fail("trained again"))
    assert train_folds(config, run_dir) == histories


def list_pictures(fold_dir):
    return sorted(path.name for path in fold_dir.glob("val_outputs/*"))


def test_a_finished_fold_keeps_no_states_and_the_pictures_of_three_epochs(make_run):
    config, run_dir = make_run("tidy", n_folds=1, epochs=4)
    train_folds(config, run_dir)
    fold_dir = run_dir / "fold0"
    assert list_pictures(fold_dir) == ["epoch_1", "epoch_2", "epoch_4"]
    assert (fold_dir / "last.pth").stat().st_size < 20_000
    weights, oof = ((fold_dir / name).read_bytes() for name in ("best_unet_model.pth", "oof.npz"))
    (fold_dir / "oof.npz").unlink()  # as its error advises where it is damaged
    (fold_dir / "history.csv").unlink()
    (histories,) = train_folds(config, run_dir).values()
    assert len(histories) == 4 and (fold_dir / "best_unet_model.pth").read_bytes() == weights
    assert (fold_dir / "oof.npz").read_bytes() == oof


def stop_in_epoch(number, monkeypatch):
    """Let Ctrl-C come in the validation of an epoch."""
    epochs = iter(range(1, 100))

    def evaluate(*arguments, **options):
        if next(epochs) == number:
            raise KeyboardInterrupt
        return evaluate_model(*arguments, **options)

    monkeypatch.setattr("ctseg.train.evaluate_model", evaluate)


@pytest.mark.parametrize(
    ("epoch", "kept"), [(1, "no epoch is kept yet"), (2, "epoch 1 is kept"), (3, "epochs 1 to 2 are kept")]
)
def test_stopped_by_hand_one_line_says_what_is_kept(make_run, monkeypatch, epoch, kept):
    config, run_dir = make_run("stopped", n_folds=2, epochs=4)
    stop_in_epoch(epoch, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train_folds(config, run_dir)
    line = f"Stopped in epoch {epoch} of fold0; {kept}; run the same again to go on"
    assert stopped.value._render_traceback_() == [line] == [str(stopped.value)]
    assert not list(run_dir.glob("failed*")) and not (run_dir / "fold1").exists()


def test_resumed_and_finished_folds_say_so(make_run, monkeypatch, capsys):
    config, run_dir = make_run("again", n_folds=2, epochs=3)
    stop_in_epoch(5, monkeypatch)
    with pytest.raises(Stopped, match="in epoch 2 of fold1; epoch 1 is kept"):
        train_folds(config, run_dir)
    capsys.readouterr()
    monkeypatch.setattr("ctseg.train.evaluate_model", evaluate_model)
    train_folds(config, run_dir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["fold0 is finished already", "fold1 goes on after epoch 1 of 3"]
    assert [line.split("  ")[0] for line in lines[2:]] == ["fold1 epoch 2/3", "fold1 epoch 3/3"]


def test_unfinished_folds_are_used_if_that_is_asked_for(phantom, make_run, monkeypatch):
    config, run_dir = make_run("part", n_folds=2, epochs=3)
    stop_in_epoch(2, monkeypatch)
    with pytest.raises(Stopped):
        train_folds(config, run_dir)
    message = (
        "fold0 is not finished, epoch 1 was its last.*or pass use_unfinished to make do with what there is"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_oof(config, run_dir)
    asked = replace(config, use_unfinished=True)
    (path,) = find_oof(asked, run_dir)
    assert path == run_dir / "fold0" / "unfinished.npz" and len(load_folds(asked, run_dir)) == 1
    assert len(OutOfFold([path], find_cases(phantom, "train", A0)).cases) == 12
    monkeypatch.setattr("ctseg.train.evaluate_model", evaluate_model)
    assert [len(history) for history in train_folds(config, run_dir).values()] == [3, 3]
    assert not path.exists() and find_oof(asked, run_dir) == find_oof(config, run_dir)


def test_runs_that_have_a_trained_fold_are_named_where_this_one_has_none(make_run):
    for name in ("b", "a"):
        write_text("", make_run(name)[1] / "fold0" / "oof.npz")
    with pytest.raises(FileNotFoundError, match="or name another run; trained are a, b$"):
        find_folds(make_run("typo")[1])


def test_other_settings_are_refused_before_anything_is_trained(make_run):
    config, run_dir = make_run("settings", n_folds=2, epochs=1, fold=0)
    train_folds(config, run_dir)
    with pytest.raises(ValueError, match="lr: got 0.5, stored 0.002"):
        train_folds(replace(config, lr=0.5, fold=1), run_dir)
    assert not (run_dir / "fold1").exists()


def test_a_fold_trains_on_the_others_with_a_seed_of_its_own(make_run, monkeypatch):
    seen = []

    def note(_, train, validation, *__, **options):
        seen.append((train, validation, options))

    monkeypatch.setattr("ctseg.folds.train_model", note)
    monkeypatch.setattr("ctseg.folds.load_weights", lambda *_: None)
    monkeypatch.setattr("ctseg.folds.read_history", lambda fold_dir: [])
    train_folds(*make_run("folds"))
    for train, validation, _ in seen:
        trained, validated = ({case.image_id for case in subset.cases} for subset in (train, validation))
        assert not trained & validated and len(trained | validated) == 24
    assert seen[0][2]["seed"] != seen[1][2]["seed"]


def test_out_of_fold_predictions_are_by_the_weights_kept(phantom, make_run, monkeypatch):
    config, run_dir = make_run("kept", n_folds=1, epochs=2, keep="best", lr=0.05)
    scores = iter([[0.9], [0.1]])
    monkeypatch.setattr("ctseg.train.evaluate_model", lambda *_, **__: np.array(next(scores)))
    train_folds(config, run_dir)
    (model,) = load_folds(config, run_dir)
    kept = OutOfFold([run_dir / "fold0" / "oof.npz"], find_cases(phantom, "train", A0))
    dataset = make_dataset(config, "train")
    dataset.cases = kept.cases
    again = [found.probability for found in predict_cases([Predictor([model], dataset, config.tta)])]
    assert np.abs(kept.probabilities / 255 - np.array(again)).max() <= 0.5 / 255 + 1e-5


def test_start_weights_that_saw_the_validation_images_are_said_to_have(make_run, capsys):
    config, run_dir = make_run("first")
    train_folds(config, run_dir)
    weights = str(run_dir / "fold1" / "best_unet_model.pth")
    capsys.readouterr()
    train_folds(*make_run("second", weights=weights))
    lines = [line for line in capsys.readouterr().out.splitlines() if "independent" in line]
    again = str(run_dir.parent / "second" / "fold1" / "best_unet_model.pth")  # it started from the first
    train_folds(*make_run("third", weights=again, seed=7))
    chained = [line for line in capsys.readouterr().out.splitlines() if "independent" in line]
    assert len(chained) == 2 and all("of its 12 images" in line for line in chained)
    (line,) = lines
    assert line.startswith(
        "fold0 validation is not independent: runs/first/fold1/best_unet_model.pth was trained on 12 of its "
        "12 images;"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_an_error_with_a_batch_size(make_run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("ctseg.folds.train_model", fail)
    first_line = re.escape(str(error).splitlines()[0])
    message = rf"the CPU's memory is too small for batch_size 4; try -p batch_size 2 \({first_line}\)$"
    with pytest.raises(MemoryError, match=message):
        train_folds(*make_run("memory"))


def test_another_error_is_not_taken_for_too_little_memory(make_run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM")

    monkeypatch.setattr("ctseg.folds.train_model", fail)
    with pytest.raises(RuntimeError, match="BAD_PARAM$"):
        train_folds(*make_run("memory"))


def test_a_failed_fold_does_not_stay_in_memory_while_the_next_one_trains(make_run, monkeypatch):
    networks = []

    def fail(learner, *_, **__):
        assert [reference() for reference in networks] == [None] * len(networks)
        networks.append(weakref.ref(learner.model))
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("ctseg.folds.train_model", fail)
    with pytest.raises(MemoryError):
        train_folds(*make_run("memory"))
    assert len(networks) == 2


def test_a_gpu_whose_process_cannot_be_started_is_free_for_the_next_fold(make_run, monkeypatch):
    def fail(*_, **__):
        raise OSError("cannot allocate memory")

    config, run_dir = make_run("start", n_folds=3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("subprocess.Popen", fail)
    with pytest.raises(OSError, match="cannot allocate memory"):
        train_folds(config, run_dir)
    assert len(list(run_dir.glob("failed_fold*.txt"))) == 3


@pytest.fixture
def given(monkeypatch):
    """The seconds that each fold is given, by a clock that stands still while nothing trains."""
    clock, given = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now), []
    monkeypatch.setattr("ctseg.folds.time", clock)
    monkeypatch.setattr("ctseg.schedule.time", clock)
    monkeypatch.setattr("ctseg.schedule._STARTED", 900.0)

    def train(*_, ends_at, **__):
        given.append(ends_at - clock.now)
        clock.now = min(ends_at, 1e9)

    monkeypatch.setattr("ctseg.folds.train_fold", train)
    monkeypatch.setattr(
        "ctseg.folds._train_in_process",
        lambda *inputs, ends_at: given.append((inputs[-1], ends_at - clock.now)),
    )
    return given


def load_in(seconds, config):
    """The training set, as if loading it had taken so long."""
    return replace(load_training_set(make_dataset(config, "train")), seconds=seconds)


def test_a_budget_is_divided_by_the_rounds_of_folds_and_loading_counts(make_run, given, two_gpus):
    config, run_dir = make_run("budget", n_folds=3, epochs=None, budget_minutes=6.1)
    train_folds(config, run_dir, load_in(6.0, config))
    assert given == pytest.approx(3 * [120])
    given.clear()
    two_gpus()
    train_folds(config, run_dir, load_in(6.0, config))
    seconds = dict(given)  # two rounds, of which the first took no time
    assert seconds == pytest.approx({0: 180, 1: 180, 2: 360})


def test_a_budget_goes_on_where_a_stopped_run_left_it(make_run, given):
    config, run_dir = make_run("budget", n_folds=3, epochs=None, budget_minutes=6.0)
    assign_folds(config, run_dir, load_in(0.0, config))
    for fold, seconds in ((0, 130), (1, 50)):
        write_csv([{"epoch": 1, "seconds": seconds}], run_dir / f"fold{fold}" / "history.csv")
    write_text("", run_dir / "fold0" / "oof.npz")
    train_folds(config, run_dir, load_in(0.0, config))
    assert given == pytest.approx([0, 70, 120])  # the first is finished


def test_a_deadline_counts_from_the_start_of_the_notebook_and_the_shorter_counts(make_run, given):
    config, run_dir = make_run("deadline", n_folds=2, epochs=3)
    train_folds(replace(config, deadline_minutes=5.0), run_dir, load_in(10.0, config))
    assert given == pytest.approx([100, 100])  # it has started 100 seconds before
    given.clear()
    train_folds(config, run_dir, load_in(10.0, config))
    assert given == [math.inf, math.inf]


def test_of_budget_and_deadline_the_shorter_counts(make_run, given):
    config, run_dir = make_run("both", n_folds=2, epochs=None, budget_minutes=60.0)
    train_folds(replace(config, deadline_minutes=5.0), run_dir, load_in(10.0, config))
    assert given == pytest.approx([100, 100])
    given.clear()
    train_folds(replace(config, deadline_minutes=500.0), run_dir, load_in(10.0, config))
    assert sum(given) < 3600


def test_on_two_cores_two_folds_train_side_by_side_and_the_last_one_has_both(make_run, cores, capfd):
    alone, run_dir = make_run("alone", n_folds=3)
    train_folds(alone, run_dir)
    cores(2)
    config, side_by_side = make_run("side_by_side", n_folds=3)
    assert train_folds(config, side_by_side).keys() == {0, 1, 2}
    threads = []
    for fold in range(3):
        kept, expected = (
            torch.load(path / f"fold{fold}" / "best_unet_model.pth", weights_only=True)["state_dict"]
            for path in (side_by_side, run_dir)
        )
        last = torch.load(side_by_side / f"fold{fold}" / "last.pth", weights_only=True)
        threads.append(last["threads"])
        if last["threads"] == torch.get_num_threads():
            assert all(torch.equal(values, expected[name]) for name, values in kept.items())
    assert threads == [1, 1, 2]
    printed = capfd.readouterr().out
    assert printed.count(" epoch 1/1 ") == 6 and " step " not in printed


def test_a_fold_goes_on_with_the_threads_that_it_began_with(make_run, cores, monkeypatch):
    used = []
    cores(3)
    monkeypatch.setattr("ctseg.folds.train_model", lambda *_, **__: used.append(torch.get_num_threads()))
    monkeypatch.setattr("ctseg.folds.load_weights", lambda *_: None)
    config, run_dir = make_run("threads", n_folds=1)
    inputs = split(config, run_dir)
    for kept in ({"threads": 2}, {"threads": 5}, {}):
        write_torch(kept | {"trained_on": []}, run_dir / "fold0" / "last.pth")
        train_fold(config, run_dir, *inputs, 0)
        (run_dir / "fold0" / "oof.npz").unlink()
    assert used == [2, 3, torch.get_num_threads()]  # no more than there are cores


def split(config, run_dir):
    training_set = load_training_set(make_dataset(config, "train"))
    return training_set, assign_folds(config, run_dir, training_set)


@pytest.mark.parametrize(("free", "n"), [(math.inf, 4), (1e12, 4), (3.5e9, 2), (1e9, 1), (0.0, 1)])
def test_no_more_folds_train_side_by_side_than_the_memory_holds(make_run, cores, monkeypatch, free, n):
    cores(4)
    monkeypatch.setattr("ctseg.folds.find_free_memory", lambda: free)
    monkeypatch.setattr("ctseg.folds.measure_step_memory", lambda config: 0.5e9)
    (stage, *_) = _plan_stages(make_run("memory")[0], range(4))
    assert max(1, len(stage.environments)) == n
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # in a sweep another run has the other cores, and memory
    (stage, *_) = _plan_stages(make_run("memory")[0], range(4))
    assert max(1, len(stage.environments)) == max(1, n // 2)


@pytest.mark.parametrize(("minutes", "n"), [(2.9, 0), (3.1, 2)])
def test_a_minute_for_each_fold_is_worth_processes(make_run, cores, minutes, n):
    cores(2)
    config = make_run("short", epochs=None, budget_minutes=minutes, n_folds=3)[0]
    assert len(_plan_stages(config, range(3))[0].environments) == n


def test_ctrl_c_stops_the_folds_in_other_processes_too(make_run, two_gpus, monkeypatch):
    config, run_dir = make_run("stopped", epochs=100_000)
    two_gpus()
    pools = []
    monkeypatch.setattr(
        "ctseg.folds.WorkerPool", lambda places: pools.append(WorkerPool(places)) or pools[-1]
    )

    def interrupt():
        wait(lambda: all((run_dir / f"fold{fold}" / "history.csv").is_file() for fold in (0, 1)))
        os.kill(os.getpid(), signal.SIGINT)  # this process alone, as Jupyter may

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match="epochs? 1 .*(is|are) kept; run the same again to go on"):
        train_folds(config, run_dir)
    thread.join()
    assert pools[0].running == set()
    with lock_folder(run_dir / "fold0"), lock_folder(run_dir / "fold1"):
        pass


def test_folds_without_time_are_not_begun_and_those_that_have_epochs_are_finished(
    make_run, two_gpus, monkeypatch, capsys
):
    config, run_dir = make_run("late", epochs=3)
    stop_in_epoch(2, monkeypatch)
    with pytest.raises(Stopped):
        train_folds(config, run_dir)
    monkeypatch.setattr("ctseg.schedule._STARTED", time.monotonic() - 100)
    two_gpus()
    assert train_folds(replace(config, deadline_minutes=1.0), run_dir).keys() == {0}
    printed = capsys.readouterr().out
    assert "FAILED: fold 1, " in printed and ": TimeoutError: no time left to begin" in printed
    assert "fold0 ends here, after " in printed and (run_dir / "fold0" / "oof.npz").is_file()
    assert not list((run_dir / "fold1").glob("[!.]*")) and "Traceback" not in printed


@pytest.fixture
def run(make_run):
    """A run of two trained folds: (config, run_dir)."""
    config, run_dir = make_run("run")
    train_folds(config, run_dir)
    return config, run_dir


def test_a_case_is_predicted_by_the_network_that_did_not_see_it(run):
    config, run_dir = run
    training_set = load_training_set(make_dataset(config, "train"))
    ids = [case.image_id for case in training_set.cases]
    fold_of_case = dict(zip(ids, assign_folds(config, run_dir, training_set)))
    validation = OutOfFold([path / "oof.npz" for path in find_folds(run_dir)], training_set.cases)
    assert sorted(case.image_id for case in validation.cases) == sorted(fold_of_case)
    assert [fold_of_case[case.image_id] for case in validation.cases] == validation.folds.tolist()
    models = load_folds(config, run_dir)
    index = len(validation.cases) - 1
    dataset = make_dataset(config, "train")
    dataset.cases = [validation.cases[index]]
    ((_, expected, letterbox, _),) = predict_cases([Predictor([models[1]], dataset, "flips")])
    probability, own_letterbox, true_mask = validation.read(index)
    assert np.abs(probability - expected).max() <= 0.5 / 255 + 1e-5
    assert own_letterbox == letterbox and true_mask.shape == letterbox.original_size


def test_a_plain_threshold_scores_as_training_did(run, tmp_path):
    config, run_dir = run
    training_set = load_training_set(make_dataset(config, "train"))
    validation = OutOfFold([run_dir / "fold0" / "oof.npz"], training_set.cases)
    assert np.bincount(validation.folds).min() >= 2 and validation.folds.max() == 4
    (model, _) = load_folds(config, run_dir)
    candidates = baseline, _ = PostProcess(), PostProcess(threshold=0.6, fill_holes=True)
    for candidate, scores in zip(candidates, validation.score_each(candidates)):
        again = []
        for probability, letterbox, true_mask in map(validation.read, range(len(scores))):
            again.append(dice_score(make_mask(probability, letterbox, candidate), true_mask))
        assert scores.tolist() == again
    ids = {case.image_id for case in validation.cases}
    own = [index for index, case in enumerate(training_set.cases) if case.image_id in ids]
    # A hardly trained network is near one half everywhere, where a rounded probability would change sides.
    with torch.no_grad():
        for parameter in model.segmentation_head.parameters():
            parameter *= 1000
    write_oof(tmp_path / "oof.npz", model, training_set.select(own))
    again = OutOfFold([tmp_path / "oof.npz"], training_set.cases).score(baseline)
    assert np.allclose(again, evaluate_model(model, training_set.select(own)), atol=0.01)


def test_each_test_image_gets_its_own_prediction(run):
    config, run_dir = run
    dataset, (model, _) = make_dataset(config, "test"), load_folds(config, run_dir)
    predictions = list(predict_cases([Predictor([model], dataset)], batch_size=3))
    assert [found.case for found in predictions] == dataset.cases
    for index, (_, probability, letterbox, agreement) in enumerate(predictions):
        image, _, own_letterbox = dataset[index]
        assert np.allclose(probability, predict_probabilities(model, image[None])[0], atol=0.01)
        assert letterbox == own_letterbox
        assert agreement == dice_score(probability > 0.3, probability > 0.7)  # of a single network


def test_test_masks_are_of_the_mean_and_of_the_image_size(run):
    config, run_dir = run
    dataset, models = make_dataset(config, "test"), load_folds(config, run_dir)
    chosen = PostProcess(threshold=0.4)
    masks = {name: mask for name, mask, _ in predict_masks([Predictor(models, dataset, "flips")], chosen)}
    first, second = (list(predict_cases([Predictor([model], dataset, "flips")])) for model in models)
    for (case, one, letterbox, _), (_, other, _, _) in zip(first, second, strict=True):
        expected = make_mask((one + other) / 2, letterbox, chosen)
        assert masks[case.image_id].shape == expected.shape == letterbox.original_size
        assert np.mean(masks[case.image_id] != expected) < 0.001
    assert list(masks) == [case.image_id for case in dataset.cases]


@pytest.mark.parametrize("group", [r"_\d(\d)", "groups.csv"])
def test_groups_stay_in_one_fold_and_are_looked_for_once(phantom, tmp_path, make_run, group):
    root = tmp_path / "Dataset"
    shutil.copytree(phantom / "Train", root / "Train")
    tens = {case.image_id: case.image_id[-2] for case in find_cases(root, "train", A0)}  # train_0xy: x
    (root / "groups.csv").write_text("".join(f"{name}.jpg,{ten}\n" for name, ten in tens.items()))
    config, run_dir = make_run("grouped", data_root=str(root), group=group)
    training_set = load_training_set(make_dataset(config, "train"))
    folds = assign_folds(config, run_dir, training_set)
    assert set(zip(tens.values(), folds.tolist())) == {(ten, folds[10 * int(ten)]) for ten in "012"}
    write_text("", run_dir / "fold0" / "last.pth")
    (root / "groups.csv").unlink()
    assert assign_folds(config, run_dir, training_set).tolist() == folds.tolist()


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ("(", ValueError, "parameter group: '.' is not a regular expression"),
        ("^x", ValueError, "parameter group: '.x' finds nothing"),
        ("none.csv", FileNotFoundError, "no file 'none.csv'"),
    ],
)
def test_groups_that_cannot_be_are_said_so_before_training(make_run, group, error, message):
    config, run_dir = make_run("none", group=group)
    with pytest.raises(error, match=message):
        train_folds(config, run_dir)
    assert not (run_dir / "fold0").exists()


def test_each_run_of_an_average_sees_16_bit_images_in_its_own_window(make_run, tiny):
    rng = np.random.default_rng(0)
    for path in (tiny / "Train" / "Image").iterdir():
        save_image(path, rng.integers(1000, 3000, (30, 40), np.uint16))
    seen = {}
    for name, bounds in {
        "a": {"window_low": 0, "window_high": 9000},
        "b": {},
        "c": {"window_low": 0},
    }.items():
        config, run_dir = make_run(name, data_root=str(tiny), n_folds=1, **bounds)
        train_folds(config, run_dir)
        seen[name] = make_dataset(config, "train").window
    average = make_config(runs="a,b,c", data_root=str(tiny))
    test = make_dataset(average, "test")
    members = find_members(average, open_run(average, trains=False))
    assert [load_predictor(*member, test).dataset.window for member in members] == list(seen.values())
    assert (
        seen["a"] == (0, 9000)
        and 1000 < seen["b"][0] < seen["b"][1] < 3000
        and seen["c"] == (0, seen["b"][1])
    )


def test_a_finished_fold_with_a_damaged_checkpoint_is_finished(make_run):
    config, run_dir = make_run("damaged", n_folds=1)
    train_folds(config, run_dir)
    (run_dir / "fold0" / "last.pth").write_bytes(b"damaged")
    assert list(train_folds(config, run_dir)) == [0] and not list(run_dir.glob("failed*"))
