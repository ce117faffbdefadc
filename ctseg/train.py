"""Train one network on one split: the loop, its schedule, its checkpoint, its validation at native size."""

import copy
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ctseg.augment import Augment, TrainTransform
from ctseg.config import Config
from ctseg.data import TrainingSet, map_threads, png_path
from ctseg.device import MEMORY_FORMAT, autocast, choose_precision
from ctseg.files import atomic_path, lock_folder, read_csv, write_csv
from ctseg.losses import DiceBCELoss, Losses
from ctseg.metrics import dice_score
from ctseg.predict import predict_training_set
from ctseg.seeds import make_generator, make_seed
from ctseg.transforms import Letterbox
from ctseg.weights import read_torch, write_torch

_N_PICTURES = 4
# The share of a time budget that steps may fill. The rest covers checkpoints, and machines that slow down
# after the first seconds (by 4 to 7 % on two shared CPU cores).
_BUDGETED = 0.95


class Log:
    """What training tells of itself: here a line per epoch; `progress.Display` shows more in a notebook.

    Attributes:
        fold_dirs: of the folds that are asked for, by their names.
        places: (epoch, number of epochs) of each fold that trains, by its folder.
    """

    def __init__(self, fold_dirs: Sequence[Path] = ()):
        self.fold_dirs = {path.name: path for path in fold_dirs}
        self.places: dict[Path, tuple[int, int]] = {}

    def say(self, line: str) -> None:
        """Tell something."""
        print(line, flush=True)

    def pass_on(self, line: str) -> None:
        """Tell a line of a fold that trains in another process."""
        self.note_epoch(line)
        self.say(line.rstrip("\n"))

    def note_epoch(self, line: str) -> Path | None:
        """Take note of where a fold is, if the line is one of `on_epoch`; return its folder."""
        if not (found := re.match(r"(fold\d+) epoch (\d+)/(\d+) ", line)):
            return None
        fold_dir, done, n_epochs = self.fold_dirs[found[1]], int(found[2]), int(found[3])
        self.on_step(fold_dir, min(done + 1, n_epochs), n_epochs, float(done == n_epochs))
        return fold_dir

    def on_step(self, fold_dir: Path, epoch: int, n_epochs: int, share: float) -> None:
        """Take note of a step, and of the share of its epoch that is done."""
        self.places[fold_dir] = epoch, n_epochs

    def on_epoch(self, fold_dir: Path, history: Sequence[dict], n_epochs: int) -> None:
        """Tell of an epoch whose files are written."""
        self.say(f"{fold_dir.name} {_describe_epoch(history[-1], n_epochs)}")

    def on_end(self, fold_dir: Path, *, failed: bool) -> None:
        """Take note of a fold that is finished, or that failed."""
        self.places.pop(fold_dir, None)

    def close(self) -> None:
        """Take note of the end of all folds."""


def train_model(
    learner: "Learner",
    train: TrainingSet,
    validation: TrainingSet,
    fold_dir: Path,
    *,
    seed: tuple[int, ...],
    budget_seconds: float | None = None,
    trained_on: Iterable[str] = (),
    claim: Callable[[], object] = lambda: None,
    log: Log | None = None,
) -> list[dict]:
    """Train in place, resuming from `fold_dir/last.pth`, and return the history, one row per epoch.

    After each epoch: `val_outputs/epoch_N/` with pictures of a few validation cases, `best_unet_model.pth`
    with the weights to keep, `last.pth` with all that a resume needs, `history.csv`.

    Args:
        learner: its config says epochs, batch_size, schedule, keep and threshold.
        seed: every random draw is keyed by it and by epoch and batch, so a resumed run draws as an unbroken
            one.
        budget_seconds: of training and validation; of epochs and budget the shorter counts.
        trained_on: the cases that the weights it starts from were trained on; they are kept with the weights.
        claim: called before the first weights are written; its error keeps them from being written.
        log: is told of each step and epoch; by default a line per epoch is printed.

    Raises:
        FloatingPointError: the loss is no longer finite; the images of the batch are named, the last
            checkpoint is intact.
        FolderBusy: another process trains in this folder.
        ValueError: batches of one image, from which this network cannot learn at this size.
        TimeoutError: training took far longer than its budget; the last checkpoint is intact.
    """
    config, log = learner.config, log or Log()
    _check_single(learner, train)
    with lock_folder(fold_dir):
        checkpoint = _read_checkpoint(fold_dir / "last.pth")
        if checkpoint:
            total_steps, history = checkpoint["total_steps"], _rename(checkpoint["history"])
        else:
            total_steps, history = _count_steps(learner, train, validation, budget_seconds), []
        learner.set_schedule(config.schedule, total_steps)
        if checkpoint:
            learner.load_state_dict(checkpoint.get("learner", {}))
            write_csv(history, fold_dir / "history.csv")  # a kill may have come between the two files

        steps = split_steps(total_steps, count_batches(len(train), config.batch_size))
        if 0 < len(history) < len(steps):
            log.say(f"{fold_dir.name} goes on after epoch {len(history)} of {len(steps)}")
        for epoch in range(len(history), len(steps)):
            started = time.perf_counter()
            picture_dir = fold_dir / "val_outputs" / f"epoch_{epoch + 1}"
            row = {"epoch": epoch + 1}
            on_step = partial(log.on_step, fold_dir, epoch + 1, len(steps))
            on_step(0.0)
            row |= train_one_epoch(learner, train, steps=steps[epoch], seed=(*seed, epoch), on_step=on_step)
            scores = evaluate_model(
                learner.model, validation, threshold=config.threshold, picture_dir=picture_dir
            )
            row |= {"val_dice": float(scores.mean()), "seconds": time.perf_counter() - started}
            history.append(row)
            if epoch == 0:
                claim()
            _write_epoch(learner, history, total_steps, fold_dir, sorted({*trained_on, *train.describe()}))
            log.on_epoch(fold_dir, history, len(steps))
            check_budget(history, n_epochs=len(steps), budget_seconds=budget_seconds, name=fold_dir.name)
    return history


def _write_epoch(
    learner: "Learner", history: list[dict], total_steps: int, fold_dir: Path, trained_on: list[str]
) -> None:
    """Write the files of a fold after an epoch, each of them whole: weights to keep, checkpoint, history."""
    row = history[-1]
    if find_kept(history, learner.config.keep) is row:
        kept = {"state_dict": learner.model.state_dict(), **row, "trained_on": trained_on}
        write_torch(kept, fold_dir / "best_unet_model.pth")
    checkpoint = {"learner": learner.state_dict(), "total_steps": total_steps, "history": history}
    write_torch(checkpoint | {"trained_on": trained_on}, fold_dir / "last.pth")
    write_csv(history, fold_dir / "history.csv")


def slim_checkpoint(fold_dir: Path) -> None:
    """Take the states out of a finished fold's `last.pth`: most of its bytes, which nothing resumes from.

    A `history.csv` that is gone is made again from it.
    """
    try:
        checkpoint = _read_checkpoint(fold_dir / "last.pth") or {}
    except ValueError:  # damaged, and not needed any more
        return
    if "learner" in checkpoint:
        slim = {name: value for name, value in checkpoint.items() if name != "learner"}
        write_torch(slim, fold_dir / "last.pth")
    if "history" in checkpoint and not (fold_dir / "history.csv").is_file():
        write_csv(_rename(checkpoint["history"]), fold_dir / "history.csv")


def _describe_epoch(row: dict, n_epochs: int) -> str:
    """An epoch's row of the history in a line."""
    scores = "  ".join(f"{name} {row[name]:.4f}" for name in ("train_soft_dice", "bce", "loss", "val_dice"))
    return f"epoch {row['epoch']}/{n_epochs}  {scores}  lr {row['lr']:.1e}  {row['seconds']:.1f} s"


def find_fold_dirs(run_dir: Path) -> list[Path]:
    """The folders of a run's folds in order; not the copies that people make, such as fold0_backup."""
    fold_dirs = [path for path in run_dir.glob("fold*") if path.name.removeprefix("fold").isdigit()]
    return sorted(fold_dirs, key=lambda path: int(path.name.removeprefix("fold")))


def read_history(fold_dir: Path) -> list[dict]:
    """Read a fold's `history.csv`, one row per epoch; none without it."""
    path = fold_dir / "history.csv"
    rows = read_csv(path) if path.is_file() else []
    return _rename([{name: json.loads(value) for name, value in row.items()} for row in rows])


def _rename(history: Sequence[dict]) -> list[dict]:
    """A history with today's names: the soft Dice of training batches was once called dice."""
    return [{"train_soft_dice" if name == "dice" else name: row[name] for name in row} for row in history]


def find_kept(history: Sequence[dict], keep: str) -> dict:
    """The row of the epoch whose weights are kept.

    `keep` is "best", the highest validation Dice and the first of equals, as in the reference; or "last", the
    end of the schedule, which validation did not pick and so scores without bias.
    """
    return history[-1] if keep == "last" else max(history, key=lambda row: row["val_dice"])


class Learner:
    """A network and all that changes with it while it learns; `state_dict` is the content of a checkpoint.

    It takes the augmentation, lr, weight_decay, clip_norm and bce_weight from the config.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device | str = "cpu"):
        self.config = config
        self.device = torch.device(device)
        self.dtype = choose_precision(self.device)
        self.memory_format = MEMORY_FORMAT
        self.model = model.to(self.device, memory_format=self.memory_format)
        self.optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.transform = TrainTransform(Augment(**config.augmentation()), self.device)
        self.criterion = DiceBCELoss(config.bce_weight)

    def set_schedule(self, schedule: str, total_steps: int) -> None:
        """Spread the schedule over all steps: "one_cycle" (Smith 2018), or "constant"."""
        factors = {"one_cycle": lambda step: one_cycle(step, total_steps), "constant": lambda step: 1.0}
        self.scheduler = LambdaLR(self.optimizer, factors[schedule])

    def state_dict(self) -> dict:
        """The states of model, optimizer, scaler and scheduler."""
        names = ("model", "optimizer", "scaler", "scheduler")
        return {name: getattr(self, name).state_dict() for name in names}

    def load_state_dict(self, states: dict) -> None:
        """Restore the state that `state_dict` returned, here or where another precision is chosen."""
        for name, state in states.items():
            if state or name != "scaler":  # without half precision it has none, and takes none
                getattr(self, name).load_state_dict(state)

    def step(self, pixels: Tensor, generator: torch.Generator) -> Losses:
        """Take a step on a batch of images and targets, uint8 (B, 4, S, S); return the losses before it."""
        self.model.train()
        images, targets = self.transform(pixels, generator)
        with autocast(self.device, self.dtype):
            logits = self.model(images.contiguous(memory_format=self.memory_format))
        losses = self.criterion(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.loss).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses


def train_one_epoch(
    learner: Learner,
    train: TrainingSet,
    *,
    steps: int,
    seed: tuple[int, ...],
    on_step: Callable[[float], object] = lambda share: None,
) -> dict:
    """Learn from `steps` batches of a new shuffle; return mean soft Dice, BCE and loss, and the last lr.

    They are of augmented batches, before each step: not to be compared with Dice of validation. `on_step` is
    called with the share of the steps that are done.
    """
    shuffled = torch.randperm(len(train), generator=make_generator(*seed, 0))
    batches = split_batches(shuffled, learner.config.batch_size)[:steps]
    torch.manual_seed(make_seed(*seed, 1))  # dropout draws from the global generator
    each = []
    for batch, indices in enumerate(batches):
        lr = learner.scheduler.get_last_lr()[0]
        losses = learner.step(train.get_batch(indices, learner.device), make_generator(*seed, 2, batch))
        learner.scheduler.step()
        each.append(torch.stack(losses).detach())
        on_step((batch + 1) / len(batches))
    losses = torch.stack(each).cpu()  # (steps, 3); fetched once per epoch, since every fetch holds a GPU up
    ids = [[train.cases[index].image_id for index in indices] for indices in batches]
    check_finite(learner.model, losses[:, 0], ids)
    loss, bce, dice_loss = losses.mean(dim=0).tolist()
    return {"train_soft_dice": 1 - dice_loss, "bce": bce, "loss": loss, "lr": lr}


def split_batches(indices: Tensor, batch_size: int) -> list[Tensor]:
    """Split indices (N,) into batches; a last one of a single image joins the one before.

    A single image is too little for batch normalization, and where its deepest map has one pixel, an error.

    >>> [batch.tolist() for batch in split_batches(torch.arange(5), 2)]
    [[0, 1], [2, 3, 4]]
    """
    *whole, last = indices.split(batch_size)
    if whole and len(last) == 1 < batch_size:
        return [*whole[:-1], torch.cat([whole[-1], last])]
    return [*whole, last]


def count_batches(n: int, batch_size: int) -> int:
    """How many batches `split_batches` makes of n images.

    >>> count_batches(5, 2), count_batches(6, 4), count_batches(3, 1), count_batches(1, 4)
    (2, 2, 3, 1)
    """
    return max(1, n // batch_size + (n % batch_size > 1))


def _check_single(learner: Learner, train: TrainingSet) -> None:
    """Raise ValueError if there are batches of one image that the network cannot be trained with."""
    if min(learner.config.batch_size, len(train)) > 1:
        return
    image = torch.zeros(1, 3, *train.pixels.shape[2:], device=learner.device)
    try:
        with torch.no_grad():
            copy.deepcopy(learner.model).train()(image)
    except ValueError as error:
        raise ValueError(
            f"batches of one image of {image.shape[-1]} pixels: the network's deepest map has one pixel, "
            "from which batch normalization cannot learn; pass a larger batch_size or target_size, or add "
            "images"
        ) from error


def check_finite(model: nn.Module, losses: Tensor, ids: list[list[str]]) -> None:
    """Check that each step's loss (N,) and the weights are finite.

    Raises:
        FloatingPointError: they are not; the images of the first bad batch are named.
    """
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if not bad and not all(values.isfinite().all() for values in model.state_dict().values()):
        bad = [len(losses) - 1]  # the last step's gradient, which no loss has shown yet
    if bad:
        raise FloatingPointError(
            f"training is no longer finite, with a loss of {losses[bad[0]]:g} in the batch of "
            f"{', '.join(ids[bad[0]])}; the last checkpoint is intact; look at these images, lower lr or "
            "set clip_norm"
        )


def evaluate_model(
    model: nn.Module, validation: TrainingSet, *, threshold: float = 0.5, picture_dir: Path | None = None
) -> np.ndarray:
    """Return each case's Dice (N,) at the image's own size: the probability comes back before the threshold.

    With `picture_dir`, the first few cases are drawn there as image | true mask | prediction.
    """

    def score(predicted: tuple[int, np.ndarray]) -> float:
        index, probability = predicted
        letterbox, true_mask = validation.letterboxes[index], validation.get_mask(index)
        pred_mask = letterbox.undo(probability) > threshold
        if picture_dir and index < _N_PICTURES:
            path = png_path(picture_dir, validation.cases[index].image_id)
            _write_picture(path, validation.get_image(index), letterbox, true_mask, pred_mask)
        return dice_score(pred_mask, true_mask)

    return np.array(list(map_threads(score, enumerate(predict_training_set(model, validation)))))


def _write_picture(
    path: Path, image: Tensor, letterbox: Letterbox, true_mask: np.ndarray, pred_mask: np.ndarray
) -> None:
    """Draw image (3, S, S) | true mask (H, W) | prediction (H, W) side by side at the network's size."""
    inside = image.permute(1, 2, 0).numpy()[letterbox.inside]
    masks = [
        np.asarray(Image.fromarray(mask).convert("RGB").resize(inside.shape[1::-1]))
        for mask in (true_mask, pred_mask)
    ]
    panels = [np.pad(panel, ((2, 2), (2, 2), (0, 0)), constant_values=128) for panel in (inside, *masks)]
    with atomic_path(path) as partial:
        Image.fromarray(np.hstack(panels)).save(partial)


def _count_steps(
    learner: Learner, train: TrainingSet, validation: TrainingSet, budget_seconds: float | None
) -> int:
    """The number of steps of a run: its epochs', or as many as fit into the budget, or the smaller number."""
    per_epoch, lengths = len(train) / learner.config.batch_size, []
    if learner.config.epochs:
        lengths.append(learner.config.epochs * count_batches(len(train), learner.config.batch_size))
    if budget_seconds:
        started = time.perf_counter()
        max_seconds = 0.05 * budget_seconds
        step_seconds, validation_seconds = _time_pace(learner, train, validation, max_seconds=max_seconds)
        steps = fit_steps(
            budget_seconds,
            spent=time.perf_counter() - started,
            step_seconds=step_seconds,
            validation_seconds=validation_seconds,
            steps_per_epoch=per_epoch,
        )
        lengths.append(steps)
    return min(lengths)


def _time_pace(
    learner: Learner, train: TrainingSet, validation: TrainingSet, *, max_seconds: float
) -> tuple[float, float]:
    """Time a few steps and validations on a copy that is thrown away; return the seconds of each.

    Steps are timed for about `max_seconds`; the validation of up to 32 cases is scaled to all of them.
    """
    trial, batch_size = copy.deepcopy(learner), learner.config.batch_size
    sample = validation.select(range(min(len(validation), 32)))

    def time_step(batch: int) -> float:
        started = time.perf_counter()
        indices = torch.arange(batch * batch_size, (batch + 1) * batch_size) % len(train)
        trial.step(train.get_batch(indices, trial.device), make_generator(batch)).loss.item()
        return time.perf_counter() - started

    def time_validation() -> float:
        started = time.perf_counter()
        evaluate_model(trial.model, sample)
        return (time.perf_counter() - started) * len(validation) / len(sample)

    times = []
    while len(times) < 4 or (len(times) < 50 and sum(times) < max_seconds):
        times.append(time_step(len(times)))
    # The first steps are slower: memory is laid out, kernels are chosen.
    return statistics.mean(times[len(times) // 2 :]), min(time_validation() for _ in range(2))


def fit_steps(
    budget_seconds: float,
    *,
    spent: float,
    step_seconds: float,
    validation_seconds: float,
    steps_per_epoch: float,
) -> int:
    """How many steps, with a validation after each epoch, fit into a budget of which `spent` is used.

    At least one. A last, unfinished epoch has a whole validation; 5 % of the budget stay free.

    >>> # (0.95 * 100 - 15 - 1) / (1 + 1 / 3)
    >>> fit_steps(100, spent=15, step_seconds=1, validation_seconds=1, steps_per_epoch=3)
    59
    """
    left = _BUDGETED * budget_seconds - spent - validation_seconds
    return max(1, int(left / (step_seconds + validation_seconds / steps_per_epoch)))


def split_steps(total_steps: int, steps_per_epoch: int) -> list[int]:
    """The steps of each epoch; the last one may be shorter.

    >>> split_steps(7, 3)
    [3, 3, 1]
    """
    return [min(steps_per_epoch, total_steps - done) for done in range(0, total_steps, steps_per_epoch)]


def check_budget(history: Sequence[dict], *, n_epochs: int, budget_seconds: float | None, name: str) -> None:
    """Check that an unfinished training has not taken more than 1.5 times its budget plus a minute.

    Raises:
        TimeoutError: it has.
    """
    spent = sum(row["seconds"] for row in history)
    if budget_seconds and spent > 1.5 * budget_seconds + 60 and len(history) < n_epochs:
        raise TimeoutError(
            f"{name}: {spent:.0f} s spent of a budget of {budget_seconds:.0f} s, epoch {len(history)} of "
            f"{n_epochs}; raise budget_minutes, or give this machine less to do at a time"
        )


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW whose decay leaves norms and biases alone, and the factors that ConvNeXt calls layer_scale.

    Those are of one dimension, but for layer_scale (C, 1, 1).
    """
    named = list(model.named_parameters())
    is_decayed = {name: p.ndim > 1 and not name.endswith("layer_scale") for name, p in named}
    decayed = [p for name, p in named if is_decayed[name]]
    others = [p for name, p in named if not is_decayed[name]]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def one_cycle(step: int, total_steps: int) -> float:
    """The share of the largest lr at a step: a straight rise over the first fifth, then half a cosine to 0.

    PyTorch's OneCycleLR rises and falls by one kind of curve, and raises an error at a step after the last.
    """
    done, rise = (step + 1) / (total_steps + 1), 0.2
    return done / rise if done < rise else 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (1 - rise))


def _read_checkpoint(path: Path) -> dict | None:
    """Read `last.pth`; None where there is none yet."""
    return read_torch(path, fix="delete it to train this fold from its start") if path.is_file() else None
