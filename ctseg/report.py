"""A run's results for people: scores in `summary.json`, the page `report.html`, a few lines on the terminal.

`python -m ctseg.report runs/<run>` prints the lines.
"""

import html
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ctseg.config import Config, list_changes
from ctseg.data import read_image
from ctseg.files import (
    print_anywhere,
    read_json,
    read_last_line,
    write_bytes,
    write_csv,
    write_json,
)
from ctseg.metrics import bootstrap_interval
from ctseg.page import MEDIA_TYPES, caption, draw_case, draw_svg, embed, fold_away, tabulate, write_page
from ctseg.plots import PANELS, plot_history
from ctseg.postprocess import PostProcess, make_mask
from ctseg.predict import OutOfFold
from ctseg.train import find_fold_dirs, read_history

_MAX_BYTES = 4_000_000  # of a report; pictures that would exceed it stay in their folder
_N_SHOWN = 6


def summarize(scores: Sequence[float]) -> dict:
    """Mean of Dice scores (N,), its 95 % bootstrap interval, and the number of images."""
    low, high = bootstrap_interval(scores)
    return {"dice": float(np.mean(scores)), "low": low, "high": high, "n": len(scores)}


def describe_environment() -> dict:
    """Device, versions and git commit ("+changes" if the tree is not clean), to be kept with the scores."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "scipy", "pillow")}
    return {
        "device": device,
        "versions": {"python": platform.python_version(), **packages},
        "git_commit": _find_commit(),
    }


def _find_commit() -> str | None:
    """The commit of this code; None without git."""
    if not shutil.which("git"):
        return None
    describe = ["describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def write_summary(
    run_dir: Path,
    *,
    scores: Mapping[str, Mapping],
    postprocess: str,
    notes: Sequence[str] = (),
    submission: str = "",
    members: Mapping[str, Path] = MappingProxyType({}),
) -> dict:
    """Write `summary.json`.

    Scores as `summarize` gives them, post-processing, notes on folds, failed folds, what was checked of the
    submission, training seconds by fold, environment. Folds are those of the run or, in an average, of its
    `members`, folders by the names of the runs.
    """
    folders = {f"{name}/": folder for name, folder in members.items()} or {"": run_dir}
    failures = [
        (f"{prefix}{path.stem.removeprefix('failed_')}", path)
        for prefix, folder in folders.items()
        for path in sorted(folder.glob("failed_fold*.txt"))
    ]
    summary = {
        "run": run_dir.name,
        "scores": dict(scores),
        "postprocess": postprocess,
        "submission": submission,
        "notes": list(notes),
        "failed": {name: read_last_line(path) for name, path in failures},
        "train_seconds": {
            f"{prefix}{name}": sum(row["seconds"] for row in history)
            for prefix, folder in folders.items()
            for name, history in _read_histories(folder).items()
        },
        **describe_environment(),
    }
    write_json(summary, run_dir / "summary.json")
    return summary


def _read_histories(run_dir: Path) -> dict[str, list[dict]]:
    """The history of each fold that has one, by the name of its folder."""
    histories = {fold_dir.name: read_history(fold_dir) for fold_dir in find_fold_dirs(run_dir)}
    return {name: history for name, history in histories.items() if history}


def choose_cases(scores: np.ndarray) -> dict[int, str]:
    """Which cases to show of scores (N,), and as what: the two lowest, the next worst, typical ones.

    >>> choose_cases(np.array([0.9, 0.1, 0.8, 0.7, 0.2]))
    {3: 'typical', 2: 'typical', 0: 'typical', 1: 'lowest', 4: 'lowest'}
    """
    lowest, rest = np.split(np.argsort(scores, kind="stable"), [2])
    shown = dict.fromkeys(lowest.tolist(), "lowest")
    if len(rest):
        quantiles = np.linspace(0.05, 0.95, 4) * (len(rest) - 1)
        shown |= dict.fromkeys(rest[quantiles.round().astype(int)].tolist(), "typical")
    return dict.fromkeys(rest[:_N_SHOWN].tolist(), "worst") | shown


def write_cases(
    run_dir: Path, validation: OutOfFold, chosen: PostProcess, window: tuple[float, float] | None
) -> None:
    """Draw the validation cases that the report shows, `cases/*.webp`, and keep all scores, `scores.csv`."""
    scores = validation.score(chosen)
    rows = [
        {"image_id": case.image_id, "fold": int(fold), "dice": float(dice)}
        for case, fold, dice in zip(validation.cases, validation.folds, scores)
    ]
    write_csv(sorted(rows, key=lambda row: row["dice"]), run_dir / "scores.csv")
    shutil.rmtree(run_dir / "cases", ignore_errors=True)
    shown = sorted(choose_cases(scores).items(), key=lambda item: (item[1] != "typical", scores[item[0]]))
    for place, (index, kind) in enumerate(shown):
        probability, letterbox, true_mask = validation.read(index)
        image = read_image(validation.cases[index].image, window=window)
        picture = draw_case(image, true_mask, make_mask(probability, letterbox, chosen))
        text = f"{validation.cases[index].image_id.replace('/', '_')[:50]}, Dice {scores[index]:.4f}"
        write_bytes(picture, run_dir / "cases" / f"{place:02d} {kind} {text}.webp")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from a run's files: the result first, the figures of the notebooks folded below."""
    summary, config = read_json(run_dir / "summary.json"), Config(**read_json(run_dir / "config.json"))
    # A few hundred points of a curve are all that a picture shows.
    histories = {
        int(name.removeprefix("fold")): rows[:: -max(1, len(rows) // 400)][::-1]
        for name, rows in _read_histories(run_dir).items()
    }
    sections = [
        _show_scores(summary),
        _show_cases(run_dir, "Examples", ("typical", "lowest")),
        _show_curves(histories) if histories else "",
        _show_cases(run_dir, "The next worst cases", ("worst",)),
        _show_settings(config, summary),
        "<h2>Figures of the notebooks</h2>",
    ]
    size = sum(map(len, sections))
    paths = [path for path in (run_dir / "figures").glob("[0-9] *.*") if path.suffix in MEDIA_TYPES]
    for path in sorted(paths, key=lambda path: (path.name[0], path.stat().st_mtime_ns)):
        picture = embed(path.read_bytes(), path.suffix, path.stem)
        left_out = size + len(picture) > _MAX_BYTES * 0.98
        body = f"<p>too large for this page: figures/{html.escape(path.name)}</p>" if left_out else picture
        sections.append(fold_away(path.stem, f'<div class="wide">{body}</div>'))
        size += len(sections[-1])
    write_page(run_dir / "report.html", f"{run_dir.name}: result", "\n".join(sections))
    return run_dir / "report.html"


def _show_scores(summary: Mapping) -> str:
    """The scores, what was applied, and the submission."""
    scores = summary["scores"]
    shown = next((scores[name] for name in ("test", "validation, cross-fitted") if name in scores), None)
    lines = [f"<h1>{html.escape(summary['run'])}</h1>"]
    if shown:
        name = "test images" if "test" in scores else "validation images, cross-fitted"
        interval = f"on {shown['n']} {name}; 95 % interval {shown['low']:.4f} to {shown['high']:.4f}"
        lines.append(f'<p class="big">Dice {shown["dice"]:.4f}</p><p class="faint">{interval}</p>')
    lines.append(tabulate([{"": name, **_format_score(score)} for name, score in scores.items()]))
    lines.append(f"<p>Applied after the networks: {html.escape(summary['postprocess'])}.</p>")
    lines += [f"<p><b>{html.escape(text)}.</b></p>" for text in _list_missing(summary)]
    lines.append(f"<p>{html.escape(summary['submission'] or 'No submission: there are no test images.')}</p>")
    return "\n".join(lines)


def _format_score(score: Mapping) -> dict:
    """A score of `summarize` as a table has it."""
    interval = f"{score['low']:.4f} to {score['high']:.4f}"
    return {"Dice": score["dice"], "95 % interval": interval, "images": score["n"]}


def _list_missing(summary: Mapping) -> list[str]:
    """The folds that failed or are not finished, in sentences without a path of this machine."""
    failed = []
    for name, reason in summary["failed"].items():
        found = re.match(r"(?:\w+\.)*(\w+(?:Error|Exception|OutOfMemory))(?::|$)", reason)
        *run, fold = name.rsplit("/", 1)
        file = "/".join([*run, f"failed_{fold}.txt"])
        failed.append(f"{name} failed in its last try: {found[1] if found else ''} (see {file})")
    return [*failed, *summary["notes"]]


def _show_cases(run_dir: Path, title: str, kinds: Sequence[str]) -> str:
    """The pictures of `write_cases`, of some kinds."""
    figures = []
    for path in sorted((run_dir / "cases").glob("*.webp")):
        _, kind, text = path.stem.split(" ", 2)
        if kind in kinds:
            picture = embed(path.read_bytes(), path.suffix, f"{text}; true mask green, prediction magenta")
            figures.append(caption(picture, f"lowest: {text}" if kind == "lowest" else text))
    legend = '<p class="faint">Validation images; true masks green, predictions magenta.</p>'
    return f'<h2>{title}</h2>{legend}<div class="grid">{"".join(figures)}</div>' if figures else ""


def _show_curves(histories: Mapping[int, Sequence[Mapping]]) -> str:
    """The curves of all folds, each in a picture of its own."""
    figures = [
        embed(draw_svg(plot_history(histories, panels=[text])).encode(), ".svg", text) for text in PANELS
    ]
    return f'<h2>Training</h2><div class="curves">{"".join(figures)}</div>'


def _show_settings(config: Config, summary: Mapping) -> str:
    """The settings that differ from the preset, or the runs of an average, and what the run was made with."""
    rows = [
        {"setting": name, "this run": _shorten(name, value), config.preset: str(expected)}
        for name, (value, expected) in list_changes(config).items()
    ]
    title = f"Settings other than those of {config.preset}"
    text = tabulate(rows, max_rows=len(rows)) if rows else "<p>None: all settings are the preset's.</p>"
    if config.runs:
        title = "The mean of several runs"
        text = f"<p>Of {html.escape(config.runs)}; each one's settings are in its own report.</p>"
    minutes = [f"{name} {seconds / 60:.1f} min" for name, seconds in summary["train_seconds"].items()]
    made = {"training": ", ".join(minutes), "device": summary["device"], **summary["versions"]}
    made |= {"commit": summary["git_commit"]}
    lines = [{"": name, "value": str(value)} for name, value in made.items()]
    made_with = fold_away("Made with", tabulate(lines))
    return f"<h2>{title}</h2>{text}{made_with}"


def _shorten(name: str, value: Any) -> str:
    """A setting's value as text; a path, which is this machine's, by its last part."""
    is_path = name == "weights" or str(value).lower().endswith(".csv")
    return Path(value).name if is_path else str(value)


def print_summary(run_dir: Path) -> None:
    """Print a run's scores and where its files are."""
    summary = read_json(run_dir / "summary.json")
    width = max(28, *map(len, summary["scores"]))
    for name, score in summary["scores"].items():
        interval = f"[{score['low']:.4f}, {score['high']:.4f}]"
        print(f"{name:<{width}} Dice {score['dice']:.4f}  {interval}  {score['n']} images")
    for name, reason in summary["failed"].items():
        print(f"{'FAILED':<{width}} {name}: {reason}")
    for text in summary["notes"]:
        print(f"{'NOTE':<{width}} {text}")
    print(f"{'applied':<{width}} {summary['postprocess']}")
    if summary["submission"]:  # there may be no test images yet, and a file of an earlier try
        print(f"{'submission':<{width}} {run_dir / 'submission.csv'}")
    print(f"{'report':<{width}} {run_dir / 'report.html'}")


if __name__ == "__main__":
    print_anywhere()
    print_summary(Path(sys.argv[1]))
