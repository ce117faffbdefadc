"""The folds of a run: train those asked for, and find again what training left."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ctseg.config import Config
from ctseg.data import Case, SegmentationDataset, Squares, find_cases, find_window, load_squares, read_mask
from ctseg.model import find_device, load_weights, make_model
from ctseg.predict import read_oof, write_oof
from ctseg.split import split_cases
from ctseg.train import Learner, make_seed, train_model
from ctseg.transforms import EvalTransform


def make_dataset(config: Config, part: str) -> SegmentationDataset:
    """The cases of "Train" or "Test" as this run's network sees them; a 16-bit window always comes from the training images."""
    root = Path(config.data_root)
    window = find_window(find_cases(root, "Train"), config.window_low, config.window_high)
    return SegmentationDataset(find_cases(root, part), EvalTransform(config.target_size, config.favour_contrast), window)


def train_folds(config: Config, folder: Path, squares: Squares | None = None) -> dict[int, list[dict]]:
    """Train the folds asked for in turn, resuming each where it stopped; return {fold: history}.

    A time budget is shared out evenly. `squares` is the training set, if it is in memory already.
    """
    squares = squares or load_squares(make_dataset(config, "Train"))
    fold_of_case = assign_folds(config, squares)
    folds = range(config.n_folds) if config.fold is None else [config.fold]
    budget_seconds = config.budget_minutes and 60 * config.budget_minutes / len(folds)
    histories = {}
    for fold in folds:
        train, validation = (squares.subset(np.flatnonzero(part)) for part in (fold_of_case != fold, fold_of_case == fold))
        histories[fold] = train_fold(config, train, validation, fold, folder / f"fold{fold}", budget_seconds)
    return histories


def assign_folds(config: Config, squares: Squares) -> np.ndarray:
    """Each case's fold in this run (N,)."""
    return split_cases(squares, n_folds=config.n_folds, split=config.split, seed=config.seed)


def train_fold(config: Config, train: Squares, validation: Squares, fold: int, folder: Path, budget_seconds: float | None) -> list[dict]:
    """Train one fold and keep its out-of-fold predictions, made with the best weights; return the history."""
    torch.manual_seed(make_seed(config.seed, fold))  # the initial weights
    learner = Learner(
        build_model(config, config.weights),
        augment=config.augment(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        ema_decay=config.ema_decay,
        clip_norm=config.clip_norm,
        bce_weight=config.bce_weight,
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
        threshold=config.threshold,
        seed=(config.seed, fold),
    )
    if not (folder / "oof.npz").is_file():
        load_weights(learner.model, folder / "best_unet_model.pth")
        write_oof(folder / "oof.npz", learner.model, validation)
    return history


def build_model(config: Config, weights: str | Path = "") -> nn.Module:
    """The run's network, from scratch or with the weights of a file."""
    dropout = (config.bottleneck_dropout, config.decoder_dropout)
    return make_model(config.encoder, width=config.width, depth=config.depth, dropout=dropout, weights=str(weights))


def find_folds(folder: Path) -> list[Path]:
    """The folders of a run's trained folds in order; FileNotFoundError if there are none."""
    folds = sorted((path.parent for path in folder.glob("fold*/oof.npz")), key=lambda path: int(path.name.removeprefix("fold")))
    if not folds:
        raise FileNotFoundError(f"no trained fold in {folder}; run 03_train with the same parameters first, or name another run")
    return folds


def load_folds(config: Config, folder: Path) -> list[nn.Module]:
    """The best network of every trained fold of a run, on the GPU if there is one."""
    return [build_model(config, path / "best_unet_model.pth").to(find_device()) for path in find_folds(folder)]


def read_validation(folder: Path, cases: Sequence[Case]) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """Yield (case, probability, truth) of every out-of-fold prediction of a run: float32 and bool (H, W) at the image's own size."""
    by_id = {case.image_id: case for case in cases}
    for fold in find_folds(folder):
        for image_id, probability in read_oof(fold / "oof.npz"):
            yield by_id[image_id], probability, read_mask(by_id[image_id].mask)
