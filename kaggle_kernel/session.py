"""The steps that only a kernel takes: reuse an attached run, keep the files worth downloading."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ctseg.contest import KAGGLE_INPUT
from ctseg.data import Case
from ctseg.files import PARTIAL, read_json, write_json
from ctseg.folds import read_history
from ctseg.paths import find_data_root, find_run_dir
from ctseg.submission import check_submission
from ctseg.train import find_kept


def attach_run(run: str, data_root: str = "") -> Path | None:
    """Copy a run that is attached below Kaggle's input to `runs/`, unless it exists; return the copy or None.

    Its finished folds are used for prediction and not trained again; `data_root` becomes the one here.
    """
    name = str(run)  # papermill turns 7 into a number
    configs = sorted(KAGGLE_INPUT.glob("**/config.json"))
    attached = [path.parent for path in configs if path.parent.name == name]
    if not attached or find_run_dir(name).exists():
        return None
    run_dir = find_run_dir(name)
    for path in filter(Path.is_file, attached[0].rglob("*")):
        copy = run_dir / path.relative_to(attached[0])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # the contents alone: attached files are read-only
    settings = read_json(run_dir / "config.json")
    write_json(settings | {"data_root": str(find_data_root(data_root))}, run_dir / "config.json")
    return run_dir


def tidy_run(run_dir: Path, test_cases: Sequence[Case]) -> None:
    """Copy the submission next to `runs/` and check it there; then remove the files that nobody downloads.

    That is checkpoints, test masks, and validation pictures except those that 03 shows: of the first epoch
    and of the one that was kept.

    Raises:
        OSError, ValueError: the submission is not there, or not valid; nothing is removed.
    """
    submission = Path(shutil.copy(run_dir / "submission.csv", "submission.csv"))
    check_submission(submission, test_cases)
    shutil.rmtree(run_dir / "predicted_masks")
    for pattern in ("fold*/last.pth", "**/.lock", f"**/{PARTIAL}*"):
        for path in list(run_dir.glob(pattern)):
            path.unlink()
    keep = read_json(run_dir / "config.json")["keep"]
    for history in run_dir.glob("fold*/history.csv"):
        kept = find_kept(read_history(history.parent), keep)["epoch"]
        for picture_dir in history.parent.glob("val_outputs/epoch_*"):
            if picture_dir.name not in ("epoch_1", f"epoch_{kept}"):
                shutil.rmtree(picture_dir)
