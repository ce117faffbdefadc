"""A synthetic CT-like data set in the contest's layout, whose test masks are known.

A slice shows a body with a fat rim, a spine, and organs of many gray values with sharp edges. The region to
find is a blob whose gray value the organs have as well; its mottled inside and its blurred rim give it away.
So a gray-value interval fails, and a network that looks at texture and edges succeeds. A quarter of the
images are hard cases.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ctseg.contest import TEST_MASKS
from ctseg.files import PARTIAL, read_csv, write_csv

KINDS = ("plain", "edge", "two", "tiny", "faint")
_HEIGHTS, _ASPECTS = (256, 320, 384, 448), (0.8, 1.0, 1.25, 1.5)  # pixels; width / height


def write_phantom(folder: Path, *, n_train: int = 160, n_test: int = 40, seed: int = 0) -> Path:
    """Write the data set unless it exists, and return its root, `folder/Dataset`.

    Images are JPEG, masks PNG. Next to the root: `test_masks/`, which a contest would hide, and `cases.csv`
    with each case's kind. Everything is written to a temporary folder and moved at the end, so an
    interrupted call does not leave half a data set.
    """
    root = folder / "Dataset"
    if root.is_dir():
        return root
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    mask_dirs = {"train": partial / "Dataset/Train/Mask", "test": partial / TEST_MASKS}
    rows = []
    for subset, count in (("train", n_train), ("test", n_test)):
        image_dir = partial / "Dataset" / subset.title() / "Image"
        image_dir.mkdir(parents=True)
        mask_dirs[subset].mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng((seed, subset == "test", index))
            # Every fourth is hard, the kinds in turn.
            kind = "plain" if index % 4 else KINDS[1 + index // 4 % 4]
            image, mask = make_slice(kind, rng)
            image_id = f"{subset}_{index:03d}"
            Image.fromarray(image).convert("RGB").save(image_dir / f"{image_id}.jpg", quality=90)
            Image.fromarray(mask).convert("L").save(mask_dirs[subset] / f"{image_id}.png")
            rows.append({"image_id": image_id, "kind": kind})
    write_csv(rows, partial / "cases.csv")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)
    return root


def read_kinds(folder: Path) -> dict[str, str]:
    """Read {image_id: kind} from a phantom's `cases.csv`, kinds as in `KINDS`; {} for any other data set."""
    path = folder / "cases.csv"
    return {row["image_id"]: row["kind"] for row in read_csv(path)} if path.is_file() else {}


def make_slice(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one slice of a kind in `KINDS`: gray image uint8 (H, W) and mask bool (H, W)."""
    height = int(rng.choice(_HEIGHTS))
    size = (height, int(height * rng.choice(_ASPECTS)))
    body = _blob(size, rng, center=(0, 0), radius=0.93, wobble=0.04)
    inner = _blob(size, rng, center=(0, 0), radius=0.82, wobble=0.04)

    image = np.where(body, 0.25, 0.02).astype(np.float32)
    image[inner] = 0.42
    for _ in range(rng.integers(7, 12)):
        center, radius = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.1, 0.3)
        organ = _blob(size, rng, center=center, radius=radius, wobble=0.15) & inner
        image[organ] = rng.uniform(0.28, 0.72)
    image[_blob(size, rng, center=(0, 0.65), radius=0.12, wobble=0.1)] = 0.95  # the spine

    mask = np.zeros(size, bool)
    for center, radius in _place_regions(kind, rng):
        mask |= _blob(size, rng, center=center, radius=radius, wobble=0.12)
    mask &= inner if kind != "edge" else body
    grain = ndimage.gaussian_filter(rng.standard_normal(size, np.float32), height / 70)
    contrast = 0.07 if kind == "faint" else 0.14
    region = rng.uniform(0.38, 0.62) + contrast * grain / grain.std()
    weight = ndimage.gaussian_filter(mask.astype(np.float32), height / 100)  # the blurred rim
    image = image * (1 - weight) + region * weight

    v, u = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in size), indexing="ij")
    bias = 1 + 0.15 * (u * rng.uniform(-1, 1) + v * rng.uniform(-1, 1))
    angle = rng.uniform(0, np.pi)
    streaks = 0.02 * body * np.sin((u * np.cos(angle) + v * np.sin(angle)) * rng.uniform(40, 90))
    noise = ndimage.gaussian_filter(rng.standard_normal(size, np.float32), 0.7) * 0.05
    image = (image * bias + streaks + noise) * rng.uniform(0.8, 1.15) + rng.uniform(-0.03, 0.03)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def _place_regions(kind: str, rng: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Draw center (x, y) in (-1, 1) and radius of each region.

    "edge" reaches out of the body's inner part, "two" has two regions.
    """
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    radius = rng.uniform(0.18, 0.34)
    if kind == "edge":
        return [(direction * 0.8, radius)]
    if kind == "two":
        return [(direction * 0.45, radius * 0.7), (-direction * 0.45, radius * 0.8)]
    if kind == "tiny":
        return [(direction * rng.uniform(0.1, 0.55), rng.uniform(0.07, 0.1))]
    return [(direction * rng.uniform(0, 0.5), radius)]


def _blob(
    size: tuple[int, int], rng: np.random.Generator, *, center, radius: float, wobble: float
) -> np.ndarray:
    """Fill a star-shaped blob, a circle whose radius varies by `wobble` in waves; bool of `size` (H, W).

    center (x, y) and radius are in the square (-1, 1) that spans the image, so a circle there is an ellipse
    in pixels.
    """
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = sum(
        rng.normal(0, wobble / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in range(2, 6)
    )
    x = center[0] + radius * (1 + waves) * np.cos(angle)
    y = center[1] + radius * (1 + waves) * np.sin(angle)
    filled = Image.new("1", size[::-1])
    ImageDraw.Draw(filled).polygon(list(zip((x + 1) / 2 * size[1], (y + 1) / 2 * size[0])), fill=1)
    return np.asarray(filled)
