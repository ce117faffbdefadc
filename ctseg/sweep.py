"""A sweep: one run for each combination of values, on this machine or on a cluster, and their ranked table.

`make sweep GRID=grid.yaml` calls it. Each run is a child process that executes notebook 03 by papermill, as a
person would; files tell what is finished, so the same command goes on where a sweep stopped.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import timeit
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import nbformat
import torch
import yaml

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.cluster import Place, find_place, is_task_canceled, open_cluster
from ctseg.compare import (
    MIN_IMAGES,
    Comparison,
    Configuration,
    compare,
    format_gain,
    write_leaderboard,
)
from ctseg.config import CONTEST_FACTS, NAMES, Config, check_names, parse_value
from ctseg.contest import Contest
from ctseg.data import find_cases
from ctseg.device import THREAD_VARIABLES, find_device
from ctseg.files import lock_folder, print_anywhere, read_last_line, write_text
from ctseg.fingerprint import check_training_data, is_begun
from ctseg.live import leave_notebook
from ctseg.pairs import find_tried, reset_parameters
from ctseg.paths import find_data_root, find_repository, find_run_dir
from ctseg.runs import check_settings, make_config, make_network
from ctseg.seeds import make_generator
from ctseg.train import Learner
from ctseg.workers import find_gpus

_NOTEBOOK = "03_train"
_OVERHEAD = 5  # seconds that a run takes longer than its training alone, on two cores
_COMBINE = ("product", "one_at_a_time")
_REFUSED = {  # and why
    "budget_minutes": "runs next to each other would get fewer steps in the same minutes; set epochs",
    "deadline_minutes": "runs that it cuts short cannot be compared with others; set epochs",
    "run": "a sweep names its runs; name the sweep with SWEEP=",
    "predict_folder": "a sweep predicts no new images",
    "runs": "a sweep trains its runs; average them afterwards with make average",
    "use_unfinished": "a sweep finishes its folds",
}
# Without what is used after training only: notebook 04 chooses the threshold itself.
_TRAINED = Config().settings().keys() - {"tta", "threshold"}
# With some folds only, a list of these would compare configurations on different images.
_ASSIGNS_FOLDS = {"seed", "n_folds", "split", "group"}


@dataclass(frozen=True, eq=False)
class Run:
    """A run of a sweep: its name below `runs/`, all parameters given, the swept ones of them, its config."""

    name: str
    parameters: Mapping[str, Any]
    values: Mapping[str, Any]
    config: Config

    @property
    def configuration(self) -> str:
        """The name of what it is compared as: runs that differ in nothing but their seed are repeats."""
        return make_name({name: value for name, value in self.values.items() if name != "seed"})


@dataclass(frozen=True, eq=False)
class Task:
    """A run, or one fold of it, to be trained."""

    run: Run
    fold: int | None  # None: all

    def __str__(self) -> str:
        return self.run.name if self.fold is None else f"{self.run.name}, fold {self.fold}"

    @property
    def folds(self) -> Sequence[int]:
        """The folds that it trains."""
        return range(self.run.config.n_folds) if self.fold is None else [self.fold]

    @property
    def notebook(self) -> Path:
        """Where the executed notebook is, from the repository, once the task is finished."""
        name = _NOTEBOOK if self.fold is None else f"{_NOTEBOOK}_fold{self.fold}"
        return Path("runs") / self.run.name / f"{name}.ipynb"

    def make_arguments(self, output: Path) -> list[str]:
        """The arguments with which papermill executes it."""
        given = self.run.parameters | {"run": self.run.name}
        given |= {} if self.fold is None else {"fold": self.fold}
        pairs = [("-r" if isinstance(value, str) else "-p", key, str(value)) for key, value in given.items()]
        return [f"notebooks/{_NOTEBOOK}.ipynb", str(output), *itertools.chain(*pairs)]

    def is_finished(self, repository: Path) -> bool:
        """Whether its notebook is there, and the out-of-fold predictions of its folds, written last."""
        path = repository / self.notebook
        return path.is_file() and all((path.parent / f"fold{k}" / "oof.npz").is_file() for k in self.folds)


@dataclass(frozen=True)
class Plan:
    """A sweep: its name and its tasks, a run's folds after another, the base's first."""

    name: str
    tasks: Sequence[Task]

    @property
    def base(self) -> Run:
        """The run with which the others are compared."""
        return self.tasks[0].run

    @property
    def configurations(self) -> dict[str, list[Task]]:
        """The tasks of each configuration by its name."""
        grouped: dict[str, list[Task]] = {}
        for task in self.tasks:
            grouped.setdefault(task.run.configuration, []).append(task)
        return grouped


def make_plan(name: str, grid: Mapping[str, Any], *, max_runs: int = 100) -> Plan:
    """Check a grid of parameters, in which values may be lists, and list its runs; equal ones count once.

    The first value of each list is the base's.

    Raises:
        ValueError, TypeError, FileNotFoundError: what training would refuse, a list of what cannot be swept,
            or more than `max_runs` runs.
    """
    grid = {key: value for key, value in grid.items() if value is not None}
    combine, folds = grid.pop("combine", _COMBINE[0]), grid.pop("fold", None)
    folds = folds if folds is None or isinstance(folds, list) else [folds]
    swept = {key: value for key, value in grid.items() if isinstance(value, list)}
    _check_grid(grid, swept, combine, folds)
    others = [len(values) for name, values in swept.items() if name != "seed"]
    n_runs = math.prod(others) if combine == "product" else 1 + sum(others) - len(others)
    n_runs *= len(swept.get("seed", [0]))
    if n_runs > max_runs:
        raise ValueError(f"{n_runs} runs, more than {max_runs}; shorten the lists, or pass --runs {n_runs}")
    runs: dict[str, Run] = {}
    for values in _combine(swept, combine):
        try:
            config = make_config(**grid | values, fold=max(folds) if folds else None)
        except TypeError as error:
            raise TypeError(f"{error}; write a list of values as [0.001, 0.0005]") from None
        # As they are understood, and with a preset, since other notebooks and kernels have other ones.
        parameters = {key: getattr(config, key) for key in {"preset": None, **grid}}
        own = {key: parameters[key] for key in NAMES if key in swept}  # in one order, whatever the file's is
        settings = json.dumps(config.settings(), sort_keys=True)
        runs.setdefault(settings, Run(f"{name}/{make_name(own)}", parameters, own, config))
    return Plan(name, [Task(run, fold) for run in runs.values() for fold in dict.fromkeys(folds or [None])])


def _check_grid(grid: Mapping[str, Any], swept: Mapping[str, list], combine: Any, folds: list | None) -> None:
    """Raise a ValueError for what a sweep cannot have."""
    check_names(grid)
    if combine not in _COMBINE:
        raise ValueError(f"combine: got {combine!r}, expected one of {', '.join(_COMBINE)}")
    if folds is not None and (not folds or not all(type(fold) is int and fold >= 0 for fold in folds)):
        raise ValueError(f"fold: got {folds}, expected numbers from 0, or leave it out for all folds")
    for name in grid.keys() & _REFUSED.keys():
        raise ValueError(f"{name} in a sweep: {_REFUSED[name]}")
    for name, values in swept.items():
        if name not in _TRAINED:
            raise ValueError(f"a list of {name}: it does not change the training, there is nothing to sweep")
        if not values:
            raise ValueError(f"{name}: an empty list; expected values, or leave it out")
        if folds and name in _ASSIGNS_FOLDS:
            raise ValueError(
                f"a list of {name} with fold {folds}: each value puts other images in it; train all folds"
            )
    if not swept:
        raise ValueError("no value is a list, such as lr: [0.001, 0.0005]; make run does a single run")


def _combine(swept: Mapping[str, list], combine: str) -> Iterator[dict[str, Any]]:
    """The values of each run, the base's, the first ones, first; every seed repeats each of them."""
    lists = {name: values for name, values in swept.items() if name != "seed"}
    base = {name: values[0] for name, values in lists.items()}
    product = (dict(zip(lists, values)) for values in itertools.product(*lists.values()))
    alone = ({name: value} for name, values in lists.items() for value in values[1:])
    for values in product if combine == "product" else ({}, *alone):
        for seed in swept.get("seed", [None]):
            yield base | values | ({} if seed is None else {"seed": seed})


def make_name(values: Mapping[str, Any]) -> str:
    """A folder's name made of values; "base" of none.

    >>> make_name({"lr": 0.001, "batch_size": 4})
    'lr=0.001,batch_size=4'
    """
    text = ",".join(f"{name}={value}" for name, value in values.items()) or "base"
    plain = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)[:150]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"


def run_task(
    task: Task,
    repository: Path,
    tasks_at: Mapping[Place, int],
    *,
    is_canceled: Callable[[], bool] = is_task_canceled,
    gpus: SimpleQueue | None = None,
) -> str:
    """Train a task in a child process, unless it is finished; return "", or why it failed.

    Args:
        tasks_at: how many tasks run at the same time at each place and share its cores.
        is_canceled: asked twice a second; by default, the cluster on whose worker this runs.
        gpus: those that are free, each for one task; None leaves the choice to the environment.
    """
    if task.is_finished(repository):
        return ""
    final = repository / task.notebook
    final.parent.mkdir(parents=True, exist_ok=True)
    running, log = final.with_name(f"running_{final.name}"), final.with_suffix(".log")
    for fold in task.folds:  # of an earlier try
        final.with_name(f"failed_fold{fold}.txt").unlink(missing_ok=True)
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(_count_threads(tasks_at)))
    environment |= {"PYTHONPATH": str(repository)}
    quiet = ["--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "/dev/stdout"]
    command = [sys.executable, "-m", "ctseg.child", str(os.getpid()), "papermill", *quiet]
    command += task.make_arguments(running.relative_to(repository))
    gpu = gpus.get() if gpus else None
    try:
        with open(log, "wb") as file:
            environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            # In a session of its own, Ctrl-C reaches this process alone, which then kills it.
            options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            status = _wait(subprocess.Popen(command, cwd=repository, env=environment, **options), is_canceled)
    finally:
        if gpus:
            gpus.put(gpu)
    if status == 0:
        os.replace(running, final)
    return "" if task.is_finished(repository) else _explain(status, log, task.folds)


def _count_threads(tasks_at: Mapping[Place, int]) -> int:
    """The threads of a task here: its share of the cores; more would only wait for each other."""
    place = find_place()
    # A worker that joined later is not counted.
    return max(1, len(place.cores) // tasks_at.get(place, max(tasks_at.values())))


def _wait(child: subprocess.Popen, is_canceled: Callable[[], bool]) -> int:
    """The exit status of a child, which is killed once it is canceled."""
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if is_canceled():
                child.kill()


def _explain(status: int, log: Path, folds: Sequence[int]) -> str:
    """Why a task failed, in one line."""
    for fold in folds:
        record = log.with_name(f"failed_fold{fold}.txt")
        if record.is_file():
            return f"fold {fold}, {read_last_line(record)} (see {record})"
    what = {-9: "killed", 138: "its kernel was killed, perhaps for lack of memory"}.get(status)
    return f"{what or read_last_line(log) or f'status {status}'} (see {log})"


def run_sweep(plan: Plan, *, jobs: int | None = None, scheduler: str = "") -> Comparison:
    """Train the unfinished runs of a sweep, and write `leaderboard.csv`, `.html`, `.png` and `best.yaml`.

    Args:
        jobs: runs at the same time on this machine; None for one on each GPU, or one.
        scheduler: a Dask scheduler's address, whose workers train instead, one task each.

    Raises:
        ValueError: no jobs, or a run of this sweep has other settings, from a sweep with other fixed values.
        RuntimeError: the base failed, or the cluster cannot be used; what is finished stays.
        FolderBusy: the sweep is already running.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: got {jobs}, expected 1 or more")
    repository, folder = find_repository(), find_run_dir(plan.name)
    with lock_folder(folder):
        _check_runs(plan)
        unfinished = [task for task in plan.tasks if not task.is_finished(repository)]
        n_runs, n_tasks = len({task.run.name for task in plan.tasks}), len(plan.tasks)
        print(f"{plan.name}: {n_runs} runs, {len(unfinished)} of {n_tasks} tasks to do", flush=True)
        failures = _train(plan, unfinished, jobs, scheduler) if unfinished else {}
        comparison = _compare(plan, failures)
        write_leaderboard(folder, comparison)
        write_text(_make_best(plan, comparison), folder / "best.yaml")
    return comparison


def _train(plan: Plan, tasks: Sequence[Task], jobs: int | None, scheduler: str) -> dict[Task, str]:
    """Train tasks in threads or on a cluster; return those that failed with why."""
    base, folder = plan.base, find_run_dir(plan.name)
    data_root = Path(base.config.data_root)
    n_cases = len(find_cases(data_root, "train", base.config))
    folds = {fold for task in plan.tasks if task.run is base for fold in task.folds}
    if (n := len(folds) * _count_validated(base.config, n_cases)) < MIN_IMAGES:
        print(f"WARNING: {n} validated images are too few for a verdict; {MIN_IMAGES} are needed", flush=True)
    parallel = open_cluster(scheduler, folder, data_root) if scheduler else _open_threads(jobs)
    with parallel as (submit, tasks_at):
        n, threads = sum(tasks_at.values()), _count_threads(tasks_at)
        for task in tasks:
            command = shlex.join(["papermill", *task.make_arguments(task.notebook)])
            print(f"OMP_NUM_THREADS={threads} {command}", flush=True)
        try:
            minutes = _project_seconds(tasks, n_cases, threads) / 60 / n
            projected = f"about {minutes:.1f} minutes by what a step takes here now"
        except Exception as error:  # too little memory, perhaps; the run's own error will say more
            projected = f"no time projected, since a step failed: {error}"
        print(f"{n} at a time, {projected}", flush=True)
        begin = partial(submit, run_task, repository=find_repository(), tasks_at=tasks_at)
        return _run_tasks(tasks, begin, base=base.configuration)


def _check_runs(plan: Plan) -> None:
    """Raise a ValueError if a run that is begun has other settings or data than this sweep's."""
    folder, base = find_run_dir(plan.name), plan.base
    if (folder / "config.json").is_file():
        raise ValueError(f"{folder} is a run; choose another name for the sweep")
    planned = {task.run.name: task.run.config for task in plan.tasks}
    fixed = {name: value for name, value in base.parameters.items() if name not in base.values}
    begun = _find_begun(plan)
    for path in begun:
        name = f"{plan.name}/{path.name}"
        try:
            check_settings(replace(planned.get(name) or make_config(**fixed, run=name), run=name), path)
        except ValueError as error:
            advice = "name a new sweep with SWEEP="
            raise ValueError(f"{plan.name} was begun with other values; {advice}: {error}") from None
    for path in begun[:1]:  # `compare` finds whether the others have the same
        check_training_data(path, find_cases(Path(base.config.data_root), "train", base.config))


def _find_begun(plan: Plan) -> list[Path]:
    """The begun runs in a sweep's folder, in its lists or not."""
    return [path for path in sorted(find_run_dir(plan.name).glob("*/")) if is_begun(path)]


def _run_tasks(tasks: Sequence[Task], begin: Callable[[Task], Future], base: str) -> dict[Task, str]:
    """Run all tasks; return those that failed with why.

    Raises:
        RuntimeError: at once, if a run of the base fails, or the scheduler is gone.
    """
    started, failures = time.monotonic(), {}
    futures = {begin(task): task for task in tasks}
    for n_done, future in enumerate(as_completed(futures), start=1):
        task = futures[future]
        try:
            error = future.result()
        except CancelledError:
            raise RuntimeError(
                "the cluster's scheduler is gone; start it and its workers again, then the same sweep"
            ) from None
        except Exception as problem:  # of the worker, or of a disk; the other tasks go on
            error = f"{type(problem).__name__}: {problem}"
        left = (time.monotonic() - started) / n_done * (len(tasks) - n_done) / 60
        result = f"FAILED: {task}, {error}" if error else f"finished: {task}"
        print(f"{result} ({n_done} of {len(tasks)}, about {left:.1f} min left)", flush=True)
        if error:
            failures[task] = error
        if error and task.run.configuration == base:
            raise RuntimeError(f"the base failed, with which all others are compared: {error}")
    return failures


@contextmanager
def _open_threads(jobs: int | None) -> Iterator[tuple[Callable[..., Future], dict[Place, int]]]:
    """A way to submit tasks to threads of this process, and how many run at the same time here.

    Tasks that still run when the block ends, as by Ctrl-C, are killed.
    """
    n_gpus, stop = torch.cuda.device_count(), threading.Event()
    gpus = SimpleQueue() if n_gpus > 1 else None
    for gpu in find_gpus(n_gpus) if gpus else ():
        gpus.put(gpu)
    n = min(jobs or n_gpus, n_gpus) if gpus else jobs or 1
    with ThreadPoolExecutor(n) as pool:
        try:
            yield partial(pool.submit, is_canceled=stop.is_set, gpus=gpus), {find_place(): n}
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _count_validated(config: Config, n_cases: int) -> int:
    """How many of the cases a fold validates, about."""
    return n_cases // (10 if config.n_folds == 1 else config.n_folds)


def _project_seconds(tasks: Sequence[Task], n_cases: int, threads: int) -> float:
    """About how long the tasks take on this machine, one after the other."""
    total = 0.0
    # Only what a step's time depends on, so that equal ones are timed once.
    sizes = ("encoder", "width", "depth", "target_size", "batch_size", "weight_channels_by_contrast")
    for task in tasks:
        config = task.run.config
        step = _time_step(Config(**{name: getattr(config, name) for name in sizes}), threads)
        # To predict takes about a third of a step, which goes through the network forward and back.
        n_steps = (n_cases - _count_validated(config, n_cases) * 2 / 3) / config.batch_size
        total += _OVERHEAD + len(task.folds) * config.epochs * n_steps * step
    torch.cuda.empty_cache()
    return total


@cache
def _time_step(config: Config, threads: int) -> float:
    """Seconds of a training step on this machine as it is now, but of the first one, which is slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pixels = torch.zeros(config.batch_size, 4, config.target_size, config.target_size, dtype=torch.uint8)
        learner = Learner(make_network(config), config, find_device())
        step = partial(learner.step, pixels, make_generator(0))
        return min(timeit.repeat(step, number=1, repeat=3)[1:])
    finally:
        torch.set_num_threads(before)


def _compare(plan: Plan, failures: Mapping[Task, str]) -> Comparison:
    """Compare the configurations of which no run failed; the notes list the others."""
    complete = []
    for name, tasks in plan.configurations.items():
        if not failures.keys() & set(tasks):
            fold_dirs = [find_run_dir(task.run.name) / f"fold{k}" for task in tasks for k in task.folds]
            values = {key: value for key, value in tasks[0].run.values.items() if key != "seed"}
            complete.append(Configuration(name, fold_dirs, values))
    comparison = compare(complete)
    planned = {find_run_dir(task.run.name) for task in plan.tasks}
    if others := [path.name for path in _find_begun(plan) if path not in planned]:
        comparison.notes.append(f"not in these lists, and not compared: {', '.join(others)}")
    comparison.notes.extend(f"failed: {task}: {error}" for task, error in failures.items())
    return comparison


def _make_best(plan: Plan, comparison: Comparison) -> str:
    """The parameters of the best configuration if it is better than the base, else the base's, with why."""
    best, base, n = comparison.rows[0], plan.base.configuration, len(comparison.rows)
    found, is_better = f"the best of {n}, {best['name']}", best["verdict"] == "better"
    if is_better or best["name"] == base:
        why = f"{found}: {format_gain(best)} over the base"
    else:
        why = f"the base, since no gain over it is certain; {found}: {format_gain(best)}"
    run = plan.configurations[best["name"] if is_better else base][0].run
    values = {key: run.parameters[key] for key in run.parameters if key != "seed" or key not in run.values}
    return f"# {plan.name}: {why}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_grid(given: argparse.Namespace) -> dict[str, Any]:
    """The grid of a command line: a file's, and values over it; commas separate the values of a list."""
    may_be_lists, last = {"fold", *_TRAINED, "tta", "threshold"} - {"group"}, dict(given.p)
    lists = {name: value for name, value in last.items() if "," in value and name in may_be_lists}
    given.p = [(name, value) for name, value in last.items() if name not in lists]
    grid = read_arguments(given, also=["combine"])
    return grid | {
        name: [parse_value(item) for item in text.strip("[]").split(",")] for name, text in lists.items()
    }


def check_given(grid: Mapping[str, Any]) -> None:
    """Check that hours are not spent on the phantom unasked, nor with a value that was tried in the notebook.

    Raises:
        FileNotFoundError, ValueError: they would be.
    """
    if not grid.get("data_root"):
        find_data_root("", Contest(**{name: grid[name] for name in CONTEST_FACTS if name in grid}))
    path = find_repository() / "notebooks" / f"{_NOTEBOOK}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for name, value in find_tried(notebook).items():
        if name not in (*grid, "run"):
            raise ValueError(f"{path} has {name} = {value}; set it to None there, or name it in the grid")
    reset_parameters(notebook)  # raises an error where another cell sets one


def main() -> None:
    """Do the sweep that the command line says; exit with status 1 unless all configurations are compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", type=Path, help="file of parameters, in which values may be lists")
    add_parameters(parser)
    parser.add_argument("--sweep", default="", help="its name, by default the file's")
    parser.add_argument("--jobs", type=int, help="runs at the same time")
    parser.add_argument("--scheduler", default="", help="address of a Dask scheduler")
    parser.add_argument("--runs", type=int, default=100, help="how many there may be at most")
    given = parse_arguments(parser)
    leave_notebook()
    given.file = [*([given.grid] if given.grid else []), *given.file]
    try:
        name = given.sweep or (given.grid.stem if given.grid else "sweep")
        grid = read_grid(given)
        check_given(grid)
        plan = make_plan(name, grid, max_runs=given.runs)
        comparison = run_sweep(plan, jobs=given.jobs, scheduler=given.scheduler)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        sys.exit(f"sweep: {error}")
    except KeyboardInterrupt:
        sys.exit("sweep: stopped; the same command goes on with what is not finished")
    print(comparison)
    print(find_run_dir(name) / "leaderboard.html")
    sys.exit(0 if len(comparison.rows) == len(plan.configurations) else 1)


if __name__ == "__main__":
    print_anywhere()
    # Not as __main__, so that a cluster's workers find what they are sent under its name.
    importlib.import_module("ctseg.sweep").main()
