"""A sweep: one run for each combination of values, on this machine or on a cluster, and their ranked table.

`make sweep GRID=grid.yaml` calls it. Each run is a child process that executes notebook 03 by papermill, as a
person would; what is finished is told by its files, so the same command goes on where a sweep stopped.
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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.compare import Comparison, Configuration, compare, print_comparison, write_leaderboard
from ctseg.config import Config, check_names, parse_value
from ctseg.data import find_cases
from ctseg.device import find_device
from ctseg.files import lock_folder, print_anywhere, read_json, read_last_line, write_json, write_text
from ctseg.folds import queue_gpus
from ctseg.paths import find_repository, find_run_dir
from ctseg.predict import predict_probabilities
from ctseg.runs import make_config, make_network
from ctseg.seeds import make_generator
from ctseg.train import Learner

NOTEBOOK = "03_train"
_COMBINE = ("product", "one_at_a_time")
_REFUSED = {  # and why
    "budget_minutes": "runs next to each other would get fewer steps in the same minutes; set epochs",
    "run": "a sweep names its runs; name the sweep with SWEEP=",
    "predict_folder": "a sweep predicts no new images",
}
# Settings of what is made of trained weights: notebook 04 looks for the threshold without any training.
_NOT_TRAINED = {"tta", "threshold"}
# With some folds only, these would compare configurations on different images.
_DEALS_FOLDS = {"seed", "n_folds", "split", "group"}


_OVERHEAD = 6.0  # seconds of a task besides its training: to start a kernel, read images, predict


@dataclass(frozen=True, eq=False)
class Task:
    """A run, or one of its folds, to be trained: by what parameters, into which folder below `runs/`."""

    run: str
    fold: int | None
    parameters: Mapping[str, Any]
    folds: Sequence[int]  # that the finished task has trained

    @property
    def notebook(self) -> Path:
        """Where the executed notebook is, relative to the repository, once the task is finished."""
        name = NOTEBOOK if self.fold is None else f"{NOTEBOOK}_fold{self.fold}"
        return Path("runs") / self.run / f"{name}.ipynb"

    def make_arguments(self, output: Path) -> list[str]:
        """The arguments with which papermill executes it."""
        given = {**self.parameters, "run": self.run} | ({} if self.fold is None else {"fold": self.fold})
        pairs = [
            ["-r" if isinstance(value, str) else "-p", name, str(value)] for name, value in given.items()
        ]
        return [f"notebooks/{NOTEBOOK}.ipynb", str(output), *itertools.chain(*pairs)]

    def is_finished(self, repository: Path) -> bool:
        """Whether its notebook is there, and the out-of-fold predictions of its folds, written last."""
        path = repository / self.notebook
        return path.is_file() and all((path.parent / f"fold{k}" / "oof.npz").is_file() for k in self.folds)


@dataclass(frozen=True)
class Plan:
    """A sweep as it was asked for.

    Attributes:
        fixed: the values that all runs have.
        swept: the values of each setting that has several; the first ones together are the base.
        is_product: whether all combinations are runs, or the base and each other value alone.
        folds: which ones to train, None for all.
        runs: each run's own values by a name made of them; the base's first.
        configs: each run's whole config.
    """

    name: str
    fixed: Mapping[str, Any]
    swept: Mapping[str, list]
    is_product: bool
    folds: Sequence[int] | None
    runs: Mapping[str, Mapping[str, Any]]
    configs: Mapping[str, Config]

    @property
    def base(self) -> str:
        """The name of the base's run."""
        return next(iter(self.runs))

    def list_tasks(self) -> list[Task]:
        """The tasks, run by run: one for each fold that is asked for, or one for all."""
        tasks = []
        for run, values in self.runs.items():
            every = [(None, range(self.configs[run].n_folds))]
            parts = every if self.folds is None else [(fold, [fold]) for fold in self.folds]
            given = {**self.fixed, **values}
            tasks += [Task(f"{self.name}/{run}", fold, given, list(folds)) for fold, folds in parts]
        return tasks

    def list_configurations(self, runs: Sequence[str]) -> list[Configuration]:
        """What these runs are compared as: runs that differ in nothing but their seed are repeats of one."""
        found: dict[str, Configuration] = {}
        for run in runs:
            values = {name: value for name, value in self.runs[run].items() if name != "seed"}
            name = make_name(values)
            earlier = found[name].run_dirs if name in found else []
            found[name] = Configuration(name, [*earlier, find_run_dir(f"{self.name}/{run}")], values)
        return list(found.values())


def make_plan(name: str, grid: Mapping[str, Any], *, max_runs: int = 100) -> Plan:
    """Check a grid of parameters, in which values may be lists, and list its runs; equal ones count once.

    Raises:
        ValueError, TypeError, FileNotFoundError: what training would refuse, a list of what cannot be swept,
            or more than `max_runs` runs.
    """
    grid = {key: value for key, value in grid.items() if value is not None}
    combine, folds = grid.pop("combine", _COMBINE[0]), grid.pop("fold", None)
    if combine not in _COMBINE:
        raise ValueError(f"combine: got {combine!r}, expected one of {', '.join(_COMBINE)}")
    check_names(grid)
    swept = {key: value for key, value in grid.items() if isinstance(value, list)}
    fixed = {key: value for key, value in grid.items() if key not in swept}
    folds = folds if folds is None or isinstance(folds, list) else [folds]
    _check_grid(grid, swept, folds)
    counts, is_product = [len(values) for values in swept.values()], combine == "product"
    n_runs = math.prod(counts) if is_product else 1 + sum(counts) - len(counts)
    if n_runs > max_runs:
        raise ValueError(f"{n_runs} runs, more than {max_runs}; shorten the lists, or pass --runs {n_runs}")
    runs, configs, seen = {}, {}, set()
    for values in _combine(swept, is_product):
        config = make_config(**fixed | values, fold=max(folds) if folds else None)
        settings = json.dumps(config.settings(), sort_keys=True)
        if settings not in seen:
            seen.add(settings)
            values = {key: getattr(config, key) for key in swept}
            runs[make_name(values)], configs[make_name(values)] = values, config
    fixed = {key: getattr(config, key) for key in fixed}  # as they were understood
    return Plan(name, fixed, swept, is_product, folds, runs, configs)


def _check_grid(grid: Mapping[str, Any], swept: Mapping[str, list], folds: list | None) -> None:
    """Raise a ValueError for what a sweep cannot have."""
    for name in grid.keys() & _REFUSED.keys():
        raise ValueError(f"{name} in a sweep: {_REFUSED[name]}")
    settings = Config(preset="baseline").settings()
    for name, values in swept.items():
        if name in _NOT_TRAINED or name not in settings:
            raise ValueError(
                f"a list of {name}: it does not change the training, so there is nothing to sweep"
            )
        if not values:
            raise ValueError(f"{name}: an empty list; expected values, or leave it out")
        if folds and name in _DEALS_FOLDS:
            raise ValueError(f"a list of {name} with fold {folds}: it deals the folds anew; train all folds")
    if folds is not None and (not folds or not all(type(fold) is int and fold >= 0 for fold in folds)):
        raise ValueError(f"fold: got {folds}, expected numbers from 0, or leave it out for all folds")


def _combine(swept: Mapping[str, list], is_product: bool) -> Iterator[dict[str, Any]]:
    """The values of each run; the base's, the first ones, come first."""
    if is_product:
        yield from (dict(zip(swept, values)) for values in itertools.product(*swept.values()))
        return
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


def open_sweep(plan: Plan) -> Path:
    """The sweep's folder with its `sweep.json`; longer lists and more folds continue a sweep.

    Raises:
        ValueError: a sweep of this name has other fixed values, another base or other lists.
    """
    folder = find_run_dir(plan.name)
    if (folder / "config.json").is_file():
        raise ValueError(f"{folder} is a run; choose another name for the sweep")
    path, base = folder / "sweep.json", plan.configs[plan.base].settings()
    content = {"base": base, "swept": sorted(plan.swept)}
    stored = read_json(path) if path.is_file() else content
    old, new = stored["base"], content["base"]
    differing = [
        f"{name}: got {new[name]!r}, stored {old.get(name)!r}" for name in new if new[name] != old.get(name)
    ]
    if stored["swept"] != content["swept"]:
        differing.append(f"lists: got {content['swept']}, stored {stored['swept']}")
    if differing:
        raise ValueError(
            f"{folder} is a sweep from another base ({'; '.join(differing)}); choose another name"
        )
    write_json(content, path)
    return folder


def run_task(
    task: Task,
    repository: Path,
    n_here: Mapping[str, int],
    *,
    is_stopped: Callable[[], bool] | None = None,
    gpus: SimpleQueue | None = None,
) -> str:
    """Train a task in a child process, unless it is finished; return "", or why it failed.

    Args:
        n_here: how many tasks run at the same time on each host; they share its cores.
        is_stopped: asked twice a second; None on a cluster, which is asked itself.
        gpus: those that are free, each for one task; None leaves the choice to the environment.
    """
    if task.is_finished(repository):
        return ""
    final = repository / task.notebook
    final.parent.mkdir(parents=True, exist_ok=True)
    running, log = final.with_name(f"running_{final.name}"), final.with_suffix(".log")
    threads = max(1, os.cpu_count() // n_here.get(socket.gethostname(), 1))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(repository)}
    gpu = gpus.get() if gpus else None
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    quiet = ["--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "/dev/stdout"]
    command = [sys.executable, "-m", "ctseg.child", str(os.getpid()), "papermill", *quiet]
    command += task.make_arguments(running.relative_to(repository))
    try:
        with open(log, "wb") as file:
            outputs = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            child = subprocess.Popen(command, cwd=repository, env=environment, **outputs)
            status = _wait(child, is_stopped or _is_given_up)
    finally:
        if gpus:
            gpus.put(gpu)
    if status == 0:
        os.replace(running, final)
    return "" if task.is_finished(repository) else _explain(status, log, task.folds)


def _wait(child: subprocess.Popen, is_stopped: Callable[[], bool]) -> int:
    """The exit status of a child, which is killed if it is not wanted any more."""
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if is_stopped():
                child.kill()


def _is_given_up() -> bool:
    """Whether this worker's task is not wanted any more: its sweep or the scheduler ended."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused")


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
        RuntimeError: the base failed, or the cluster cannot be used; what is finished stays.
        FolderBusy: the sweep is already running.
    """
    repository, folder = find_repository(), find_run_dir(plan.name)
    with lock_folder(folder):
        open_sweep(plan)
        tasks = [task for task in plan.list_tasks() if not task.is_finished(repository)]
        for task in tasks:
            print(shlex.join(["papermill", *task.make_arguments(task.notebook)]), flush=True)
        failures = {}
        if tasks:
            with (
                _open_cluster(scheduler, folder, plan) if scheduler else _open_threads(jobs) as (
                    submit,
                    n_parallel,
                )
            ):
                print(_describe_plan(plan, tasks, n_parallel), flush=True)
                failures = _run_tasks(tasks, submit, f"{plan.name}/{plan.base}")
        failed = {task.run.partition("/")[2] for task in failures}
        configurations = plan.list_configurations([run for run in plan.runs if run not in failed])
        comparison = compare(configurations, is_product=plan.is_product and not failures)
        notes = [f"failed: {_describe(task)}: {error}" for task, error in failures.items()]
        comparison.notes.extend(notes)
        write_leaderboard(folder, comparison)
        write_text(_make_best(plan, comparison), folder / "best.yaml")
    return comparison


def _run_tasks(tasks: Sequence[Task], submit: Callable[[Task], Future], base: str) -> dict[Task, str]:
    """Run all tasks; return those that failed with why. A failed base ends it at once with a RuntimeError."""
    started, failures = time.monotonic(), {}
    futures = {submit(task): task for task in tasks}
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
        progress = f"{n_done} of {len(tasks)}, about {left:.0f} min left"
        print(
            f"{'FAILED' if error else 'finished'}: {_describe(task)} ({progress}) {error}".rstrip(),
            flush=True,
        )
        if error:
            failures[task] = error
            if task.run == base:
                raise RuntimeError(f"the base failed, with which all others are compared: {error}")
    return failures


def _describe(task: Task) -> str:
    """A task in a few words."""
    return task.run if task.fold is None else f"{task.run}, fold {task.fold}"


def _describe_plan(plan: Plan, tasks: Sequence[Task], n_parallel: int) -> str:
    """How many runs there are, and about how long they take."""
    configs = [(plan.configs[task.run.partition("/")[2]], len(task.folds)) for task in tasks]
    minutes = sum(_project_seconds(config, n_folds) for config, n_folds in configs) / n_parallel / 60
    return (
        f"{plan.name}: {len(plan.runs)} runs; {len(tasks)} of {len(plan.list_tasks())} tasks to do, "
        f"{n_parallel} at a time, in about {minutes:.0f} minutes if steps stay as fast as one is now"
    )


@cache
def _time_step(config: Config) -> tuple[float, float]:
    """Seconds of a training step, and of predicting an image, on this machine; the fastest of three."""
    images = torch.zeros(config.batch_size, 3, config.target_size, config.target_size, dtype=torch.uint8)
    learner = Learner(make_network(config), config, find_device())
    step = partial(learner.step, images, images[:, :1], make_generator(0))
    predict = partial(predict_probabilities, learner.model, images)
    return min(timeit.repeat(step, number=1)[1:]), min(timeit.repeat(predict, number=1)[1:]) / len(images)


def _project_seconds(config: Config, n_folds: int) -> float:
    """Seconds that the training of `n_folds` folds will take."""
    n_cases = len(find_cases(Path(config.data_root), "train", config))
    n_validated = n_cases / max(config.n_folds, 10 if config.n_folds == 1 else 1)
    # Only what a step's time depends on, so that equal ones are timed once.
    sizes = ("encoder", "width", "depth", "target_size", "batch_size", "weight_channels_by_contrast")
    plain = Config(epochs=1, **{name: getattr(config, name) for name in sizes})
    step, image = _time_step(plain)
    epoch = (n_cases - n_validated) / config.batch_size * step + n_validated * image
    return n_folds * config.epochs * epoch + _OVERHEAD


@contextmanager
def _open_threads(jobs: int | None) -> Iterator[tuple[Callable[[Task], Future], int]]:
    """A way to submit tasks to threads of this process, and how many run at a time.

    Tasks that run when the block ends, as by Ctrl-C, are killed.
    """
    n_gpus, stop, gpus = torch.cuda.device_count(), threading.Event(), None
    n = jobs or max(1, n_gpus)
    if n_gpus > 1:
        gpus, free = SimpleQueue(), queue_gpus(n_gpus)
        names = [free.get() for _ in range(n_gpus)]
        for name in itertools.islice(itertools.cycle(names), n):
            gpus.put(name)
    with ThreadPoolExecutor(n) as pool:
        n_here = {socket.gethostname(): n}
        options = {"is_stopped": stop.is_set, "gpus": gpus}
        try:
            yield lambda task: pool.submit(run_task, task, find_repository(), n_here, **options), n
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _open_cluster(address: str, folder: Path, plan: Plan) -> Iterator[tuple[Callable[[Task], Future], int]]:
    """As `_open_threads`, with the workers of a Dask cluster, each of which has been asked whether it can.

    Raises:
        RuntimeError: there is no cluster, or what is wrong with each worker.
    """
    try:
        from distributed import Client
    except ImportError:
        raise RuntimeError(
            "Dask is not installed; pip install -e '.[cluster]' here and on the workers"
        ) from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no Dask scheduler at {address}: {error}; start one, see the README") from None
    with client:
        n_here = _check_workers(client, folder, plan)
        executor = client.get_executor(pure=False)
        repository = find_repository()
        yield lambda task: executor.submit(run_task, task, repository, n_here), sum(n_here.values())


def _check_workers(client: Any, folder: Path, plan: Plan) -> dict[str, int]:
    """Ask every worker whether it can do this sweep's tasks; return how many there are on each host.

    Raises:
        RuntimeError: there are none, or what is wrong with each.
    """
    token = folder / f"token-{os.getpid()}"
    write_text(f"{time.time()}", token)
    try:
        found = client.run(describe_worker, token, Path(plan.configs[plan.base].data_root), on_error="return")
    finally:
        token.unlink()
    threads, here = client.nthreads(), describe_worker(folder, folder)
    problems = [] if found else ["it has no workers; start some, see the README"]
    for worker, answer in found.items():
        if not isinstance(answer, dict):
            problems.append(f"{worker}: {answer}; start it in the repository, with PYTHONPATH=$PWD")
            continue
        wrong = answer["problems"] + [
            f"{name} {answer[name]} and not {here[name]} as here"
            for name in ("ctseg", "torch")
            if answer[name] != here[name]
        ]
        if threads[worker] != 1:
            wrong.append(f"{threads[worker]} threads; start it with --nthreads 1, and more workers instead")
        problems += [f"{worker}: {', '.join(wrong)}"] if wrong else []
    if problems:
        raise RuntimeError("the cluster cannot do this sweep: " + "; ".join(problems))
    return dict(Counter(answer["host"] for answer in found.values()))


def describe_worker(token: Path, data_root: Path) -> dict[str, Any]:
    """A worker's host and versions, and what it lacks: the shared folder with the token, the data."""
    problems = []
    if not token.exists():
        problems.append(f"no {token}, so it does not share this folder")
    elif not os.access(token.parent, os.W_OK):
        problems.append(f"it cannot write in {token.parent}")
    if not data_root.is_dir():
        problems.append(f"no data in {data_root}")
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return {
        "host": socket.gethostname(),
        "ctseg": f"{zlib.crc32(b''.join(path.read_bytes() for path in sources)):08x}",
        "torch": torch.__version__,
        "problems": problems,
    }


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
    values = {**plan.fixed, **{name: chosen[name] for name in plan.swept if name != "seed"}}
    return f"# {plan.name}: {why}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_grid(given: argparse.Namespace) -> dict[str, Any]:
    """The grid of a command line: a file's, and values over it; commas separate the values of a list."""
    lists = [
        (name, value)
        for name, value in given.p
        if "," in value and name in {"fold", *Config(preset="baseline").settings()} - {"group"}
    ]
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
