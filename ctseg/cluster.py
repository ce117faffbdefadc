"""Train on the workers of a Dask cluster: check them first, and stop their tasks when the sweep ends."""

import os
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ctseg.files import FolderBusy, lock_folder


class Place(NamedTuple):
    """Where tasks share cores: a host, and those that they may use, perhaps what a cluster's job has."""

    host: str
    cores: frozenset[int]


def find_place() -> Place:
    """The place of this process."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = os.sched_getaffinity(0) if has_affinity else range(os.cpu_count())
    return Place(socket.gethostname(), frozenset(cores))


@contextmanager
def open_cluster(
    address: str, folder: Path, data_root: Path
) -> Iterator[tuple[Callable[..., Future], dict[Place, int]]]:
    """A way to submit functions to the workers of a Dask cluster, and how many of them each place has.

    When the block ends, what still runs is canceled (see `is_task_canceled`).

    Args:
        address: the scheduler's.
        folder: of the sweep, locked by this process.

    Raises:
        RuntimeError: there is no Dask, no scheduler or no worker, or what is wrong with each worker.
    """
    try:
        from distributed import Client
    except ImportError:
        raise RuntimeError("Dask is missing; pip install -e '.[cluster]' here and on the workers") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no Dask scheduler at {address}: {error}; start one, see the README") from None
    with client:
        places = _check_workers(client, folder, data_root)
        yield client.get_executor(pure=False).submit, dict(Counter(places))


def is_task_canceled() -> bool:
    """Whether this Dask worker shall do its task no more: its sweep or the scheduler ended."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    is_up = worker.status.name in ("running", "paused", "closing_gracefully")
    return task is None or task.state == "cancelled" or not is_up


def _check_workers(client: Any, folder: Path, data_root: Path) -> list[Place]:
    """Ask every worker whether it can do tasks of this sweep; return the place of each.

    Raises:
        RuntimeError: there are none, or what is wrong with each.
    """
    answers = client.run(ask_worker, folder, data_root, find_versions(), on_error="return")
    advice = "start it in the repository, with PYTHONPATH=$PWD"
    problems = {
        worker: [f"{answer}; {advice}"] if isinstance(answer, Exception) else answer[1]
        for worker, answer in answers.items()
    }
    listed = [f"{worker}: {', '.join(wrong)}" for worker, wrong in problems.items() if wrong]
    if listed or not answers:
        what = "; ".join(listed) or "it has no workers; start some, see the README"
        raise RuntimeError(f"the cluster cannot do this sweep: {what}")
    return [place for place, _ in answers.values()]


def find_versions() -> dict[str, str]:
    """The versions that have to agree: of this package, by its sources, and of PyTorch."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return {"ctseg": f"{zlib.crc32(sources):08x}", "torch": torch.__version__}


def ask_worker(
    folder: Path, data_root: Path, versions: Mapping[str, str], dask_worker: Any
) -> tuple[Place, list[str]]:
    """Where a Dask worker is, and what is wrong there: with the sweep's folder, the data, or the worker.

    Dask passes the worker to a function that has an argument of this name.
    """
    wrong, own, n_gpus = [], find_versions(), torch.cuda.device_count()
    if not (folder / ".lock").is_file():
        wrong.append(f"no {folder}, so it does not share it")
    elif not os.access(folder, os.W_OK):
        wrong.append(f"it cannot write in {folder}")
    else:
        try:
            with lock_folder(folder):
                wrong.append(f"locks of other machines do not count in {folder}; mount it with flock")
        except FolderBusy:
            pass  # as it should be
    if not data_root.is_dir():
        wrong.append(f"no data in {data_root}")
    differing = [name for name, version in versions.items() if own[name] != version]
    wrong += [f"{name} {own[name]}, not {versions[name]} as in the sweep" for name in differing]
    if (threads := dask_worker.state.nthreads) != 1:
        wrong.append(f"{threads} threads; start it with --nthreads 1, and more workers instead")
    if n_gpus > 1:
        wrong.append(f"{n_gpus} GPUs; start a worker for each, with CUDA_VISIBLE_DEVICES")
    return find_place(), wrong
