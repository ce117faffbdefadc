"""Worker processes side by side: on a GPU each, or on a CPU's cores."""

import math
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

from ctseg.device import THREAD_VARIABLES, count_cores
from ctseg.files import FolderBusy
from ctseg.log import STEP_LINE

# `strong` on two cores of an Intel Xeon (AVX2): an epoch takes 42 s with both, 69 s with one and a neighbor.
_DOUBLED = 0.61  # the time of a fold with twice the threads; taken to be the same for every doubling
# glibc's allocator keeps what is freed, in blocks of up to 32 MB, and does not give it back:
# a step of `strong` on one core takes 340 ms in place of 370, with 0.4 times the page faults.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
STOPPED = 130  # the status of a program that Ctrl-C ended
SILENCE = 1800.0  # seconds without a sign of a worker, after which it is taken for hung
_N_KEPT = 200  # last lines of a worker that failed: a traceback and its cause
_TRACEBACK = ("Traceback ", "The above exception was ", "During handling of the above ")


@dataclass(frozen=True)
class Stage:
    """Folds that worker processes train, as many at the same time as there are environments.

    Args:
        folds: they are begun in this order.
        environments: what a worker finds in its environment: the GPU that it may use, and the number of
            threads. Without any, this process trains one fold after the other.
        weight: the time of a fold, for the same number of steps, as a share of that in the first stage.
    """

    folds: Sequence[int]
    environments: Sequence[Mapping[str, str]] = ()
    weight: float = 1.0

    def split(self) -> list[Sequence[int]]:
        """The folds in rounds of those that are trained side by side."""
        n = max(1, len(self.environments))
        return [self.folds[start : start + n] for start in range(0, len(self.folds), n)]


def plan_stages(folds: Sequence[int], *, n_gpus: int, n_useful: int) -> list[Stage]:
    """Divide folds among several GPUs, or among `n_useful` cores of a CPU; the last ones share the cores.

    A fold for each core is faster than a fold with all cores: 1.2 times where `_DOUBLED` was measured. Folds
    side by side have as many threads each, or their bits would hang on which began first; cores that are left
    over are idle.

    >>> [(stage.folds, len(stage.environments)) for stage in plan_stages(range(5), n_gpus=0, n_useful=2)]
    [(range(0, 4), 2), (range(4, 5), 1)]
    """
    n_workers = min(len(folds), n_gpus or n_useful)
    if n_workers == 1:
        return [Stage(folds)]
    if n_gpus:
        threads = _use_threads(_count_threads(n_workers))
        return [Stage(folds, [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in find_gpus(n_workers)])]
    n_last = len(folds) % n_workers
    whole, last = folds[: len(folds) - n_last], folds[len(folds) - n_last :]
    n_threads = _count_threads(n_workers)
    stages = [Stage(whole, n_workers * [_use_threads(n_threads)])]
    if last:
        n_more = _count_threads(n_last)
        weight = _DOUBLED ** math.log2(n_more / n_threads)
        stages.append(Stage(last, n_last * [_use_threads(n_more)], weight))
    return stages


def _count_threads(n_workers: int) -> int:
    """How many threads each of several processes has, side by side."""
    return max(1, count_cores() // n_workers)


def _use_threads(n: int) -> dict[str, str]:
    """What a process finds in its environment that computes with n threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(n)) | _ALLOCATOR


def find_gpus(n: int) -> list[str]:
    """The first n GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n)))).split(",")[:n]


class WorkerPool:
    """Worker processes, of which as many run at the same time as there are environments for them."""

    def __init__(self, environments: Sequence[Mapping[str, str]]):
        self.n, self.free = len(environments), SimpleQueue()
        self.running, self.is_stopped, self.lock = set(), False, threading.Lock()
        for environment in environments:
            self.free.put(environment)

    def map(self, function: Callable[[int], object], folds: Sequence[int]) -> list[object]:
        """Call a function, which calls `run`, on each fold, side by side; an error stops all workers."""
        with ThreadPoolExecutor(self.n) as pool:
            try:
                futures = [pool.submit(function, fold) for fold in folds]
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
        """Run a module in the next free environment until it ends, and pass on each line that it prints.

        Args:
            files: they are open in the worker too, under the same numbers.
            silence: the worker is killed when it has printed nothing for so many seconds; an empty line is a
                sign too, and not passed on.

        Raises:
            FolderBusy: the worker found its folder locked.
            KeyboardInterrupt: the worker was stopped by hand.
            RuntimeError: it failed; the message ends with its last line, and a note holds the lines before.
                Its tracebacks are not passed on.
        """
        environment, last_lines, is_traceback = self.free.get(), deque(maxlen=_N_KEPT), False
        try:
            worker = self._start(module, arguments, environment, files)
            with worker, _Watch(worker, silence) as watch:
                for line in worker.stdout:
                    watch.note_sign()
                    last_lines += [] if STEP_LINE.match(line) or not line.strip() else [line]
                    was_traceback = is_traceback  # it ends with the first line that is not indented
                    is_traceback = line.startswith(_TRACEBACK) or (was_traceback and line[0] in " \n")
                    if line.strip() and not (is_traceback or was_traceback or self.is_stopped):
                        on_line(line)
        finally:
            self.free.put(environment)  # or the folds that wait for it would wait for ever
        with self.lock:
            self.running.discard(worker)
        if self.is_stopped or worker.returncode in (-signal.SIGINT, STOPPED):
            raise KeyboardInterrupt
        if worker.returncode == os.EX_TEMPFAIL:
            raise FolderBusy(last_lines[-1].strip())
        if worker.returncode:
            why = ""
            if watch.has_killed:
                why = f", killed because it had given no sign for {silence / 60:.1f} minutes"
            elif worker.returncode == -signal.SIGKILL:
                why = ", killed, most often because memory ran out"
            where = f" on GPU {gpu}" if (gpu := environment.get("CUDA_VISIBLE_DEVICES")) else ""
            raise _make_error(f"its process{where} ended with status {worker.returncode}{why}", last_lines)

    def _start(
        self,
        module: str,
        arguments: Sequence[object],
        environment: Mapping[str, str],
        files: Sequence[BinaryIO],
    ) -> subprocess.Popen:
        """Start a worker that ends when this process does.

        It finds the package where it is not installed; files in the current folder (-P) do not hide modules.
        """
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-P", "-m", "ctseg.child", os.getpid(), module, *arguments]
        with self.lock:
            if self.is_stopped:
                raise KeyboardInterrupt
            worker = subprocess.Popen(
                [*map(str, command)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment,
                pass_fds=[file.fileno() for file in files],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them
            )
            self.running.add(worker)
        return worker

    def stop(self) -> None:
        """Stop all workers as Ctrl-C does; those that do not listen are killed after a while."""
        with self.lock:
            self.is_stopped, running = True, list(self.running)
        try:
            for worker in running:
                worker.send_signal(signal.SIGINT)
            end = time.monotonic() + 10
            while time.monotonic() < end and any(worker.poll() is None for worker in running):
                time.sleep(0.1)
        finally:  # a second Ctrl-C does not wait
            for worker in running:
                worker.kill()


def _make_error(what: str, last_lines: Sequence[str]) -> RuntimeError:
    """An error that ends with a worker's last line; a traceback of it shows the lines before too."""
    words = last_lines[-1].strip() if last_lines else "it said nothing"
    error = RuntimeError(f"{what}: {words}")
    error.add_note("".join(last_lines))
    return error


class _Watch:
    """Kills a worker that gives no sign for some seconds."""

    def __init__(self, worker: subprocess.Popen, silence: float):
        self.worker, self.silence, self.has_killed = worker, silence, False
        self.waited, self.ended = 0, threading.Event()

    def __enter__(self) -> "_Watch":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()

    def note_sign(self) -> None:
        """Begin to count anew."""
        self.waited = 0

    def _watch(self) -> None:
        while not self.ended.wait(1.0):
            self.waited += 1  # seconds that this process is awake: a machine may sleep
            if self.waited > self.silence:
                self.has_killed = True
                self.worker.kill()
                return
