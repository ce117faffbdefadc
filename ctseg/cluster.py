"""Dask workers in place of threads: asked before the first task whether they can, and when to stop."""

import os
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ctseg.files import FolderBusy, lock_folder


@contextmanager
def open_cluster(
    address: str, folder: Path, data_root: Path
) -> Iterator[tuple[Callable[..., Future], dict[str, int]]]:
    """A way to submit functions to the workers of a Dask cluster, and how many of them each host has.

    When the block ends, what still runs is not wanted any more (see `is_unwanted`).

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
        hosts = _check_workers(client, folder, data_root)
        yield client.get_executor(pure=False).submit, dict(Counter(hosts))


def is_unwanted() -> bool:
    """Whether the task of this Dask worker is not wanted any more: its sweep or the scheduler ended."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused")


def _check_workers(client: Any, folder: Path, data_root: Path) -> list[str]:
    """Ask every worker whether it can do tasks of this sweep; return the host of each.

    Raises:
        RuntimeError: there are none, or what is wrong with each.
    """
    found = client.run(describe_worker, folder, data_root, on_error="return")
    here, threads = describe_worker(folder, data_root), client.nthreads()
    problems = {} if found else {"it": ["has no workers; start some, see the README"]}
    for worker, answer in found.items():
        if not isinstance(answer, dict):
            problems[worker] = [f"{answer}; start it in the repository, with PYTHONPATH=$PWD"]
            continue
        differing = [name for name in ("ctseg", "torch") if answer[name] != here[name]]
        wrong = answer["wrong"] + [f"{name} {answer[name]}, not {here[name]} as here" for name in differing]
        if threads[worker] != 1:
            wrong.append(f"{threads[worker]} threads; start it with --nthreads 1, and more workers instead")
        problems |= {worker: wrong} if wrong else {}
    if problems:
        listed = "; ".join(f"{worker}: {', '.join(wrong)}" for worker, wrong in problems.items())
        raise RuntimeError(f"the cluster cannot do this sweep: {listed}")
    return [answer["host"] for answer in found.values()]


def describe_worker(folder: Path, data_root: Path) -> dict[str, Any]:
    """A worker's host and versions, and what is wrong there with the sweep's folder or the data."""
    wrong = []
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
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    versions = {"ctseg": f"{zlib.crc32(sources):08x}", "torch": torch.__version__}
    return {"host": socket.gethostname(), "wrong": wrong} | versions
