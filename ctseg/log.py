"""What training prints: here, and in a worker process for the one above it."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

# Where a fold is that trains in another process: its epoch, of how many, and the share of it that is done.
STEP_LINE = re.compile(r"(fold\d+) step (\d+)/(\d+) ([\d.]+)$")
_EPOCH_LINE = re.compile(r"(fold\d+) epoch (\d+)/(\d+) ")


class Log:
    """What training tells of itself: here a line per epoch; `progress.Display` shows more in a notebook.

    Attributes:
        fold_dirs: of the folds that are asked for, by their names.
        places: (epoch, number of epochs) of each fold that trains, by its folder.
    """

    def __init__(self, fold_dirs: Sequence[Path] = ()):
        self.fold_dirs = {path.name: path for path in fold_dirs}
        self.places: dict[Path, tuple[int, int]] = {}

    def say(self, line: str) -> None:
        """Tell something, in one piece: folds side by side have a thread each."""
        print(f"{line}\n", end="", flush=True)

    def pass_on(self, line: str) -> None:
        """Tell a line of a fold that trains in another process."""
        if not self.note_step(line):
            self.note_epoch(line)
            self.say(line.rstrip("\n"))

    def note_step(self, line: str) -> bool:
        """Take note of where a fold is, if the line tells it between two epochs; return whether it does."""
        if found := STEP_LINE.match(line):
            self.on_step(self.fold_dirs[found[1]], int(found[2]), int(found[3]), float(found[4]))
        return bool(found)

    def note_epoch(self, line: str) -> Path | None:
        """Take note of where a fold is, if the line is one of `on_epoch`; return its folder."""
        if not (found := _EPOCH_LINE.match(line)):
            return None
        fold_dir, done, n_epochs = self.fold_dirs[found[1]], int(found[2]), int(found[3])
        self.on_step(fold_dir, min(done + 1, n_epochs), n_epochs, float(done == n_epochs))
        return fold_dir

    def on_step(self, fold_dir: Path, epoch: int, n_epochs: int, share: float) -> None:
        """Take note of a step, and of the share of its epoch that is done."""
        self.places[fold_dir] = epoch, n_epochs

    def give_sign(self) -> None:
        """Take note that training goes on, though there is nothing to tell."""

    def on_epoch(self, fold_dir: Path, history: Sequence[dict], n_epochs: int) -> None:
        """Tell of an epoch whose files are written."""
        self.say(f"{fold_dir.name} {_describe_epoch(history[-1], n_epochs)}")

    def on_end(self, fold_dir: Path, *, failed: bool) -> None:
        """Take note of a fold that is finished, or that failed."""
        self.places.pop(fold_dir, None)

    def close(self) -> None:
        """Take note of the end of all folds."""


class Relay(Log):
    """What a worker tells: its lines, and once a second where it is, for the process above it."""

    def __init__(self, fold_dirs: Sequence[Path] = ()):
        super().__init__(fold_dirs)
        self.told = -1.0

    def on_step(self, fold_dir: Path, epoch: int, n_epochs: int, share: float) -> None:
        """Print a line that `Log.pass_on` understands."""
        self._tell(f"{fold_dir.name} step {epoch}/{n_epochs} {share:.4f}")

    def give_sign(self) -> None:
        """Print an empty line: this process is not hung."""
        self._tell("")

    def _tell(self, line: str) -> None:
        if time.monotonic() - self.told >= 1:
            self.told = time.monotonic()
            self.say(line)


def _describe_epoch(row: dict, n_epochs: int) -> str:
    """An epoch's row of the history in a line."""
    scores = "  ".join(f"{name} {row[name]:.4f}" for name in ("train_soft_dice", "bce", "loss", "val_dice"))
    return f"epoch {row['epoch']}/{n_epochs}  {scores}  lr {row['lr']:.1e}  {row['seconds']:.1f} s"
