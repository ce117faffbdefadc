"""Train one network on one split: the loop, its schedule, its checkpoint, and the validation at the images' own size."""

import copy
import math
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ctseg.data import Squares, map_threads, read_mask
from ctseg.files import atomic_path, lock_folder, write_csv
from ctseg.losses import DiceBCELoss, LossParts
from ctseg.metrics import dice_score
from ctseg.model import choose_precision, predict_squares, read_torch
from ctseg.transforms import Augment, Frame, TrainTransform

N_PICTURES = 4
# Of a time budget; the rest is for checkpoints, and for what a machine is slower for minutes than for its first seconds: 4 to 7 % where
# two shared CPU cores were measured.
BUDGETED = 0.95


def train_model(
    learner: "Learner",
    train: Squares,
    validation: Squares,
    folder: Path,
    *,
    epochs: int | None,
    budget_seconds: float | None = None,
    batch_size: int,
    schedule: str = "one_cycle",
    keep: str = "best",
    threshold: float = 0.5,
    seed: tuple[int, ...] = (0,),
) -> list[dict]:
    """Train in place, resume from `folder/last.pth` if there is one, and return the history, one row an epoch.

    After each epoch: `val_outputs/epoch_N/` with pictures of a few validation cases, `best_unet_model.pth` with the weights to keep,
    `last.pth` with all that a resume needs, `history.csv`.

    Args:
        epochs, budget_seconds: the length; at least one is set, and of two the shorter counts.
        schedule: "one_cycle" (up to the learning rate and down to 0, after Smith 2018) or "constant".
        keep: "best", the weights of the epoch with the highest validation Dice, as the reference does; or "last", those at the end of the
            schedule, which validation did not pick and so scores without bias.
        seed: every random draw is keyed by it and by epoch and batch, so a resumed run draws what an unbroken one does.

    Raises:
        FloatingPointError: the loss is no longer finite; the images of the batch are named, the last checkpoint is intact.
        RuntimeError: another process trains in this folder.
        TimeoutError: training took half as long again as the budget, and a minute, and is not at its end; the last checkpoint is intact.
    """
    with lock_folder(folder):
        checkpoint = read_checkpoint(folder / "last.pth")
        if checkpoint:
            total_steps, history = checkpoint["total_steps"], checkpoint["history"]
        else:
            total_steps, history = count_steps(learner, train, validation, epochs, budget_seconds, batch_size=batch_size), []
        learner.set_schedule(schedule, total_steps)
        if checkpoint:
            learner.load_state_dict(checkpoint["learner"])
            write_csv(history, folder / "history.csv")  # the process may have been killed between the two files

        steps_per_epoch = math.ceil(len(train) / batch_size)
        n_epochs = math.ceil(total_steps / steps_per_epoch)
        for epoch in range(len(history), n_epochs):
            started = time.perf_counter()
            steps = min(steps_per_epoch, total_steps - epoch * steps_per_epoch)
            row = {"epoch": epoch + 1, **train_one_epoch(learner, train, steps=steps, batch_size=batch_size, seed=(*seed, epoch))}
            pictures = folder / "val_outputs" / f"epoch_{epoch + 1}"
            scores = evaluate_model(learner.model, validation, threshold=threshold, pictures=pictures)
            row |= {"val_dice": float(scores.mean()), "seconds": time.perf_counter() - started}
            history.append(row)
            if find_kept(history, keep) is row:
                write_torch({"state_dict": learner.model.state_dict(), **row}, folder / "best_unet_model.pth")
            write_torch({"learner": learner.state_dict(), "total_steps": total_steps, "history": history}, folder / "last.pth")
            write_csv(history, folder / "history.csv")
            figures = "  ".join(f"{name} {row[name]:.4f}" for name in ("dice", "bce", "loss", "val_dice"))
            print(f"{folder.name} epoch {epoch + 1}/{n_epochs}  {figures}  lr {row['lr']:.1e}  {row['seconds']:.1f} s", flush=True)
            spent = sum(past["seconds"] for past in history)
            if budget_seconds and spent > 1.5 * budget_seconds + 60 and len(history) < n_epochs:
                raise TimeoutError(
                    f"{folder.name}: {spent:.0f} s spent of a budget of {budget_seconds:.0f} s, epoch {epoch + 1} of {n_epochs}; raise "
                    "budget_minutes, or give this machine less to do at a time"
                )
    return history


def find_kept(history: list[dict], keep: str) -> dict:
    """The row of the epoch whose weights are kept: that of "last", or of "best" by validation Dice, of equals the first."""
    return history[-1] if keep == "last" else max(history, key=lambda row: row["val_dice"])


class Learner:
    """A network and all that changes with it while it learns; `state_dict` is what a checkpoint has to hold.

    Args:
        lr: the largest of the schedule.
        weight_decay: of AdamW, on weights only; 0 makes it plain Adam.
        clip_norm: largest norm of the gradient, None for no limit.
        bce_weight: share of BCE in the loss, the rest is soft Dice.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        augment: Augment,
        lr: float,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        bce_weight: float = 0.5,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self.dtype = choose_precision(self.device)
        self.layout = torch.channels_last  # the reference's network, float32, two CPU cores: 14.3 s a step, against 17.9 s in NCHW
        self.model = model.to(self.device, memory_format=self.layout)
        self.optimizer = make_optimizer(model, lr=lr, weight_decay=weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.transform = TrainTransform(augment, self.device)
        self.criterion = DiceBCELoss(bce_weight)
        self.clip_norm = clip_norm

    def set_schedule(self, schedule: str, total_steps: int) -> None:
        """Lay the learning rate out over all the steps there will be: "one_cycle", or "constant"."""
        factor = {"one_cycle": lambda step: one_cycle(step, total_steps), "constant": lambda step: 1.0}[schedule]
        self.scheduler = LambdaLR(self.optimizer, factor)

    def state_dict(self) -> dict:
        """The state of every part."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scaler", "scheduler")}

    def load_state_dict(self, states: dict) -> None:
        """Take over what `state_dict` returned."""
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)

    def step(self, squares: Tensor, targets: Tensor, generator: torch.Generator) -> LossParts:
        """Learn from uint8 squares (B, 3, S, S) and targets (B, 1, S, S); return the losses before the step."""
        self.model.train()
        images, targets = self.transform(squares, targets, generator)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(images.contiguous(memory_format=self.layout))
        losses = self.criterion(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.loss).backward()
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses


def train_one_epoch(learner: Learner, train: Squares, *, steps: int, batch_size: int, seed: tuple[int, ...]) -> dict:
    """Learn from `steps` batches of a fresh shuffle; return the means of Dice, BCE and combined loss, and the last learning rate."""
    batches = torch.randperm(len(train), generator=make_generator(*seed, 0)).split(batch_size)[:steps]
    torch.manual_seed(make_seed(*seed, 1))  # dropout draws from the global generator
    losses = []
    for batch, indices in enumerate(tqdm(batches, leave=False, disable=not is_interactive())):
        lr = learner.scheduler.get_last_lr()[0]
        parts = learner.step(train.images[indices], train.targets[indices], make_generator(*seed, 2, batch))
        learner.scheduler.step()
        losses.append(torch.stack(parts).detach())
    losses = torch.stack(losses).cpu()  # looked at once an epoch: a look at every step would hold a GPU up
    check_finite(learner.model, losses[:, 0], [[train.cases[index].image_id for index in indices] for indices in batches])
    loss, bce, dice_loss = losses.mean(dim=0).tolist()
    return {"dice": 1 - dice_loss, "bce": bce, "loss": loss, "lr": lr}


def check_finite(model: nn.Module, losses: Tensor, ids: list[list[str]]) -> None:
    """Raise FloatingPointError, naming the images of the first bad batch, unless each step's loss (N,) and the weights are finite."""
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if not bad and not all(values.isfinite().all() for values in model.state_dict().values()):
        bad = [len(losses) - 1]  # the last step's gradient, which no loss has shown yet
    if bad:
        raise FloatingPointError(
            f"training is no longer finite, with a loss of {losses[bad[0]]:g} in the batch of {', '.join(ids[bad[0]])}; the last "
            "checkpoint is intact; look at these images, lower lr or set clip_norm"
        )


def evaluate_model(model: nn.Module, squares: Squares, *, threshold: float = 0.5, pictures: Path | None = None) -> np.ndarray:
    """Return each case's Dice (N,) at the image's own size: probability back to full size first, then the threshold.

    With `pictures`, the first few cases are drawn there as image | truth | prediction.
    """
    probabilities = predict_squares(model, squares.images).numpy()

    def score(index: int) -> float:
        case, truth = squares.cases[index], read_mask(squares.cases[index].mask)
        pred_mask = squares.frames[index].undo(probabilities[index]) > threshold
        if pictures and index < N_PICTURES:
            write_picture(pictures / f"{case.image_id}.png", squares.images[index], squares.frames[index], truth, pred_mask)
        return dice_score(pred_mask, truth)

    return np.array(list(map_threads(score, range(len(squares)))))


def write_picture(path: Path, square: Tensor, frame: Frame, truth: np.ndarray, pred_mask: np.ndarray) -> None:
    """Draw image | truth | prediction side by side at the size the network sees."""
    image = square.permute(1, 2, 0).numpy()[frame.window]
    masks = [np.asarray(Image.fromarray(mask).convert("RGB").resize(image.shape[1::-1])) for mask in (truth, pred_mask)]
    framed = [np.pad(panel, ((2, 2), (2, 2), (0, 0)), constant_values=128) for panel in (image, *masks)]
    with atomic_path(path) as partial:
        Image.fromarray(np.hstack(framed)).save(partial)


def count_steps(
    learner: Learner, train: Squares, validation: Squares, epochs: int | None, budget_seconds: float | None, *, batch_size: int
) -> int:
    """Return the number of steps of a run: its epochs', or what fits into the budget, or the smaller of the two."""
    lengths = [epochs * math.ceil(len(train) / batch_size)] if epochs else []
    if budget_seconds:
        lengths.append(fit_steps(learner, train, validation, budget_seconds, batch_size=batch_size))
    return min(lengths)


def fit_steps(learner: Learner, train: Squares, validation: Squares, budget_seconds: float, *, batch_size: int) -> int:
    """Return how many steps, with a validation after each epoch's worth, fit into the budget; timed on a copy, so nothing is learnt."""
    started = time.perf_counter()
    trial = copy.deepcopy(learner)

    def time_step(batch: int) -> float:
        begun = time.perf_counter()
        indices = torch.arange(batch * batch_size, (batch + 1) * batch_size) % len(train)
        trial.step(train.images[indices], train.targets[indices], make_generator(batch)).loss.item()
        return time.perf_counter() - begun

    def time_validation() -> float:
        begun = time.perf_counter()
        evaluate_model(trial.model, few)
        return (time.perf_counter() - begun) * len(validation) / len(few)

    few = validation.subset(range(min(len(validation), 32)))
    times = []
    while len(times) < 4 or (len(times) < 50 and sum(times) < 0.05 * budget_seconds):
        times.append(time_step(len(times)))
    step_seconds = statistics.mean(times[len(times) // 2 :])  # the first ones are slower: memory is laid out, kernels are chosen
    validation_seconds = min(time_validation() for _ in range(2))
    spent = time.perf_counter() - started
    left = BUDGETED * budget_seconds - spent - validation_seconds  # a last, unfinished epoch has a whole validation
    return max(1, int(left / (step_seconds + validation_seconds * batch_size / len(train))))


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW whose decay leaves norms and biases (everything of one dimension) alone."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def one_cycle(step: int, total_steps: int) -> float:
    """The share of the largest learning rate at a step: a straight rise over the first fifth, then half a cosine down to 0."""
    done, rise = (step + 1) / (total_steps + 1), 0.2
    return done / rise if done < rise else 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (1 - rise))


def make_seed(*key: int) -> int:
    """A seed for one purpose; different keys give independent streams (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def make_generator(*key: int) -> torch.Generator:
    """A generator on the CPU seeded by `make_seed`."""
    return torch.Generator().manual_seed(make_seed(*key))


def is_interactive() -> bool:
    """Whether somebody watches: a terminal, or a notebook opened in Jupyter or VS Code; not papermill, not Kaggle's batch runs."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def read_checkpoint(path: Path) -> dict | None:
    """Read `last.pth`; None where there is none yet."""
    return read_torch(path, fix="delete it to train this fold from its start") if path.is_file() else None


def write_torch(content: dict, path: Path) -> None:
    """Save atomically."""
    with atomic_path(path) as partial:
        torch.save(content, partial)
