"""From files to arrays: pair images with masks, read them, and hold the training set in memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from ctseg.contest import IMAGE_FOLDERS, MASK_FOLDER
from ctseg.transforms import EvalTransform, Letterbox

EXIF_ORIENTATION = 0x0112
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}
# Formats that are read, whatever the file's name says. For some others Pillow would start a program.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")


@dataclass(frozen=True)
class Case:
    """One image file and, in training, its mask file; `image_id` is the file stem and the submission's id."""

    image_id: str
    image: Path
    mask: Path | None = None


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Image files of a folder by stem, in the order of the stems; {} if the folder is missing.

    Hidden files and other types are ignored.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return dict(sorted(found.items()))


def find_cases(root: Path, subset: str) -> list[Case]:
    """List the cases of a subset, "train" or "test", by id; each training image with the mask of its stem.

    Raises:
        FileNotFoundError: the folder of images is missing or empty.
        ValueError: an image without a mask, a mask without an image, or two files of one stem.
    """
    folder = IMAGE_FOLDERS[subset]
    images = find_files(root / folder)
    masks = find_files(root / MASK_FOLDER) if subset == "train" else {}
    if not images:
        raise FileNotFoundError(
            f"no images in {root / folder}; expected {', '.join(sorted(IMAGE_SUFFIXES))} there and in "
            f"{MASK_FOLDER}"
        )
    for name, found in ((folder, images), (MASK_FOLDER, masks)):
        twice = [stem for stem, paths in found.items() if len(paths) > 1]
        _refuse(f"{name}: two files of one stem", twice)
    if subset == "test":
        return [Case(stem, paths[0]) for stem, paths in images.items()]
    _refuse(f"images without a mask of the same stem in {MASK_FOLDER}", images.keys() - masks.keys())
    _refuse(f"masks without an image of the same stem in {folder}", masks.keys() - images.keys())
    return [Case(stem, paths[0], masks[stem][0]) for stem, paths in images.items()]


def _refuse(what: str, names: Iterable[str]) -> None:
    """Raise a ValueError with the names, if there are any."""
    names = list(names)
    if names:
        raise ValueError(f"{what}: {abridge(names)}; add or remove files, see 01_eda")


def abridge(names: Iterable[str]) -> str:
    """The first five names in order, and the count.

    >>> abridge("gfedcba"), abridge("b")
    ('a, b, c, d, e … (7)', 'b (1)')
    """
    names = sorted(names)
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''} ({len(names)})"


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; any problem with it that shows in the block is a ValueError that names it."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        raise ValueError(
            f"cannot read {path}: {error}; replace the file, or remove the image together with its mask"
        ) from error


def read_size(path: Path) -> tuple[int, int]:
    """Read (H, W) from an image's header, as it is after its EXIF rotation."""
    with opened(path) as image:
        width, height = image.size
        transposed = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # orientations 5 to 8 exchange the axes
    return (width, height) if transposed else (height, width)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits per channel."""
    return image.mode.startswith(("I", "F"))


def read_image(
    path: Path, *, min_size: int | None = None, window: tuple[float, float] | None = None
) -> np.ndarray:
    """Read an image as uint8 (H, W, 3), upright.

    Args:
        path: gray, RGB, RGBA (the alpha channel is dropped), palette or CMYK, 8 or 16 bits.
        min_size: decode a JPEG at ½, ¼ or ⅛ of its size as long as its longer side keeps this many pixels;
            several times faster.
        window: (low, high) in stored values that become 0 and 255, for 16-bit files.

    Raises:
        ValueError: the file cannot be decoded, or has 16 bits and no window was given.
    """
    with opened(path) as image:
        if min_size:
            image.draft(image.mode, [max(1, side * min_size // max(image.size)) for side in image.size])
        upright = ImageOps.exif_transpose(image)
        if is_deep(upright):
            return np.repeat(_apply_window(np.asarray(upright), window)[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def _apply_window(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Map stored values (H, W) linearly so that window = (low, high) becomes uint8 0 … 255."""
    if window is None:
        raise ValueError("it has more than 8 bits and needs window_low and window_high, in stored values")
    if not np.isfinite(values).all():
        raise ValueError("it contains NaN or infinite values")
    low, high = window
    share = np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    return (share * 255 + 0.5).astype(np.uint8)


def find_window(
    cases: Sequence[Case], low: float | None = None, high: float | None = None
) -> tuple[float, float] | None:
    """Return the window for 16-bit images, in stored values.

    Given bounds are returned unchanged; a missing one is the 0.5 or 99.5 percentile over `cases`. None if a
    bound is missing and all cases have 8 bits.
    """
    if low is not None and high is not None:
        return low, high
    samples = []
    for case in cases:
        with opened(case.image) as image:
            if is_deep(image):
                values = np.asarray(image).ravel()
                samples.append(values[:: max(1, values.size // 10_000)])
    if not samples:
        return None
    values = np.concatenate(samples)
    values = values[np.isfinite(values)]
    # An image without a finite value is refused when it is read.
    percentiles = np.percentile(values, [0.5, 99.5]) if len(values) else (0.0, 1.0)
    return float(percentiles[0] if low is None else low), float(percentiles[1] if high is None else high)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as bool (H, W): the upper of two values is foreground, anti-aliased edges are cut at half.

    Raises:
        ValueError: the file cannot be decoded, or it holds several labels.
    """
    values = read_mask_values(path)
    kind = describe_mask(values)
    if kind == "several labels":
        raise ValueError(
            f"mask {path} holds several labels {np.unique(values)[:5].tolist()}; expected two values such "
            "as 0 and 255; merge labels"
        )
    return values > values.max() / 2


def read_mask_values(path: Path) -> np.ndarray:
    """Read the stored gray values of a mask, (H, W) of an integer dtype."""
    with opened(path) as image:
        return np.asarray(image if is_deep(image) else image.convert("L"))


def describe_mask(values: np.ndarray) -> str:
    """Name a mask's kind: "empty", "full", "0/1", "0/255", "two values", "anti-aliased", "several labels".

    Anti-aliasing leaves values between the extremes along edges only; a value between them that fills a whole
    3 x 3 block is a label.
    """
    present = np.unique(values)
    if present[-1] == 0:
        return "empty"
    if len(present) == 1:
        return "full"
    if len(present) == 2:
        return {1: "0/1", 255: "0/255"}.get(int(present[-1]), "two values")
    flat = ndimage.maximum_filter(values, 3) == ndimage.minimum_filter(values, 3)
    return "several labels" if np.any(flat & (values > 0) & (values < present[-1])) else "anti-aliased"


def map_threads(function: Callable, items: Iterable) -> Iterator:
    """Apply `function` to each item in threads, results in order.

    Pillow and NumPy release the interpreter lock while they work.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool:  # each may hold an image of many megapixels
        yield from pool.map(function, items)


class SegmentationDataset(Dataset):
    """Cases as the network sees them; items are (image, target or None, letterbox), see `EvalTransform`.

    Raises ValueError where a mask's size is not its image's.
    """

    def __init__(
        self, cases: Sequence[Case], transform: EvalTransform, window: tuple[float, float] | None = None
    ):
        self.cases, self.transform, self.window = list(cases), transform, window

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None, Letterbox]:
        return self.transform(*self.read(index))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """Return image uint8 (h, w, 3), perhaps smaller; mask bool (H, W) or None; the file's (H, W)."""
        case = self.cases[index]
        size = read_size(case.image)
        image = read_image(case.image, min_size=self.transform.target_size, window=self.window)
        mask = None if case.mask is None else read_mask(case.mask)
        if mask is not None and mask.shape != size:
            raise ValueError(
                f"mask {case.mask} is {mask.shape}, its image {case.image} is {size} (H, W); export the "
                "mask again at the image's size"
            )
        return image, mask, size


@dataclass(frozen=True)
class TrainingSet:
    """Training cases in memory, N of them.

    Attributes:
        images: uint8 (N, 3, S, S).
        targets: uint8 (N, 1, S, S), 255 times the share of each pixel that the mask covers.
        cases, letterboxes: each image's files, and how to undo its resize.
        areas: each mask's share of its image (N,); 0 for an empty one.
    """

    images: Tensor
    targets: Tensor
    cases: list[Case]
    letterboxes: list[Letterbox]
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.cases)

    def select(self, indices: Sequence[int]) -> "TrainingSet":
        """The cases at `indices`, copied."""
        cases, letterboxes = ([values[i] for i in indices] for values in (self.cases, self.letterboxes))
        return TrainingSet(
            self.images[indices], self.targets[indices], cases, letterboxes, self.areas[indices]
        )


def load_training_set(dataset: SegmentationDataset) -> TrainingSet:
    """Read a data set with masks into memory: 4 S² bytes per image, 0.28 GB for 1,087 images at 256."""

    def load(index: int) -> tuple[Tensor, Tensor, Letterbox, float]:
        image, mask, size = dataset.read(index)
        return *dataset.transform(image, mask, size), mask.mean()

    images, targets, letterboxes, areas = zip(*map_threads(load, range(len(dataset))))
    tensors = torch.stack(images), torch.stack(targets)
    return TrainingSet(*tensors, dataset.cases, list(letterboxes), np.array(areas))
