"""A run's results for people: scores in `summary.json`, one `report.html`, a few lines on the terminal.

`python -m ctseg.report runs/<run>` joins the executed notebooks into the report and prints the scores.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import nbformat
import numpy as np
import torch
from nbconvert import HTMLExporter

from ctseg.files import print_anywhere, read_csv, read_json, read_last_line, write_json, write_text
from ctseg.metrics import bootstrap_interval


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


def write_summary(run_dir: Path, *, scores: Mapping[str, Mapping], postprocess: str) -> dict:
    """Write `summary.json`.

    Scores as `summarize` gives them, post-processing, failed folds, training seconds by fold, environment.
    """
    failures = sorted(run_dir.glob("failed_fold*.txt"))
    histories = sorted(run_dir.glob("fold*/history.csv"))
    summary = {
        "run": run_dir.name,
        "scores": dict(scores),
        "postprocess": postprocess,
        "failed": {path.stem.removeprefix("failed_"): read_last_line(path) for path in failures},
        "train_seconds": {
            path.parent.name: sum(float(row["seconds"]) for row in read_csv(path)) for path in histories
        },
        **describe_environment(),
    }
    write_json(summary, run_dir / "summary.json")
    return summary


def write_report(run_dir: Path) -> Path:
    """Join a run's executed notebooks `NN_*.ipynb` into `report.html`: text, tables, pictures."""
    paths = sorted(run_dir.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no executed notebook in {run_dir}; run 'make run RUN={run_dir.name}' first")
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    joined = nbformat.v4.new_notebook(metadata=notebooks[0].metadata)
    joined.metadata.title = f"ctseg: {run_dir.name}"
    joined.cells = [cell for notebook in notebooks for cell in notebook.cells]
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    html, _ = exporter.from_notebook_node(joined)
    write_text(html, run_dir / "report.html")
    return run_dir / "report.html"


def print_summary(run_dir: Path) -> None:
    """Print a run's scores and where its files are."""
    summary = read_json(run_dir / "summary.json")
    for name, score in summary["scores"].items():
        interval = f"[{score['low']:.4f}, {score['high']:.4f}]"
        print(f"{name:<28} Dice {score['dice']:.4f}  {interval}  {score['n']} images")
    for name, reason in summary["failed"].items():
        print(f"{'FAILED, left out':<28} {name}: {reason}")
    print(f"{'applied':<28} {summary['postprocess']}")
    if (run_dir / "submission.csv").is_file():  # there may be no test images yet
        print(f"{'submission':<28} {run_dir / 'submission.csv'}")
    print(f"{'report':<28} {run_dir / 'report.html'}")


if __name__ == "__main__":
    print_anywhere()
    write_report(Path(sys.argv[1]))
    print_summary(Path(sys.argv[1]))
