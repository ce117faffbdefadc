"""Where things are: the repository, the data, a run's folder, a weights file."""

import os
from pathlib import Path

from ctseg.contest import DATASET, IMAGE_FOLDERS, KAGGLE_INPUT, MOUNTS, SLUG
from ctseg.phantom import write_phantom


def find_repository() -> Path:
    """The folder of `notebooks` and `ctseg`, at or above the current one; on Kaggle the current one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "ctseg").is_dir() and (folder / "notebooks").is_dir():
            return folder
    return here


def find_data_root(data_root: str | Path = "") -> Path:
    """Find the data root, the folder that contains the folders of `contest`.

    Args:
        data_root: a path (tried from the current folder, then from the repository root; the folder above the
            data root will do), or "phantom" for the synthetic data set, written on first use, or "" to look
            at CTSEG_DATA, Kaggle's mounts and `data/`, in this order.

    Raises:
        FileNotFoundError: no such folder; the message lists where it looked.
    """
    image_folder = IMAGE_FOLDERS["train"]
    data_root = str(data_root) or os.environ.get("CTSEG_DATA", "")
    if data_root == "phantom":
        return write_phantom(find_repository() / "data" / "phantom")
    if data_root:
        path = Path(data_root).expanduser()
        places = [path, find_repository() / path]
    else:
        data = find_repository() / "data"
        places = [KAGGLE_INPUT / mount for mount in MOUNTS]
        depth = image_folder.count("/")
        places += sorted(found.parents[depth] for found in KAGGLE_INPUT.glob(f"**/{image_folder}"))
        places += [data, *sorted(data.glob(f"{SLUG}*"))]
    for place in places:
        for root in (place, place / DATASET):
            if (root / image_folder).is_dir():
                return root.resolve()
    raise FileNotFoundError(
        f"no data set: none of {', '.join(map(str, places))} has {image_folder} or {DATASET}/{image_folder}; "
        f"pass data_root (or set CTSEG_DATA) to the folder that contains {image_folder}, or 'phantom' for "
        "the synthetic data set"
    )


def find_run_dir(run: str) -> Path:
    """A run's folder, below `runs/` at the repository root; ValueError if the name would lead out of it."""
    if Path(run).name != run or run in ("", ".", ".."):
        raise ValueError(f"parameter run: got {run!r}, expected a plain folder name below runs/")
    return find_repository() / "runs" / run


def find_weights_file(weights: str) -> Path:
    """Find a weights file from the current folder, then from the repository root; else FileNotFoundError."""
    places = [Path(weights).expanduser().resolve(), (find_repository() / weights).resolve()]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no weights file {weights!r}: looked for {' and '.join(map(str, places))}; pass an existing one, "
        "or '' for scratch"
    )
