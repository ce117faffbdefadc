"""Runs side by side, image by image: which gain is more than chance, and what being picked is worth."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ctseg.files import atomic_path, write_csv, write_text
from ctseg.fingerprint import read_mask_digests
from ctseg.folds import find_folds, read_history
from ctseg.paths import find_run_dir, find_run_name
from ctseg.plots import plot_forest, table
from ctseg.predict import read_scores

MIN_IMAGES = 50  # with fewer, no kind of interval kept its word in simulations
_N_RESAMPLES = 2000
_LEVEL = 0.95
_EQUAL = 1e-12  # smaller differences are rounding


@dataclass(frozen=True)
class Configuration:
    """What is compared: a run, or its repeats with other seeds, and the values in which it differs."""

    name: str
    run_dirs: Sequence[Path]
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        rows: a row for each configuration, the best first.
        effects: of a product of values, a row for each value: its gain over the base's value, all other
            values averaged.
        notes: what else there is to say, sentence by sentence.
    """

    rows: list[dict]
    effects: list[dict]
    notes: list[str]

    def _repr_html_(self) -> str:
        """The tables with the notes, for a notebook."""
        rows = [{name: value for name, value in row.items() if name != "fold_gains"} for row in self.rows]
        tables = [table(part, max_rows=len(part)).data for part in (rows, self.effects) if part]
        return "".join([*tables, *(f"<p>{html.escape(note)}</p>" for note in self.notes)])


def compare_runs(*names: str) -> Comparison:
    """Compare finished runs on the same data by their names below `runs/`; the first is the base.

    Raises:
        FileNotFoundError: a run has no trained fold.
        ValueError: runs on other data or other images.
    """
    comparison = compare([Configuration(name, [find_run_dir(name)]) for name in names])
    if len(comparison.rows) < len(names):
        raise ValueError("; ".join(comparison.notes))
    return comparison


def compare(configurations: Sequence[Configuration], *, is_product: bool = False) -> Comparison:
    """Compare configurations by the Dice of each image that was not trained on; the first is the base.

    Dice is that of a plain threshold, at each image's own size. The gain over the base has a simultaneous
    95 % interval: all of them hold at once in 95 of 100 comparisons, however many configurations there are.
    Configurations that were not scored on the base's images are left out, and a note names them.

    Args:
        is_product: whether the configurations are all combinations of their values.

    Raises:
        ValueError: a run was trained on other masks than the base.
    """
    base = configurations[0]
    parts = {entry.name: _read_parts(entry) for entry in configurations}
    _check_same_data([path for entry in configurations for path in entry.run_dirs])
    averages = {name: _average(found) for name, found in parts.items()}
    images = list(averages[base.name])
    complete = [entry for entry in configurations if list(averages[entry.name]) == images]
    scores = np.array([list(averages[entry.name].values()) for entry in complete])  # (C, N)
    weights = draw_resamples(len(images))
    rows = _tabulate(complete, scores, weights)
    for row in rows:
        pairs = zip(parts[row["name"]], parts[base.name])
        row["fold_gains"] = [_find_mean_gain(*pair) for pair in pairs if pair[0].keys() == pair[1].keys()]
    rows.sort(key=lambda row: row["rank"])
    notes = [
        f"left out: {entry.name}, which was scored on {len(averages[entry.name])} images that are not the "
        f"{len(images)} of {base.name}"
        for entry in configurations
        if entry not in complete
    ]
    effects = _find_effects(complete, scores, weights) if is_product and not notes else []
    return Comparison(rows, effects, notes + _describe_winner(rows, scores, weights))


def _find_mean_gain(dice: Mapping[str, float], base: Mapping[str, float]) -> float:
    """The mean gain over the base's Dice on the same images."""
    return float(np.mean([dice[name] - base[name] for name in base]))


def draw_resamples(n: int, *, n_resamples: int = _N_RESAMPLES) -> np.ndarray:
    """How often each of n images is drawn in each bootstrap resample, (B, n); the same for the same n."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=n_resamples)


def find_gains(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean gain of each configuration over the first, with its simultaneous interval: (C, 3).

    Bootstrap max-t (Westfall & Young, Resampling-Based Multiple Testing, 1993): half an interval is a
    multiple of the gain's own standard error, the same multiple for all, chosen so that 95 % of the resamples
    lie within all intervals. Paired image by image; configurations equal to the first have [0, 0].

    Args:
        scores: (C, N).
        weights: (B, N), see `draw_resamples`.
    """
    means, totals = _resample(scores, weights)
    gains = totals - totals[0]
    largest, errors = _find_largest(means - means[:, :1], gains)
    half = np.quantile(largest, _LEVEL) * errors
    return np.stack([gains, gains - half, gains + half], axis=1)


def find_tied(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether each configuration (C,) may be as good as the best one, by max-t over all pairs."""
    means, totals = _resample(scores, weights)
    best, n = int(totals.argmax()), len(scores)
    pairs = [_find_largest(means - means[:, [j]], totals - totals[j]) for j in range(n)]
    multiple = np.quantile(np.max([largest for largest, _ in pairs], axis=0), _LEVEL)
    return totals[best] - totals <= multiple * pairs[best][1] + _EQUAL


def correct_for_choice(scores: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The winner's score, and its gain over the first configuration, without the luck of having been picked.

    BBC-CV (Tsamardinos, Greasidou & Borboudakis, Machine Learning 107, 2018): each resample picks its own
    winner, which is scored on the images that the resample did not draw. Of a single image, nothing is left
    to score on: its own scores are returned.
    """
    means, totals = _resample(scores, weights)
    winners, not_drawn = means.argmax(axis=1), weights == 0
    some = not_drawn.any(axis=1)
    if not some.any():
        return float(totals.max()), float(totals.max() - totals[0])
    picked, base = (
        np.mean(values[some], axis=1, where=not_drawn[some])
        for values in (scores[winners], np.broadcast_to(scores[0], weights.shape))
    )
    return float(picked.mean()), float((picked - base).mean())


def _resample(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each configuration in each resample (B, C), and over the images as they are (C,)."""
    return weights @ scores.T / scores.shape[1], scores.mean(axis=1)


def _find_largest(resampled: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest deviation in each resample (B,) from the values (C,), in their standard errors (C,)."""
    errors, deviations = resampled.std(axis=0), np.abs(resampled - values)
    shares = np.divide(deviations, errors, out=np.zeros_like(deviations), where=errors > _EQUAL)
    return shares.max(axis=1), errors


def _read_parts(configuration: Configuration) -> list[dict[str, float]]:
    """Dice by image of each fold of a run or, of several repeats, of each of them."""
    runs = [
        [read_scores(fold_dir / "oof.npz") for fold_dir in find_folds(path)]
        for path in configuration.run_dirs
    ]
    if len(runs) == 1:
        return runs[0]
    return [{name: dice for fold in folds for name, dice in fold.items()} for folds in runs]


def _average(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Dice by image, the mean over the parts that have the image."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, dice in part.items():
            values.setdefault(name, []).append(dice)
    return {name: float(np.mean(dice)) for name, dice in sorted(values.items())}


def _check_same_data(run_dirs: Sequence[Path]) -> None:
    """Raise a ValueError unless the runs were trained on the same masks."""
    first = read_mask_digests(run_dirs[0])
    for run_dir in run_dirs[1:]:
        if read_mask_digests(run_dir) != first:
            raise ValueError(
                f"{run_dir} and {run_dirs[0]} were trained on different data; compare runs on the same"
            )


def _tabulate(configurations: Sequence[Configuration], scores: np.ndarray, weights: np.ndarray) -> list[dict]:
    """The rows of a comparison, in the order of the configurations."""
    means, totals = _resample(scores, weights)
    ranks = rankdata(-totals.round(9), method="min")
    bounds = np.quantile(means, [0.025, 0.975], axis=0)
    gains, tied = find_gains(scores, weights), find_tied(scores, weights)
    rows = []
    for index, entry in enumerate(configurations):
        gain, low, high = map(float, gains[index])
        rows.append(
            {
                "rank": int(ranks[index]),
                "name": entry.name,
                **entry.values,
                "dice": float(totals[index]),
                "low": float(bounds[0, index]),
                "high": float(bounds[1, index]),
                "gain": gain,
                "gain_low": low,
                "gain_high": high,
                "verdict": "base" if index == 0 else find_verdict(low, high, scores.shape[1]),
                "tied_with_best": bool(tied[index]),
                "images": scores.shape[1],
                "folds": sum(len(find_folds(path)) for path in entry.run_dirs),
                "minutes": sum(map(_read_minutes, entry.run_dirs)),
                "path": "; ".join(f"runs/{find_run_name(path)}" for path in entry.run_dirs),
            }
        )
    return rows


def find_verdict(low: float, high: float, n_images: int) -> str:
    """What a simultaneous interval of a gain says: better, worse, undecided or, below 50 images, nothing."""
    if n_images < MIN_IMAGES:
        return "too few images"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def _read_minutes(run_dir: Path) -> float:
    """Minutes of training and validation of a run's folds."""
    return sum(row["seconds"] for fold_dir in find_folds(run_dir) for row in read_history(fold_dir)) / 60


def _find_effects(
    configurations: Sequence[Configuration], scores: np.ndarray, weights: np.ndarray
) -> list[dict]:
    """The main effect of each value; see `Comparison`."""
    rows = []
    for name in configurations[0].values:
        values = list(dict.fromkeys(entry.values[name] for entry in configurations))
        has = np.array([[entry.values[name] == value for entry in configurations] for value in values])
        gains = find_gains(has @ scores / has.sum(axis=1, keepdims=True), weights)
        for value, (gain, low, high) in list(zip(values, gains.tolist()))[1:]:
            verdict = find_verdict(low, high, scores.shape[1])
            effect = {"gain": gain, "gain_low": low, "gain_high": high, "verdict": verdict}
            rows.append({"setting": name, "value": value, "over": values[0]} | effect)
    return rows


def _describe_winner(rows: Sequence[Mapping], scores: np.ndarray, weights: np.ndarray) -> list[str]:
    """What to think of the best row, in sentences."""
    best, n_images = rows[0], scores.shape[1]
    notes = []
    if n_images < MIN_IMAGES:
        notes.append(f"{n_images} images are too few for a verdict; {MIN_IMAGES} are needed")
    if len(scores) > 1:
        dice, gain = correct_for_choice(scores, weights)
        notes.append(
            f"the best of {len(scores)}, {best['name']}: Dice {best['dice']:.4f}, gain {best['gain']:+.4f}; "
            f"corrected for having been picked: {dice:.4f}, {gain:+.4f} (BBC-CV)"
        )
    notes.append(
        "the intervals are over images and do not cover the noise of training: a list of seeds would show it"
    )
    return notes


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison's table, effects and notes."""
    width = max(len(row["name"]) for row in comparison.rows)
    print(f"rank  {'configuration':<{width}}  Dice                     gain over the base          verdict")
    for row in comparison.rows:
        dice = f"{row['dice']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        tied = ", tied with the best" if row["tied_with_best"] and row["rank"] > 1 else ""
        print(
            f"{row['rank']:>4}  {row['name']:<{width}}  {dice}  {_format_gain(row)}  {row['verdict']}{tied}"
        )
    for row in comparison.effects:
        what = f"{row['setting']} {row['value']} over {row['over']}"
        print(f"      {what:<{width}}  {'':<23}  {_format_gain(row)}  {row['verdict']}")
    for note in comparison.notes:
        print(note)


def _format_gain(row: Mapping) -> str:
    """A gain with its interval."""
    return f"{row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]"


def write_leaderboard(folder: Path, comparison: Comparison) -> None:
    """Write `leaderboard.csv`, `.png`, and `.html` with the tables and the picture, to a folder."""
    rows = [{name: value for name, value in row.items() if name != "fold_gains"} for row in comparison.rows]
    write_csv(rows, folder / "leaderboard.csv")
    figure = plot_forest(comparison.rows, comparison.effects)
    with atomic_path(folder / "leaderboard.png") as partial:
        figure.savefig(partial, dpi=110)
    picture = base64.b64encode((folder / "leaderboard.png").read_bytes()).decode()
    body = f'{comparison._repr_html_()}<img src="data:image/png;base64,{picture}">'
    style = "body {font-family: sans-serif} td, th {padding: 0 0.6em; text-align: left}"
    write_text(
        f"<!DOCTYPE html><meta charset=utf-8><title>{folder.name}</title><style>{style}</style>{body}\n",
        folder / "leaderboard.html",
    )
