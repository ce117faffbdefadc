"""Worker processes side by side: on a GPU each, or on a CPU's cores."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from ctseg.device import count_cores
from ctseg.files import FolderBusy
from ctseg.train import STEP_LINE, Log

_THREADS = "OMP_NUM_THREADS"
# Measured on two cores with `strong`: a fold that has both, against one that has a core and a neighbor.
_LAST_WEIGHT = 0.7
STOPPED = 130  # the status of a program that Ctrl-C ended
SILENCE = 1800.0  # seconds without a sign of a worker, after which it is taken for hung


@dataclass(frozen=True)
class Shift:
    """Folds that workers train, in as many places as work at the same time; without places, this process.

    Args:
        folds: they are begun in this order.
        places: what a worker finds in its environment: the GPU that it may use, and the number of threads.
        weight: the time of a fold, for the same number of steps, as a share of that in the first shift.
    """

    folds: Sequence[int]
    places: Sequence[Mapping[str, str]] = ()
    weight: float = 1.0

    def split(self) -> list[Sequence[int]]:
        """The folds in rounds of those that are trained side by side."""
        n = max(1, len(self.places))
        return [self.folds[start : start + n] for start in range(0, len(self.folds), n)]


def plan_shifts(folds: Sequence[int], *, n_gpus: int, n_useful: int) -> list[Shift]:
    """Divide folds among several GPUs, or among `n_useful` cores of a CPU; the last ones share the cores.

    A fold for each core is faster than a fold with all cores: on two, for `strong`, 1.4 times.

    >>> [(shift.folds, len(shift.places)) for shift in plan_shifts(range(5), n_gpus=0, n_useful=2)]
    [(range(0, 4), 2), (range(4, 5), 1)]
    """
    n_places, n_cores = min(len(folds), n_gpus or n_useful), count_cores()
    if n_places == 1:
        return [Shift(folds)]
    if n_gpus:
        threads = str(max(1, n_cores // n_places))
        return [
            Shift(folds, [{"CUDA_VISIBLE_DEVICES": gpu, _THREADS: threads} for gpu in find_gpus(n_places)])
        ]
    n_last = len(folds) % n_places
    whole, last = folds[: len(folds) - n_last], folds[len(folds) - n_last :]
    shifts = [Shift(whole, n_places * [{_THREADS: str(n_cores // n_places)}])]
    return (
        [*shifts, Shift(last, n_last * [{_THREADS: str(n_cores // n_last)}], _LAST_WEIGHT)]
        if last
        else shifts
    )


def find_gpus(n: int) -> list[str]:
    """The first n GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")[:n]


class Crew:
    """Workers that run at the same time, as many as there are places for them.

    Args:
        places: what a worker in each place finds in its environment, such as the GPU that it may use.
    """

    def __init__(self, places: Sequence[Mapping[str, str]]):
        self.places, self.free = places, SimpleQueue()
        self.running, self.is_stopped, self.lock = set(), False, threading.Lock()
        for place in places:
            self.free.put(place)

    def map(self, function: Callable[[int], object], folds: Sequence[int]) -> list[object]:
        """Call a function, which calls `run`, on each fold, side by side; an error stops all workers."""
        with ThreadPoolExecutor(len(self.places)) as pool:
            futures = [pool.submit(function, fold) for fold in folds]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:  # Ctrl-C too
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
        return [future.result() for future in futures]

    def run(
        self,
        module: str,
        arguments: Sequence[object],
        *,
        files: Sequence[BinaryIO] = (),
        silence: float = SILENCE,
        on_line: Callable[[str], object],
    ) -> None:
        """Run a module in the next free place, and pass on each line that it prints, until it ends.

        Args:
            files: they are open in the worker too, under the same numbers.
            silence: the worker is killed when it has printed nothing for so many seconds.

        Raises:
            FolderBusy: the worker found its folder locked.
            KeyboardInterrupt: the worker was stopped by hand.
            RuntimeError: it failed; the message ends with its last lines.
        """
        place, last_lines = self.free.get(), deque(maxlen=20)
        try:
            worker = self._start(module, arguments, place, files)
            with worker, _Watch(worker, silence) as watch:
                for line in worker.stdout:
                    watch.note_sign()
                    on_line(line)
                    if not STEP_LINE.match(line):
                        last_lines.append(line)
        finally:
            self.free.put(place)  # or the folds that wait for it would wait for ever
        with self.lock:
            self.running.discard(worker)
        if worker.returncode in (-signal.SIGINT, STOPPED):
            raise KeyboardInterrupt
        if worker.returncode == os.EX_TEMPFAIL:
            raise FolderBusy(last_lines[-1].strip())
        if worker.returncode:
            why = (
                ", killed, most often because memory ran out" if worker.returncode == -signal.SIGKILL else ""
            )
            if watch.has_killed:
                why = f", killed because it had given no sign for {silence / 60:.1f} minutes"
            where = ", ".join(f"{name}={value}" for name, value in place.items())
            lines = "".join(last_lines)
            raise RuntimeError(
                f"the process with {where} ended with status {worker.returncode}{why}: {lines}"
            )

    def _start(
        self, module: str, arguments: Sequence[object], place: Mapping[str, str], files: Sequence[BinaryIO]
    ) -> subprocess.Popen:
        """Start a worker that ends when this process does."""
        # Kept apart from what a notebook's folder holds, and found where the package is not installed.
        python_path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "ctseg.child", os.getpid(), module, *arguments]
        with self.lock:
            if self.is_stopped:
                raise KeyboardInterrupt
            worker = subprocess.Popen(
                [*map(str, command)],
                env=os.environ | {"PYTHONPATH": python_path} | place,
                pass_fds=[file.fileno() for file in files],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
            )
            self.running.add(worker)
        return worker

    def stop(self) -> None:
        """Stop all workers as Ctrl-C does; those that do not listen are killed after a while."""
        with self.lock:
            self.is_stopped, running = True, list(self.running)
        for worker in running:
            worker.send_signal(signal.SIGINT)
        end = time.monotonic() + 10
        for worker in running:
            try:
                worker.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()


class _Watch:
    """Kills a worker that gives no sign for some seconds."""

    def __init__(self, worker: subprocess.Popen, silence: float):
        self.worker, self.silence, self.has_killed = worker, silence, False

    def __enter__(self) -> "_Watch":
        self._begin()
        return self

    def __exit__(self, *_) -> None:
        self.timer.cancel()

    def note_sign(self) -> None:
        """Begin to count anew."""
        self.timer.cancel()
        self._begin()

    def _begin(self) -> None:
        self.timer = threading.Timer(self.silence, self._kill)
        self.timer.daemon = True
        self.timer.start()

    def _kill(self) -> None:
        self.has_killed = True
        self.worker.kill()


class Relay(Log):
    """What a worker tells: its lines, and once a second where it is, for the bar of the process above it."""

    def __init__(self, fold_dirs: Sequence[Path] = ()):
        super().__init__(fold_dirs)
        self.told = -1.0

    def on_step(self, fold_dir: Path, epoch: int, n_epochs: int, share: float) -> None:
        """Print a line that `Log.pass_on` understands."""
        if time.monotonic() - self.told >= 1:
            self.told = time.monotonic()
            self.say(f"{fold_dir.name} step {epoch}/{n_epochs} {share:.4f}")
