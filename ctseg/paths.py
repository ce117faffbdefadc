"""Where things are: the repository, the data, a run's folder, a file that a parameter names."""

import os
from collections.abc import Iterator
from pathlib import Path

from ctseg.contest import A0, KAGGLE_INPUT, Contest
from ctseg.folders import find_folders, has_images
from ctseg.phantom import write_phantom


def find_repository() -> Path:
    """The folder of `notebooks` and `ctseg`, at or above the current one; on Kaggle the current one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "ctseg").is_dir() and (folder / "notebooks").is_dir():
            return folder
    return here


def find_data_root(data_root: str | Path = "", contest: Contest = A0) -> Path:
    """Find the data root, the folder that contains the folders of `contest`.

    Args:
        data_root: a path (tried from the current folder, then from the repository root; the folder above the
            data root will do), or "phantom" for the synthetic data set, written on first use, or "" to look
            at CTSEG_DATA, Kaggle's mounts and `data/`, in this order.

    Raises:
        FileNotFoundError: no such folder; the message lists where it looked.
        ValueError: more than one data set where one is expected; the message lists them.
    """
    data_root = str(data_root) or os.environ.get("CTSEG_DATA", "")
    if data_root == "phantom":
        return write_phantom(find_repository() / "data" / "phantom")
    if data_root:
        path = Path(data_root).expanduser()
        places = list(dict.fromkeys([path, find_repository() / path]))
    else:
        data = find_repository() / "data"
        places = [KAGGLE_INPUT / mount for mount in contest.mounts()]
        places += [KAGGLE_INPUT, *sorted(data.glob(f"{contest.slug}*")), data]
    for place in places:
        depth = 5 if place == KAGGLE_INPUT else 1
        found = list(_find_roots(place, contest, depth))
        # Where some have images, the others do not count, such as a Mac's __MACOSX.
        roots = [root.resolve() for root, folder in found if has_images(folder)]
        roots = roots or [root.resolve() for root, _ in found]
        if len(roots) > 1:
            raise ValueError(
                f"more than one data set in {place}: {', '.join(map(str, roots))}; pass one as data_root"
            )
        if roots:
            return roots[0]
        if data_root and place.is_dir():
            find_folders(place, contest)  # raises an error that says what is there
    raise FileNotFoundError(
        f"no data set: none of {', '.join(map(str, places))} has folders of training images and masks such "
        "as Train/Image and Train/Mask; pass data_root (or set CTSEG_DATA) to the folder that contains them, "
        "name them with train_images and train_masks if they have other names, or pass 'phantom' for the "
        "synthetic data set"
    )


def _find_roots(place: Path, contest: Contest, depth: int) -> Iterator[tuple[Path, Path]]:
    """The data roots at `place`, or up to `depth` folders below it, each with its training images' folder."""
    try:
        yield place, find_folders(place, contest).train_images
    except FileNotFoundError:
        if depth:
            for folder in sorted(place.glob("*/")):
                yield from _find_roots(folder, contest, depth - 1)


def find_runs() -> Path:
    """The folder of all runs."""
    return find_repository() / "runs"


def find_run_dir(run: str) -> Path:
    """A run's folder below `runs/` at the repository root, such as best, or sweep/best in a sweep's folder.

    Raises:
        ValueError: the name leads out of it, or deeper.
    """
    parts = run.split("/")
    if len(parts) > 2 or not all(Path(part).name == part for part in parts) or {"", ".", ".."} & set(parts):
        raise ValueError(f"parameter run: got {run!r}, expected a plain folder name below runs/")
    return find_runs() / run


def find_run_name(run_dir: Path) -> str:
    """The name of the run in a folder, as `find_run_dir` takes it."""
    # A link's own place, wherever it leads.
    return Path(os.path.abspath(run_dir)).relative_to(os.path.abspath(find_runs())).as_posix()


def make_portable(path: Path) -> Path:
    """A path as the places of this module are looked for: from the repository root, if it is below it."""
    path, repository = path.resolve(), find_repository().resolve()
    return path.relative_to(repository) if path.is_relative_to(repository) else path


def find_file(name: str, *folders: Path) -> Path:
    """Find a file that a parameter names, from the current folder, the repository root, then `folders`.

    Raises:
        FileNotFoundError: it is nowhere; the message lists where it looked.
    """
    places = dict.fromkeys(
        (folder / Path(name).expanduser()).resolve() for folder in (Path(), find_repository(), *folders)
    )
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no file {name!r}: looked for {' and '.join(map(str, places))}; pass an existing one"
    )
