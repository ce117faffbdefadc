"""The folds of a run: train those asked for, and load their results."""

import json
import math
import os
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from ctseg.config import Config
from ctseg.data import TrainingSet, find_window, load_training_set
from ctseg.device import find_device
from ctseg.files import FolderBusy, print_anywhere, read_csv, write_text
from ctseg.fingerprint import check_still_kept, is_begun, read_folds, write_training_data
from ctseg.model import UNet
from ctseg.paths import find_file, find_run_name
from ctseg.predict import write_oof
from ctseg.runs import check_settings, make_config, make_dataset, make_network
from ctseg.seeds import make_seed
from ctseg.split import find_groups, read_groups, split_cases
from ctseg.train import Learner, train_model
from ctseg.weights import load_weights, read_trained_on


def train_folds(
    config: Config, run_dir: Path, training_set: TrainingSet | None = None
) -> dict[int, list[dict]]:
    """Train the folds asked for, each from where it stopped; return {fold: history} of the finished ones.

    With several GPUs, each has a worker process that trains one fold at a time; otherwise folds are trained
    one after another. A time budget covers all of them; parallel folds count once. A fold that fails is
    reported and its traceback kept in `failed_fold<k>.txt`; the others go on without it. Pass `training_set`
    if it is in memory already.

    Raises:
        Exception: the last fold's error, if no fold is finished.
    """
    training_set = training_set or load_training_set(make_dataset(config, "train"))
    fold_of_case = assign_folds(config, run_dir, training_set)
    folds = list(range(config.n_folds)) if config.fold is None else [config.fold]
    n_workers = min(len(folds), torch.cuda.device_count())
    rounds = math.ceil(len(folds) / max(1, n_workers))
    budget_seconds = config.budget_minutes and 60 * config.budget_minutes / rounds
    if n_workers > 1:
        train = partial(_train_in_process, run_dir, queue_gpus(n_workers), budget_seconds=budget_seconds)
        with ThreadPoolExecutor(n_workers) as pool:
            errors = list(pool.map(partial(_try_fold, train, run_dir), folds))
    else:
        inputs = (config, run_dir, training_set, fold_of_case)
        train = partial(train_fold, *inputs, budget_seconds=budget_seconds, claim=partial(_claim, *inputs))
        errors = [_try_fold(train, run_dir, fold) for fold in folds]
    if all(errors):
        raise errors[-1]
    return {fold: read_history(run_dir / f"fold{fold}") for fold, error in zip(folds, errors) if not error}


def _try_fold(train: Callable[[int], None], run_dir: Path, fold: int) -> Exception | None:
    """Train a fold; report and return its error, and keep the traceback in a file until the next try."""
    record = run_dir / f"failed_fold{fold}.txt"
    record.unlink(missing_ok=True)
    try:
        train(fold)
    except FolderBusy as error:  # the fold itself did not fail
        print(f"fold {fold} is left alone: {error}", flush=True)
        return error
    except Exception as error:
        print(f"FAILED: fold {fold}, {type(error).__name__}: {error} (see {record})", flush=True)
        with suppress(OSError):  # the disk may be full
            write_text(traceback.format_exc(), record)
        return error


def queue_gpus(n: int) -> SimpleQueue:
    """The first n GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    free = SimpleQueue()
    for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")[:n]:
        free.put(gpu)
    return free


def _train_in_process(run_dir: Path, free: SimpleQueue, fold: int, *, budget_seconds: float | None) -> None:
    """Train a fold in a process that sees one free GPU (`python -m ctseg.folds`), and pass on its output.

    Raises:
        FolderBusy: another process trains the fold.
        RuntimeError: the process failed; the message ends with its last lines.
    """
    gpu, last_lines = free.get(), deque(maxlen=20)
    command = [sys.executable, "-m", "ctseg.folds", str(run_dir), str(budget_seconds or 0), str(fold)]
    python_path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": python_path}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    ) as worker:
        for line in worker.stdout:
            print(line, end="", flush=True)
            last_lines.append(line)
    free.put(gpu)
    if worker.returncode == os.EX_TEMPFAIL:
        raise FolderBusy(last_lines[-1].strip())
    if worker.returncode:
        raise RuntimeError(
            f"the process on GPU {gpu} ended with status {worker.returncode}: {''.join(last_lines)}"
        )


def assign_folds(config: Config, run_dir: Path, training_set: TrainingSet) -> np.ndarray:
    """Each case's fold in this run (N,); drawn once, and kept with what the cases are from then on.

    Raises:
        ValueError: the run was trained on other cases, or they cannot be split as the settings say.
    """
    kept = read_folds(run_dir, training_set.cases) if is_begun(run_dir) else None
    if kept is not None:
        return kept
    groups = _find_groups(config, [case.image_id for case in training_set.cases])
    folds = split_cases(
        training_set, n_folds=config.n_folds, split=config.split, seed=config.seed, groups=groups
    )
    if is_begun(run_dir):  # by another process in the meantime
        return read_folds(run_dir, training_set.cases)
    # A window that is given for test images alone, where training's have 8 bits, is not training's.
    window = find_window(training_set.cases) and find_window(
        training_set.cases, config.window_low, config.window_high
    )
    write_training_data(run_dir, training_set, folds, window)
    return folds


def _find_groups(config: Config, image_ids: list[str]) -> list[str | None] | None:
    """The group of each case, as the setting `group` finds it; None without one."""
    if not config.group:
        return None
    if config.group.lower().endswith(".csv"):
        return read_groups(find_file(config.group, Path(config.data_root)), image_ids)
    return find_groups(image_ids, config.group)


def train_fold(
    config: Config,
    run_dir: Path,
    training_set: TrainingSet,
    fold_of_case: np.ndarray,
    fold: int,
    *,
    budget_seconds: float | None = None,
    claim: Callable[[], object] = lambda: None,
) -> None:
    """Train one fold and, last of all, keep its out-of-fold predictions, made with the weights it kept.

    Does nothing if the fold is finished. `claim`: see `train_model`.

    Raises:
        MemoryError: the GPU's memory is too small; the message names a batch size to try.
    """
    fold_dir = run_dir / f"fold{fold}"
    if _is_finished(fold_dir):
        return
    train = training_set.select(np.flatnonzero(fold_of_case != fold))
    validation = training_set.select(np.flatnonzero(fold_of_case == fold))
    seed = (config.seed, fold)
    torch.manual_seed(make_seed(*seed))  # the initial weights
    last = fold_dir / "last.pth"
    # A fold that is begun needs no weights file: its checkpoint has them, and what they were trained on.
    network = make_network(replace(config, weights="") if last.is_file() else config)
    learner = Learner(network, config, find_device())
    trained_on = _find_trained_on(config, last)
    if seen := trained_on & set(validation.describe()):
        print(
            f"fold{fold} validation is not independent: {config.weights} was trained on {len(seen)} of its "
            f"{len(validation)} images; start from other weights, or do not trust its score",
            flush=True,
        )
    with _explained_memory(config.batch_size):
        train_model(
            learner,
            train,
            validation,
            fold_dir,
            seed=seed,
            budget_seconds=budget_seconds,
            trained_on=trained_on,
            claim=claim,
        )
        load_weights(learner.model, fold_dir / "best_unet_model.pth")
        write_oof(fold_dir / "oof.npz", learner.model, validation, tta=config.tta, threshold=config.threshold)


def _claim(config: Config, run_dir: Path, training_set: TrainingSet, fold_of_case: np.ndarray) -> None:
    """Raise a ValueError if another process has meanwhile opened the run with other settings or data."""
    check_settings(config, run_dir)
    check_still_kept(run_dir, training_set, fold_of_case)


def _find_trained_on(config: Config, last: Path) -> set[str]:
    """The cases that the weights were trained on which a fold starts or goes on with."""
    if last.is_file():
        return read_trained_on(last)
    is_file = config.weights not in ("", "default")
    return read_trained_on(find_file(config.weights)) if is_file else set()


@contextmanager
def _explained_memory(batch_size: int) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into a MemoryError that names a fix."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = f"-p batch_size {batch_size // 2}" if batch_size > 1 else "a smaller target_size or encoder"
        what = f"the GPU's memory is too small for batch_size {batch_size}"
        raise MemoryError(f"{what}; try {smaller} ({str(error).splitlines()[0]})") from error


def _is_finished(fold_dir: Path) -> bool:
    """Whether a fold is finished: its `oof.npz`, written last, exists."""
    return (fold_dir / "oof.npz").is_file()


def read_history(fold_dir: Path) -> list[dict]:
    """Read a fold's `history.csv`, one row per epoch."""
    rows = read_csv(fold_dir / "history.csv")
    return [{name: json.loads(value) for name, value in row.items()} for row in rows]


def find_folds(run_dir: Path) -> list[Path]:
    """The folders of a run's trained folds in order; FileNotFoundError if there are none."""
    # Not the copies that people make, such as fold0_backup.
    folders = (path for path in run_dir.glob("fold*") if path.name.removeprefix("fold").isdigit())
    finished = filter(_is_finished, folders)
    fold_dirs = sorted(finished, key=lambda path: int(path.name.removeprefix("fold")))
    if not fold_dirs:
        raise FileNotFoundError(
            f"no trained fold in {run_dir}; run 03_train with the same parameters first, or name another run"
        )
    return fold_dirs


def load_folds(config: Config, run_dir: Path) -> list[UNet]:
    """The kept network of every trained fold of a run, on the GPU if there is one."""
    paths = [fold_dir / "best_unet_model.pth" for fold_dir in find_folds(run_dir)]
    return [make_network(config, path).to(find_device()) for path in paths]


def _work(run_dir: Path, budget_seconds: float | None, fold: int) -> None:
    """Train a fold of the run in `run_dir`, as a worker process does."""
    config = make_config(run=find_run_name(run_dir))
    training_set = load_training_set(make_dataset(config, "train"))
    fold_of_case = assign_folds(config, run_dir, training_set)
    inputs = (config, run_dir, training_set, fold_of_case)
    train_fold(*inputs, fold, budget_seconds=budget_seconds, claim=partial(_claim, *inputs))


if __name__ == "__main__":
    print_anywhere()
    try:
        _work(Path(sys.argv[1]), float(sys.argv[2]) or None, int(sys.argv[3]))
    except FolderBusy as error:
        print(error, flush=True)
        sys.exit(os.EX_TEMPFAIL)
