"""From files to arrays: find the data, pair images with masks, read them, and hold them in memory as squares."""

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

from ctseg.phantom import write_phantom
from ctseg.transforms import EvalTransform, Frame

COMPETITION = "a0-2025-medical-image-segmentation"
KAGGLE_INPUT = Path(os.environ.get("CTSEG_KAGGLE_INPUT", "/kaggle/input"))  # where Kaggle mounts what is attached; elsewhere for trials
EXIF_ORIENTATION = 0x0112
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")  # read whatever the name says; for some others Pillow would start a program


def find_repository() -> Path:
    """The folder that holds `notebooks` and `ctseg`, at or above the current folder; elsewhere (on Kaggle) the current folder."""
    here = Path.cwd()
    return next((folder for folder in [here, *here.parents] if (folder / "ctseg").is_dir() and (folder / "notebooks").is_dir()), here)


def find_data_root(data_root: str | Path = "") -> Path:
    """Find the folder that holds `Train/Image`.

    Args:
        data_root: a path (tried from the current folder, then from the repository root; a folder above `Dataset` will do), or "phantom" for
            the synthetic data set, written on first use, or "" to look at CTSEG_DATA, Kaggle's mounts and `data/`, in this order.

    Raises:
        FileNotFoundError: no such folder; the message lists where it looked.
    """
    data_root = str(data_root) or os.environ.get("CTSEG_DATA", "")
    if data_root == "phantom":
        return write_phantom(find_repository() / "data" / "phantom")
    if data_root:
        path = Path(data_root).expanduser()
        places = [path, find_repository() / path]
    else:
        places = [KAGGLE_INPUT / "competitions" / COMPETITION, KAGGLE_INPUT / COMPETITION]
        places += sorted(found.parent.parent for found in KAGGLE_INPUT.glob("**/Train/Image"))
        places += [find_repository() / "data", *sorted((find_repository() / "data").glob(f"{COMPETITION}*"))]
    for place in places:
        for root in (place, place / "Dataset"):
            if (root / "Train" / "Image").is_dir():
                return root.resolve()
    raise FileNotFoundError(
        f"no data set: none of {', '.join(map(str, places))} holds Train/Image or Dataset/Train/Image; "
        "pass data_root (or set CTSEG_DATA) to the folder with Train and Test, or 'phantom' for the synthetic one"
    )


@dataclass(frozen=True)
class Case:
    """One image file and, in the training set, its mask file. `image_id` is the file's stem, and the ID in the submission."""

    image_id: str
    image: Path
    mask: Path | None = None


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Image files of a folder by stem, in the order of the stems; hidden files and other types are passed over; {} without a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return dict(sorted(found.items()))


def find_cases(root: Path, part: str) -> list[Case]:
    """List the cases of `part` ("Train" or "Test") sorted by id, each image paired with the mask of the same stem.

    Raises:
        FileNotFoundError: the folder of images is missing or empty.
        ValueError: an image without a mask, a mask without an image, or two files of one stem.
    """
    images = find_files(root / part / "Image")
    masks = find_files(root / part / "Mask") if part == "Train" else {}
    if not images:
        raise FileNotFoundError(
            f"no images in {root / part / 'Image'}; expected {', '.join(sorted(IMAGE_SUFFIXES))} there and in Train/Mask"
        )
    refuse(f"{part}: two files of one stem", [stem for found in (images, masks) for stem, paths in found.items() if len(paths) > 1])
    if part != "Train":
        return [Case(stem, paths[0]) for stem, paths in images.items()]
    refuse("images without a mask of the same stem in Train/Mask", images.keys() - masks.keys())
    refuse("masks without an image of the same stem in Train/Image", masks.keys() - images.keys())
    return [Case(stem, paths[0], masks[stem][0]) for stem, paths in images.items()]


def refuse(what: str, names: Iterable[str]) -> None:
    """Raise a ValueError with the names, if there are any."""
    names = list(names)
    if names:
        raise ValueError(f"{what}: {abridge(names)}; add or remove files, see 01_eda")


def abridge(names: Iterable[str]) -> str:
    """The first five names in order, and the count."""
    names = sorted(names)
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''} ({len(names)})"


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong with it in the block is a ValueError that names the file and the fix."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except Exception as error:  # of a damaged file Pillow's decoders raise nearly anything
        raise ValueError(f"cannot read {path}: {error}; replace the file, or remove the image together with its mask") from error


def read_size(path: Path) -> tuple[int, int]:
    """Read (H, W) from an image's header, as it is seen after its EXIF rotation."""
    with opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # orientations 5 to 8 exchange the axes
    return (width, height) if turned else (height, width)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits a channel."""
    return image.mode.startswith(("I", "F"))


def read_image(path: Path, *, min_size: int | None = None, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read an image as uint8 (H, W, 3), upright.

    Args:
        path: grey, RGB, RGBA (the alpha channel is dropped), palette or CMYK, 8 or 16 bits.
        min_size: decode a JPEG at ½, ¼ or ⅛ of its size as long as its longer side keeps this many pixels; several times faster.
        window: (low, high) in stored values that become 0 and 255, for 16-bit files.

    Raises:
        ValueError: the file cannot be decoded, or has 16 bits and no window was given.
    """
    with opened(path) as image:
        if min_size:
            image.draft(image.mode, [max(1, side * min_size // max(image.size)) for side in image.size])
        upright = ImageOps.exif_transpose(image)
        if is_deep(upright):
            return np.repeat(apply_window(np.asarray(upright), window)[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def apply_window(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Map stored values (H, W) linearly so that window = (low, high) becomes uint8 0 … 255."""
    if window is None:
        raise ValueError("it has more than 8 bits and needs window_low and window_high, in stored values")
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no finite numbers")
    low, high = window
    return (np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255 + 0.5).astype(np.uint8)


def find_window(cases: Sequence[Case], low: float | None = None, high: float | None = None) -> tuple[float, float] | None:
    """Return the window for 16-bit images, in stored values.

    Both bounds as given; a missing one is the 0.5 or 99.5 percentile over `cases`, or the window None if all of them have 8 bits.
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
    percentiles = np.percentile(values, [0.5, 99.5]) if len(values) else (0.0, 1.0)  # an image of no numbers is refused when it is read
    return float(percentiles[0] if low is None else low), float(percentiles[1] if high is None else high)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as bool (H, W); whatever two values it uses, the upper one is foreground, and anti-aliased edges are cut at half.

    Raises:
        ValueError: the file cannot be decoded, or it holds several labels.
    """
    values = read_mask_values(path)
    kind = describe_mask(values)
    if kind == "several labels":
        raise ValueError(
            f"mask {path} holds several labels {np.unique(values)[:5].tolist()}; expected two values such as 0 and 255; merge labels"
        )
    return values > values.max() / 2


def read_mask_values(path: Path) -> np.ndarray:
    """Read the stored grey values of a mask, (H, W) of an integer dtype."""
    with opened(path) as image:
        return np.asarray(image if is_deep(image) else image.convert("L"))


def describe_mask(values: np.ndarray) -> str:
    """Name the kind of a mask: "empty", "full", "0/1", "0/255", "two values", "anti-aliased" or "several labels".

    Anti-aliasing leaves values between the extremes along edges only; a value between them that fills a whole 3 x 3 block is a label.
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
    """Apply `function` to each item in threads, results in order; Pillow and NumPy release the interpreter lock while they work."""
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool:  # each may hold an image of many megapixels
        yield from pool.map(function, items)


class SegmentationDataset(Dataset):
    """Cases as the network sees them: item i is (square, target or None, frame), as `EvalTransform` returns it.

    Raises ValueError where a mask's size is not its image's.
    """

    def __init__(self, cases: Sequence[Case], transform: EvalTransform, window: tuple[float, float] | None = None):
        self.cases, self.transform, self.window = list(cases), transform, window

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None, Frame]:
        return self.transform(*self.read(index))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """Return image uint8 (h, w, 3), perhaps decoded smaller; mask bool (H, W) or None; and the file's own (H, W)."""
        case = self.cases[index]
        size = read_size(case.image)
        image = read_image(case.image, min_size=self.transform.target_size, window=self.window)
        mask = None if case.mask is None else read_mask(case.mask)
        if mask is not None and mask.shape != size:
            raise ValueError(
                f"mask {case.mask} is {mask.shape}, its image {case.image} is {size} (H, W); export the mask again at the image's size"
            )
        return image, mask, size


@dataclass(frozen=True)
class Squares:
    """A data set in memory: uint8 images (N, 3, S, S) and targets (N, 1, S, S), and of each its case, its frame, and its area.

    areas (N,) are the masks' shares of their images, 0 for an empty one.
    """

    images: Tensor
    targets: Tensor
    cases: list[Case]
    frames: list[Frame]
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.cases)

    def subset(self, indices: Sequence[int]) -> "Squares":
        """The squares at `indices`, copied."""
        picked = ([values[i] for i in indices] for values in (self.cases, self.frames))
        return Squares(self.images[indices], self.targets[indices], *picked, self.areas[indices])


def load_squares(dataset: SegmentationDataset) -> Squares:
    """Read a data set with masks into memory, in threads: 4 S² bytes an image, 0.28 GB for 1,087 images at 256."""

    def load(index: int) -> tuple[Tensor, Tensor, Frame, float]:
        image, mask, size = dataset.read(index)
        return *dataset.transform(image, mask, size), mask.mean()

    squares, targets, frames, areas = zip(*map_threads(load, range(len(dataset))))
    return Squares(torch.stack(squares), torch.stack(targets), dataset.cases, list(frames), np.array(areas))
