"""Small data sets in the competition's layout, and the suite's settings."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from ctseg.phantom import write_phantom

matplotlib.use("Agg")
REPOSITORY = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, help="of the moments at which run_kill.py kills")
    parser.addoption("--python", help="interpreter of the environment that stands in for Kaggle's (run_kernel.py)")


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
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(root / "Test" / "Image" / "case_9.jpg")
    return root


class Program:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")
