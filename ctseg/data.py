"""From files to arrays: pair images with masks, read them, and hold the training set in memory."""

import math
import os
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from ctseg.contest import A0, Contest
from ctseg.device import count_cores, send
from ctseg.folders import IMAGE_SUFFIXES, Folders, find_folders, is_image
from ctseg.masks import describe_mask, find_border_color, find_levels, measure_difference
from ctseg.shared import make_shared
from ctseg.transforms import EvalTransform, Letterbox

EXIF_ORIENTATION = 0x0112
# Formats that are read, whatever the file's name says. For some others Pillow would start a program.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")


class MaskSet:
    """All masks of a data set: together they tell what is background where one of them does not.

    Args:
        paths: the mask files; up to 64 of them are read, when they are first needed.
    """

    def __init__(self, paths: Sequence[Path] = ()):
        self._paths, self._lock = list(paths), threading.Lock()
        self._found: list[float | tuple[int, int, int]] | None = None

    def __reduce__(self):
        return MaskSet, (self._paths,)  # a lock cannot be handed to another process

    def find_background(self) -> float | tuple[int, int, int] | None:
        """The lower gray value of most masks, or the color along the border of most; None if none tells."""
        with self._lock:
            if self._found is None:
                sample = self._paths[:: math.ceil(len(self._paths) / 64) or 1]
                votes = [vote for vote in map_threads(_find_own_background, sample) if vote is not None]
                self._found = [value for value, _ in Counter(votes).most_common(1)]
        return self._found[0] if self._found else None

    def find_levels(self, values: np.ndarray) -> tuple[float, float]:
        """The values of background and foreground in a mask as `read_mask_values` returns it."""
        (low, high), lowest, highest = find_levels(values), values.min(), values.max()
        if lowest == 0 and (highest > 0 or values.dtype.kind == "u"):
            return low, high
        background = self.find_background()
        if isinstance(background, tuple):
            return 0.0, high
        if background is None or (lowest < highest and len(np.unique(values)) == 2):
            return low, high
        return background if lowest == highest else min(low, background), high


def _find_own_background(path: Path) -> float | tuple[int, int, int] | None:
    """A gray mask's lower value, or the color along a color mask's border; None if the mask does not tell."""
    try:
        pixels = read_mask_pixels(path)
    except ValueError:  # `read_mask` will name the file
        return None
    if pixels.ndim == 3 and not _is_gray(pixels):
        return find_border_color(pixels)
    return find_levels(pixels)[0] if pixels.min() < pixels.max() else None


@dataclass(frozen=True)
class Case:
    """One image file and, in training, its mask file; `image_id` is the file stem and the submission's id."""

    image_id: str
    image: Path
    mask: Path | None = None
    mask_set: MaskSet | None = field(default=None, compare=False, repr=False)  # that the mask is one of


def printable(name: str | Path) -> str:
    r"""A file's name in UTF-8, with escapes for other bytes (as in archives from other systems) and for "\r".

    A carriage return would end a line of the submission.

    >>> print(printable("l\udce9sion"))
    l\xe9sion
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\r", r"\r")


def png_path(folder: Path, image_id: str) -> Path:
    """The PNG of an id, by its UTF-8 bytes: the locale may know fewer letters."""
    return folder / os.fsdecode(f"{image_id}.png".encode())


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Image files of a folder by stem, as `printable` gives it, in order; {} if the folder is missing.

    Hidden files and other types are ignored.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if is_image(path):
            found.setdefault(printable(path.stem), []).append(path)
    return dict(sorted(found.items()))


def find_training_files(
    folders: Folders, contest: Contest
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Image files and mask files of the training set, both by the images' stems.

    A mask's stem begins and ends as the contest says. Files that do not are ignored where a prefix or suffix
    is set; in a folder of both they are the images.
    """
    images, files = find_files(folders.train_images), find_files(folders.train_masks)
    start, end = contest.mask_prefix, contest.mask_suffix
    names = [name for name in files if name.startswith(start) and name.endswith(end)]
    masks = {name[len(start) : len(name) - len(end)]: files[name] for name in names}
    if folders.train_images == folders.train_masks and (start or end):
        images = {name: images[name] for name in images.keys() - set(names)}
    return dict(sorted(images.items())), dict(sorted(masks.items()))


def find_test_files(folders: Folders, contest: Contest) -> dict[str, list[Path]]:
    """Image files of the test set by stem; without masks, where training masks are among the images too."""
    found = find_files(folders.test_images)
    if folders.train_images != folders.train_masks:
        return found
    masks = {f"{contest.mask_prefix}{stem}{contest.mask_suffix}" for stem in found}
    return {stem: paths for stem, paths in found.items() if stem not in masks}


def find_cases(root: Path, subset: str, contest: Contest = A0) -> list[Case]:
    """List the cases of a subset, "train" or "test", by id; each training image with its mask.

    Without test images the list is empty: a contest may not have given them out yet.

    Raises:
        FileNotFoundError: no training images.
        ValueError: an image without a mask, a mask without an image, or two files of one stem.
    """
    folders = find_folders(root, contest)
    if subset == "test":
        images = find_test_files(folders, contest)
        _refuse_twice(folders.test_images, images)
        return [Case(stem, paths[0]) for stem, paths in images.items()]
    images, masks = find_training_files(folders, contest)
    if not images:
        raise FileNotFoundError(
            f"no images in {folders.train_images}; expected {', '.join(sorted(IMAGE_SUFFIXES))} there and in "
            f"{folders.train_masks}"
        )
    if folders.train_images == folders.train_masks and not (contest.mask_prefix or contest.mask_suffix):
        raise ValueError(
            f"images and masks are both in {folders.train_images}; pass what the masks' names have more than "
            "those of their images, as in -p mask_suffix _mask"
        )
    _refuse_twice(folders.train_images, images)
    _refuse_twice(folders.train_masks, masks)
    names = folders.train_images.relative_to(root), folders.train_masks.relative_to(root)
    _refuse(f"images without a mask of the same stem in {names[1]}", images.keys() - masks.keys())
    _refuse(f"masks without an image of the same stem in {names[0]}", masks.keys() - images.keys())
    mask_set = MaskSet([masks[stem][0] for stem in images])
    return [Case(stem, paths[0], masks[stem][0], mask_set) for stem, paths in images.items()]


def _refuse_twice(folder: Path, found: dict[str, list[Path]]) -> None:
    """Raise a ValueError if two files have one stem."""
    _refuse(f"{folder}: two files of one stem", [stem for stem, paths in found.items() if len(paths) > 1])


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
        # As a file: by its name, Pillow would map a plain TIFF into memory and ignore its orientation.
        with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        reason = ValueError(_explain(path)) if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"cannot read {printable(path)}: {reason}; replace or remove it") from reason


def _explain(path: Path) -> str:
    """Why Pillow cannot identify a file."""
    try:
        with open(path, "rb") as file:
            header = file.read(8)
            header += file.read(8) if header[2:3] == b"+" else b""  # a BigTIFF has a longer one
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        bits, kinds = tags[TiffImagePlugin.BITSPERSAMPLE], tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        numbers = {1: "unsigned integers", 2: "signed integers", 3: "floating point"}.get(kinds[0], "numbers")
        found = f"it is a TIFF with {len(bits)} channel(s) of {bits[0]}-bit {numbers}"
        return f"{found}; expected up to four channels of 8 bits, or one of 16 bits or 32-bit floating point"
    except Exception:  # it is not a TIFF, or one too damaged to tell
        return f"cannot identify its type; expected one of {', '.join(_FORMATS)}"


def find_orientation(image: Image.Image) -> int:
    """The number in an image's orientation tag, 1 (upright) to 8; 1 for none and for any other number."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def read_size(path: Path) -> tuple[int, int]:
    """Read (H, W) of an image as `read_image` returns it, that is with its orientation tag."""
    with opened(path) as image:
        orientation = find_orientation(image)
        if image.format == "TIFF" and orientation > 1:
            image = ImageOps.exif_transpose(image)
            orientation = 1
        width, height = image.size
    return (width, height) if orientation >= 5 else (height, width)  # 5 to 8 exchange the axes


def is_deep(image: Image.Image) -> bool:
    """Whether a gray image has more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def has_deep_colors(image: Image.Image) -> bool:
    """Whether a color image, just opened, has 16 bits per channel, of which Pillow reads the upper 8."""
    if image.format == "TIFF":
        return not is_deep(image) and max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    return image.format == "PNG" and not is_deep(image) and any(";16" in str(tile[3]) for tile in image.tile)


def read_numbers(image: Image.Image) -> tuple[int, int]:
    """Bits and kind (1 unsigned, 2 signed, 3 floating-point) of a TIFF's numbers; (0, 1) of other files."""
    if image.format != "TIFF":
        return 0, 1
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    return bits[0], image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]


def has_white_zero(image: Image.Image) -> bool:
    """Whether an image is a TIFF in which 0 is white, so that Pillow returns the inverse of what is stored.

    Some programs set this tag and mean the stored values all the same, such as tifffile for masks of bool.
    """
    return image.format == "TIFF" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


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


def read_mask(path: Path, mask_set: MaskSet | None = None) -> np.ndarray:
    """Read a mask as bool (H, W), upright.

    Foreground is the upper of two gray values; in color, what is not the background (see `MaskSet`). Soft
    edges are cut halfway.

    Args:
        mask_set: the masks that this one belongs to.

    Raises:
        ValueError: the file cannot be decoded, or has several frames, labels, 16-bit colors, values that are
            not finite, or its foreground in its alpha channel.
    """
    values = read_mask_values(path, mask_set)
    levels = (mask_set or MaskSet()).find_levels(values)
    kind = describe_mask(values, levels)
    if kind in ("several labels", "an image"):
        found = ", ".join(f"{value:g}" for value in np.unique(values)[:5])
        what = {"an image": "looks like an image", "several labels": "holds several labels"}[kind]
        raise ValueError(
            f"mask {printable(path)} {what}: {found}; expected two values such as 0 and 255; merge labels, "
            "or export the mask again"
        )
    return values > sum(levels) / 2


def read_mask_values(path: Path, mask_set: MaskSet | None = None) -> np.ndarray:
    """Read a mask's values (H, W): as `find_mask_values` finds them in its pixels.

    Raises:
        ValueError: see `read_mask`; labels are not looked for.
    """
    return find_mask_values(read_mask_pixels(path), mask_set)


def find_mask_values(pixels: np.ndarray, mask_set: MaskSet | None = None) -> np.ndarray:
    """Gray values as they are; of colors (H, W, 3), their differences from the background's; (H, W)."""
    if pixels.ndim == 2:
        return pixels
    background = mask_set.find_background() if mask_set else None
    if not isinstance(background, tuple):
        if _is_gray(pixels):
            return pixels[..., 0]
        background = find_border_color(pixels) if background is None else (background,) * 3
    return measure_difference(pixels, background)


def read_mask_pixels(path: Path) -> np.ndarray:
    """Read a mask's pixels, upright: (H, W) as stored from a file of gray values, else uint8 (H, W, 3).

    Raises:
        ValueError: see `read_mask`.
    """
    with opened(path) as image:
        if (n_frames := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"it has {n_frames} frames, expected one; merge them into one mask")
        if has_deep_colors(image):
            raise ValueError("it has 16 bits per channel in color; save it with 8")
        is_inverted, numbers = has_white_zero(image), read_numbers(image)
        image = ImageOps.exif_transpose(image)
        if is_deep(image):
            values = np.asarray(image)
            if not np.isfinite(values).all():
                raise ValueError("it contains NaN or infinite values; write 0 for background")
            return values.view(np.uint32) if numbers == (32, 1) else values  # Pillow reads them as signed
        if image.mode in ("1", "L"):
            values = np.asarray(image.convert("L"))
            return 255 - values if is_inverted else values
        colors = np.asarray(image.convert("RGB"))
        if _is_constant(colors):
            if image.has_transparency_data and not _is_constant(np.asarray(image.convert("RGBA"))):
                raise ValueError("it is painted in its alpha channel; save that channel as the mask")
            if image.mode == "P" and not _is_constant(np.asarray(image)[..., None]):
                return np.asarray(image)  # a palette without colors: its numbers count
        return colors


def _is_constant(pixels: np.ndarray) -> bool:
    """Whether all pixels of (H, W, C) are the same."""
    return bool((pixels == pixels[:1, :1]).all())


def _is_gray(colors: np.ndarray) -> bool:
    """Whether all channels of (H, W, 3) are the same."""
    return bool((colors == colors[..., :1]).all())


def map_threads(function: Callable, items: Iterable) -> Iterator:
    """Apply `function` to each item in threads, results in order; items are taken a few ahead, as needed.

    Pillow and NumPy release the interpreter lock while they work.
    """
    n_threads = min(8, count_cores())  # each may hold an image of many megapixels
    with ThreadPoolExecutor(n_threads) as pool:
        begun = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 4 * n_threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


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
        mask = None if case.mask is None else read_mask(case.mask, case.mask_set)
        if mask is not None and mask.shape != size:
            raise ValueError(
                f"mask {printable(case.mask)} is {mask.shape}, its image {printable(case.image)} is {size} "
                "(H, W); export the mask again at the image's size"
            )
        return image, mask, size


def drop_unreadable(dataset: SegmentationDataset) -> tuple[SegmentationDataset, dict[str, str]]:
    """A data set without the images that cannot be read, and of each of those why not, {id: reason}.

    Raises:
        ValueError: none can be read.
    """

    def try_to_read(index: int) -> str:
        try:
            dataset.read(index)
        except ValueError as error:
            return str(error)
        return ""

    reasons = list(map_threads(try_to_read, range(len(dataset))))
    cases = [case for case, reason in zip(dataset.cases, reasons) if not reason]
    unreadable = {case.image_id: reason for case, reason in zip(dataset.cases, reasons) if reason}
    if not cases:
        raise ValueError(f"none of {len(unreadable)} images can be read; the first: {reasons[0]}")
    return SegmentationDataset(cases, dataset.transform, dataset.window), unreadable


@dataclass(frozen=True)
class TrainingSet:
    """Training cases, decoded once: N of them, of the M whose pixels a data set holds.

    Attributes:
        pixels: uint8 (M, 4, S, S), three channels of the image, and 255 times the share of each pixel that
            the mask covers. Mapped on `file`, so that other processes can share them.
        rows: int64 (N,), each case's row in `pixels`.
        cases, letterboxes: each image's files, and how to undo its resize.
        areas: each mask's share of its image (N,); 0 for an empty one.
        mask_digests: a checksum of each mask, see `digest_mask`.
        packed_masks: each mask at its own size, see `pack_mask`.
        file: see `shared.make_shared`.
        seconds: that loading took.
    """

    pixels: Tensor
    rows: Tensor
    cases: list[Case]
    letterboxes: list[Letterbox]
    areas: np.ndarray
    mask_digests: list[str]
    packed_masks: list[bytes]
    file: BinaryIO | None = None
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.cases)

    def get_batch(self, indices: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The pixels of the cases at indices (B,), uint8 (B, 4, S, S) on the device, or to be sent there."""
        rows = self.rows[indices]
        if self.pixels.device.type != "cpu":
            return self.pixels[send(rows, self.pixels.device)]
        pinned = torch.device(device).type == "cuda"
        batch = torch.empty((len(rows), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        return torch.index_select(self.pixels, 0, rows, out=batch)

    def get_image(self, index: int) -> Tensor:
        """A case's image as the network sees it, uint8 (3, S, S)."""
        return self.pixels[self.rows[index], :3].cpu()

    def get_mask(self, index: int) -> np.ndarray:
        """A case's mask at its own size, bool (H, W)."""
        return unpack_mask(self.packed_masks[index], self.letterboxes[index].original_size)

    def describe(self) -> list[str]:
        """Each case's id, its size and its mask's pixels: what tells it from other data sets' cases."""
        sizes = [letterbox.original_size for letterbox in self.letterboxes]
        return [
            f"{case.image_id} {height}x{width} {round(area * height * width)}"
            for case, (height, width), area in zip(self.cases, sizes, self.areas)
        ]

    def select(self, indices: Sequence[int]) -> "TrainingSet":
        """The cases at `indices`; their pixels are shared, not copied."""
        indices = np.asarray(indices, int)
        lists = self.cases, self.letterboxes, self.mask_digests, self.packed_masks
        cases, letterboxes, digests, packed = ([values[index] for index in indices] for values in lists)
        return TrainingSet(
            self.pixels,
            self.rows[indices],
            cases,
            letterboxes,
            self.areas[indices],
            digests,
            packed,
            self.file,
        )


def load_training_set(dataset: SegmentationDataset) -> TrainingSet:
    """Read a data set with masks: 4 S² bytes per image, 0.28 GB for 1,087 images at 256.

    Raises:
        ValueError: all masks are empty, or all are full: there is nothing to learn.
        OSError: no room for it, see `make_shared`.
    """
    started, side = time.monotonic(), dataset.transform.target_size
    file, array = make_shared((len(dataset), 4, side, side))
    pixels = torch.from_numpy(array)

    def load(index: int) -> tuple[Letterbox, float, str, bytes]:
        image, mask, size = dataset.read(index)
        pixels[index, :3], pixels[index, 3:], letterbox = dataset.transform(image, mask, size)
        return letterbox, mask.mean(), digest_mask(mask), pack_mask(mask)

    letterboxes, areas, digests, packed = zip(*map_threads(load, range(len(dataset))))
    if set(areas) in ({0}, {1}):
        kind = "full" if areas[0] else "empty"
        raise ValueError(
            f"all {len(dataset)} masks are {kind}, such as {printable(dataset.cases[0].mask)}; expected "
            "regions to learn; export the masks again, see 01_eda"
        )
    rows = torch.arange(len(dataset))
    lists, seconds = (list(digests), list(packed)), time.monotonic() - started
    return TrainingSet(pixels, rows, dataset.cases, list(letterboxes), np.array(areas), *lists, file, seconds)


def pack_mask(mask: np.ndarray) -> bytes:
    """A mask's pixels, bool (H, W), as deflated bits: 30 kB for 12 megapixels with one smooth region.

    >>> unpack_mask(pack_mask(np.eye(3, dtype=bool)), (3, 3)).astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 1]])
    """
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def unpack_mask(packed: bytes, size: tuple[int, int]) -> np.ndarray:
    """The mask of size (H, W) that `pack_mask` packed."""
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=math.prod(size)).view(bool).reshape(size)


def digest_mask(mask: np.ndarray) -> str:
    """A checksum of a mask's pixels and its size, bool (H, W)."""
    return f"{zlib.crc32(np.packbits(mask).tobytes(), zlib.crc32(str(mask.shape).encode())):08x}"
