"""What notebooks 03 and 04 measure: a network's levels, what curves say, where to doubt predictions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ctseg.config import Config
from ctseg.data import Case, map_threads, read_mask
from ctseg.losses import Losses
from ctseg.metrics import bootstrap_interval
from ctseg.model import UNet
from ctseg.postprocess import PostProcess, measure_mask

_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
# Rules of thumb on validation Dice, for advice only.
_HARDLY, _MATTERS = 0.5, 0.005
_RARE = 0.02  # the share of training masks below which a property is suspicious in a prediction
_DOUBT = 0.85  # networks that agree by less, in Dice


@torch.inference_mode()
def tabulate_levels(model: UNet, size: int) -> list[dict]:
    """Tabulate the maps inside a network for an image of `size` x `size` pixels, from the image down.

    Of each level: its stride, the side of its maps in pixels, and the channels that the encoder makes there
    and the decoder on the way up; the deepest level has no decoder, and None.
    """
    device = next(model.parameters()).device
    padded = size + -size % model.encoder.stride
    maps = model.eval().encoder(torch.zeros(1, 3, padded, padded, device=device))
    blocks = [next(m for m in block.modules() if isinstance(m, nn.Conv2d)) for block in model.decoder]
    decoded = [*reversed([block.out_channels for block in blocks]), None]
    return [
        {
            "stride": padded // found.shape[-1],
            "pixels": f"{found.shape[-1]} x {found.shape[-1]}",
            "encoder channels": found.shape[1],
            "decoder channels": channels,
        }
        for found, channels in zip(maps, decoded)
    ]


def tabulate_losses(losses: Sequence[Losses]) -> list[dict]:
    """Tabulate the loss and its terms, soft Dice among them, by the steps that were taken before."""
    return [
        {
            "steps before": step,
            "loss": found.loss.item(),
            "BCE": found.bce.item(),
            "soft Dice": 1 - found.dice_loss.item(),
        }
        for step, found in enumerate(losses)
    ]


def tabulate_seconds(histories: Mapping[int, Sequence[Mapping]]) -> list[dict]:
    """Tabulate, for each fold, its epochs and where their time went, in seconds."""
    rows = []
    for fold, history in histories.items():
        total, validation = (sum(row[name] for row in history) for name in ("seconds", "val_seconds"))
        times = {"training, s": total - validation, "validation, s": validation}
        rows.append({"fold": fold, "epochs": len(history), **times, "an epoch, s": total / len(history)})
    return rows


def judge_training(history: Sequence[Mapping], config: Config, *, n_validation: int) -> str:
    """Say in a sentence or two what a fold's curves mean, and what to try next.

    By rules of thumb: Dice below one half is hardly trained; an end that is lower than the best epoch, with a
    loss that went on falling, is overfitting; a last fifth that is higher than the fifth before is still
    improving. A difference counts from 0.005 on or, of few images, from 0.1 / √n, which is about the
    standard error of a mean Dice.
    """
    matters = max(_MATTERS, 0.1 / math.sqrt(n_validation))
    dice = np.array([row["val_dice"] for row in history])
    best, n = int(dice.argmax()), len(dice)
    more = f"-p epochs {2 * n}" if config.epochs else f"-p budget_minutes {2 * config.budget_minutes:g}"
    if dice[best] < _HARDLY:
        return (
            f"Hardly trained: {dice[best]:.3f} at best. Look at the outlines in notebook 01, then try a "
            f"longer run ({more}) or another lr."
        )
    if n < 5:
        return f"Too few epochs to tell ({n}). Try {more}."
    fifth = max(1, n // 5)
    gain = float(dice[-fifth:].mean() - dice[-2 * fifth : -fifth].mean())
    if dice[best] - dice[-1] > matters and history[-1]["loss"] < history[best]["loss"]:
        return (
            f"Overfitting: since epoch {best + 1} validation lost {dice[best] - dice[-1]:.3f} while the loss "
            f"went on falling. Try pretrained weights, stronger augmentation or fewer epochs."
        )
    if gain > matters:
        return f"Still improving: +{gain:.3f} in the last {fifth} epochs. Try a longer run: {more}."
    larger = f"-p target_size {config.target_size * 3 // 2}"
    start = "" if config.weights else "pretrained weights (-p preset strong), or "
    return (
        f"Flat: {gain:+.3f} in the last {fifth} epochs. More of the same hardly helps; try {start}{larger}."
    )


def tabulate_thresholds(
    score_each: Callable[[Sequence[PostProcess]], np.ndarray], baseline: PostProcess
) -> list[dict]:
    """Tabulate the mean Dice by threshold, other steps as in `baseline`, with 95 % bootstrap intervals.

    `score_each` turns C candidates into their Dice of N cases, (C, N).
    """
    scores = score_each([replace(baseline, threshold=threshold) for threshold in _THRESHOLDS])
    rows = []
    for threshold, values in zip(_THRESHOLDS, scores):
        low, high = bootstrap_interval(values)
        rows.append({"threshold": threshold, "dice": float(values.mean()), "low": low, "high": high})
    return rows


def choose_step_case(scores: np.ndarray, others: np.ndarray) -> int:
    """The case whose Dice (N,) other steps (N,) change most; of no change at all, the middle one."""
    changes = np.abs(others - scores)
    return int(changes.argmax() if changes.any() else np.argsort(scores)[len(scores) // 2])


def pick_cases(scores: np.ndarray, *, n: int = 4) -> list[int]:
    """Indices of the n lowest, the n middle and the n highest scores (N,), from low to high, each once."""
    order = np.argsort(scores, kind="stable")
    middle = max(0, (len(order) - n) // 2)
    picked = [*order[:n], *order[middle : middle + n], *order[-n:]]
    return sorted(dict.fromkeys(map(int, picked)), key=lambda index: scores[index])


def measure_masks(cases: Sequence[Case]) -> list[dict]:
    """Measure the true masks of cases, as `measure_mask` does."""
    return list(map_threads(lambda case: measure_mask(read_mask(case.mask, case.mask_set)), cases))


def divide_scores(scores: Mapping[str, float], kinds: Mapping[str, str]) -> dict[str, list[float]]:
    """Test scores by id as a list, and those of hard and of plain cases, as a phantom's `kinds` tell them."""
    divided: dict[str, list[float]] = {"test": [], "test, hard cases": [], "test, plain cases": []}
    for image_id, dice in scores.items():
        is_hard = kinds.get(image_id, "plain") != "plain"
        divided["test"].append(dice)
        divided["test, hard cases" if is_hard else "test, plain cases"].append(dice)
    return divided


def describe_gain(gains: np.ndarray) -> str:
    """A gain of Dice, image by image (N,), with its 95 % bootstrap interval and what it says."""
    low, high = bootstrap_interval(gains)
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}], {verdict}"


def rank_suspects(predicted: Mapping[str, Mapping], typical: Sequence[Mapping]) -> list[dict]:
    """List predictions with what is suspicious about them, the most suspicious ones first.

    A property is suspicious where fewer than 2 % of training masks have it, and networks that agree by less
    than 0.85. Most reasons come first and, of as many, least agreement.

    Args:
        predicted: by image id what `write_masks` returns.
        typical: what `measure_mask` finds in training masks; without any, only an empty mask and little
            agreement are suspicious.
    """
    reasons = {image_id: _list_reasons(row, typical) for image_id, row in predicted.items()}
    order = sorted(
        predicted, key=lambda image_id: (-len(reasons[image_id]), predicted[image_id]["agreement"])
    )
    return [
        {"image_id": image_id, "suspicious": ", ".join(reasons[image_id]), **predicted[image_id]}
        for image_id in order
    ]


def _list_reasons(row: Mapping, typical: Sequence[Mapping]) -> list[str]:
    """What is suspicious about a prediction, in a few words each."""
    area, pieces, agreement = row["area"], row["pieces"], row["agreement"]
    doubts = [f"networks agree by {agreement:.2f}"] if agreement < _DOUBT else []
    if not area:
        return (
            ["empty", *doubts] if not typical or _is_rare(typical, lambda mask: not mask["area"]) else doubts
        )
    having = {
        "tiny": lambda mask: 0 < mask["area"] <= area,
        "huge": lambda mask: mask["area"] >= area,
        f"{pieces} pieces": lambda mask: mask["pieces"] >= pieces,
        "touches the border": lambda mask: mask["at_border"] >= row["at_border"],
    }
    return [text for text, has in having.items() if _is_rare(typical, has)] + doubts


def _is_rare(typical: Sequence[Mapping], has: Callable[[Mapping], bool]) -> bool:
    """Whether few training masks have a property; never where there are none to tell."""
    return sum(map(has, typical)) < _RARE * len(typical)
