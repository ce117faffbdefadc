"""How training tells whoever watches a live notebook where it is: one bar for all folds, and their curves."""

import html
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML, display

from ctseg.log import Log
from ctseg.plots import PANELS, plot_history
from ctseg.train import read_history

_PAUSE = 0.5  # seconds between two states of the bar
_DRAWING = 0.05  # the share of the time that drawing curves may take


class Display(Log):
    """A bar over all folds that are asked for, and the curves of those that train, updated in place."""

    def __init__(self, fold_dirs: Sequence[Path]):
        super().__init__(fold_dirs)
        self.shares = {path: float((path / "oof.npz").is_file()) for path in fold_dirs}  # that are done
        self.best: dict[Path, float] = {}  # validation Dice of each fold
        self.histories: dict[Path, list[dict]] = {}  # of the folds that train
        self.lines: list[str] = []
        self.began: tuple[float, float] | None = None  # the time of the first step, and the share done then
        self.n_failed = 0
        self.next_bar = self.next_curves = 0.0
        self.lock = threading.RLock()  # folds that train at the same time have a thread each
        self.bar = display(HTML("starting"), display_id=True)
        self.curves = display(HTML(""), display_id=True)

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        with self.lock:
            self.lines.append(line)
            self._show_bar()

    def pass_on(self, line: str) -> None:
        """Take in a line of a fold that trains in another process."""
        with self.lock:
            if self.note_step(line):
                return
            if fold_dir := self.note_epoch(line):
                self.on_epoch(fold_dir, read_history(fold_dir), self.places[fold_dir][1])
            else:
                self.say(line.rstrip("\n"))

    def on_step(self, fold_dir: Path, epoch: int, n_epochs: int, share: float) -> None:
        """Move the bar."""
        super().on_step(fold_dir, epoch, n_epochs, share)
        self.shares[fold_dir] = (epoch - 1 + share) / n_epochs
        self.began = self.began or (time.monotonic(), self._total())
        if time.monotonic() >= self.next_bar:
            self._show_bar()

    def on_epoch(self, fold_dir: Path, history: Sequence[dict], n_epochs: int) -> None:
        """Draw the curves, unless drawing has taken its share of the time."""
        self.histories[fold_dir] = list(history)
        self.best[fold_dir] = max(row["val_dice"] for row in history)
        self._show_bar()
        started = time.monotonic()
        if started >= self.next_curves:
            histories = {int(path.name.removeprefix("fold")): rows for path, rows in self.histories.items()}
            self.curves.update(plot_history(histories, panels=list(PANELS)[:2]))
            now = time.monotonic()
            self.next_curves = now + (now - started) / _DRAWING

    def on_end(self, fold_dir: Path, *, failed: bool) -> None:
        """Take a fold that trains no more off the curves."""
        with self.lock:
            super().on_end(fold_dir, failed=failed)
            self.n_failed += failed
            self.shares[fold_dir] = 1.0
            self.histories.pop(fold_dir, None)
            self._show_bar()

    def close(self) -> None:
        """Remove the curves: the next cell draws those of all folds."""
        self._show_bar()
        self.curves.update(HTML(""))

    def _total(self) -> float:
        """The share of all folds that is done."""
        return sum(self.shares.values()) / len(self.shares)

    def _show_bar(self) -> None:
        self.next_bar = time.monotonic() + _PAUSE
        texts = [html.escape(line) for line in [*self.lines, self._describe()]]
        bar = f'<progress value="{self._total():.4f}" style="width: 100%"></progress>'
        self.bar.update(HTML("<br>".join([*texts[:-1], bar, texts[-1]])))

    def _describe(self) -> str:
        """Where training is, in a line."""
        texts = [self._describe_fold(*place) for place in self.places.items()]
        if texts and self.began and self._total() > self.began[1]:
            elapsed = time.monotonic() - self.began[0]
            left = elapsed * (1 - self._total()) / (self._total() - self.began[1])
            texts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        n_done = sum(share == 1 for share in self.shares.values()) - self.n_failed
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        best = ", ".join(f"{path.name} {dice:.4f}" for path, dice in self.best.items())
        best = f"; best validation Dice: {best}" if best else ""
        return " · ".join(texts) or f"{n_done} of {len(self.shares)} folds are done{failed}{best}"

    def _describe_fold(self, fold_dir: Path, place: tuple[int, int]) -> str:
        """A fold's place among all, its epoch and its best score so far."""
        number = list(self.shares).index(fold_dir) + 1
        text = f"{fold_dir.name} ({number} of {len(self.shares)}), epoch {place[0]}/{place[1]}"
        if fold_dir not in self.histories:
            return text
        best = max(self.histories[fold_dir], key=lambda row: row["val_dice"])
        return f"{text}, best validation Dice {best['val_dice']:.4f} in epoch {best['epoch']}"
