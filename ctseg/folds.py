"""The folds of a run: train those asked for, and load their results."""

import math
import os
import pickle
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ctseg.config import Config
from ctseg.data import SegmentationDataset, TrainingSet, find_window, load_training_set
from ctseg.device import count_cores, find_device, find_free_memory, keep_near, use_threads
from ctseg.files import FolderBusy, lock_folder, print_anywhere, write_text
from ctseg.fingerprint import check_still_kept, is_begun, read_folds, write_training_data
from ctseg.live import is_live, leave_notebook
from ctseg.log import Log, Relay
from ctseg.model import UNet
from ctseg.paths import find_file
from ctseg.predict import Predictor, write_oof
from ctseg.progress import Display
from ctseg.runs import (
    check_settings,
    choose_window,
    make_dataset,
    make_network,
    make_transform,
    measure_step_memory,
)
from ctseg.schedule import Timetable, find_deadline
from ctseg.seeds import make_seed
from ctseg.shared import map_shared, write_shared
from ctseg.split import find_groups, read_groups, split_cases
from ctseg.train import (
    Learner,
    find_fold_dirs,
    find_shown,
    read_checkpoint,
    read_history,
    slim_checkpoint,
    train_model,
)
from ctseg.weights import load_weights, read_trained_on
from ctseg.workers import SILENCE, STOPPED, Stage, WorkerPool, plan_stages

_BASE_BYTES = 0.7e9  # of a process with PyTorch, before it trains
_SHORT = 60  # seconds of a fold that are not worth a process of its own
_MEMORY_SHARE = 0.7  # of the free memory that processes side by side may plan with
_UNFINISHED = "unfinished.npz"  # out-of-fold predictions of a fold that still trains
_Inputs = tuple[Config, Path, TrainingSet, np.ndarray]  # the first arguments of `train_fold`


def train_folds(
    config: Config, run_dir: Path, training_set: TrainingSet | None = None
) -> dict[int, list[dict]]:
    """Train the folds asked for, each from where it stopped; return {fold: history} of the finished ones.

    Each of several GPUs has a worker process that trains one fold at a time, and so have the cores of a CPU;
    a single GPU or core trains one fold after the other here. Of epochs, `budget_minutes` (of all that 03
    does, loading included) and `deadline_minutes` the shortest counts. A fold that fails is reported and its
    traceback kept in `failed_fold<k>.txt`; the others go on without it. Pass `training_set` if it is in
    memory already. In a live notebook a bar shows where training is.

    Raises:
        Exception: the last fold's error, if no fold is finished.
        Stopped: by hand; what is finished is kept.
        ValueError: the run has folds of other settings.
    """
    check_settings(config, run_dir)
    training_set = training_set or load_training_set(make_dataset(config, "train"))
    started = time.monotonic() - training_set.seconds
    fold_of_case = assign_folds(config, run_dir, training_set)
    folds = list(range(config.n_folds)) if config.fold is None else [config.fold]
    stages = _plan_stages(config, folds)
    find_end = _plan_time(config, run_dir, stages, started)
    log = (Display if is_live() else Log)([run_dir / f"fold{fold}" for fold in folds])
    inputs, errors = (config, run_dir, training_set, fold_of_case), []
    here = partial(train_fold, *inputs, claim=partial(_claim, *inputs), log=log)
    if config.weights == "default" and not is_begun(run_dir):
        make_network(config)  # one download, and not one of each worker
    try:
        is_done = all(map(_is_finished, log.fold_dirs.values()))
        if (n := len(stages[0].environments)) and not is_done:
            log.say(f"{n} folds at a time, in a process each")
        for stage in stages:
            pool = WorkerPool(stage.environments) if stage.environments else None
            train = partial(_train_in_process, inputs, pool, log) if pool else here
            attempt = partial(_try_fold, train, find_end, run_dir, log)
            errors += pool.map(attempt, stage.folds) if pool else map(attempt, stage.folds)
    except KeyboardInterrupt:
        raise Stopped(_describe_stop(log)) from None
    log.close()
    if all(errors):
        raise errors[-1]
    return {fold: read_history(run_dir / f"fold{fold}") for fold, error in zip(folds, errors) if not error}


def _plan_stages(config: Config, folds: Sequence[int]) -> list[Stage]:
    """What is trained side by side: on a CPU a fold for each core, as far as the memory goes."""
    n_gpus, n_useful = torch.cuda.device_count(), min(len(folds), count_cores())
    if config.budget_minutes and 60 * config.budget_minutes < _SHORT * len(folds):
        n_useful = 1  # processes take seconds to start
    if not n_gpus and n_useful > 1:
        share = _MEMORY_SHARE * count_cores() / count_cores(of_machine=True)  # runs of a sweep divide both
        n_fitting = share * find_free_memory() / (_BASE_BYTES + measure_step_memory(config))
        n_useful = int(max(1, min(n_useful, n_fitting)))
    return plan_stages(folds, n_gpus=n_gpus, n_useful=n_useful)


def _plan_time(
    config: Config, run_dir: Path, stages: Sequence[Stage], started: float
) -> Callable[[int], float]:
    """Make a function that says when a fold, which starts now, should end; see `train_model`.

    A budget goes on where a stopped run left it: the time of each fold's whole epochs is in its history.
    """
    rounds = [(folds, stage.weight) for stage in stages for folds in stage.split()]
    unit = 60 * (config.budget_minutes or 1) / sum(weight for _, weight in rounds)
    needs = []
    for folds, weight in rounds:
        left = [0.0]
        for fold_dir in (run_dir / f"fold{fold}" for fold in folds):
            spent = sum(row["seconds"] for row in read_history(fold_dir)) if config.budget_minutes else 0.0
            left.append(0.0 if _is_finished(fold_dir) else max(weight * unit - spent, 0.01 * unit))
        needs.append(max(left))
    ends_at = started + sum(needs) if config.budget_minutes else math.inf
    timetable = Timetable(min(ends_at, find_deadline(config.deadline_minutes)), needs)
    numbers = {fold: number for number, (folds, _) in enumerate(rounds) for fold in folds}
    return lambda fold: timetable.find_end(numbers[fold])


class Stopped(KeyboardInterrupt):
    """Training was stopped by hand; a notebook shows the message alone."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback."""
        return [str(self)]


def _describe_stop(log: Log) -> str:
    """Where training was stopped, what is kept, and how it goes on."""
    few = {0: "no epoch is kept yet", 1: "epoch 1 is kept"}
    n_kept = {path: len(read_history(path)) for path in log.fold_dirs.values()}
    kept = {path: few.get(n, f"epochs 1 to {n} are kept") for path, n in n_kept.items()}
    texts = [f"in epoch {epoch} of {path.name}; {kept[path]}" for path, (epoch, _) in log.places.items()]
    if not texts:  # before other processes ended an epoch
        texts = [f"{path.name}: {kept[path]}" for path in kept if n_kept[path] and not _is_finished(path)]
    again = "run this cell again" if is_live() else "run the same again"
    return f"Stopped {', '.join(texts) or 'before the first epoch'}; {again} to go on"


def _try_fold(
    train: Callable[..., None], find_end: Callable[[int], float], run_dir: Path, log: Log, fold: int
) -> Exception | None:
    """Train a fold; report and return its error, and keep the traceback in a file until the next try."""
    record = run_dir / f"failed_fold{fold}.txt"
    record.unlink(missing_ok=True)
    failure, has_failed = None, False
    try:
        train(fold, ends_at=find_end(fold))
    except FolderBusy as error:
        log.say(f"fold {fold} is left alone: {error}")
        failure = error
    except Exception as error:
        log.say(f"FAILED: fold {fold}, {type(error).__name__}: {error} (see {record})")
        with suppress(OSError):  # the disk may be full
            write_text(traceback.format_exc(), record)
        failure, has_failed = error, True
        _forget_frames(error)
    log.on_end(run_dir / f"fold{fold}", failed=has_failed)
    return failure


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the functions held that an error came through: a network, its batch, its gradients."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _train_in_process(
    inputs: _Inputs,
    pool: WorkerPool,
    log: Log,
    fold: int,
    *,
    ends_at: float,
) -> None:
    """Train a fold in a worker process (`python -m ctseg.folds`), and pass on its output.

    Raises: see `WorkerPool.run`.
    """
    config, run_dir, training_set, _ = inputs
    fold_dir = run_dir / f"fold{fold}"
    if _is_finished(fold_dir):
        _leave_finished(fold_dir, config.keep, log)
        return
    patience = 0.25 * (ends_at - time.monotonic())  # what has to end in time cannot wait for long
    with _hand_over(inputs) as file:
        files = [training_set.file, file]
        pool.run(
            "ctseg.folds",
            [fold, ends_at, *(file.fileno() for file in files)],
            files=files,
            silence=min(SILENCE, max(120.0, patience)),
            on_line=log.pass_on,
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
    ends_at: float = math.inf,
    claim: Callable[[], object] = lambda: None,
    log: Log | None = None,
) -> None:
    """Train one fold and, last of all, keep its out-of-fold predictions, made with the weights it kept.

    Then the states in its checkpoint are removed, and all pictures but those of a few epochs (`find_shown`);
    a fold that was finished before is tidied in the same way, and else left as it is.
    `ends_at`, `claim` and `log`: see `train_model`.

    Raises:
        FolderBusy: another process trains this fold.
        MemoryError: the GPU's memory is too small; the message names a batch size to try.
    """
    fold_dir, log = run_dir / f"fold{fold}", log or Log()
    if _is_finished(fold_dir):
        _leave_finished(fold_dir, config.keep, log)
        return
    device = find_device()
    training_set = replace(training_set, pixels=keep_near(training_set.pixels, device))
    train = training_set.select(np.flatnonzero(fold_of_case != fold))
    validation = training_set.select(np.flatnonzero(fold_of_case == fold))
    seed = (config.seed, fold)
    torch.manual_seed(make_seed(*seed))  # the initial weights
    last = fold_dir / "last.pth"
    # A fold that is begun needs no weights file: its checkpoint has them, and what they were trained on.
    network = make_network(replace(config, weights="") if last.is_file() else config)
    learner = Learner(network, config, device)
    trained_on = _find_trained_on(config, last)
    if seen := trained_on & set(validation.describe()):
        log.say(
            f"fold{fold} validation is not independent: {config.weights} was trained on {len(seen)} of its "
            f"{len(validation)} images; start from other weights, or do not trust its score"
        )
    with (
        lock_folder(fold_dir),
        _explained_memory(config.batch_size),
        use_threads(_find_threads(last)),
    ):
        train_model(
            learner,
            train,
            validation,
            fold_dir,
            seed=seed,
            ends_at=ends_at,
            trained_on=trained_on,
            claim=claim,
            log=log,
        )
        load_weights(learner.model, fold_dir / "best_unet_model.pth")
        write_oof(
            fold_dir / "oof.npz",
            learner.model,
            validation,
            tta=config.tta,
            threshold=config.threshold,
            on_case=log.give_sign,
        )
    _tidy_fold(fold_dir, config.keep)


def _leave_finished(fold_dir: Path, keep: str, log: Log) -> None:
    """Say that a fold is finished, and tidy it: a kill may have come before."""
    log.say(f"{fold_dir.name} is finished already")
    _tidy_fold(fold_dir, keep)


def _tidy_fold(fold_dir: Path, keep: str) -> None:
    """Remove what only a fold that trains needs: the states in its checkpoint, and most pictures.

    Where that cannot be done, on a full disk or because another process does it, the fold is finished too.
    """
    with suppress(OSError, FolderBusy), lock_folder(fold_dir):
        slim_checkpoint(fold_dir)
        if history := read_history(fold_dir):
            shown = {f"epoch_{epoch}" for epoch in find_shown(history, keep)}
            for picture_dir in fold_dir.glob("val_outputs/epoch_*"):
                if picture_dir.name not in shown:
                    shutil.rmtree(picture_dir)
        (fold_dir / _UNFINISHED).unlink(missing_ok=True)


def _claim(config: Config, run_dir: Path, training_set: TrainingSet, fold_of_case: np.ndarray) -> None:
    """Raise a ValueError if another process has meanwhile opened the run with other settings or data."""
    check_settings(config, run_dir)
    check_still_kept(run_dir, training_set, fold_of_case)


def _find_threads(last: Path) -> int | None:
    """With how many threads a fold began; others would round differently. None without a checkpoint."""
    return (read_checkpoint(last) or {}).get("threads")


def _find_trained_on(config: Config, last: Path) -> set[str]:
    """The cases that the weights were trained on which a fold starts or goes on with."""
    if last.is_file():
        return read_trained_on(last)
    is_file = config.weights not in ("", "default")
    return read_trained_on(find_file(config.weights)) if is_file else set()


@contextmanager
def _explained_memory(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error of PyTorch, cuDNN or cuBLAS into a MemoryError that names a fix."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"out of memory|ALLOC_FAILED|can't allocate memory", str(error)):
            raise
        smaller = f"-p batch_size {batch_size // 2}" if batch_size > 1 else "a smaller target_size or encoder"
        where = {"cuda": "GPU", "cpu": "CPU"}.get(find_device().type, find_device().type)
        what = f"the {where}'s memory is too small for batch_size {batch_size}"
        raise MemoryError(f"{what}; try {smaller} ({str(error).splitlines()[0]})") from error


def _is_finished(fold_dir: Path) -> bool:
    """Whether a fold is finished: its `oof.npz`, written last, exists."""
    return (fold_dir / "oof.npz").is_file()


def find_folds(run_dir: Path, *, unfinished: bool = False) -> list[Path]:
    """The folders of a run's finished folds in order, or of all that have weights.

    Raises:
        FileNotFoundError: there are none.
    """
    is_usable = _has_weights if unfinished else _is_finished
    fold_dirs = list(filter(is_usable, find_fold_dirs(run_dir)))
    if not fold_dirs:
        begun = "; ".join(describe_unfinished(run_dir))
        otherwise = ", or pass use_unfinished to make do with what there is" if begun else ""
        others = sorted({path.parts[-3] for path in run_dir.parent.glob("*/fold*/oof.npz")})
        trained = f"; trained are {', '.join(others[:20])}" if others else ""
        raise FileNotFoundError(
            f"no trained fold in {run_dir}{begun and f' ({begun})'}; run 03_train with the same parameters "
            f"first{otherwise}, or name another run{trained}"
        )
    return fold_dirs


def _has_weights(fold_dir: Path) -> bool:
    """Whether a fold has weights, of one epoch at least."""
    return (fold_dir / "best_unet_model.pth").is_file()


def describe_unfinished(run_dir: Path) -> list[str]:
    """A line for each fold of a run that has epochs and is not finished."""
    return [
        f"{fold_dir.name} is not finished, epoch {len(history)} was its last"
        for fold_dir in find_fold_dirs(run_dir)
        if not _is_finished(fold_dir) and (history := read_history(fold_dir))
    ]


def find_oof(config: Config, run_dir: Path) -> list[Path]:
    """The out-of-fold predictions of the folds that 04 uses, in order.

    Those of unfinished folds are made here, with the weights that they have; 03 goes on with them as before.

    Raises:
        FileNotFoundError: there is no such fold.
        FolderBusy: an unfinished fold is being trained.
    """
    fold_dirs = find_folds(run_dir, unfinished=config.use_unfinished)
    if unfinished := [fold_dir for fold_dir in fold_dirs if not _is_finished(fold_dir)]:
        training_set = load_training_set(make_dataset(config, "train"))
        fold_of_case = assign_folds(config, run_dir, training_set)
    for fold_dir in unfinished:
        validation = training_set.select(
            np.flatnonzero(fold_of_case == int(fold_dir.name.removeprefix("fold")))
        )
        with lock_folder(fold_dir):
            network = make_network(config, fold_dir / "best_unet_model.pth").to(find_device())
            write_oof(fold_dir / _UNFINISHED, network, validation, tta=config.tta, threshold=config.threshold)
    return [fold_dir / (_UNFINISHED if fold_dir in unfinished else "oof.npz") for fold_dir in fold_dirs]


def load_predictor(config: Config, run_dir: Path, dataset: SegmentationDataset) -> Predictor:
    """The kept networks of a run, and the images of a data set as they see them."""
    own = SegmentationDataset(dataset.cases, make_transform(config), choose_window(config, run_dir))
    return Predictor(load_folds(config, run_dir), own, config.tta)


def load_folds(config: Config, run_dir: Path) -> list[UNet]:
    """The kept network of each fold that 04 uses, on the GPU if there is one."""
    fold_dirs = find_folds(run_dir, unfinished=config.use_unfinished)
    paths = [fold_dir / "best_unet_model.pth" for fold_dir in fold_dirs]
    return [make_network(config, path).to(find_device()) for path in paths]


def _hand_over(inputs: _Inputs) -> BinaryIO:
    """An unnamed file of what a fold is trained by, all but the pixels, which lie in one already."""
    config, run_dir, training_set, fold_of_case = inputs
    rest = replace(training_set, pixels=torch.empty(0), file=None)
    return write_shared(pickle.dumps((config, run_dir, rest, fold_of_case, training_set.pixels.shape)))


def _take_over(pixels: int, rest: int) -> _Inputs:
    """What `_hand_over` was given in the process that started this one, by the numbers of the two files."""
    with open(rest, "rb") as file:
        file.seek(0)
        config, run_dir, training_set, fold_of_case, shape = pickle.load(file)  # nobody else can write it
    with open(pixels, "r+b") as file:
        shared = torch.from_numpy(map_shared(file, shape))
    return config, run_dir, replace(training_set, pixels=shared), fold_of_case


def _work(fold: int, ends_at: float, pixels: int, rest: int) -> None:
    """Train a fold as a worker process does, by what `_train_in_process` handed over in two open files."""
    inputs = _take_over(pixels, rest)
    log = Relay([inputs[1] / f"fold{fold}"])
    train_fold(*inputs, fold, ends_at=ends_at, claim=partial(_claim, *inputs), log=log)


if __name__ == "__main__":
    print_anywhere()
    try:
        leave_notebook()
        _work(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:]))
    except FolderBusy as error:
        print(error, flush=True)
        sys.exit(os.EX_TEMPFAIL)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
