"""Memory that several processes share: files without a name, gone with the last process that has them."""

import os
import sys
import tempfile
from typing import BinaryIO

import numpy as np


def make_shared(shape: tuple[int, ...]) -> tuple[BinaryIO, np.ndarray]:
    """An unnamed temporary file, and a uint8 array of that shape mapped on it.

    Its pages are the system's to keep in memory or not; another process that is handed the open file maps the
    same ones.

    Raises:
        OSError: the temporary folder has no room for it.
    """
    file, size = tempfile.TemporaryFile(), int(np.prod(shape))  # noqa: SIM115  the caller keeps it
    try:
        # A write into a mapped file that its disk has no room for would kill the process.
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise _explain(error, size) from error
    return file, map_shared(file, shape)


def write_shared(content: bytes) -> BinaryIO:
    """An unnamed temporary file of some bytes; OSError as in `make_shared`."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    try:
        file.write(content)
        file.flush()
    except OSError as error:
        raise _explain(error, len(content)) from error
    return file


def _explain(error: OSError, size: int) -> OSError:
    """An error of the temporary folder that says what to do."""
    return OSError(
        f"no room for {size / 1e6:.1f} MB in the temporary folder {tempfile.gettempdir()}: {error}; free "
        "space there, or name another folder in the variable TMPDIR"
    )


def map_shared(file: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    """The array that `make_shared` made on a file."""
    return np.memmap(file, np.uint8, "r+", shape=shape)
