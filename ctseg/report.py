"""What a run leaves for people: its figures in `summary.json`, one `report.html`, and a few lines on the terminal.

`python -m ctseg.report runs/<run>` joins the executed notebooks into the report and prints the figures.
"""

import json
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

from ctseg.files import read_csv, write_json, write_text
from ctseg.metrics import bootstrap_interval


def summarize(scores: Sequence[float]) -> dict:
    """Mean of Dice scores (N,), its 95 % bootstrap interval, and the number of images."""
    low, high = bootstrap_interval(scores)
    return {"dice": float(np.mean(scores)), "low": low, "high": high, "n": len(scores)}


def describe_environment() -> dict:
    """Device, versions and git commit ("+changes" where the tree is not clean), to be kept with a run's figures."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "scipy", "pillow")},
    }
    commit = ""
    if shutil.which("git"):
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {"device": device, "versions": versions, "git_commit": commit or None}


def write_summary(folder: Path, *, scores: Mapping[str, Mapping], postprocess: str) -> dict:
    """Write `summary.json`: scores as `summarize` gives them, post-processing, what failed, training seconds by fold, environment."""
    summary = {
        "run": folder.name,
        "scores": dict(scores),
        "postprocess": postprocess,
        "failed": {path.stem.removeprefix("failed_"): last_line(path) for path in sorted(folder.glob("failed_fold*.txt"))},
        "train_seconds": {
            path.parent.name: sum(float(row["seconds"]) for row in read_csv(path)) for path in sorted(folder.glob("fold*/history.csv"))
        },
        **describe_environment(),
    }
    write_json(summary, folder / "summary.json")
    return summary


def last_line(path: Path) -> str:
    """The last line of a traceback: what went wrong."""
    return path.read_text(encoding="utf-8").strip().rpartition("\n")[2]


def write_report(folder: Path) -> Path:
    """Join the executed notebooks `NN_*.ipynb` of a run, in order, into `report.html` (code folded away: text, tables and pictures)."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no executed notebook in {folder}; run 'make run RUN={folder.name}' first")
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    joined = nbformat.v4.new_notebook(metadata=notebooks[0].metadata)
    joined.metadata.title = f"ctseg: {folder.name}"
    joined.cells = [cell for notebook in notebooks for cell in notebook.cells]
    html, _ = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(joined)
    write_text(html, folder / "report.html")
    return folder / "report.html"


def print_summary(folder: Path) -> None:
    """Print a run's scores and where its files are."""
    summary = json.loads((folder / "summary.json").read_text())
    for name, score in summary["scores"].items():
        print(f"{name:<28} Dice {score['dice']:.4f}  [{score['low']:.4f}, {score['high']:.4f}]  {score['n']} images")
    for name, reason in summary["failed"].items():
        print(f"{'FAILED, left out':<28} {name}: {reason}")
    print(f"{'applied':<28} {summary['postprocess']}")
    print(f"{'submission':<28} {folder / 'submission.csv'}")
    print(f"{'report':<28} {folder / 'report.html'}")


if __name__ == "__main__":
    write_report(Path(sys.argv[1]))
    print_summary(Path(sys.argv[1]))
