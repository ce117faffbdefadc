"""From files to arrays: find the data, pair images with masks, read them, describe them, check them, split them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.utils.data import Dataset

from ctseg.phantom import write_phantom
from ctseg.transforms import EvalTransform, Frame, make_frame

COMPETITION = "a0-2025-medical-image-segmentation"
KAGGLE_INPUT = Path("/kaggle/input")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}


# Finding --------------------------------------------------------------------------------------------------------------------------


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
    if str(data_root) == "phantom":
        return write_phantom(find_repository() / "data" / "phantom")
    if data_root or os.environ.get("CTSEG_DATA"):
        path = Path(data_root or os.environ["CTSEG_DATA"]).expanduser()
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
    """Image files of a folder by stem, sorted; hidden files and other types are passed over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected the competition's layout Train/Image, Train/Mask, Test/Image")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found


def find_cases(root: Path, part: str) -> list[Case]:
    """List the cases of `part` ("Train" or "Test") sorted by id, each image paired with the mask of the same stem.

    Raises:
        FileNotFoundError: a folder is missing or holds no images.
        ValueError: an image without a mask, a mask without an image, or two files of one stem.
    """
    images = find_files(root / part / "Image")
    masks = find_files(root / part / "Mask") if part == "Train" else {}
    if not images:
        raise FileNotFoundError(f"no images in {root / part / 'Image'}; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    refuse(f"{part}: two files of one stem", [stem for found in (images, masks) for stem, paths in found.items() if len(paths) > 1])
    if part != "Train":
        return [Case(stem, paths[0]) for stem, paths in images.items()]
    refuse("images without a mask of the same stem in Train/Mask", images.keys() - masks.keys())
    refuse("masks without an image of the same stem in Train/Image", masks.keys() - images.keys())
    return [Case(stem, paths[0], masks[stem][0]) for stem, paths in images.items()]


def refuse(what: str, names) -> None:
    """Raise a ValueError that names the first five and the count, if there are any."""
    names = sorted(names)
    if names:
        raise ValueError(f"{what}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''} ({len(names)} in all); add or remove files, 01_eda lists every problem")


# Reading --------------------------------------------------------------------------------------------------------------------------


def read_size(path: Path) -> tuple[int, int]:
    """Read (H, W) from an image's header, as it is seen after its EXIF rotation."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 exchange the axes
    return (width, height) if turned else (height, width)


def read_image(path: Path, *, min_size: int | None = None, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read an image as uint8 (H, W, 3), upright.

    Args:
        path: grey, RGB, RGBA (over black), palette or CMYK, 8 or 16 bits.
        min_size: decode a JPEG at ½, ¼ or ⅛ of its size as long as its longer side keeps this many pixels; several times faster.
        window: (low, high) in stored values that become 0 and 255, for 16-bit files.

    Raises:
        ValueError: the file cannot be decoded, or has 16 bits and no window was given.
    """
    try:
        with Image.open(path) as image:
            if min_size:
                image.draft(image.mode, [max(1, side * min_size // max(image.size)) for side in image.size])
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):
                return np.repeat(apply_window(np.asarray(image), window)[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {path}: {error}; replace the file or remove it together with its mask") from error


def apply_window(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Map stored values (H, W) linearly so that window = (low, high) becomes uint8 0 … 255."""
    if window is None:
        raise ValueError("it has more than 8 bits and needs window_low and window_high, in stored values")
    low, high = window
    return (np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255 + 0.5).astype(np.uint8)


def find_window(cases: Sequence[Case], low: float | None = None, high: float | None = None) -> tuple[float, float] | None:
    """Return the window for 16-bit images: the given bounds, or the 0.5 and 99.5 percentiles over all of `cases`; None if all have 8 bits."""
    samples = []
    for case in cases:
        with Image.open(case.image) as image:
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image).ravel()
                samples.append(values[:: max(1, values.size // 10_000)])
    if not samples:
        return None
    percentiles = np.percentile(np.concatenate(samples), [0.5, 99.5])
    return float(percentiles[0] if low is None else low), float(percentiles[1] if high is None else high)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as bool (H, W); whatever two values it uses, the upper one is foreground, and anti-aliased edges are cut at half.

    Raises:
        ValueError: the file cannot be decoded, or it holds several labels.
    """
    values = read_mask_values(path)
    kind = describe_mask(values)
    if kind == "several labels":
        raise ValueError(f"mask {path} holds several labels {np.unique(values)[:5].tolist()}; expected two values such as 0 and 255; merge or drop labels")
    return values > values.max() / 2


def read_mask_values(path: Path) -> np.ndarray:
    """Read the stored grey values of a mask, (H, W) of an integer dtype."""
    try:
        with Image.open(path) as image:
            return np.asarray(image if image.mode.startswith("I") else image.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read mask {path}: {error}; replace the file or remove it together with its image") from error


def describe_mask(values: np.ndarray) -> str:
    """Name the kind of a mask: "empty", "0/1", "0/255", "two values", "anti-aliased" or "several labels".

    Anti-aliasing leaves values between the extremes along edges only; a value between them that fills a whole 3 x 3 block is a label.
    """
    present = np.unique(values)
    if present[-1] == 0:
        return "empty"
    if len(present) <= 2:
        return {1: "0/1", 255: "0/255"}.get(int(present[-1]), "two values")
    flat = ndimage.maximum_filter(values, 3) == ndimage.minimum_filter(values, 3)
    return "several labels" if np.any(flat & (values > 0) & (values < present[-1])) else "anti-aliased"


def map_threads(function, items, max_workers: int | None = None) -> Iterator:
    """Apply `function` to each item in threads, results in order; Pillow and NumPy release the interpreter lock while they work."""
    with ThreadPoolExecutor(max_workers or os.cpu_count()) as pool:
        yield from pool.map(function, items)


# The data set ---------------------------------------------------------------------------------------------------------------------


class SegmentationDataset(Dataset):
    """Cases as the network sees them: item i is (square, target or None, frame), as `EvalTransform` returns it.

    Raises ValueError where a mask's size is not its image's.
    """

    def __init__(self, cases: Sequence[Case], transform: EvalTransform, window: tuple[float, float] | None = None):
        self.cases, self.transform, self.window = list(cases), transform, window

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None, Frame]:
        case = self.cases[index]
        size = read_size(case.image)
        image = read_image(case.image, min_size=self.transform.target_size, window=self.window)
        mask = None if case.mask is None else read_mask(case.mask)
        if mask is not None and mask.shape != size:
            raise ValueError(f"mask {case.mask} is {mask.shape}, its image {case.image} is {size} (H, W); export the mask again at the image's size")
        return self.transform(image, mask, size)


@dataclass(frozen=True)
class Squares:
    """A data set in memory: uint8 images (N, 3, S, S) and targets (N, 1, S, S), and each one's case and frame."""

    images: Tensor
    targets: Tensor
    cases: list[Case]
    frames: list[Frame]

    def __len__(self) -> int:
        return len(self.cases)

    def subset(self, indices: Sequence[int]) -> "Squares":
        """The squares at `indices`, copied."""
        return Squares(self.images[indices], self.targets[indices], [self.cases[i] for i in indices], [self.frames[i] for i in indices])


def load_squares(dataset: SegmentationDataset) -> Squares:
    """Read a data set with masks into memory, in threads: 4 S² bytes an image, 0.28 GB for 1,087 images at 256."""
    squares, targets, frames = zip(*map_threads(dataset.__getitem__, range(len(dataset))))
    return Squares(torch.stack(squares), torch.stack(targets), dataset.cases, list(frames))


# Describing and checking ----------------------------------------------------------------------------------------------------------


def describe_cases(cases: Sequence[Case], window: tuple[float, float] | None = None) -> list[dict]:
    """Describe each case in a row: height, width (pixels), aspect (height / width), mean and spread of each channel (0 … 255), and
    mask_area (share of the image; 0 for an empty mask, None without one)."""
    return list(map_threads(lambda case: describe_case(case, window), cases))


def describe_case(case: Case, window: tuple[float, float] | None) -> dict:
    """Describe one case, as `describe_cases` does."""
    height, width = read_size(case.image)
    pixels = read_image(case.image, min_size=256, window=window).reshape(-1, 3)
    area = None if case.mask is None else float(read_mask(case.mask).mean())
    return {
        "image_id": case.image_id,
        "height": height,
        "width": width,
        "aspect": height / width,
        **{f"mean_{channel}": float(value) for channel, value in zip("rgb", pixels.mean(axis=0))},
        **{f"std_{channel}": float(value) for channel, value in zip("rgb", pixels.std(axis=0))},
        "mask_area": area,
    }


def check_dataset(root: str | Path) -> list[dict]:
    """Report every problem of a data set as rows of severity, file, problem and remedy; no row means that nothing was found.

    An "error" stops training or prediction until it is mended, a "warning" is read in a way that the remedy states.
    """
    root, rows, thumbnails = Path(root), [], {}
    for part in ("Train", "Test"):
        rows += check_pairing(root, part)
        images = find_files(root / part / "Image") if (root / part / "Image").is_dir() else {}
        masks = find_files(root / part / "Mask") if part == "Train" and (root / part / "Mask").is_dir() else {}
        cases = [Case(stem, paths[0], masks.get(stem, [None])[0]) for stem, paths in images.items()]
        for case, (problems, thumbnail) in zip(cases, map_threads(check_case, cases)):
            rows += problems
            if thumbnail is not None:
                thumbnails[f"{part}/{case.image.name}"] = thumbnail
    names = list(thumbnails)
    for first, second in find_duplicates(np.array(list(thumbnails.values()))):
        across = names[first].split("/")[0] != names[second].split("/")[0]
        remedy = "its train mask is nearly the answer; do not count on its score" if across else "they are kept in one fold"
        rows.append(problem("warning", names[second], f"nearly the same image as {names[first]}", remedy))
    return sorted(rows, key=lambda row: (row["severity"], row["file"]))


def problem(severity: str, file, what: str, remedy: str) -> dict:
    """One row of the table of `check_dataset`."""
    return {"severity": severity, "file": str(file), "problem": what, "remedy": remedy}


def check_pairing(root: Path, part: str) -> list[dict]:
    """Find what is wrong with the files' names: no folder, no images, a missing or orphan mask, two files of one stem."""
    rows, found = [], {}
    for kind in ("Image", "Mask") if part == "Train" else ("Image",):
        name = f"{part}/{kind}"
        found[kind] = find_files(root / name) if (root / name).is_dir() else {}
        if not found[kind]:
            rows.append(problem("error", name, "no folder or no images in it", f"expected {', '.join(sorted(IMAGE_SUFFIXES))}"))
        for stem, paths in found[kind].items():
            if len(paths) > 1:
                rows.append(problem("error", f"{name}/{paths[1].name}", f"same stem as {paths[0].name}", "remove one of them"))
    if part == "Train":
        for stem in found["Image"].keys() - found["Mask"].keys():
            rows.append(problem("error", f"Train/Image/{found['Image'][stem][0].name}", "image without a mask", f"add Train/Mask/{stem}.png"))
        for stem in found["Mask"].keys() - found["Image"].keys():
            rows.append(problem("error", f"Train/Mask/{found['Mask'][stem][0].name}", "mask without an image", "add the image or remove the mask"))
    return rows


def check_case(case: Case) -> tuple[list[dict], np.ndarray | None]:
    """Find what is wrong with the files of one case; also return the image's thumbnail, None where it cannot be read."""
    rows, thumbnail, size, values = [], None, None, None
    image, mask = ("/".join(path.parts[-3:]) if path else None for path in (case.image, case.mask))
    try:
        size = read_size(case.image)
        with Image.open(case.image) as opened:
            deep = opened.mode.startswith(("I", "F"))
            if opened.getexif().get(0x0112, 1) != 1:
                rows.append(problem("warning", image, "rotated by its EXIF tag", "read upright; see that its mask is upright too"))
        thumbnail = make_thumbnail(read_image(case.image, min_size=64, window=find_window([case]) if deep else None))
    except (OSError, ValueError, SyntaxError) as error:
        rows.append(problem("error", image, f"cannot be read: {error}", "replace the file or remove the case"))
    if case.mask is None:
        return rows, thumbnail
    try:
        values = read_mask_values(case.mask)
    except ValueError as error:
        rows.append(problem("error", mask, f"cannot be read: {error}", "replace the file or remove the case"))
    else:
        kind = describe_mask(values)
        if size and values.shape != size:
            rows.append(problem("error", mask, f"{values.shape} but its image is {size} (H, W)", "export the mask at the image's size"))
        if kind == "several labels":
            rows.append(problem("error", mask, f"several labels {np.unique(values)[:5].tolist()}", "merge or drop labels until two values are left"))
        elif kind in ("empty", "anti-aliased", "two values"):
            remedy = {"empty": "kept: nothing to find there", "anti-aliased": "cut at half its maximum", "two values": "the upper is foreground"}[kind]
            rows.append(problem("warning", mask, f"mask is {kind}", remedy))
    return rows, thumbnail


THUMBNAIL = 24
DUPLICATE_CORRELATION = 0.99  # different lesions of one contest were seen to reach .968, recompressed copies stay above .995


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink uint8 (H, W, 3) to a vector of 24 * 24 * 3 float32 with mean 0 and length 1; a constant image becomes zeros."""
    small = np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32).ravel()
    small -= small.mean()
    return small / max(np.linalg.norm(small), 1e-6)


def find_duplicates(thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Return the index pairs (i < j) of nearly the same images: thumbnails (N, D) that correlate above `DUPLICATE_CORRELATION`."""
    if len(thumbnails) == 0:
        return []
    alike = np.triu(thumbnails @ thumbnails.T > DUPLICATE_CORRELATION, k=1)
    return [(int(i), int(j)) for i, j in np.argwhere(alike)]


# Splitting ------------------------------------------------------------------------------------------------------------------------


def group_duplicates(squares: Squares) -> np.ndarray:
    """Return a group number for each case (N,): near-duplicates, and what they are duplicates of, share one."""
    thumbnails = np.array([make_thumbnail(image.permute(1, 2, 0).numpy()[frame.window]) for image, frame in zip(squares.images, squares.frames)])
    pairs = np.array(find_duplicates(thumbnails)).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(squares), len(squares)))
    return connected_components(graph, directed=False)[1]


def make_folds(areas: np.ndarray, groups: np.ndarray, n_folds: int, *, seed: int) -> np.ndarray:
    """Deal cases into folds of nearly the same size and mix of region sizes; return each case's fold (N,) in 0 … n_folds - 1.

    Args:
        areas: each case's region, as a share of its image (N,); 0 for an empty mask.
        groups: cases with the same number stay together (N,).

    Raises:
        ValueError: fewer groups than folds.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = group.max() + 1
    if n_groups < n_folds:
        raise ValueError(f"{n_groups} distinct images cannot be dealt into {n_folds} folds; lower n_folds or add images")
    rng = np.random.default_rng(seed)
    by_area = np.argsort(np.bincount(group, weights=areas) / np.bincount(group), kind="stable")
    fold_of_group = np.empty(n_groups, int)
    for start in range(0, n_groups, n_folds):  # neighbours in size go to different folds
        dealt = by_area[start : start + n_folds]
        fold_of_group[dealt] = rng.permutation(n_folds)[: len(dealt)]
    return fold_of_group[group]


def split_cases(squares: Squares, *, n_folds: int, fold: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (train, validation) of one fold, both sorted.

    n_folds 1 keeps a tenth for validation. split "stratified" is `make_folds` with near-duplicates grouped; "random" is the reference's.
    """
    dealt = n_folds if n_folds > 1 else 10
    n = len(squares)
    if split == "random":
        folds = np.empty(n, int)
        folds[np.random.default_rng(seed).permutation(n)] = np.arange(n) * dealt // n
    else:
        covered = squares.targets.flatten(1).float().mean(dim=1).numpy() / 255
        inside = np.array([np.prod(frame.resized_size) / frame.target_size**2 for frame in squares.frames])
        folds = make_folds(covered / inside, group_duplicates(squares), dealt, seed=seed)
    return np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
