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
from ctseg.metrics import bootstrap_interval, find_verdict
from ctseg.model import UNet
from ctseg.postprocess import PostProcess, measure_mask

_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_HARDLY = 0.5  # Dice, below which nothing else is worth saying
_RARE = 0.02  # the share of training masks below which a property is suspicious in a prediction
_LOWEST, _AGREED = 0.1, 0.95  # the share of images with least agreement is suspicious, if it is below this
_MIN_TYPICAL = 50  # training masks that tell what is rare


@torch.inference_mode()
def tabulate_levels(model: UNet, size: int) -> list[dict]:
    """Tabulate the maps inside a network for an image of `size` x `size` pixels, from the image down.

    Of each level: its stride, the side of its maps in pixels, and the channels that the encoder makes there
    and the decoder on the way up; the deepest level has no decoder, and None. The model is put into
    evaluation mode.
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
    """Tabulate, for each fold, its epochs and where their time went, in seconds; None if unknown."""
    rows = []
    for fold, history in histories.items():
        total, validation = (sum(row[name] for row in history) for name in ("seconds", "val_seconds"))
        parts = (total - validation, validation) if validation else (None, None)  # an earlier version's run
        times = dict(zip(("training, s", "validation, s"), parts))
        rows.append({"fold": fold, "epochs": len(history), **times, "an epoch, s": total / len(history)})
    return rows


def judge_training(history: Sequence[Mapping], config: Config, *, n_validation: int) -> str:
    """Say in a sentence or two what a fold's curves mean, and what to try next.

    Means over a fifth of the epochs are compared. A difference is more than chance above three standard
    errors of such a difference, by the noise from epoch to epoch, and above 0.1 / √n, the standard error of a
    mean over n images whose Dice varies by 0.1. With one_cycle the end is flat by the schedule, whatever a
    longer run would bring.
    """
    dice, loss = (np.array([row[name] for row in history]) for name in ("val_dice", "loss"))
    n, fifth = len(dice), max(1, len(dice) // 5)
    longer = 2 * max(n, config.epochs or 0)
    more = f"-p epochs {longer}" if config.epochs else f"-p budget_minutes {2 * config.budget_minutes:g}"
    if dice.max() < _HARDLY:
        return (
            f"Hardly trained: {dice.max():.3f} at best. Look at the outlines in notebook 01, then try a "
            f"longer run ({more}) or another lr."
        )
    if n < 5:
        return f"Too few epochs to tell ({n}). Try {more}."
    means, losses = (np.convolve(values, np.full(fifth, 1 / fifth), "valid") for values in (dice, loss))
    noise = np.std(np.diff(dice[n // 2 :])) / math.sqrt(2)
    chance = max(3 * noise * math.sqrt(2 / fifth), 0.1 / math.sqrt(n_validation))
    best, gain = int(means.argmax()), float(means[-1] - means[-1 - fifth])
    if means[best] - means[-1] > chance and losses[-1] < losses[best]:
        return (
            f"Overfitting: validation lost {means[best] - means[-1]:.3f} while the loss went on falling. Try "
            "pretrained weights, stronger augmentation or fewer epochs."
        )
    if config.schedule == "one_cycle":
        return (
            f"Ended with its schedule, at {dice[-1]:.3f}. Its last steps are tiny, so the flat end does not "
            f"say whether a longer run helps: try {more}."
        )
    if gain > chance:
        return f"Still improving: {gain:+.3f} in the last {fifth} epochs. Try a longer run: {more}."
    return (
        f"No change beyond chance in the last {fifth} epochs ({gain:+.3f}, chance ± {chance:.3f}). Try a "
        "lower lr at the end (-p schedule one_cycle) or a larger square "
        f"(-p target_size {config.target_size * 3 // 2})."
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


def list_weak(scores: np.ndarray, folds: np.ndarray, names: Sequence[str]) -> list[str]:
    """A line for each fold whose network is hardly trained: its Dice in validation is below one half.

    Args:
        scores: Dice of each image (N,); folds: the number of its fold's name (N,), as in `predict.OutOfFold`.
    """
    of_fold = {name: scores[folds == k] if len(names) > 1 else scores for k, name in enumerate(names)}
    means = {name: float(np.mean(values)) for name, values in of_fold.items()}
    return [
        f"{name} is hardly trained: its Dice in validation is {mean:.3f}, and it is used all the same"
        for name, mean in means.items()
        if mean < _HARDLY
    ]


def choose_step_case(scores: np.ndarray, others: np.ndarray) -> int:
    """The case whose Dice (N,) by two post-processings differs most; without a difference the middle one."""
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
    return f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}], {find_verdict(low, high, len(gains))}"


def rank_suspects(predicted: Mapping[str, Mapping], typical: Sequence[Mapping]) -> list[dict]:
    """List predictions with what is suspicious about them, the most suspicious ones first.

    A shape is suspicious where fewer than 2 % of the training masks that are not empty have it, an empty mask
    where fewer than 2 % are empty, and the least agreement of networks, a tenth of the images, below 0.95.
    Most reasons come first and, of as many, least agreement.

    Args:
        predicted: by image id what `write_masks` returns.
        typical: what `measure_mask` finds in training masks; with fewer than 50, only an empty mask and
            disagreement are suspicious.
    """
    regions = [mask for mask in typical if mask["area"]]
    usual = {name: np.array([mask[name] for mask in regions]) for name in ("area", "components", "at_border")}
    is_empty_usual = len(typical) > 0 and len(typical) - len(regions) >= _RARE * len(typical)
    agreements = [row["agreement"] for row in predicted.values()]
    limit = min(_AGREED, np.quantile(agreements, _LOWEST)) if agreements else 0.0
    reasons: dict[str, list[str]] = {}
    for image_id, row in predicted.items():
        if row["area"]:
            reasons[image_id] = _list_shapes(row, usual) if len(regions) >= _MIN_TYPICAL else []
        else:
            reasons[image_id] = [] if is_empty_usual else ["empty"]
        if row["agreement"] <= limit:
            reasons[image_id].append(f"agreement {row['agreement']:.2f}")
    rows = [{"image_id": name, "suspicious": ", ".join(reasons[name]), **predicted[name]} for name in reasons]
    return sorted(rows, key=lambda row: (-len(reasons[row["image_id"]]), row["agreement"]))


def _list_shapes(row: Mapping, usual: Mapping[str, np.ndarray]) -> list[str]:
    """What is rare about a predicted region, in words, next to the training masks' measures (N,) by name."""
    shares = {
        "tiny": np.mean(usual["area"] <= row["area"]),
        "huge": np.mean(usual["area"] >= row["area"]),
        f"{row['components']} components": np.mean(usual["components"] >= row["components"]),
        "at the border": np.mean(usual["at_border"] >= row["at_border"]),
    }
    return [text for text, share in shares.items() if share < _RARE]
