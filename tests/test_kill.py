"""`make kill`: a run that is killed at random moments, and started again, ends as one that never was.

Full disks and read-only mounts too. Under ten minutes on 2 cores. The seed of the moments is printed and can
be given again with `--seed`.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, as_arguments

from ctseg.files import PARTIAL
from ctseg.folds import train_folds
from ctseg.runs import make_config, open_run
from ctseg.train import read_history

pytestmark = pytest.mark.kill

SETTINGS = {
    "preset": "quick",
    "epochs": 6,
    "target_size": 96,
    "width": 6,
    "depth": 3,
    "batch_size": 2,
    "lr": 0.01,
    "keep": "last",
}
# A process that trains, and kills itself at a call that the test chose, one of those that write.
TRAIN = """
import json, os, signal, sys
import torch
from ctseg.folds import train_folds
from ctseg.runs import make_config, open_run

parameters, where, number = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0

def killing(function, before):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == number and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if calls == number:
            if where == "torch.save":
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if where == "torch.save":
    torch.save = killing(torch.save, before=False)
elif where != "anywhere":
    os.replace = killing(os.replace, before=where == "before os.replace")
config = make_config(**parameters)
print("ready", flush=True)
train_folds(config, open_run(config))
"""


@pytest.fixture(scope="module")
def moments(request) -> random.Random:
    seed = request.config.getoption("seed") or random.randrange(10**6)
    print(f"\nmoments drawn with --seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def home(tmp_path_factory, phantom) -> Path:
    """A folder to run in, whose `runs/` holds `unbroken`, a run that was never killed."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "notebooks").symlink_to(REPOSITORY / "notebooks")
    (folder / "ctseg").symlink_to(REPOSITORY / "ctseg")
    for name in ("03_train", "04_postprocess_submit"):
        assert papermill(folder, phantom, "unbroken", name).wait() == 0
    return folder


@pytest.fixture(scope="module")
def seconds(home) -> float:
    """How long the unbroken run trained."""
    return sum(row["seconds"] for row in read_history(home / "runs" / "unbroken" / "fold0"))


ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def papermill(folder: Path, phantom: Path, run: str, name: str) -> subprocess.Popen:
    """Start a notebook on a run."""
    paths = [folder / "notebooks" / f"{name}.ipynb", folder / f"{run}.ipynb"]
    arguments = ["-r", "run", run, *as_arguments(SETTINGS | {"data_root": phantom})]
    command = [sys.executable, "-m", "papermill", *paths, *arguments]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*map(str, command)], cwd=folder, env=ENVIRONMENT, **output)


def find_kernel(process: subprocess.Popen) -> int:
    """Wait for the kernel that a papermill process starts; return its number."""
    while not (
        children := subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
    ):
        time.sleep(0.05)
    return int(children[0])


def train(
    folder: Path,
    phantom: Path,
    run: str,
    where: str = "anywhere",
    number: int = 0,
    after: float | None = None,
) -> str:
    """Train a run in a process, killed as said; return what it printed."""
    parameters = json.dumps(SETTINGS | {"data_root": str(phantom), "run": run})
    command = [sys.executable, "-c", TRAIN, parameters, where, str(number)]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        ready = process.stdout.readline()
        if after is not None:
            time.sleep(after)
            process.kill()
        printed = process.stdout.read()
    assert ready == "ready\n" and process.returncode in (0, -9)
    return printed


def epochs_in(printed: str) -> list[int]:
    return [int(epoch) for epoch in re.findall(r"epoch (\d+)/", printed)]


def assert_same(folder: Path, run: str) -> None:
    """Assert that a run's fold holds, bit for bit, what the unbroken one's does, and nothing half written."""
    first, second = (folder / "runs" / name / "fold0" for name in ("unbroken", run))
    # The last weights, to which each step before has added; a finished fold's checkpoint has no states.
    weights, others = (
        torch.load(path / "best_unet_model.pth", weights_only=True)["state_dict"] for path in (first, second)
    )
    assert weights.keys() == others.keys() and all(map(torch.equal, weights.values(), others.values()))
    checkpoint, other = (torch.load(path / "last.pth", weights_only=True) for path in (first, second))
    assert checkpoint.keys() == other.keys() and "learner" not in checkpoint
    assert all(checkpoint[name] == other[name] for name in checkpoint.keys() - {"history"})
    histories = [
        [{key: value for key, value in row.items() if "seconds" not in key} for row in read_history(path)]
        for path in (first, second)
    ]
    assert histories[0] == histories[1]
    kept = [dict(np.load(path / "oof.npz")) for path in (first, second)]
    assert all(np.array_equal(kept[0][key], kept[1][key]) for key in kept[0])
    names = [
        {str(file.relative_to(path)) for file in path.rglob("*") if PARTIAL not in file.name}
        for path in (first, second)
    ]
    assert names[0] == names[1] and not list(second.glob(f"{PARTIAL}*"))


@pytest.mark.parametrize("index", range(24))
def test_a_killed_training_process_resumes_to_the_same_bits(home, phantom, moments, seconds, index):
    run = f"process{index}"
    places = ["anywhere"] * 3 + ["before os.replace", "after os.replace", "torch.save"]
    where = places[index % len(places)]
    number = moments.randint(1, {"torch.save": 9}.get(where, 30))
    first = train(
        home,
        phantom,
        run,
        where,
        number,
        after=moments.uniform(0, 1.2 * seconds) if where == "anywhere" else None,
    )
    second = train(home, phantom, run)
    assert not set(epochs_in(first)) & set(epochs_in(second))  # no epoch that was reported is lost
    assert set(range(1, 7)) - set(epochs_in(first)) - set(epochs_in(second)) <= {
        max(epochs_in(first), default=0) + 1
    }
    assert_same(home, run)


@pytest.mark.parametrize("index", range(6))
def test_a_killed_notebook_resumes_to_the_same_submission(home, phantom, moments, seconds, index):
    run = f"notebook{index}"
    process = papermill(home, phantom, run, "03_train")
    fold = home / "runs" / run / "fold0"
    while not fold.is_dir():
        time.sleep(0.05)
    time.sleep(moments.uniform(0, seconds))
    kernel = find_kernel(process)
    os.kill(kernel if index % 2 else process.pid, signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{kernel}").exists():  # a kernel looks once a second whether its parent lives
        time.sleep(0.1)
    for name in ("03_train", "04_postprocess_submit"):
        assert papermill(home, phantom, run, name).wait() == 0
    assert_same(home, run)
    submissions = [(home / "runs" / name / "submission.csv").read_bytes() for name in ("unbroken", run)]
    assert submissions[0] == submissions[1]


@pytest.mark.parametrize("index", range(4))
def test_a_killed_prediction_leaves_no_half_submission(home, phantom, moments, index):
    run = f"prediction{index}"
    unbroken, folder = home / "runs" / "unbroken", home / "runs" / run
    shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("submission.csv", "predicted_masks"))
    process = papermill(home, phantom, run, "04_postprocess_submit")
    kernel = find_kernel(process)
    while (
        index % 2 and not (folder / "predicted_masks").is_dir()
    ):  # every other time while masks are being written
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.2 if index % 2 else 4))
    os.kill(kernel, signal.SIGKILL)
    assert process.wait() != 0
    submission = folder / "submission.csv"
    assert not submission.exists() or submission.read_bytes() == (unbroken / "submission.csv").read_bytes()
    assert papermill(home, phantom, run, "04_postprocess_submit").wait() == 0
    for path in [unbroken / "submission.csv", *(unbroken / "predicted_masks").glob("[!.]*")]:
        assert (folder / path.relative_to(unbroken)).read_bytes() == path.read_bytes()
    assert not list(folder.rglob(f"{PARTIAL}*"))


def test_two_writers_never_share_a_folder(home, phantom):
    processes = [papermill(home, phantom, "twice", "03_train") for _ in range(2)]
    assert sorted(process.wait() for process in processes) in ([0, 0], [0, 1])
    assert papermill(home, phantom, "twice", "03_train").wait() == 0
    assert_same(home, "twice")


@pytest.fixture
def mounted(tmp_path):
    """A tmpfs of 8 MB, unmounted in the end."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # the test still stands in it


def test_a_full_disk_is_a_clear_error_and_keeps_the_checkpoint(home, phantom, mounted, monkeypatch):
    monkeypatch.chdir(mounted)
    config = make_config(**SETTINGS, data_root=str(phantom), run="full")
    folder = open_run(config)
    filler = mounted / "filler"
    monkeypatch.setattr(
        "ctseg.train._write_picture", lambda path, *_: fill(filler) if "epoch_3" in str(path) else None
    )
    with pytest.raises(
        OSError, match="cannot write .*(No space left|file write failed|unexpected pos).*free space"
    ):
        train_folds(config, folder)
    assert len(torch.load(folder / "fold0" / "last.pth", weights_only=True)["history"]) == 2
    assert not list(folder.rglob(f"{PARTIAL}*"))
    filler.unlink()
    monkeypatch.setattr("ctseg.train._write_picture", lambda *_: None)
    assert len(train_folds(config, folder)[0]) == 6


def fill(path: Path) -> None:
    """Write zeros until the disk is full."""
    with open(path, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return


def test_a_read_only_mount_is_a_clear_error(home, phantom, mounted, monkeypatch):
    monkeypatch.chdir(mounted)
    config = make_config(**SETTINGS, data_root=str(phantom), run="read_only")
    folder = open_run(config)
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        train_folds(config, folder)
    with pytest.raises(
        OSError, match="cannot write .*config.json.*Read-only.*free space, or run where it may be written"
    ):
        open_run(make_config(**SETTINGS, data_root=str(phantom), run="another"))
