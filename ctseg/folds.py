"""The folds of a run: train those asked for, and find again what training left."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from ctseg.config import Config
from ctseg.data import SegmentationDataset, Squares, find_cases, find_window, load_squares
from ctseg.model import UNet, find_device, load_weights, make_model
from ctseg.predict import write_oof
from ctseg.split import split_cases
from ctseg.train import Learner, make_seed, read_checkpoint, train_model
from ctseg.transforms import EvalTransform


def make_dataset(config: Config, part: str) -> SegmentationDataset:
    """The cases of "Train" or "Test" as this run's network sees them; a 16-bit window always comes from the training images."""
    root = Path(config.data_root)
    window = find_window(find_cases(root, "Train"), config.window_low, config.window_high)
    return SegmentationDataset(find_cases(root, part), EvalTransform(config.target_size, config.favour_contrast), window)


def train_folds(config: Config, folder: Path, squares: Squares | None = None) -> dict[int, list[dict]]:
    """Train the folds asked for, resuming each where it stopped; return {fold: history}.

    With several GPUs a worker process each trains one fold at a time, else they are trained in turn. A time budget is that of all of them:
    folds that are trained side by side count once. `squares` is the training set, if it is in memory already.

    Raises:
        RuntimeError: folds failed in their worker processes; the others were finished first.
    """
    folds = list(range(config.n_folds)) if config.fold is None else [config.fold]
    n_workers = min(len(folds), torch.cuda.device_count())
    rounds = math.ceil(len(folds) / max(1, n_workers))
    budget_seconds = config.budget_minutes and 60 * config.budget_minutes / rounds
    if n_workers > 1:
        return train_in_processes(folder, folds, n_workers, budget_seconds)
    squares = squares or load_squares(make_dataset(config, "Train"))
    fold_of_case = assign_folds(config, squares)
    return {fold: train_fold(config, squares, fold_of_case, fold, folder / f"fold{fold}", budget_seconds) for fold in folds}


def train_in_processes(folder: Path, folds: Sequence[int], n_workers: int, budget_seconds: float | None) -> dict[int, list[dict]]:
    """Train folds in worker processes that see one GPU each (`python -m ctseg.folds`), and pass on what they print."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n_workers)))).split(",")
    free = SimpleQueue()
    for gpu in visible[:n_workers]:
        free.put(gpu)

    def train(fold: int) -> int:
        gpu = free.get()
        command = [sys.executable, "-m", "ctseg.folds", str(folder), str(fold), str(budget_seconds or 0)]
        package = str(Path(__file__).parents[1])
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as worker:
            for line in worker.stdout:
                print(line, end="", flush=True)
        free.put(gpu)
        return worker.returncode

    with ThreadPoolExecutor(n_workers) as pool:
        failed = [fold for fold, status in zip(folds, pool.map(train, folds)) if status]
    if failed:
        raise RuntimeError(f"training failed in fold {', '.join(map(str, failed))}, see the lines above; the others are finished and kept")
    return {fold: read_checkpoint(folder / f"fold{fold}" / "last.pth")["history"] for fold in folds}


def assign_folds(config: Config, squares: Squares) -> np.ndarray:
    """Each case's fold in this run (N,)."""
    return split_cases(squares, n_folds=config.n_folds, split=config.split, seed=config.seed)


def train_fold(
    config: Config, squares: Squares, fold_of_case: np.ndarray, fold: int, folder: Path, budget_seconds: float | None
) -> list[dict]:
    """Train one fold and keep its out-of-fold predictions, made with the weights that were kept; return the history."""
    train, validation = (squares.subset(np.flatnonzero(part)) for part in (fold_of_case != fold, fold_of_case == fold))
    torch.manual_seed(make_seed(config.seed, fold))  # the initial weights
    learner = Learner(
        build_model(config),
        augment=config.augment(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        ema_decay=config.ema_decay,
        clip_norm=config.clip_norm,
        bce_weight=config.bce_weight,
        dice_per_image=config.dice_per_image,
        device=find_device(),
    )
    history = train_model(
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
    if not (folder / "oof.npz").is_file():
        load_weights(learner.model, folder / "best_unet_model.pth")
        write_oof(folder / "oof.npz", learner.model, validation, tta=config.tta)
    return history


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
    folds = sorted((path.parent for path in folder.glob("fold*/oof.npz")), key=lambda path: int(path.name.removeprefix("fold")))
    if not folds:
        raise FileNotFoundError(f"no trained fold in {folder}; run 03_train with the same parameters first, or name another run")
    return folds


def load_folds(config: Config, folder: Path) -> list[UNet]:
    """The kept network of every trained fold of a run, on the GPU if there is one."""
    return [build_model(config, weights=str(path / "best_unet_model.pth")).to(find_device()) for path in find_folds(folder)]


if __name__ == "__main__":
    run_folder, number, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    run_config = Config(**json.loads((run_folder / "config.json").read_text()))
    training_set = load_squares(make_dataset(run_config, "Train"))
    train_fold(run_config, training_set, assign_folds(run_config, training_set), number, run_folder / f"fold{number}", seconds or None)
