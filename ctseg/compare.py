"""Compare runs image by image: which gains are more than chance, and how much of the winner's is luck."""

import argparse
import html
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from ctseg.data import read_image
from ctseg.files import atomic_path, print_anywhere, write_csv
from ctseg.fingerprint import check_training_data, is_begun, read_mask_digests
from ctseg.folds import find_folds
from ctseg.metrics import MIN_IMAGES, find_verdict
from ctseg.page import caption, draw_case, draw_svg, embed, write_page
from ctseg.paths import find_run_dir, find_run_name, find_runs
from ctseg.plots import plot_forest, table
from ctseg.postprocess import PostProcess, make_mask
from ctseg.predict import OutOfFold, read_scores
from ctseg.runs import make_config, make_dataset, read_config
from ctseg.train import read_history

_N_RESAMPLES = 2000
_LEVEL = 0.95
_EQUAL = 1e-12  # smaller differences are rounding


@dataclass(frozen=True)
class Configuration:
    """What is compared: the folds of a run, or of its repeats with other seeds, and its values."""

    name: str
    fold_dirs: Sequence[Path]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_dirs(self) -> list[Path]:
        """The folder of each run."""
        return list(dict.fromkeys(path.parent for path in self.fold_dirs))


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`.

    Attributes:
        rows: a row for each configuration, the best first.
        fold_gains: for each row, the gain on each fold or, of repeats, of each of them.
        effects: of all combinations of two settings or more, a row for each value: its gain over the base's
            value, all other values averaged. Intervals hold together within a setting.
        notes: what else there is to say, sentence by sentence.
    """

    rows: list[dict]
    fold_gains: list[list[float]]
    effects: list[dict]
    notes: list[str]

    def __repr__(self) -> str:
        """The tables with the notes, for a terminal."""
        names = ["configuration", *(row["name"] for row in [*self.rows, *self.effects])]
        width = max(map(len, names))
        lines = [f"rank  {names[0]:<{width}}  {'Dice':<23}  {'gain over the base':<26}  verdict"]
        for row in self.rows:
            dice = f"{row['dice']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            tied = ", tied with the best" if row["tied_with_best"] and row["rank"] > 1 else ""
            what = f"{row['rank']:>4}  {row['name']:<{width}}  {dice}"
            lines.append(f"{what}  {format_gain(row)}  {row['verdict']}{tied}")
        for row in self.effects:
            lines.append(f"      {row['name']:<{width}}  {'':<23}  {format_gain(row)}  {row['verdict']}")
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        """The tables with the notes, for a notebook."""
        tables = [table(rows, max_rows=len(rows)).data for rows in (self.rows, self.effects) if rows]
        tables = [f'<div class="wide">{text}</div>' for text in tables]
        return "".join([*tables, *(f"<p>{html.escape(note)}</p>" for note in self.notes)])


def compare_runs(*names: str) -> Comparison:
    """Compare finished runs on the same data by their names below `runs/`; the first is the base.

    They are compared on the validation images that all of them have: those of a single split are few.

    Raises:
        FileNotFoundError: a run has no trained fold.
        ValueError: runs on other data, or without an image in common; or an average of runs.
    """
    for name in names:
        if not is_begun(find_run_dir(name)) and (averaged := read_config(run=name).runs):
            raise ValueError(
                f"{name} is the average of {averaged} and has no folds to compare by; its score next to that "
                f"of each alone is in {find_run_dir(name) / 'report.html'}, which make average wrote"
            )
    entries = [Configuration(name, find_folds(find_run_dir(name))) for name in names]
    return compare(entries, only_common=True)


def compare(configurations: Sequence[Configuration], *, only_common: bool = False) -> Comparison:
    """Compare configurations by the Dice of each image that was not trained on; the first is the base.

    Dice is that of a plain threshold, at each image's own size. The gain over the base has a simultaneous
    95 % interval: all of them hold at once in 95 of 100 comparisons, however many configurations there are.
    Configurations that were not scored on the base's images are left out, and a note names them. With
    `only_common`, images that some configuration lacks are left out instead.

    Raises:
        ValueError: a run was trained on other masks than the base, or its predictions cannot be read; or
            the configurations have no image in common.
    """
    base = configurations[0]
    dice = {entry.name: _read_dice(entry) for entry in configurations}
    _check_same_data([path for entry in configurations for path in entry.run_dirs])
    averages = {name: _average(found) for name, found in dice.items()}
    notes = []
    if only_common:
        n_most = max(map(len, averages.values()))
        averages = _select_common(averages)
        if (n := len(averages[base.name])) < n_most:
            notes.append(f"compared on the {n} images that all runs predicted in validation, of {n_most}")
    images = list(averages[base.name])
    complete = [entry for entry in configurations if list(averages[entry.name]) == images]
    scores = np.array([list(averages[entry.name].values()) for entry in complete])  # (C, N)
    weights = draw_resamples(len(images))
    rows = sorted(_tabulate(complete, scores, weights), key=lambda row: row["rank"])
    fold_gains = [_find_fold_gains(dice[row["name"]], dice[base.name], images) for row in rows]
    notes += [
        f"left out: {entry.name}, which was scored on {len(averages[entry.name])} images that are not the "
        f"{len(images)} of {base.name}"
        for entry in configurations
        if entry not in complete
    ]
    notes += _describe_winner(rows, scores, weights)
    if rows[0]["verdict"] != "base" and fold_gains[0]:
        each = "fold" if len(base.run_dirs) == 1 else "repeat"
        notes.append(f"its gain on each {each}: {', '.join(f'{gain:+.4f}' for gain in fold_gains[0])}")
    notes.append("Dice is that of a plain threshold, before post-processing")
    notes.append("intervals over images do not cover the noise of training; a list of seeds shows it")
    return Comparison(rows, fold_gains, _find_effects(complete, scores, weights), notes)


def _select_common(dice: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Keep, of each configuration's Dice by image, the images that all of them have.

    Raises:
        ValueError: there is none.
    """
    common = sorted(set.intersection(*map(set, dice.values())))
    if not common:
        raise ValueError(
            f"{', '.join(dice)} have no validation image in common; compare runs of the same folds, or of all"
        )
    return {name: {image: scores[image] for image in common} for name, scores in dice.items()}


def _find_fold_gains(dice: Sequence[Mapping], base: Sequence[Mapping], images: Sequence[str]) -> list[float]:
    """The mean gain on each fold, or of each repeat, that has the same ones of these images as the base's."""
    dice, base = (
        [{name: fold[name] for name in images if name in fold} for fold in folds] for folds in (dice, base)
    )
    pairs = [(own, other) for own, other in zip(dice, base) if other and own.keys() == other.keys()]
    return [float(np.mean([own[name] - other[name] for name in other])) for own, other in pairs]


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


def _read_dice(configuration: Configuration) -> list[dict[str, float]]:
    """Dice by image of each fold of a run or, of several repeats, of each of them."""
    scores = {path: read_scores(path / "oof.npz") for path in configuration.fold_dirs}
    if len(configuration.run_dirs) == 1:
        return list(scores.values())
    runs: dict[Path, dict[str, float]] = {}
    for path, dice in scores.items():
        runs.setdefault(path.parent, {}).update(dice)
    return list(runs.values())


def _average(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Dice by image, the mean over the folds or repeats that have the image."""
    values: dict[str, list[float]] = {}
    for scores in found:
        for name, dice in scores.items():
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
                **{name: str(value) for name, value in entry.values.items()},
                "dice": float(totals[index]),
                "low": float(bounds[0, index]),
                "high": float(bounds[1, index]),
                "gain": gain,
                "gain_low": low,
                "gain_high": high,
                "verdict": "base" if index == 0 else find_verdict(low, high, scores.shape[1]),
                "tied_with_best": bool(tied[index]),
                "images": scores.shape[1],
                "folds": len(entry.fold_dirs),
                "minutes": sum(map(_read_minutes, entry.fold_dirs)),
                "path": "; ".join(f"runs/{find_run_name(path)}" for path in entry.run_dirs),
            }
        )
    return rows


def _read_minutes(fold_dir: Path) -> float:
    """Minutes of training and validation of a fold."""
    return sum(row["seconds"] for row in read_history(fold_dir)) / 60


def _find_effects(
    configurations: Sequence[Configuration], scores: np.ndarray, weights: np.ndarray
) -> list[dict]:
    """The main effect of each value; see `Comparison`."""
    names, rows = configurations[0].values, []
    counts = [len({entry.values[name] for entry in configurations}) for name in names]
    if len(counts) < 2 or math.prod(counts) != len(configurations):
        return []
    for name in names:
        values = list(dict.fromkeys(entry.values[name] for entry in configurations))
        has = np.array([[entry.values[name] == value for entry in configurations] for value in values])
        gains = find_gains(has @ scores / has.sum(axis=1, keepdims=True), weights)
        for value, (gain, low, high) in list(zip(values, gains.tolist()))[1:]:
            verdict = find_verdict(low, high, scores.shape[1])
            effect = {"gain": gain, "gain_low": low, "gain_high": high, "verdict": verdict}
            what = {"name": f"{name} {value} over {values[0]}, on average"}
            rows.append(what | {"setting": name, "value": str(value), "over": str(values[0])} | effect)
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
    return notes


def format_gain(row: Mapping) -> str:
    """A gain with its interval."""
    return f"{row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]"


def write_leaderboard(folder: Path, comparison: Comparison) -> None:
    """Write `leaderboard.csv`, `.png`, and `.html` with the tables and the picture, to a folder."""
    write_csv(comparison.rows, folder / "leaderboard.csv")
    figure = plot_forest(comparison.rows, comparison.fold_gains, comparison.effects)
    with atomic_path(folder / "leaderboard.png") as partial:
        figure.savefig(partial, dpi=110)
    write_page(folder / "leaderboard.html", folder.name, _show_comparison(folder.name, comparison, figure))


def _show_comparison(title: str, comparison: Comparison, figure: Figure) -> str:
    """The tables of a comparison and its `plot_forest`, as HTML."""
    picture = embed(draw_svg(figure).encode(), ".svg", "the gain of each over the base, with its interval")
    tables = comparison._repr_html_()
    return f'<h1>{html.escape(title)}</h1>{tables}<div class="wide">{picture}</div>'


def draw_differences(*names: str, n_cases: int = 6) -> str:
    """The validation images on which runs differ most in Dice, as each run predicts them: HTML.

    Masks are those of the plain threshold that the scores of the table are of.

    Raises:
        FileNotFoundError, ValueError: the data are not there, or are not those that the runs were trained on.
    """
    train = make_dataset(make_config(run=names[0]), "train")
    fold_dirs = {name: find_folds(find_run_dir(name)) for name in names}
    dice = _select_common(
        {name: _average(_read_dice(Configuration(name, paths))) for name, paths in fold_dirs.items()}
    )
    for name in names:
        check_training_data(find_run_dir(name), train.cases)
    runs = {
        name: (
            OutOfFold([path / "oof.npz" for path in paths], train.cases),
            PostProcess(threshold=read_config(run=name).threshold),
        )
        for name, paths in fold_dirs.items()
    }
    spread = {image: np.ptp([scores[image] for scores in dice.values()]) for image in dice[names[0]]}
    rows = []
    for image in sorted(spread, key=spread.get, reverse=True)[:n_cases]:
        draw = partial(_draw_prediction, image=image, window=train.window)
        figures = [draw(name, *run, dice=dice[name][image]) for name, run in runs.items()]
        rows.append(f'<h3>{html.escape(image)}</h3><div class="grid">{"".join(figures)}</div>')
    legend = '<p class="faint">True masks green, predictions magenta.</p>'
    return f"<h2>Where they differ most</h2>{legend}{''.join(rows)}"


def _draw_prediction(
    name: str,
    run: OutOfFold,
    plain: PostProcess,
    *,
    image: str,
    dice: float,
    window: tuple[float, float] | None,
) -> str:
    """A run's prediction of an image, as a picture with a caption."""
    index = [case.image_id for case in run.cases].index(image)
    probability, letterbox, true_mask = run.read(index)
    pred_mask = make_mask(probability, letterbox, plain)
    picture = draw_case(read_image(run.cases[index].image, window=window), true_mask, pred_mask)
    return caption(embed(picture, ".webp", f"{image} as {name} predicts it"), f"{name}: Dice {dice:.4f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the runs that the command line names: the table here, and `runs/compare.html` with pictures."""
    parser = argparse.ArgumentParser(description="Compare finished runs; the first is the base.")
    parser.add_argument("run", nargs="+", help="a name below runs/")
    names = list(dict.fromkeys(parser.parse_args(argv).run))
    try:
        if len(names) < 2:
            raise ValueError(f"got the run {names[0]} alone; name two or more")
        comparison = compare_runs(*names)
        print(comparison)
        figure = plot_forest(comparison.rows, comparison.fold_gains, comparison.effects)
        body = _show_comparison(" and ".join(names), comparison, figure) + draw_differences(*names)
        path = find_runs() / "compare.html"
        write_page(path, f"compared: {', '.join(names)}", body)
        print(path)
    except (OSError, ValueError) as error:
        sys.exit(f"compare: {error}")


if __name__ == "__main__":
    print_anywhere()
    main()
