"""Small data sets in the contest's layout, the sources of a kernel, and the suite's settings."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Small networks are as fast on one thread, and threads that wait for each other make a busy machine crawl.
# Set before PyTorch is imported; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from kaggle_server import KaggleServer
from PIL import Image

from ctseg.contest import A0
from ctseg.data import SegmentationDataset, TrainingSet, find_cases, load_training_set
from ctseg.files import write_text
from ctseg.folds import assign_folds
from ctseg.phantom import write_phantom
from ctseg.runs import make_config, make_dataset, open_run
from ctseg.transforms import EvalTransform

matplotlib.use("Agg")
REPOSITORY = Path(__file__).parent.parent
# Real images, in the folders a0, ct and native; tests that want them are skipped where the variable is not
# set.
REAL_DATA = Path(os.environ.get("CTSEG_TEST_DATA", "/nowhere"))
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="CTSEG_TEST_DATA is not set")


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, help="of the moments at which test_kill.py kills")
    parser.addoption("--python", help="interpreter of an environment like Kaggle's (test_kernel.py)")


@pytest.fixture(autouse=True)
def threads():
    """No test may change how many threads PyTorch has: others compare results bit by bit."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


@pytest.fixture
def cores(monkeypatch):
    """A function that lets this process, and those that it starts, believe in so many cores."""

    def pretend(n: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(n)), raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", str(n))

    return pretend


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """Root of a phantom of 24 train and 4 test images; not to be written to."""
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_train=24, n_test=4)


def write_pair(root: Path, image_id: str, image: np.ndarray, mask: np.ndarray) -> None:
    """Write one training pair, image as PNG."""
    for kind, array in (("Image", image), ("Mask", mask)):
        folder = root / "Train" / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{image_id}.png")


def save_image(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    """Write an array as an image, converted to `mode` first; return the path."""
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Root of four distinct training pairs and one test image, to be damaged by a test."""
    root = tmp_path / "Dataset"
    rng = np.random.default_rng(0)
    for index in range(4):
        mask = np.zeros((30, 40), np.uint8)
        mask[5 : 10 + index, 6:20] = 255
        write_pair(root, f"case_{index}", rng.integers(0, 255, (30, 40, 3), np.uint8), mask)
    (root / "Test" / "Image").mkdir(parents=True)
    save_image(root / "Test" / "Image" / "case_9.jpg", rng.integers(0, 255, (30, 40, 3), np.uint8))
    return root


def load_cases(root: Path, size: int = 32) -> TrainingSet:
    """The training cases of a data set in memory, `size` pixels wide."""
    return load_training_set(SegmentationDataset(find_cases(root, "train", A0), EvalTransform(size)))


def begin_run(data_root: Path, **settings) -> Path:
    """A run "a" that has begun to train on a data set; return its folder."""
    config = make_config(
        **{"run": "a", "data_root": str(data_root), "target_size": 32, "n_folds": 2} | settings
    )
    run_dir = open_run(config)
    assign_folds(config, run_dir, load_training_set(make_dataset(config, "train")))
    write_text("", run_dir / "fold0" / "last.pth")
    return run_dir


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch's hub, and a network that is down."""

    def fail(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "checkpoints"


def wait(condition, message=lambda: "") -> None:
    """Wait until a condition holds; a busy machine takes minutes for what takes seconds elsewhere."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.1)


def as_arguments(parameters: dict) -> list[str]:
    """Parameters as `-p name value …` on a command line."""
    return [str(word) for name, value in parameters.items() for word in ("-p", name, value)]


class Program:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def copy_sources(folder: Path) -> Path:
    """Copy all that a kernel is built from to a folder, and return it."""
    ignored = shutil.ignore_patterns("__pycache__", "ctseg.ipynb", "*.json")
    for name in ("ctseg", "notebooks", "kaggle_kernel"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the sources: kernels are built and runs are made there, not here."""
    return copy_sources(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def server():
    """A server of our own that Kaggle's client takes for Kaggle's."""
    server = KaggleServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def built(clone, server):
    """The kernel as built with no arguments: (path of the notebook, its content, its metadata)."""
    environment = server.environment(clone) | {"PYTHONPATH": str(clone)}
    subprocess.run([sys.executable, "kaggle_kernel/build.py"], cwd=clone, env=environment, check=True)
    path = clone / "kaggle_kernel" / "ctseg.ipynb"
    metadata = json.loads((path.parent / "kernel-metadata.json").read_text())
    return path, nbformat.read(path, as_version=4), metadata


@pytest.fixture
def call(clone, server, monkeypatch, capsys):
    """Call `main` of `build` or `client` in the clone; return (status, printed text with an error last)."""
    for name, value in server.environment(clone).items():
        monkeypatch.setenv(name, value)
    from kaggle_kernel import build, client  # with papermill and jupytext, which few tests need

    monkeypatch.chdir(clone)
    monkeypatch.setattr(build, "REPOSITORY", clone)
    monkeypatch.setattr(client, "FOLDER", clone / "kaggle_kernel")

    def run(module, *arguments):
        out = ["--out", clone / "built"] if module is build else []
        try:
            module.main([str(argument) for argument in (*arguments, *out)])
        except SystemExit as end:
            return 1, capsys.readouterr().out + str(end)
        return 0, capsys.readouterr().out

    return run
