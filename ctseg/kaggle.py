"""What a Kaggle kernel does besides the notebooks: look at its GPUs, take over an attached run, leave what is worth downloading."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ctseg.config import find_run
from ctseg.data import KAGGLE_INPUT, Case, find_data_root
from ctseg.files import PARTIAL, write_json
from ctseg.folds import read_history
from ctseg.submission import check_submission
from ctseg.train import find_kept


def check_gpus() -> str:
    """Send a small convolution forth and back through every GPU; return a line that names them, or says that there is none.

    Raises:
        RuntimeError: a GPU that cannot run this PyTorch, for instance because it is older than those PyTorch was built for.
    """
    n_gpus = torch.cuda.device_count()
    if not n_gpus:
        return f"WARNING: no GPU, so {os.cpu_count()} CPU cores do the work, many times slower; on Kaggle choose the accelerator GPU T4 x2"
    for gpu in range(n_gpus):
        try:
            images = torch.rand(2, 3, 32, 32, device=f"cuda:{gpu}")
            nn.Conv2d(3, 8, 3, device=images.device)(images).sum().backward()
            torch.cuda.synchronize(gpu)
        except RuntimeError as error:
            raise RuntimeError(
                f"{torch.cuda.get_device_name(gpu)}, compute capability {torch.cuda.get_device_capability(gpu)}, cannot run PyTorch "
                f"{torch.__version__}, built for {' '.join(torch.cuda.get_arch_list())}: {error}; choose the accelerator GPU T4 x2"
            ) from error
    return f"{n_gpus} x {torch.cuda.get_device_name()}"


def attach_run(run: str, data_root: str = "") -> Path | None:
    """Copy a run's folder that is attached below Kaggle's input to `runs/`, unless one is there; return the copy, or None.

    Folds that are finished there are predicted with and not trained again. The data set's path becomes the one here.
    """
    attached = [path.parent for path in sorted(KAGGLE_INPUT.glob("**/config.json")) if path.parent.name == run]
    if not attached or find_run(run).exists():
        return None
    folder = find_run(run)
    for path in filter(Path.is_file, attached[0].rglob("*")):
        copy = folder / path.relative_to(attached[0])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # the contents alone: what is attached is read-only
    write_json(json.loads((folder / "config.json").read_text()) | {"data_root": str(find_data_root(data_root))}, folder / "config.json")
    return folder


def tidy_run(folder: Path, test_cases: Sequence[Case]) -> None:
    """Copy the submission beside `runs/` and check it there; then remove what nobody downloads.

    That is checkpoints, test masks, and validation pictures but of the first epoch and the one that was kept, those that 03 shows.

    Raises:
        OSError, ValueError: the submission is not there, or not valid; nothing is removed.
    """
    submission = Path(shutil.copy(folder / "submission.csv", "submission.csv"))
    check_submission(submission, test_cases)
    shutil.rmtree(folder / "predicted_masks")
    for path in (*folder.glob("fold*/last.pth"), *folder.glob("**/.lock"), *folder.glob(f"**/{PARTIAL}*")):
        path.unlink()
    keep = json.loads((folder / "config.json").read_text())["keep"]
    for history in folder.glob("fold*/history.csv"):
        kept = find_kept(read_history(history.parent), keep)["epoch"]
        for pictures in history.parent.glob("val_outputs/epoch_*"):
            if pictures.name not in ("epoch_1", f"epoch_{kept}"):
                shutil.rmtree(pictures)
