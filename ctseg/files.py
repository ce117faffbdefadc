"""Files that are either whole or absent, and folders with one writer at a time."""

import csv
import errno
import fcntl
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

PARTIAL = ".partial-"  # the names of files that are being written begin with it
# What flock says where the file system has no locks, as some network and cloud drives.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL}


class FolderBusy(RuntimeError):
    """Another process writes in the folder."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends without an error it replaces `path` in one step.

    So no reader ever sees half a file.

    Raises:
        OSError: it cannot be written, for instance because the disk is full or mounted read-only; the old
            content of `path` is intact.
    """
    # Two processes may open one run at once, and a long name leaves no room for more.
    name = f"{PARTIAL}{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}{path.suffix}"
    partial = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save where the disk is full
        raise OSError(
            f"cannot write {path}: {error}; free space, or run where it may be written; no file was replaced"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; the operating system releases it when the process dies, however it dies.

    Half-written files that a killed writer left in the folder are removed. Where the file system has no
    locks, a line says so and the folder is used without one.

    Raises:
        FolderBusy: another process holds it.
        OSError: the folder cannot be written, or its disk fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderBusy(
                f"{folder} is being written by another process; wait for it, stop it, or use another run name"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_of_no_locks(str(error))
        else:
            for leftover in folder.glob(f"{PARTIAL}*"):
                leftover.unlink(missing_ok=True)
        yield


@cache
def _warn_of_no_locks(reason: str) -> None:
    """Say once that folders are not locked."""
    what = f"this file system has no locks ({reason}), so nothing keeps two processes out of one run"
    print(f"WARNING: {what}; start only one at a time", flush=True)


def print_anywhere() -> None:
    """Let this program print to any terminal: what its encoding lacks is written as escapes."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(content: bytes, path: Path) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def read_last_line(path: Path) -> str:
    """The last line of a log or a traceback: the error."""
    return path.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]


def write_json(content: dict, path: Path) -> None:
    """Write JSON that a person can read, atomically."""
    write_text(json.dumps(content, indent=2) + "\n", path)


def read_json(path: Path) -> dict:
    """Read a file that `write_json` wrote; ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; restore it from a copy") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds {type(content).__name__}, expected names and values; restore it from a copy"
        )
    return content


def write_csv(rows: list[dict], path: Path, *, columns: Sequence[str] = ()) -> None:
    """Write rows, atomically, with the keys of the first as columns, or `columns` where there are no rows."""
    with (
        atomic_path(path) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0] if rows else columns))
        if rows or columns:
            writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict]:
    """Read a file that `write_csv` wrote; all values are text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
