"""The folds of a run: train those asked for, and find again what training left."""

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
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from ctseg.config import Config
from ctseg.data import SegmentationDataset, Squares, find_cases, find_window, load_squares
from ctseg.files import read_csv, write_text
from ctseg.model import UNet, find_device, load_weights, make_model
from ctseg.predict import write_oof
from ctseg.split import split_cases
from ctseg.train import Learner, make_seed, train_model
from ctseg.transforms import EvalTransform


def make_dataset(config: Config, part: str) -> SegmentationDataset:
    """The cases of "Train" or "Test" as this run's network sees them; a 16-bit window always comes from the training images."""
    root = Path(config.data_root)
    window = find_window(find_cases(root, "Train"), config.window_low, config.window_high)
    return SegmentationDataset(find_cases(root, part), EvalTransform(config.target_size, config.favour_contrast), window)


def train_folds(config: Config, folder: Path, squares: Squares | None = None) -> dict[int, list[dict]]:
    """Train the folds asked for, resuming each where it stopped; return {fold: history} of those that are finished.

    With several GPUs a worker process each trains one fold at a time, else they are trained in turn. A time budget is that of all of them:
    folds that are trained side by side count once. A fold that fails is reported and its traceback kept in `failed_fold<k>.txt`; the others
    go on without it. `squares` is the training set, if it is in memory already.

    Raises:
        Exception: what the last fold raised, if none is finished.
    """
    folds = list(range(config.n_folds)) if config.fold is None else [config.fold]
    n_workers = min(len(folds), torch.cuda.device_count())
    budget_seconds = config.budget_minutes and 60 * config.budget_minutes / math.ceil(len(folds) / max(1, n_workers))
    if n_workers > 1:
        train = partial(train_in_process, folder, budget_seconds, queue_gpus(n_workers))
        with ThreadPoolExecutor(n_workers) as pool:
            errors = list(pool.map(partial(try_fold, train, folder), folds))
    else:
        squares = squares or load_squares(make_dataset(config, "Train"))
        train = partial(train_fold, config, folder, budget_seconds, squares, assign_folds(config, squares))
        errors = [try_fold(train, folder, fold) for fold in folds]
    if all(errors):
        raise errors[-1]
    return {fold: read_history(folder / f"fold{fold}") for fold, error in zip(folds, errors) if not error}


def try_fold(train: Callable[[int], None], folder: Path, fold: int) -> Exception | None:
    """Train a fold; what it raises is reported and returned, its traceback kept in the run's folder until the fold is tried again."""
    record = folder / f"failed_fold{fold}.txt"
    record.unlink(missing_ok=True)
    try:
        train(fold)
    except Exception as error:
        print(f"FAILED: fold {fold}, {type(error).__name__}: {error} (see {record})", flush=True)
        with suppress(OSError):  # a full disk is what may have gone wrong
            write_text(traceback.format_exc(), record)
        return error


def queue_gpus(n: int) -> SimpleQueue:
    """The first n GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    free = SimpleQueue()
    for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")[:n]:
        free.put(gpu)
    return free


def train_in_process(folder: Path, budget_seconds: float | None, free: SimpleQueue, fold: int) -> None:
    """Train a fold of a run in a process that sees one free GPU (`python -m ctseg.folds`), and pass on what it prints.

    Raises:
        RuntimeError: the process failed; the message ends with its last lines.
    """
    gpu, last_lines = free.get(), deque(maxlen=20)
    command = [sys.executable, "-m", "ctseg.folds", str(folder), str(budget_seconds or 0), str(fold)]
    python_path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": python_path}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as worker:
        for line in worker.stdout:
            print(line, end="", flush=True)
            last_lines.append(line)
    free.put(gpu)
    if worker.returncode:
        raise RuntimeError(f"the process on GPU {gpu} ended with status {worker.returncode}: {''.join(last_lines)}")


def assign_folds(config: Config, squares: Squares) -> np.ndarray:
    """Each case's fold in this run (N,)."""
    return split_cases(squares, n_folds=config.n_folds, split=config.split, seed=config.seed)


def train_fold(
    config: Config, run_folder: Path, budget_seconds: float | None, squares: Squares, fold_of_case: np.ndarray, fold: int
) -> None:
    """Train one fold and, last of all, keep its out-of-fold predictions, made with the weights it kept; nothing if they are there.

    Raises:
        MemoryError: the GPU's memory is too small; the message names a batch size to try.
    """
    folder = run_folder / f"fold{fold}"
    if is_finished(folder):
        return
    train, validation = (squares.subset(np.flatnonzero(part)) for part in (fold_of_case != fold, fold_of_case == fold))
    torch.manual_seed(make_seed(config.seed, fold))  # the initial weights
    learner = Learner(
        build_model(config),
        augment=config.augment(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        bce_weight=config.bce_weight,
        device=find_device(),
    )
    with explained_memory(config.batch_size):
        train_model(
            learner,
            train,
            validation,
            folder,
            epochs=config.epochs,
            budget_seconds=budget_seconds,
            batch_size=config.batch_size,
            schedule=config.schedule,
            keep=config.keep,
            threshold=config.threshold,
            seed=(config.seed, fold),
        )
        load_weights(learner.model, folder / "best_unet_model.pth")
        write_oof(folder / "oof.npz", learner.model, validation, tta=config.tta)


@contextmanager
def explained_memory(batch_size: int) -> Iterator[None]:
    """Turn a GPU's running out of memory into a MemoryError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = f"try -p batch_size {batch_size // 2}" if batch_size > 1 else "try a smaller target_size or encoder"
        raise MemoryError(f"the GPU's memory is too small for batch_size {batch_size}; {fix} ({str(error).splitlines()[0]})") from error


def is_finished(folder: Path) -> bool:
    """Whether a fold has left what a finished one leaves last."""
    return (folder / "oof.npz").is_file()


def read_history(folder: Path) -> list[dict]:
    """Read a fold's `history.csv`, one row an epoch."""
    return [{name: json.loads(value) for name, value in row.items()} for row in read_csv(folder / "history.csv")]


def build_model(config: Config, *, weights: str | None = None) -> UNet:
    """The run's network as training starts it, with the config's `weights` unless others are named."""
    return make_model(
        config.encoder,
        width=config.width,
        depth=config.depth,
        dropout=(config.bottleneck_dropout, config.decoder_dropout),
        weights=config.weights if weights is None else weights,
    )


def find_folds(folder: Path) -> list[Path]:
    """The folders of a run's trained folds in order; FileNotFoundError if there are none."""
    folds = sorted(filter(is_finished, folder.glob("fold*")), key=lambda path: int(path.name.removeprefix("fold")))
    if not folds:
        raise FileNotFoundError(f"no trained fold in {folder}; run 03_train with the same parameters first, or name another run")
    return folds


def load_folds(config: Config, folder: Path) -> list[UNet]:
    """The kept network of every trained fold of a run, on the GPU if there is one."""
    return [build_model(config, weights=str(path / "best_unet_model.pth")).to(find_device()) for path in find_folds(folder)]


if __name__ == "__main__":
    run_dir, seconds, number = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    run_config = Config(**json.loads((run_dir / "config.json").read_text()))
    training_set = load_squares(make_dataset(run_config, "Train"))
    train_fold(run_config, run_dir, seconds or None, training_set, assign_folds(run_config, training_set), number)
