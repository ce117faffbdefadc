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
import socket
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

import torch
import yaml

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.cluster import is_unwanted, open_cluster
from ctseg.compare import Comparison, Configuration, compare, print_comparison, write_leaderboard
from ctseg.config import Config, check_names, parse_value
from ctseg.data import find_cases
from ctseg.device import find_device
from ctseg.files import lock_folder, print_anywhere, read_last_line, write_text
from ctseg.fingerprint import is_begun
from ctseg.folds import queue_gpus
from ctseg.paths import find_repository, find_run_dir
from ctseg.predict import predict_probabilities
from ctseg.runs import check_settings, make_config, make_network
from ctseg.seeds import make_generator
from ctseg.train import Learner

_NOTEBOOK = "03_train"
_OVERHEAD = 6  # seconds of a task apart from its training: to start a kernel, read images, predict
_COMBINE = ("product", "one_at_a_time")
_REFUSED = {  # and why
    "budget_minutes": "runs next to each other would get fewer steps in the same minutes; set epochs",
    "run": "a sweep names its runs; name the sweep with SWEEP=",
    "predict_folder": "a sweep predicts no new images",
}
# Settings of what is made of trained weights: notebook 04 looks for the threshold without any training.
_NOT_TRAINED = {"tta", "threshold"}
# With some folds only, a list of these would compare configurations on different images.
_DEALS_FOLDS = {"seed", "n_folds", "split", "group"}


@dataclass(frozen=True, eq=False)
class Task:
    """A run, or one fold of it, to be trained."""

    run: str  # its name below runs/
    parameters: Mapping[str, Any]
    fold: int | None  # None: all
    folds: Sequence[int]  # what it trains

    def __str__(self) -> str:
        return self.run if self.fold is None else f"{self.run}, fold {self.fold}"

    @property
    def notebook(self) -> Path:
        """Where the executed notebook is, from the repository, once the task is finished."""
        name = _NOTEBOOK if self.fold is None else f"{_NOTEBOOK}_fold{self.fold}"
        return Path("runs") / self.run / f"{name}.ipynb"

    def make_arguments(self, output: Path) -> list[str]:
        """The arguments with which papermill executes it."""
        given = {**self.parameters, "run": self.run} | ({} if self.fold is None else {"fold": self.fold})
        pairs = [("-r" if isinstance(value, str) else "-p", key, str(value)) for key, value in given.items()]
        return [f"notebooks/{_NOTEBOOK}.ipynb", str(output), *itertools.chain(*pairs)]

    def is_finished(self, repository: Path) -> bool:
        """Whether its notebook is there, and the out-of-fold predictions of its folds, written last."""
        path = repository / self.notebook
        return path.is_file() and all((path.parent / f"fold{k}" / "oof.npz").is_file() for k in self.folds)


@dataclass(frozen=True, eq=False)
class Run:
    """A run of a sweep: its name below `runs/`, all parameters given, the swept ones of them, its config."""

    name: str
    parameters: Mapping[str, Any]
    values: Mapping[str, Any]
    config: Config

    @property
    def configuration(self) -> str:
        """What it is compared as: runs that differ in nothing but their seed are repeats."""
        return make_name({name: value for name, value in self.values.items() if name != "seed"})

    def list_tasks(self, folds: Sequence[int] | None) -> list[Task]:
        """A task for each of the folds or, without them, one for all."""
        parts = {fold: [fold] for fold in folds} if folds else {None: range(self.config.n_folds)}
        return [Task(self.name, self.parameters, fold, list(trained)) for fold, trained in parts.items()]


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, the base first; its folds, None for all; whether all combinations are runs."""

    name: str
    runs: Sequence[Run]
    folds: Sequence[int] | None
    is_product: bool


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
    counts, is_product = [len(values) for values in swept.values()], combine == "product"
    n_runs = math.prod(counts) if is_product else 1 + sum(counts) - len(counts)
    if n_runs > max_runs:
        raise ValueError(f"{n_runs} runs, more than {max_runs}; shorten the lists, or pass --runs {n_runs}")
    runs: dict[str, Run] = {}
    for values in _combine(swept, is_product):
        config = make_config(**grid | values, fold=max(folds) if folds else None)
        given = {key: getattr(config, key) for key in grid}  # as it is understood
        own = {key: given[key] for key in swept}
        settings = json.dumps(config.settings(), sort_keys=True)
        runs.setdefault(settings, Run(f"{name}/{make_name(own)}", given, own, config))
    return Plan(name, list(runs.values()), folds, is_product)


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
        if name in _NOT_TRAINED or name not in Config().settings():
            raise ValueError(f"a list of {name}: it does not change the training, there is nothing to sweep")
        if not values:
            raise ValueError(f"{name}: an empty list; expected values, or leave it out")
        if folds and name in _DEALS_FOLDS:
            raise ValueError(f"a list of {name} with fold {folds}: it deals the folds anew; train all folds")


def _combine(swept: Mapping[str, list], is_product: bool) -> Iterator[dict[str, Any]]:
    """The values of each run; the base's, the first ones, come first."""
    if is_product:
        yield from (dict(zip(swept, values)) for values in itertools.product(*swept.values()))
    else:
        base = {name: values[0] for name, values in swept.items()}
        yield base
        yield from (base | {name: value} for name, values in swept.items() for value in values[1:])


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
    n_here: Mapping[str, int],
    *,
    is_stopped: Callable[[], bool] = is_unwanted,
    gpus: SimpleQueue | None = None,
) -> str:
    """Train a task in a child process, unless it is finished; return "", or why it failed.

    Args:
        n_here: how many tasks run at the same time on each host; they share its cores.
        is_stopped: asked twice a second; by default, the cluster on whose worker this runs.
        gpus: those that are free, each for one task; None leaves the choice to the environment.
    """
    if task.is_finished(repository):
        return ""
    final = repository / task.notebook
    final.parent.mkdir(parents=True, exist_ok=True)
    running, log = final.with_name(f"running_{final.name}"), final.with_suffix(".log")
    environment = os.environ | {"OMP_NUM_THREADS": f"{_count_threads(n_here)}", "PYTHONPATH": str(repository)}
    quiet = ["--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "/dev/stdout"]
    command = [sys.executable, "-m", "ctseg.child", str(os.getpid()), "papermill", *quiet]
    command += task.make_arguments(running.relative_to(repository))
    gpu = gpus.get() if gpus else None
    try:
        with open(log, "wb") as file:
            environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            # In a session of its own, Ctrl-C reaches this process alone, which then kills it.
            options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            status = _wait(subprocess.Popen(command, cwd=repository, env=environment, **options), is_stopped)
    finally:
        if gpus:
            gpus.put(gpu)
    if status == 0:
        os.replace(running, final)
    return "" if task.is_finished(repository) else _explain(status, log, task.folds)


def _count_threads(n_here: Mapping[str, int]) -> int:
    """The threads of a task on this host: its share of the cores; more would only wait for each other."""
    return max(1, os.cpu_count() // n_here.get(socket.gethostname(), 1))


def _wait(child: subprocess.Popen, is_stopped: Callable[[], bool]) -> int:
    """The exit status of a child, which is killed once it is not wanted any more."""
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if is_stopped():
                child.kill()


def _explain(status: int, log: Path, folds: Sequence[int]) -> str:
    """Why a task failed, in a line."""
    for fold in folds:
        record = log.with_name(f"failed_fold{fold}.txt")
        if record.is_file():
            return f"fold {fold}, {read_last_line(record)} (see {record})"
    what = {-9: "killed", 138: "its kernel was killed, perhaps for lack of memory"}.get(status)
    return f"{what or read_last_line(log) or f'status {status}'} (see {log})"


def run_sweep(plan: Plan, *, jobs: int | None = None, scheduler: str = "") -> Comparison:
    """Train what of a sweep is not finished, and write `leaderboard.csv`, `.html`, `.png` and `best.yaml`.

    Args:
        jobs: runs at the same time on this machine; None for one on each GPU, or one.
        scheduler: a Dask scheduler's address, whose workers train instead, one task each.

    Raises:
        ValueError: a run of this sweep has other settings, from a sweep with other fixed values.
        RuntimeError: the base failed, or the cluster cannot be used; what is finished stays.
        FolderBusy: the sweep is already running.
    """
    repository, folder = find_repository(), find_run_dir(plan.name)
    with lock_folder(folder):
        _check_runs(plan)
        tasks = [task for run in plan.runs for task in run.list_tasks(plan.folds)]
        unfinished = [task for task in tasks if not task.is_finished(repository)]
        print(
            f"{plan.name}: {len(plan.runs)} runs, {len(unfinished)} of {len(tasks)} tasks to do", flush=True
        )
        failures = _train(plan, unfinished, jobs, scheduler) if unfinished else {}
        comparison = _compare(plan, failures)
        write_leaderboard(folder, comparison)
        write_text(_make_best(plan, comparison), folder / "best.yaml")
    return comparison


def _train(plan: Plan, tasks: Sequence[Task], jobs: int | None, scheduler: str) -> dict[Task, str]:
    """Train tasks in threads or on a cluster; return those that failed with why."""
    data_root = Path(plan.runs[0].config.data_root)
    parallel = (
        open_cluster(scheduler, find_run_dir(plan.name), data_root) if scheduler else _open_threads(jobs)
    )
    with parallel as (submit, n_here):
        threads = _count_threads(n_here)
        for task in tasks:
            command = shlex.join(["papermill", *task.make_arguments(task.notebook)])
            print(f"OMP_NUM_THREADS={threads} {command}", flush=True)
        n, minutes = sum(n_here.values()), _project_seconds(plan, tasks, threads) / 60
        print(f"{n} at a time, about {minutes / n:.0f} minutes if steps take what one takes now", flush=True)
        begin = partial(submit, run_task, repository=find_repository(), n_here=n_here)
        return _run_tasks(tasks, begin, base=plan.runs[0].name)


def _check_runs(plan: Plan) -> None:
    """Raise a ValueError if a run that is begun has other settings than this sweep's."""
    folder = find_run_dir(plan.name)
    if (folder / "config.json").is_file():
        raise ValueError(f"{folder} is a run; choose another name for the sweep")
    for run in plan.runs:
        if is_begun(find_run_dir(run.name)):
            check_settings(replace(run.config, run=run.name), find_run_dir(run.name))


def _run_tasks(tasks: Sequence[Task], begin: Callable[[Task], Future], base: str) -> dict[Task, str]:
    """Run all tasks; return those that failed with why. A failed base ends it at once with a RuntimeError."""
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
        print(f"{result} ({n_done} of {len(tasks)}, about {left:.0f} min left)", flush=True)
        if error:
            failures[task] = error
        if error and task.run == base:
            raise RuntimeError(f"the base failed, with which all others are compared: {error}")
    return failures


@contextmanager
def _open_threads(jobs: int | None) -> Iterator[tuple[Callable[..., Future], dict[str, int]]]:
    """A way to submit tasks to threads of this process, and how many run at a time on this host.

    Tasks that still run when the block ends, as by Ctrl-C, are killed.
    """
    n_gpus, stop = torch.cuda.device_count(), threading.Event()
    gpus = queue_gpus(n_gpus) if n_gpus > 1 else None
    n = min(jobs or n_gpus, n_gpus) if gpus else jobs or 1
    with ThreadPoolExecutor(n) as pool:
        try:
            yield partial(pool.submit, is_stopped=stop.is_set, gpus=gpus), {socket.gethostname(): n}
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@cache
def _time_step(config: Config, threads: int) -> tuple[float, float]:
    """Seconds of a training step, and of predicting an image, on this machine as it is now."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    images = torch.zeros(config.batch_size, 3, config.target_size, config.target_size, dtype=torch.uint8)
    learner = Learner(make_network(config), config, find_device())
    step = partial(learner.step, images, images[:, :1], make_generator(0))
    predict = partial(predict_probabilities, learner.model, images)
    # The first time is slower.
    seconds = [min(timeit.repeat(work, number=1)[1:]) for work in (step, predict)]
    torch.set_num_threads(before)
    return seconds[0], seconds[1] / len(images)


def _project_seconds(plan: Plan, tasks: Sequence[Task], threads: int) -> float:
    """About how long the tasks take on this machine, one after the other."""
    configs, base = {run.name: run.config for run in plan.runs}, plan.runs[0].config
    n_cases, total = len(find_cases(Path(base.data_root), "train", base)), 0.0
    # Only what a step's time depends on, so that equal ones are timed once.
    sizes = ("encoder", "width", "depth", "target_size", "batch_size", "weight_channels_by_contrast")
    for task in tasks:
        config = configs[task.run]
        step, image = _time_step(Config(**{name: getattr(config, name) for name in sizes}), threads)
        n_validated = n_cases / (10 if config.n_folds == 1 else config.n_folds)
        epoch = (n_cases - n_validated) / config.batch_size * step + n_validated * image
        total += _OVERHEAD + len(task.folds) * config.epochs * epoch
    return total


def _compare(plan: Plan, failures: Mapping[Task, str]) -> Comparison:
    """Compare the runs that did not fail; the notes list the others."""
    failed, paths, values = {task.run for task in failures}, {}, {}
    for run in plan.runs:
        if run.name not in failed:
            paths.setdefault(run.configuration, []).append(find_run_dir(run.name))
            values[run.configuration] = {name: value for name, value in run.values.items() if name != "seed"}
    configurations = [Configuration(name, paths[name], values[name]) for name in paths]
    comparison = compare(configurations, is_product=plan.is_product and not failures)
    comparison.notes.extend(f"failed: {task}: {error}" for task, error in failures.items())
    return comparison


def _make_best(plan: Plan, comparison: Comparison) -> str:
    """The parameters of the best configuration if it is better than the base, else the base's, with why."""
    best = comparison.rows[0]
    base = next(row for row in comparison.rows if row["verdict"] == "base")
    chosen = best if best["verdict"] == "better" else base
    interval = f"gain {best['gain']:+.4f} [{best['gain_low']:+.4f}, {best['gain_high']:+.4f}]"
    if best is base:
        why = f"the base, which none of {len(comparison.rows) - 1} others surpassed"
    elif chosen is best:
        why = f"the best of {len(comparison.rows)}, {interval} over the base {base['name']}"
    else:
        why = f"the base, since the best, {best['name']}, is {best['verdict']}: {interval}"
    run = next(run for run in plan.runs if run.configuration == chosen["name"])
    repeated = {"seed"} & run.values.keys()
    values = {name: value for name, value in run.parameters.items() if name not in repeated}
    return f"# {plan.name}: {why}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_grid(given: argparse.Namespace) -> dict[str, Any]:
    """The grid of a command line: a file's, and values over it; commas separate the values of a list."""
    may_be_lists = {"fold", *Config().settings()} - {"group"}
    lists = [(name, value) for name, value in given.p if "," in value and name in may_be_lists]
    given.p = [pair for pair in given.p if pair not in lists]
    grid = read_arguments(given, also=["combine"])
    return grid | {name: [parse_value(part) for part in value.split(",")] for name, value in lists}


def main() -> None:
    """Do the sweep that the command line says; exit with status 1 if a run failed."""
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
    given.file = [*([given.grid] if given.grid else []), *given.file]
    try:
        name = given.sweep or (given.grid.stem if given.grid else "sweep")
        plan = make_plan(name, read_grid(given), max_runs=given.runs)
        comparison = run_sweep(plan, jobs=given.jobs, scheduler=given.scheduler)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        sys.exit(f"sweep: {error}")
    except KeyboardInterrupt:
        sys.exit("sweep: stopped; the same command goes on with what is not finished")
    print_comparison(comparison)
    print(find_run_dir(name) / "leaderboard.html")
    sys.exit(1 if any(note.startswith("failed: ") for note in comparison.notes) else 0)


if __name__ == "__main__":
    print_anywhere()
    # Not as __main__, so that a cluster's workers find what they are sent under its name.
    importlib.import_module("ctseg.sweep").main()
