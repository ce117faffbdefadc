"""How often soft edges are taken for labels and labels for soft edges: `python tests/tools/soft_masks.py`."""

import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from ctseg.masks import describe_mask  # noqa: E402

SIZES = {(96, 128): 6, (200, 260): 6, (256, 340): 6, (768, 1024): 3}  # and how many masks of each
FILTERS = ("BOX", "BILINEAR", "BICUBIC", "LANCZOS")


def draw_blobs(seed: int, height: int, width: int) -> np.ndarray:
    """One to three wavy regions, bool (H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(1 + seed % 3):
        center = height * rng.uniform(0.3, 0.7), width * rng.uniform(0.3, 0.7)
        radius, stretch = min(height, width) * rng.uniform(0.05, 0.3), rng.uniform(0.6, 1.6)
        angle = np.arctan2(y - center[0], x - center[1])
        waves = 0.15 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.08 * np.sin(7 * angle + rng.uniform(0, 6))
        distance = (y - center[0]) ** 2 * stretch + (x - center[1]) ** 2 / stretch
        mask |= distance < (radius * (1 + waves)) ** 2
    return mask


def save_as_jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    """A mask saved with loss and read again."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resize(values: np.ndarray, factor: float, name: str) -> np.ndarray:
    """A mask at another size."""
    size = [max(8, round(side * factor)) for side in values.shape[::-1]]
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling[name]))


def make_soft(mask: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (kind, mask with soft edges)."""
    white = mask * np.uint8(255)
    for sigma in (1, 2, 4, 6, 10):
        yield f"blurred by {sigma}", ndimage.gaussian_filter(white, sigma)
        yield f"blurred by {sigma}, floats", ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    for name in FILTERS:
        for factor in (1 / 3, 2, 6) if max(mask.shape) < 700 else (1 / 3, 2):
            yield f"resized by {factor:.2g}, {name}", resize(white, factor, name)
        yield f"shrunk and enlarged, {name}", resize(resize(white, 0.25, name), 4, name)
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    for scale in (2, 4):
        yield f"probability, {scale}", (255 / (1 + np.exp(-distance / scale))).astype(np.uint8)
    for n in (2, 3, 5):
        reach = max(1, int(0.02 * min(mask.shape)))
        others = [np.roll(mask, tuple(rng.integers(-reach, reach + 1, 2)), (0, 1)) for _ in range(n - 1)]
        yield f"mean of {n}", (np.mean([mask, *others], axis=0) * 255).astype(np.uint8)
    for low, high in ((0, 255), (128, 255), (0, 64)):
        values = np.where(mask, high, low).astype(np.uint8)
        for quality in (30, 75, 95):
            yield f"JPEG of {low}/{high}, {quality}", save_as_jpeg(values, quality)


def make_labels(mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (kind, mask with a third label or more)."""
    height, width = mask.shape
    y, x = np.mgrid[:height, :width]
    depth = ndimage.distance_transform_edt(mask)
    radius = max(3, 0.05 * min(mask.shape))
    corner = (y - 0.1 * height) ** 2 + (x - 0.12 * width) ** 2 < radius**2
    inner = np.argwhere(depth == depth.max())[0]
    spot = (y - inner[0]) ** 2 + (x - inner[1]) ** 2 < max(3, 0.4 * depth.max()) ** 2
    halves = np.where(mask, np.where(x > np.median(np.nonzero(mask)[1]), 1, 2), 0)
    kinds = {
        "halves": halves,
        "cup in disc": mask + 1 * (depth > 0.4 * depth.max()),
        "apart": np.where(corner, 1, 2 * mask),
        "spot inside": np.where(spot, 1, 2 * mask),
        "three": np.where(corner, 3, halves),
    }
    for kind, labels in kinds.items():
        spread = (labels * (255 // labels.max())).astype(np.uint8)
        yield f"{kind}, small numbers", labels.astype(np.uint8)
        yield f"{kind}, spread", spread
        for quality in (75, 95):
            yield f"{kind}, JPEG {quality}", save_as_jpeg(spread, quality)
        yield f"{kind}, blurred", ndimage.gaussian_filter(spread, 1)
        yield f"{kind}, halved", resize(spread, 0.5, "BILINEAR")
    rows, columns = np.arange(height) // 24, np.arange(width) // 24
    cells = 1 + rows[:, None] * (width // 24 + 1) + columns
    yield "instances", np.where((y % 24 > 4) & (x % 24 > 4), cells, 0).astype(np.uint16)


def main() -> None:
    """Print how often each kind is taken for another."""
    wrong, tried = Counter(), Counter()
    for (height, width), n in SIZES.items():
        for seed in range(n):
            mask = draw_blobs(seed, height, width)
            soft = make_soft(mask, np.random.default_rng(seed))
            for expected, masks in (("anti-aliased", soft), ("several labels", make_labels(mask))):
                for kind, values in masks:
                    tried[expected, kind] += 1
                    if len(np.unique(values)) > 2:
                        wrong[expected, kind] += describe_mask(values) != expected
    for (expected, kind), count in wrong.items():
        if count:
            print(f"{expected:15} {kind:30} {count} of {tried[expected, kind]} wrong")
    for expected in ("anti-aliased", "several labels"):
        counts = (sum(counter[key] for key in tried if key[0] == expected) for counter in (wrong, tried))
        print("{}: {} of {} wrong".format(expected, *counts))


if __name__ == "__main__":
    main()
