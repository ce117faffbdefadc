"""Train one network on one split: the loop, its checkpoint, its validation at native size."""

import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from ctseg.augment import Augment, TrainTransform
from ctseg.config import Config
from ctseg.data import TrainingSet, map_threads, png_path
from ctseg.device import MEMORY_FORMAT, autocast, choose_precision
from ctseg.files import atomic_path, read_csv, write_csv
from ctseg.log import Log
from ctseg.losses import DiceBCELoss, Losses
from ctseg.metrics import dice_score
from ctseg.predict import predict_training_set, write_oof
from ctseg.schedule import SCHEDULES, Pace, Plan, Planner
from ctseg.seeds import make_generator, make_seed
from ctseg.transforms import Letterbox
from ctseg.weights import read_torch, write_torch

_N_PICTURES = 4


def train_model(
    learner: "Learner",
    train: TrainingSet,
    validation: TrainingSet,
    fold_dir: Path,
    *,
    seed: tuple[int, ...],
    ends_at: float = math.inf,
    trained_on: Iterable[str] = (),
    claim: Callable[[], object] = lambda: None,
    log: Log | None = None,
) -> list[dict]:
    """Train in place, resuming from `fold_dir/last.pth`, and return the history, one row per epoch.

    After each epoch: `val_outputs/epoch_N/` with pictures of a few validation cases, `best_unet_model.pth`
    with the weights to keep, `last.pth` with all that a resume needs, `history.csv`. The caller holds the
    folder (`files.lock_folder`), so that nobody else writes there.

    Args:
        learner: its config says epochs, batch_size, schedule, keep and threshold.
        seed: every random draw is keyed by it and by epoch and batch, so a resumed run draws as an unbroken
            one.
        ends_at: the `time.monotonic()` at which the fold should be finished, out-of-fold predictions
            included. The steps that fit are counted at the start and again after each epoch; of epochs and
            time the shorter counts. It is needed where the config has no epochs.
        trained_on: the cases that the weights it starts from were trained on; they are kept with the weights.
        claim: called before the first weights are written; its error keeps them from being written.
        log: is told of each step and epoch; by default a line per epoch is printed.

    Raises:
        FloatingPointError: training is no longer finite (see `check_finite`); the last checkpoint is intact.
        TimeoutError: there is no time for a first step.
        ValueError: batches of one image, from which this network cannot learn at this size; or no length.
    """
    config, log = learner.config, log or Log()
    _check_single(learner, train)
    history = _resume(learner, fold_dir)
    measure = partial(_time_pace, learner, train, validation, on_case=log.give_sign)
    planner = Planner(count_batches(len(train), config.batch_size), config.epochs, ends_at, measure)
    done = min(len(history) * planner.steps_per_epoch, learner.plan.total_steps)
    if done < learner.plan.total_steps or learner.plan.is_cut:
        learner.plan = planner.plan(done, learner.plan)
        _tell_plan(learner.plan, planner, fold_dir.name, len(history), log)

    written = 0.0  # seconds, of the files of an epoch
    while done < learner.plan.total_steps:
        started, epoch = time.monotonic(), len(history)
        n_epochs = epoch + planner.count_epochs(learner.plan, done)
        steps = range(done, min(done + planner.steps_per_epoch, learner.plan.total_steps))
        on_step = partial(log.on_step, fold_dir, epoch + 1, n_epochs)
        on_step(0.0)
        row = train_one_epoch(learner, train, steps=steps, seed=(*seed, epoch), on_step=on_step)
        trained = time.monotonic() - started
        scores = evaluate_model(
            learner.model,
            validation,
            threshold=config.threshold,
            picture_dir=fold_dir / "val_outputs" / f"epoch_{epoch + 1}",
            on_case=log.give_sign,
        )
        seconds = time.monotonic() - started
        times = {"seconds": seconds, "val_seconds": seconds - trained}
        history.append({"epoch": epoch + 1, **row, "val_dice": float(scores.mean()), **times})
        done = steps.stop
        if epoch == 0:
            claim()
        if done < learner.plan.total_steps:
            planner.correct(step=trained / len(steps), epoch_end=seconds - trained + written)
            learner.plan = planner.plan(done, learner.plan)
        _write_epoch(learner, history, fold_dir, sorted({*trained_on, *train.describe()}))
        log.on_epoch(fold_dir, history, n_epochs)
        written = time.monotonic() - started - seconds
    if learner.plan.is_cut:
        where = f"after {learner.plan.position:.0%} of its schedule: its time is over"
        log.say(f"{fold_dir.name} ends here, {where}; to go on, delete its oof.npz and run the same again")
    return history


def _resume(learner: "Learner", fold_dir: Path) -> list[dict]:
    """Take over the learner's states and plan from `last.pth`; return the history, empty without one."""
    checkpoint = read_checkpoint(fold_dir / "last.pth")
    if not checkpoint:
        learner.plan = Plan(1)  # until one is made
        return []
    learner.load_state_dict(checkpoint.get("learner", {}))
    learner.plan = Plan(checkpoint["total_steps"], *checkpoint.get("anchor", ()))
    history = _complete(checkpoint["history"])
    write_csv(history, fold_dir / "history.csv")  # a kill may have come between the two files
    return history


def _tell_plan(plan: Plan, planner: Planner, fold: str, n_done: int, log: Log) -> None:
    """Tell that a fold goes on, and that its time is shorter than its epochs."""
    n_epochs = planner.count_epochs(plan)
    if n_epochs == n_done:
        return
    if n_done:
        log.say(f"{fold} goes on after epoch {n_done} of {n_epochs}")
    if planner.epochs and n_epochs < planner.epochs:
        log.say(f"{fold} has time for {n_epochs} epochs instead of {planner.epochs}")


def _write_epoch(learner: "Learner", history: list[dict], fold_dir: Path, trained_on: list[str]) -> None:
    """Write the files of a fold after an epoch, each of them whole: weights to keep, checkpoint, history."""
    row, plan = history[-1], learner.plan
    if find_kept(history, learner.config.keep) is row:
        kept = {"state_dict": learner.model.state_dict(), **row, "trained_on": trained_on}
        write_torch(kept, fold_dir / "best_unet_model.pth")
    checkpoint = {
        "learner": learner.state_dict(),
        "total_steps": plan.total_steps,
        "anchor": [plan.anchor, plan.position],
        "threads": torch.get_num_threads(),
        "history": history,
        "trained_on": trained_on,
    }
    write_torch(checkpoint, fold_dir / "last.pth")
    write_csv(history, fold_dir / "history.csv")


def slim_checkpoint(fold_dir: Path) -> None:
    """Take the states out of a finished fold's `last.pth`: most of its bytes, which nothing resumes from.

    Those of a fold whose time was over stay: without its `oof.npz`, 03 goes on with it.
    A `history.csv` that is gone is made again from it.
    """
    try:
        checkpoint = read_checkpoint(fold_dir / "last.pth") or {}
    except ValueError:  # damaged, and not needed any more
        return
    plan = Plan(checkpoint.get("total_steps", 1), *checkpoint.get("anchor", ()))
    if "learner" in checkpoint and not plan.is_cut:
        slim = {name: value for name, value in checkpoint.items() if name != "learner"}
        write_torch(slim, fold_dir / "last.pth")
    if "history" in checkpoint and not (fold_dir / "history.csv").is_file():
        write_csv(_complete(checkpoint["history"]), fold_dir / "history.csv")


def find_fold_dirs(run_dir: Path) -> list[Path]:
    """The folders of a run's folds in order; not the copies that people make, such as fold0_backup."""
    fold_dirs = [path for path in run_dir.glob("fold*") if path.name.removeprefix("fold").isdigit()]
    return sorted(fold_dirs, key=lambda path: int(path.name.removeprefix("fold")))


def read_history(fold_dir: Path) -> list[dict]:
    """Read a fold's `history.csv`, one row per epoch; none without it."""
    path = fold_dir / "history.csv"
    rows = read_csv(path) if path.is_file() else []
    return _complete([{name: json.loads(value) for name, value in row.items()} for row in rows])


def _complete(history: Sequence[dict]) -> list[dict]:
    """A history with today's columns.

    Soft Dice was once called dice, skipped steps were not counted, and of an epoch's seconds those of
    validation, here 0, were not kept.
    """
    new = {"dice": "train_soft_dice"}
    rows = [{new.get(name, name): value for name, value in row.items()} for row in history]
    return [
        {"epoch": row["epoch"], "skipped_steps": 0} | row | {"val_seconds": row.get("val_seconds", 0.0)}
        for row in rows
    ]


def find_kept(history: Sequence[dict], keep: str) -> dict:
    """The row of the epoch whose weights are kept.

    `keep` is "best", the highest validation Dice and the first of equals, as in the reference; or "last", the
    end of the schedule, which validation did not pick and so scores without bias.
    """
    return history[-1] if keep == "last" else max(history, key=lambda row: row["val_dice"])


def find_shown(history: Sequence[dict], keep: str) -> list[int]:
    """The epochs whose pictures of validation cases are kept: the first, one on the way, and the kept one.

    Learning is fastest at first, so the one on the way is the root of the last one's number.

    >>> find_shown([{"epoch": epoch} for epoch in range(1, 21)], "last")
    [1, 4, 20]
    """
    kept = find_kept(history, keep)["epoch"]
    return sorted({1, round(math.sqrt(kept)), kept})


class Learner:
    """A network and all that changes with it while it learns; `state_dict` is the content of a checkpoint.

    It takes the augmentation, lr, weight_decay, clip_norm and the loss's weights from the config.
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
        self.criterion = DiceBCELoss(config.bce_weight, config.border_weight)
        self.plan = Plan(1)

    def set_lr(self, step: int) -> float:
        """Set the learning rate of a step by the schedule, which is spread over `plan`; return it."""
        lr = self.config.lr * SCHEDULES[self.config.schedule](self.plan.locate(step))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def state_dict(self) -> dict:
        """The states of model, optimizer and scaler."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler")}

    def load_state_dict(self, states: dict) -> None:
        """Restore the state that `state_dict` returned, here or where another precision is chosen."""
        for name in self.state_dict():
            if states.get(name):  # without half precision the scaler has none, and takes none
                getattr(self, name).load_state_dict(states[name])

    def step(self, pixels: Tensor, generator: torch.Generator) -> tuple[Losses, Tensor]:
        """Take a step on a batch of images and targets, uint8 (B, 4, S, S).

        Returns:
            the losses before it, and whether half precision overflowed, so that the step was skipped (bool).
        """
        self.model.train()
        images, targets = self.transform(pixels, generator)
        self.optimizer.zero_grad(set_to_none=True)
        with self._kept_statistics():
            with autocast(self.device, self.dtype):
                logits = self.model(images.contiguous(memory_format=self.memory_format))
            losses = self.criterion(logits, targets)
            self.scaler.scale(losses.loss).backward()  # it needs the statistics as the forward pass left them
        is_skipped = torch.zeros((), dtype=torch.bool, device=self.device)
        if self.config.clip_norm or self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
            norm = clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
            is_skipped = ~norm.isfinite() if self.scaler.is_enabled() else is_skipped
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses, is_skipped

    @contextmanager
    def _kept_statistics(self) -> Iterator[None]:
        """In half precision, keep those running statistics that a forward pass would make infinite or NaN.

        The scaler skips the step of such a pass, but it knows nothing of batch normalization.
        """
        running = []
        if self.scaler.is_enabled():
            norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
            norms = [norm for norm in norms if norm.track_running_stats]
            running = [values for norm in norms for values in (norm.running_mean, norm.running_var)]
        if not running:
            yield
            return
        before = parameters_to_vector(running)  # one tensor, and few operations, for hundreds of them
        yield
        after = parameters_to_vector(running)
        kept = torch.where(after.isfinite(), after, before).split([len(values) for values in running])
        torch._foreach_copy_(running, list(kept))


def train_one_epoch(
    learner: Learner,
    train: TrainingSet,
    *,
    steps: range,
    seed: tuple[int, ...],
    on_step: Callable[[float], object] = lambda share: None,
) -> dict:
    """Learn from as many batches of a new shuffle as there are steps; return a row of the history.

    It holds the number of skipped steps, mean soft Dice, BCE and loss, and the last lr. The means are of
    augmented batches, before each step: not to be compared with Dice of validation. `on_step` is called with
    the share of the steps that are done.
    """
    shuffled = torch.randperm(len(train), generator=make_generator(*seed, 0))
    batches = split_batches(shuffled, learner.config.batch_size)[: len(steps)]
    torch.manual_seed(make_seed(*seed, 1))  # dropout draws from the global generator
    each = []
    for batch, indices in enumerate(batches):
        lr = learner.set_lr(steps[batch])
        pixels = train.get_batch(indices, learner.device)
        losses, is_skipped = learner.step(pixels, make_generator(*seed, 2, batch))
        each.append(torch.stack([*losses, is_skipped]).detach())
        on_step((batch + 1) / len(batches))
    each = torch.stack(each).cpu()  # (steps, 4); fetched once per epoch, since every fetch holds a GPU up
    losses, is_skipped = each[:, :3], each[:, 3].bool()
    ids = [[train.cases[index].image_id for index in indices] for indices in batches]
    check_finite(learner, losses[:, 0], is_skipped, ids)
    loss, bce, dice_loss = losses[losses.isfinite().all(dim=1)].mean(dim=0).tolist()
    means = {"train_soft_dice": 1 - dice_loss, "bce": bce, "loss": loss}
    return {"skipped_steps": int(is_skipped.sum()), **means, "lr": lr}


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


def check_finite(learner: Learner, losses: Tensor, is_skipped: Tensor, ids: list[list[str]]) -> None:
    """Check that each step's loss (N,), unless the step was skipped (N,), and the weights are finite.

    Half precision skips a few steps until its scale fits. Not so where no loss of an epoch was finite, or
    where the scale is below 1: it cannot compute with these weights at all.

    Raises:
        FloatingPointError: they are not; the images of the first bad batch are named.
    """
    is_finite, how = losses.isfinite(), ""
    bad = (~is_finite & ~is_skipped).nonzero().flatten().tolist()
    if not bad and not all(values.isfinite().all() for values in learner.model.state_dict().values()):
        bad = [len(losses) - 1]  # the last step's gradient, which no loss has shown yet
    if not bad and (not is_finite.any() or learner.scaler.get_scale() < 1):
        bad = is_skipped.nonzero().flatten().tolist()
        how = f" in half precision, which overflowed in {len(bad)} of {len(losses)} steps,"
    if bad:
        raise FloatingPointError(
            f"training is no longer finite{how} with a loss of {losses[bad[0]]:g} in the batch of "
            f"{', '.join(ids[bad[0]])}; the last checkpoint is intact; look at these images, lower lr or "
            "set clip_norm"
        )


def evaluate_model(
    model: nn.Module,
    validation: TrainingSet,
    *,
    threshold: float = 0.5,
    picture_dir: Path | None = None,
    on_case: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Return each case's Dice (N,) at the image's own size: the probability comes back before the threshold.

    With `picture_dir`, the first few cases are drawn there as image | true mask | prediction. `on_case` is
    called after each case.
    """

    def score(predicted: tuple[int, np.ndarray]) -> float:
        index, probability = predicted
        letterbox, true_mask = validation.letterboxes[index], validation.get_mask(index)
        pred_mask = letterbox.undo(probability) > threshold
        if picture_dir and index < _N_PICTURES:
            path = png_path(picture_dir, validation.cases[index].image_id)
            _write_picture(path, validation.get_image(index), letterbox, true_mask, pred_mask)
        on_case()
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


def _time_pace(
    learner: Learner,
    train: TrainingSet,
    validation: TrainingSet,
    max_seconds: float,
    *,
    on_case: Callable[[], object] = lambda: None,
) -> Pace:
    """Time a few steps, validations and out-of-fold predictions on a copy that is thrown away.

    Steps are timed for about `max_seconds`; up to 32 and 8 cases, whose sizes differ as those of all do,
    stand for all of them.
    """
    trial, config = copy.deepcopy(learner), learner.config

    def time_step(batch: int) -> float:
        started = time.monotonic()
        indices = torch.arange(batch * config.batch_size, (batch + 1) * config.batch_size) % len(train)
        losses, _ = trial.step(train.get_batch(indices, trial.device), make_generator(batch))
        losses.loss.item()
        on_case()
        return time.monotonic() - started

    def time_cases(n: int, predict: Callable[[TrainingSet], object]) -> float:
        started, n = time.monotonic(), min(n, len(validation))
        predict(validation.select(np.linspace(0, len(validation) - 1, n).round().astype(int)))
        return (time.monotonic() - started) * len(validation) / n

    def predict_oof(sample: TrainingSet) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            write_oof(Path(scratch) / "oof.npz", trial.model, sample, tta=config.tta, on_case=on_case)

    times, validate = [], partial(evaluate_model, trial.model, on_case=on_case)
    while len(times) < 4 or (len(times) < 50 and sum(times) < max_seconds):
        times.append(time_step(len(times)))
    return Pace(
        step=statistics.mean(times[len(times) // 2 :]),  # the first are slower: memory, choice of kernels
        epoch_end=min(time_cases(32, validate) for _ in range(2)),
        end=time_cases(8, predict_oof),
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


def read_checkpoint(path: Path) -> dict | None:
    """Read `last.pth`; None where there is none yet."""
    return read_torch(path, fix="delete it to train this fold from its start") if path.is_file() else None
