"""What a run is trained on, kept with it: each case's id, size, mask and fold."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctseg.data import Case, TrainingSet, digest_mask, map_threads, read_mask, read_size
from ctseg.files import read_json, write_json

_NAME = "training_data.json"  # in a run's folder


def write_training_data(
    run_dir: Path, training_set: TrainingSet, folds: np.ndarray, window: tuple[float, float] | None
) -> None:
    """Keep the training cases of a run, the fold of each (N,), and the window through which they are read."""
    cases = {
        case.image_id: {
            "size": letterbox.original_size,
            "mask_file": _digest_file(case.mask),
            "mask": digest,
            "fold": int(fold),
        }
        for case, letterbox, digest, fold in zip(
            training_set.cases, training_set.letterboxes, training_set.mask_digests, folds
        )
    }
    write_json({"window": window, "cases": cases}, run_dir / _NAME)


def read_mask_digests(run_dir: Path) -> dict[str, str]:
    """The checksum of each training mask of a begun run, by image id; ValueError if it keeps none."""
    return {name: case["mask"] for name, case in (_read(run_dir) or {"cases": {}})["cases"].items()}


def check_still_kept(run_dir: Path, training_set: TrainingSet, folds: np.ndarray) -> None:
    """Check that the run still keeps these cases and folds (N,), and not those of another process.

    Raises:
        ValueError: it does not.
    """
    own = {
        case.image_id: (digest, int(fold))
        for case, digest, fold in zip(training_set.cases, training_set.mask_digests, folds)
    }
    kept = {name: (case["mask"], case["fold"]) for name, case in _read(run_dir)["cases"].items()}
    if kept != own:
        raise ValueError(
            f"another process has started {run_dir} with other training data; choose another run name"
        )


def _read(run_dir: Path) -> dict | None:
    """What a run keeps; None if it keeps nothing, as before training.

    Raises:
        ValueError: the run is begun and keeps nothing, or the file is damaged.
    """
    path = run_dir / _NAME
    if not path.is_file() and is_begun(run_dir):
        raise ValueError(
            f"{run_dir} has trained folds, but no {_NAME}, which says on what; copy the whole run, or train "
            "under another run name"
        )
    kept = read_json(path) if path.is_file() else None
    if kept is not None and not _is_whole(kept):
        raise ValueError(f"{path} is damaged: it lacks cases; restore it from a copy of the run")
    return kept


def _is_whole(kept: dict) -> bool:
    """Whether what was read has all that `write_training_data` writes."""
    cases = kept.get("cases")
    names = {"size", "mask_file", "mask", "fold"}
    return (
        isinstance(cases, dict)
        and "window" in kept
        and all(isinstance(case, dict) and names <= case.keys() for case in cases.values())
    )


def is_begun(run_dir: Path) -> bool:
    """Whether a fold of a run has weights, which hold it to its settings and its training data."""
    return any(run_dir.glob("fold*/[!.]*.pth"))  # hidden ones were not written to the end


def read_folds(run_dir: Path, cases: Sequence[Case]) -> np.ndarray | None:
    """The fold of each case (N,) as the run keeps it; None if it keeps none, as before training.

    Raises:
        ValueError: see `check_training_data`.
    """
    kept = _read(run_dir)
    if kept is None:
        return None
    check_training_data(run_dir, cases)
    return np.array([kept["cases"][case.image_id]["fold"] for case in cases])


def read_window(run_dir: Path) -> tuple[float, float] | None:
    """The window of a run's training images; None if they have 8 bits, or before training."""
    kept = _read(run_dir)
    return tuple(kept["window"]) if kept and kept["window"] else None


def check_training_data(run_dir: Path, cases: Sequence[Case]) -> None:
    """Check that a run's training data are those that it was trained on, wherever they are.

    A mask is read only if its file has changed, so that 862 cases take 0.2 s.

    Raises:
        ValueError: a case is missing, new, of another size or has another mask; the first one is named. Or
            the run is begun and does not know what it was trained on.
    """
    if (content := _read(run_dir)) is None:
        return
    kept, present = content["cases"], {case.image_id: case for case in cases}
    changes = dict.fromkeys(kept.keys() - present.keys(), "is missing")
    changes |= dict.fromkeys(present.keys() - kept.keys(), "is new")
    both = [case for case in cases if case.image_id in kept]
    found = map_threads(lambda case: _find_change(case, kept[case.image_id]), both)
    changes |= {case.image_id: change for case, change in zip(both, found) if change}
    if changes:
        first = min(changes)
        raise ValueError(
            f"{run_dir} was trained on other data: {first!r} {changes[first]} ({len(changes)} of "
            f"{len(kept | present)} cases differ); train under another run name, or pass as data_root where "
            "the data are as they were"
        )


def _find_change(case: Case, kept: dict) -> str:
    """What is not as it was in the files of a case; "" if nothing is."""
    size = list(read_size(case.image))
    if size != kept["size"]:
        return "is {} × {}, and was {} × {} (H × W)".format(*size, *kept["size"])
    if _digest_file(case.mask) == kept["mask_file"]:
        return ""
    return "" if digest_mask(read_mask(case.mask, case.mask_set)) == kept["mask"] else "has another mask"


def _digest_file(path: Path) -> str:
    """A checksum of a file's bytes."""
    return f"{zlib.crc32(path.read_bytes()):08x}"
