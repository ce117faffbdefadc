"""A grid of runs: what is refused, what is run, what survives, and the table in the end."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY, wait
from PIL import Image

from ctseg.cluster import ask_worker, find_place, find_versions
from ctseg.files import FolderBusy, lock_folder
from ctseg.sweep import _count_threads, check_given, make_name, make_plan, run_sweep, run_task

SMALL = {"epochs": 1, "target_size": 32, "width": 2, "depth": 2, "n_folds": 2}
LISTS = {"lr": [0.001, 0.002], "batch_size": [4, 8]}
FINISHED = SimpleNamespace(wait=lambda timeout: 1)  # a process that failed


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A repository of its own, whose notebooks and package are the real ones."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("ctseg", "notebooks"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.fixture
def grid(workplace, phantom, monkeypatch):
    """Work in that repository; a small grid."""
    monkeypatch.chdir(workplace)
    return {**SMALL, "data_root": str(phantom), **LISTS}


def start(workplace, grid, name, *arguments):
    """Start a sweep as its own program."""
    path = workplace / f"{name}.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    command = [sys.executable, "-u", "-m", "ctseg.sweep", path, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(workplace)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=workplace, env=environment, **output)


def sweep(workplace, grid, name, *arguments):
    """Run a sweep to its end; return (status, printed text)."""
    process = start(workplace, grid, name, *arguments)
    printed, _ = process.communicate()
    return process.returncode, printed


def read_leaderboard(folder):
    """The rows of a leaderboard without what may differ between two sweeps: times and places."""
    with open(folder / "leaderboard.csv") as file:
        return [{**row, "minutes": "", "path": ""} for row in csv.DictReader(file)]


def list_children(workplace):
    """The processes that train in this workplace."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    pids = []
    for line in found:
        pid, _, command = line.strip().partition(" ")
        if "ctseg.child" in command or "ipykernel_launcher" in command:
            try:
                here = os.readlink(f"/proc/{pid}/cwd")
            except OSError:
                continue
            pids += [int(pid)] if Path(here).is_relative_to(workplace) else []
    return pids


def can_lock(folder):
    """Whether nobody writes in a folder."""
    try:
        with lock_folder(folder):
            return True
    except FolderBusy:
        return False


def list_names(plan):
    """The names of a plan's runs in the sweep's folder."""
    return list(dict.fromkeys(task.run.name.removeprefix(f"{plan.name}/") for task in plan.tasks))


def test_all_combinations_or_each_value_alone_are_runs_the_base_first(grid):
    plan = make_plan("s", grid)
    names = [f"batch_size={size},lr={lr}" for lr in (0.001, 0.002) for size in (4, 8)]
    assert list_names(plan) == names
    plan = make_plan("s", grid | {"combine": "one_at_a_time"})
    assert list_names(plan) == [names[0], names[2], names[1]]


def test_a_runs_command_is_what_a_person_would_type(grid):
    tasks = make_plan("s", grid | {"fold": [0, 1], "tta": "none"}).tasks
    assert [task.fold for task in tasks] == [0, 1] * 4
    notebook, output, *arguments = tasks[1].make_arguments(tasks[1].notebook)
    name = "s/batch_size=4,lr=0.001"
    assert (notebook, output) == ("notebooks/03_train.ipynb", f"runs/{name}/03_train_fold1.ipynb")
    assert " ".join(arguments).endswith(f"-p lr 0.001 -p batch_size 4 -r tta none -r run {name} -p fold 1")
    task = make_plan("s", grid).tasks[0]
    assert task.notebook.name == "03_train.ipynb" and list(task.folds) == [0, 1] and str(task) == name


def test_values_are_understood_as_training_does_and_equal_ones_count_once(grid):
    grid |= {"lr": ["1e-3", 0.001, "5e-05"], "batch_size": [4], "weight_channels_by_contrast": "yes"}
    plan = make_plan("s", grid)
    assert list_names(plan) == ["batch_size=4,lr=0.001", "batch_size=4,lr=5e-05"]
    assert plan.base.parameters["weight_channels_by_contrast"] is True
    grid |= {"lr": [1, 1.0], "tta": False}
    assert [task.run.config.tta for task in make_plan("s", grid).tasks] == ["none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrr": [1]}, "unknown parameter 'lrr', did you mean 'lr'"),
        ({"lr": []}, "lr: an empty list"),
        ({"lr": 1e-3, "batch_size": 4}, "no value is a list, such as lr"),
        ({"lr": "1e-3 5e-4"}, r"got '1e-3 5e-4'.*; write a list of values as \[0.001, 0.0005\]"),
        ({"weights": ["", "default"]}, "weights 'default': torchvision has none for 'unet'"),
        ({"lr": [1e-3, "fast"]}, "lr: got 'fast'"),
        ({"lr": [1e-3, [2e-3]]}, r"lr: got \[0.002\]"),
        ({"combine": "random"}, "combine: got 'random', expected one of product, one_at_a_time"),
        ({"budget_minutes": 3}, "budget_minutes in a sweep: .*fewer steps"),
        ({"budget_minutes": [1, 2]}, "budget_minutes in a sweep: .*fewer steps"),
        ({"tta": ["none", "d4"]}, "a list of tta: it does not change the training"),
        ({"threshold": [0.4, 0.5]}, "a list of threshold: it does not change the training"),
        ({"data_root": ["a", "b"]}, "a list of data_root: it does not change the training"),
        ({"pixel_order": ["C", "F"]}, "a list of pixel_order: it does not change the training"),
        ({"run": "a"}, "run in a sweep: .*SWEEP="),
        ({"fold": [0, 2]}, "fold 2 with n_folds 2"),
        ({"fold": []}, "fold: got .., expected numbers from 0"),
        ({"fold": [0, "a"]}, "fold: got"),
        ({"fold": 0, "seed": [1, 2]}, "a list of seed with fold .0.: each value puts other images"),
        ({"encoder": ["resnet18", "resnet35"]}, "unknown encoder 'resnet35'"),
        ({"data_root": "nowhere"}, "nowhere"),
        ({"lr": [index * 1e-6 for index in range(1, 101)]}, "200 runs, more than 100; .*--runs 200"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_starts(grid, changes, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        make_plan("s", grid | changes)
    assert not Path("runs").exists() or not list(Path("runs").glob("s*"))


def test_more_runs_are_possible_if_asked_for(grid):
    grid["lr"] = [index * 1e-5 for index in range(1, 52)]
    assert len(make_plan("s", grid, max_runs=102).tasks) == 102


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "base"),
        ({"encoder": "resnet18", "lr": 5e-05}, "encoder=resnet18,lr=5e-05"),
        ({"weights": "a b/c.pth"}, "weights=a_b_c.pth-00f51f75"),
    ],
)
def test_a_runs_name_is_made_of_its_values(values, name):
    assert make_name(values) == name


def test_names_that_are_made_plain_or_short_stay_different():
    assert make_name({"weights": "a b"}) != make_name({"weights": "a_b"})
    assert make_name({"weights": "x" * 1000}) != make_name({"weights": "x" * 1001})
    assert len(make_name({"weights": "x" * 1000})) < 200


def test_a_list_of_seeds_means_repeats(grid):
    plan = make_plan("s", {**grid, "batch_size": 4, "seed": [1, 2, 3]})
    assert [task.run.configuration for task in plan.tasks] == ["lr=0.001"] * 3 + ["lr=0.002"] * 3
    assert [task.run.config.seed for task in plan.tasks] == [1, 2, 3] * 2
    plan = make_plan("s", {**grid, "seed": [1, 2], "combine": "one_at_a_time"})
    assert {name: len(tasks) for name, tasks in plan.configurations.items()} == {
        "batch_size=4,lr=0.001": 2,
        "batch_size=4,lr=0.002": 2,
        "batch_size=8,lr=0.001": 2,
    }


@pytest.fixture(scope="module")
def done(workplace, phantom):
    """A sweep of 2 × 2 runs of two folds in threads: (folder, printed text)."""
    status, printed = sweep(workplace, {**SMALL, "data_root": str(phantom), **LISTS}, "threads", "--jobs", 2)
    assert status == 0, printed
    return workplace / "runs" / "threads", printed


def test_a_sweep_ends_with_its_table_picture_and_best_parameters(done):
    folder, printed = done
    rows = read_leaderboard(folder)
    assert len(rows) == 4 and {(row["images"], row["folds"]) for row in rows} == {("24", "2")}
    swept = {(row["lr"], row["batch_size"]) for row in rows}
    assert swept == {("0.001", "4"), ("0.001", "8"), ("0.002", "4"), ("0.002", "8")}
    assert all((folder / f"leaderboard.{kind}").stat().st_size for kind in ("html", "png"))
    best = (folder / "best.yaml").read_text()
    assert best.startswith("# threads: the base, ") and yaml.safe_load(best)["lr"] == 0.001
    assert yaml.safe_load(best)["preset"] == "quick"  # as is trained without one; a kernel's is another
    assert printed.startswith("threads: 4 runs, 4 of 4 tasks to do\n") and "\n2 at a time, about " in printed
    assert printed.count("\nfinished: threads/") == 4
    assert "WARNING: 24 validated images are too few for a verdict" in printed
    run = folder / "batch_size=4,lr=0.001"
    assert (run / "03_train.ipynb").is_file() and "fold1 epoch 1/1" in (run / "03_train.log").read_text()


def test_a_printed_command_gives_the_same_weights_by_hand(done, workplace):
    folder, printed = done
    name = "batch_size=8,lr=0.002"
    command = f"papermill notebooks/03_train.ipynb runs/threads/{name}/"
    (line,) = (line for line in printed.splitlines() if command in line)
    threads, *words = line.replace("threads/batch", "by_hand/batch").split()
    assert threads == f"OMP_NUM_THREADS={max(1, os.cpu_count() // 2)}"
    (workplace / "runs" / "by_hand" / name).mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(workplace), "OMP_NUM_THREADS": threads.rpartition("=")[2]}
    command = [sys.executable, "-m", *words]
    subprocess.run(command, cwd=workplace, env=environment, check=True, capture_output=True)
    for fold in (0, 1):
        ours, by_hand = (
            torch.load(workplace / "runs" / run / name / f"fold{fold}" / "best_unet_model.pth")["state_dict"]
            for run in ("threads", "by_hand")
        )
        assert ours and all(torch.equal(by_hand[key], value) for key, value in ours.items())


def test_again_only_what_is_unfinished_is_run(done, workplace, grid):
    folder, _ = done
    rows = read_leaderboard(folder)
    (folder / "batch_size=8,lr=0.002" / "fold1" / "oof.npz").unlink()
    (folder / "batch_size=4,lr=0.002" / "03_train.ipynb").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    status, printed = sweep(workplace, grid, "threads", "--jobs", 2)
    assert status == 0 and "2 of 4 tasks to do" in printed and printed.count("\nfinished: ") == 2, printed
    assert read_leaderboard(folder) == rows
    changed = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert not changed  # the fold whose predictions were gone has its checkpoint
    status, printed = sweep(workplace, grid | {"lr": [0.001]}, "threads")
    assert status == 0 and printed.startswith("threads: 2 runs, 0 of 2 tasks to do\nrank")
    others = "batch_size=4,lr=0.002, batch_size=8,lr=0.002"
    assert f"not in these lists, and not compared: {others}" in printed


def test_longer_lists_continue_a_sweep_and_other_fixed_values_are_refused(done, workplace, grid, monkeypatch):
    monkeypatch.setattr("ctseg.sweep.run_task", lambda task, **_: "")  # nothing is trained
    for changes, message in [
        ({"epochs": 2}, "lr=0.001 holds a run with other settings .epochs: got 2, stored 1"),
        ({"width": 4}, "width: got 4, stored 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_sweep(make_plan("threads", grid | changes))
    longer = make_plan("threads", grid | {"lr": [0.001, 0.002, 0.003]})
    with pytest.raises(FileNotFoundError, match="threads/batch_size=4,lr=0.003/fold0/oof.npz"):
        run_sweep(longer)  # the new ones were begun, the others were finished
    other = grid | {"epochs": 2, "depth": [2, 3]}  # whose runs all have new names
    with pytest.raises(ValueError, match="batch_size=4,lr=0.001 holds a run with other settings .epochs"):
        run_sweep(make_plan("threads", other))
    shutil.copytree(done[0] / "batch_size=4,lr=0.001", workplace / "runs" / "a_run")
    with pytest.raises(ValueError, match="a_run is a run; choose another name for the sweep"):
        run_sweep(make_plan("a_run", grid))


def test_changed_masks_are_found_before_anything_is_trained(done, workplace, grid, tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.sweep.run_task", lambda task, **_: pytest.fail("trained"))
    shutil.copytree(grid["data_root"], tmp_path / "changed")
    mask = min((tmp_path / "changed" / "Train" / "Mask").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    changed = grid | {"data_root": str(tmp_path / "changed"), "lr": [0.001, 0.002, 0.003]}
    with pytest.raises(ValueError, match=f"was trained on other data: '{mask.stem}' has another mask"):
        run_sweep(make_plan("threads", changed))


def test_only_the_folds_that_are_asked_for_count(done, grid, monkeypatch):
    monkeypatch.setattr("ctseg.sweep.Task.is_finished", lambda *_: True)
    assert {row["folds"] for row in run_sweep(make_plan("threads", grid | {"fold": [0]})).rows} == {1}
    assert {row["folds"] for row in run_sweep(make_plan("threads", grid)).rows} == {2}


def test_a_configuration_of_which_a_repeat_failed_is_not_compared(workplace, grid, monkeypatch):
    grid |= {"batch_size": 4, "seed": [1, 2]}
    monkeypatch.setattr("ctseg.sweep.run_task", partial(pretend, "seed=2,lr=0.002"))
    comparison = run_sweep(make_plan("repeats", grid))
    assert [row["name"] for row in comparison.rows] == ["lr=0.001"] and comparison.rows[0]["folds"] == 4
    assert comparison.notes[-1] == "failed: repeats/seed=2,lr=0.002: for a reason"
    monkeypatch.setattr("ctseg.sweep.run_task", partial(pretend, "seed=2,lr=0.001"))
    with pytest.raises(RuntimeError, match="the base failed, .*: for a reason"):
        run_sweep(make_plan("repeats", grid))


def pretend(failing, task, **_):
    """In place of training: the same Dice for all images, or "for a reason" of the run `failing`."""
    if task.run.name.endswith(failing):
        return "for a reason"
    for fold in task.folds:
        fold_dir = task.notebook.parent / f"fold{fold}"
        fold_dir.mkdir(parents=True, exist_ok=True)
        np.savez(fold_dir / "oof.npz", image_ids=[f"{fold}a", f"{fold}b"], scores=[0.5, 0.5])
        (fold_dir / "history.csv").write_text("epoch,seconds\n1,60\n")
    return ""


def test_a_step_that_fails_stops_nothing(workplace, grid, monkeypatch, capsys):
    monkeypatch.setattr("ctseg.sweep.run_task", partial(pretend, "-"))
    monkeypatch.setattr("ctseg.sweep.Learner.step", lambda *_: [][0])
    assert len(run_sweep(make_plan("untimed", grid | {"target_size": 64})).rows) == 4
    assert "1 at a time, no time projected, since a step failed: list index" in capsys.readouterr().out


def test_a_failures_reason_is_not_an_earlier_trys(workplace, grid):
    task = make_plan("killed", grid).tasks[0]
    record = workplace / task.notebook.parent / "failed_fold1.txt"
    record.parent.mkdir(parents=True)
    record.write_text("Traceback\nMemoryError: of yesterday\n")
    why = run_task(task, workplace, {find_place(): 1}, is_canceled=lambda: True)
    assert why == f"killed (see {workplace / task.notebook.with_suffix('.log')})" and not record.exists()


def test_the_kits_threads_count_and_not_those_of_a_worker(workplace, grid, monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *_, env, **__: started.append(env) or FINISHED)
    place = find_place()
    for tasks_at, threads in [({place: 1}, len(place.cores)), ({place: 99}, 1), ({("other", 1): 99}, 1)]:
        run_task(make_plan("threads_of", grid).tasks[0], workplace, tasks_at, is_canceled=bool)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        assert {started[-1][name] for name in names} == {str(threads)}


def test_tasks_share_the_cores_that_they_may_use_and_not_the_hosts(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert find_place().cores == frozenset(range(6))
    others = find_place()._replace(cores=frozenset(range(6, 12)))
    assert _count_threads({find_place(): 2, others: 1}) == 3


@pytest.mark.parametrize(("gpus", "said"), [(1, False), (2, True)])
def test_a_worker_that_sees_several_gpus_is_refused(tmp_path, monkeypatch, gpus, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=1))
    with lock_folder(tmp_path):
        _, wrong = ask_worker(tmp_path, tmp_path, find_versions(), worker)
    assert wrong == (["2 GPUs; start a worker for each, with CUDA_VISIBLE_DEVICES"] if said else [])


@pytest.mark.kill
def test_a_kernel_that_is_killed_is_a_failed_run_that_goes_on_next_time(workplace, grid):
    grid |= {"lr": [0.001], "batch_size": 4, "epochs": 12}
    process = start(workplace, grid, "kernel")
    folder = workplace / "runs" / "kernel"
    wait(lambda: list(folder.glob("*/fold0/last.pth")), lambda: "no run began")
    kernels = subprocess.check_output(["pgrep", "-f", "ipykernel_launcher"], text=True).split()
    (kernel,) = {int(pid) for pid in kernels} & set(list_children(workplace))
    os.kill(kernel, signal.SIGKILL)
    printed = process.communicate()[0]
    assert process.returncode == 1
    assert "the base failed, with which all others are compared: its kernel was killed" in printed
    epochs = torch.load(next(folder.glob("*/fold0/last.pth")), weights_only=True)["history"]
    status, printed = sweep(workplace, grid, "kernel")
    log = (folder / "lr=0.001" / "03_train.log").read_text()
    assert status == 0 and f"fold0 epoch {len(epochs)}/" not in log and "fold0 epoch 12/12" in log, printed


@pytest.mark.kill
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_was_not(done, workplace, grid):
    folder, kills = workplace / "runs" / "killed_often", 0
    finished = {}
    for seconds in (6, 9, 13, 18, 24, 31, 60, 60):
        process = start(workplace, grid, folder.name, "--jobs", 2)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            break
        process.kill()
        process.wait()
        kills += 1
        wait(lambda: not list_children(workplace), lambda: f"processes are left: {list_children(workplace)}")
        for path, when in finished.items():
            assert path.stat().st_mtime_ns == when, path  # what is finished is not touched
        notebooks = list(folder.glob("*/03_train.ipynb"))
        finished = {
            path: path.stat().st_mtime_ns
            for done in notebooks
            for path in done.parent.rglob("*.*")
            if path.is_file() and path.suffix != ".log"
        }
    assert kills >= 2 and process.returncode == 0
    assert read_leaderboard(folder) == read_leaderboard(done[0])


def test_a_sweep_has_one_writer(done, workplace, grid):
    with lock_folder(done[0]):
        status, printed = sweep(workplace, grid, "threads")
    assert status == 1 and "threads is being written by another process" in printed


def test_no_jobs_are_refused(grid):
    with pytest.raises(ValueError, match="jobs: got 0, expected 1 or more"):
        run_sweep(make_plan("s", grid), jobs=0)
    assert not Path("runs").exists() or not list(Path("runs").glob("s*"))


def test_a_run_that_fails_is_listed_and_stops_nothing_but_a_base_does(workplace, grid):
    grid |= {"batch_size": 4}
    for name, others in (("failing", [0.001, 0.1]), ("failing_base", [0.1, 0.001])):
        fold_dir = workplace / "runs" / name / "lr=0.1" / "fold0"
        fold_dir.parent.mkdir(parents=True)
        fold_dir.write_text("a file in the way")
        jobs = 2 if name == "failing" else 1
        status, printed = sweep(workplace, grid | {"lr": others}, name, "--jobs", jobs)
        assert status == 1 and f"FAILED: {name}/lr=0.1, " in printed and "FileExistsError" in printed
        if name == "failing":
            assert "failed: failing/lr=0.1: fold 0, FileExistsError" in printed  # though fold 1 is trained
            assert [row["lr"] for row in read_leaderboard(fold_dir.parents[1])] == ["0.001"]
        else:
            assert printed.splitlines()[-1].startswith("sweep: the base failed, with which all others are")
            assert not (fold_dir.parents[1] / "lr=0.001" / "fold0" / "oof.npz").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.kill)])
def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(workplace, grid, number, done):
    name = f"stopped_{number.name}"
    longer = grid | {"epochs": 500, "lr": [0.001, 0.002], "batch_size": 4}
    process = start(workplace, longer, name, "--jobs", 2)
    folder = workplace / "runs" / name
    wait(lambda: list(folder.glob("*/fold0/last.pth")), lambda: "no run began")
    assert list_children(workplace)
    process.send_signal(number)
    process.wait()
    wait(lambda: not list_children(workplace), lambda: f"processes are left: {list_children(workplace)}")
    if number == signal.SIGINT:
        assert "sweep: stopped; the same command goes on" in process.stdout.read()
    assert not list(folder.glob("*/03_train.ipynb"))
    wait(lambda: all(map(can_lock, folder.glob("*/fold0"))), lambda: "somebody still writes")


@pytest.fixture
def cluster(workplace):
    """Start the scheduler of a Dask cluster: (address, start_worker, scheduler)."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    programs = []

    def run(*arguments, where=workplace):
        environment = os.environ | {"PYTHONPATH": str(where)}
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        programs.append(
            subprocess.Popen(command, cwd=where, env=environment, start_new_session=True, **quiet)
        )
        return programs[-1]

    def start_worker(*arguments, where=workplace):
        own = ["--nthreads", "1", "--local-directory", str(where / "dask")]
        return run("worker", address, *own, *arguments, where=where)

    scheduler = run("scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
    yield address, start_worker, scheduler
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def wait_for_workers(address, n):
    """Wait until a cluster has n workers."""
    from distributed import Client

    with Client(address, timeout=600) as client:
        client.wait_for_workers(n, timeout=600)


def test_a_cluster_gives_the_same_table(done, cluster, workplace, grid):
    address, start_worker, _ = cluster
    start_worker()
    start_worker()
    wait_for_workers(address, 2)
    status, printed = sweep(workplace, grid, "cluster", "--scheduler", address)
    assert status == 0 and "\n2 at a time, about " in printed, printed
    assert read_leaderboard(workplace / "runs" / "cluster") == read_leaderboard(done[0])


def test_what_is_wrong_with_workers_is_said_before_the_first_run(cluster, workplace, grid, tmp_path):
    address, start_worker, _ = cluster
    for name in ("ctseg", "notebooks"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    with open(tmp_path / "ctseg" / "seeds.py", "a") as file:
        file.write("# changed\n")
    start_worker("--nthreads", "2", where=tmp_path)
    wait_for_workers(address, 1)
    status, printed = sweep(workplace, grid, "wrong", "--scheduler", address)
    assert status == 1 and f"the cluster cannot do this sweep: {address[:15]}" in printed
    assert "2 threads; start it with --nthreads 1" in printed and " as in the sweep" in printed
    assert not list((workplace / "runs" / "wrong").glob("*/fold*"))
    status, printed = sweep(workplace, grid, "wrong", "--scheduler", "tcp://127.0.0.1:9")
    assert status == 1 and "no Dask scheduler at tcp://127.0.0.1:9" in printed.splitlines()[-1]


@pytest.mark.kill
@pytest.mark.parametrize("what", ["worker", "scheduler", "sweep", "Ctrl-C"])
def test_a_cluster_survives_or_says_why_not(cluster, workplace, grid, what):
    address, start_worker, scheduler = cluster
    workers = [start_worker(), start_worker()]
    wait_for_workers(address, 2)
    name, longer = f"cluster_{what}", grid | {"epochs": 60, "target_size": 64, "batch_size": 4, "width": 4}
    process = start(workplace, longer, name, "--scheduler", address)
    folder = workplace / "runs" / name
    wait(lambda: len(list(folder.glob("*/fold0/last.pth"))) == 2, lambda: "no run began")
    if what == "worker":
        inner = subprocess.check_output(["pgrep", "-P", str(workers[0].pid)], text=True).split()
        os.kill(int(inner[-1]), signal.SIGKILL)  # the nanny goes on, and starts another one
        printed = process.communicate()[0]
        assert process.returncode == 0 and printed.count("\nfinished: ") == 2, printed
        return
    number = {"scheduler": signal.SIGKILL, "sweep": signal.SIGKILL, "Ctrl-C": signal.SIGINT}[what]
    (scheduler if what == "scheduler" else process).send_signal(number)
    if what != "scheduler":
        process.wait()
    wait(lambda: not list_children(workplace), lambda: f"processes are left: {list_children(workplace)}")
    wait(lambda: all(map(can_lock, folder.glob("*/fold*"))), lambda: "somebody still writes")
    printed = process.communicate()[0]
    if what == "scheduler":
        assert "sweep: the cluster's scheduler is gone; start it" in printed
        return
    status, printed = sweep(workplace, longer, name, "--scheduler", address)
    assert status == 0, printed


def test_hours_are_not_spent_on_the_phantom_nor_with_a_value_left_in_the_notebook(
    tmp_path, monkeypatch, grid
):
    for name in ("ctseg", "notebooks"):
        (tmp_path / name).mkdir()
    notebook = REPOSITORY / "notebooks" / "03_train.ipynb"
    text = notebook.read_text()
    (tmp_path / "notebooks" / notebook.name).write_text(text.replace("epochs: int = None", "epochs: int = 2"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    without = {name: value for name, value in grid.items() if name not in ("data_root", "epochs")}
    for given, error, message in [
        (without, FileNotFoundError, "no data set"),
        (without | {"data_root": "x"}, ValueError, "03_train.ipynb has epochs = 2; set it to None there"),
    ]:
        with pytest.raises(error, match=message):
            check_given(given)
    check_given(grid)
