"""Files are whole or absent, and a folder has one writer."""

import errno
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from ctseg import files
from ctseg.files import (
    FolderBusy,
    atomic_path,
    lock_folder,
    read_csv,
    read_json,
    write_csv,
    write_json,
    write_text,
)


def test_a_failed_write_is_reported_and_replaces_nothing(tmp_path, monkeypatch):
    write_text("before", tmp_path / "a.txt")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="cannot write .*a.txt: .*No space left on device; free space"):
        write_text("after", tmp_path / "a.txt")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_writer_that_fails_halfway_leaves_the_old_file(tmp_path):
    path = tmp_path / "below" / "a.txt"
    write_text("before", path)
    with pytest.raises(KeyError), atomic_path(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert [path.read_text() for path in path.parent.iterdir()] == ["before"]


def test_a_folder_is_held_by_one_writer_until_it_is_done(tmp_path):
    folder = tmp_path / "fold0"
    with lock_folder(folder):
        with (
            pytest.raises(FolderBusy, match="fold0 is being written by another process"),
            lock_folder(folder),
        ):
            pass
        code = "import sys, pathlib, ctseg.files as f\nwith f.lock_folder(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run(
            [sys.executable, "-c", code, folder], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert other.returncode == 1 and "FolderBusy" in other.stderr
    with lock_folder(folder):
        pass


def test_a_new_writer_removes_half_written_files(tmp_path):
    (tmp_path / ".partial-1-last.pth").write_bytes(b"half")
    (tmp_path / "last.pth").write_bytes(b"whole")
    with lock_folder(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "last.pth"]


def test_a_disk_that_fails_is_not_one_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"), lock_folder(tmp_path):
        pass


def test_rows_and_json_come_back_as_they_were_written(tmp_path):
    rows = [{"image_id": 'a,\n"b"', "note": "größer"}, {"image_id": "c", "note": ""}]
    write_csv(rows, tmp_path / "rows.csv")
    assert read_csv(tmp_path / "rows.csv") == rows
    write_csv([], tmp_path / "none.csv")
    assert read_csv(tmp_path / "none.csv") == []
    write_csv([{"file": "l\udce9sion"}], tmp_path / "odd.csv")
    assert read_csv(tmp_path / "odd.csv") == [{"file": "l\\udce9sion"}]
    content = {"lr": 1e-4, "fold": None, "text": "größer", "list": [1, True]}
    write_json(content, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EBADF", "EINVAL"])
def test_a_file_system_without_locks_is_used_after_one_line(tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / ".partial-1-x").write_text("perhaps somebody writes it now")
    files._warn_of_no_locks.cache_clear()
    for _ in range(2):
        with lock_folder(tmp_path):
            pass
    assert capsys.readouterr().out.count("WARNING: this file system has no locks") == 1
    assert (tmp_path / ".partial-1-x").exists()


def test_a_table_without_rows_has_its_columns_if_they_are_known(tmp_path):
    files.write_csv([], tmp_path / "a.csv", columns=("a", "b"))
    assert (tmp_path / "a.csv").read_bytes() == b"a,b\r\n" and files.read_csv(tmp_path / "a.csv") == []
    files.write_csv([], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b""
