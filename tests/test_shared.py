"""Memory that several processes share, and that leaves nothing behind."""

import subprocess
import sys

import numpy as np
import pytest

from ctseg.shared import make_shared, map_shared

OTHER = """
import sys
from ctseg.shared import map_shared
array = map_shared(open(int(sys.argv[1]), "r+b"), (2, 3))
print(array.tolist())
array[:] = 9
"""


def test_another_process_maps_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file, array = make_shared((2, 3))
    array[:] = np.arange(6).reshape(2, 3)
    command = [sys.executable, "-c", OTHER, str(file.fileno())]
    other = subprocess.run(command, pass_fds=[file.fileno()], capture_output=True, text=True, check=True)
    assert other.stdout == "[[0, 1, 2], [3, 4, 5]]\n"
    assert (array == 9).all() and (map_shared(file, (3, 2)) == 9).all()
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fail, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(OSError, match=r"no room for 3000.0 MB in the temporary folder .*TMPDIR"):
        make_shared((3, 1000, 1000, 1000))
