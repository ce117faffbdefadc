"""The data doctor: describe the cases, and report every problem of a data set in one table before it costs a run."""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from ctseg.data import (
    EXIF_ORIENTATION,
    IMAGE_SUFFIXES,
    Case,
    abridge,
    describe_mask,
    find_data_root,
    find_files,
    find_window,
    map_threads,
    opened,
    read_image,
    read_mask,
    read_mask_values,
    read_size,
)
from ctseg.submission import check_contest_files
from ctseg.transforms import average_area, round_trip_dice

THUMBNAIL = 24  # pixels
SHIFT_SIZE = 64  # pixels of the longer side, where a mask is tried at other places
# Measured on 324 dermoscopy and 117 CT images: copies at half size or JPEG quality 30 correlate above .995, different
# images below .987, flipped or turned ones too.
DUPLICATE_CORRELATION = 0.992

MASK_KINDS = {
    "0/1": (None, ""),
    "0/255": (None, ""),
    "two values": ("warning", "the upper value is foreground"),
    "anti-aliased": ("warning", "cut at half its maximum"),
    "empty": ("warning", "kept: there is nothing to find"),
    "full": ("warning", "kept: everything is foreground; see that it is meant"),
    "several labels": ("error", "merge or drop labels until two values are left"),
}
# Of 862 dermoscopy and 78 CT masks none correlates below -.06 with the average mask; inverted, 99 % and 83 % do below -.2.
INVERTED_CORRELATION = -0.2
# See `measure_shift` and `check_shifts`: 5 of 862 dermoscopy and none of 78 CT masks in place exceed it; shifted by a tenth of the width,
# 77 % and 55 % do.
SHIFT_GAIN = 0.3


def describe_cases(cases: Sequence[Case], window: tuple[float, float] | None = None) -> list[dict]:
    """Describe each case in a row.

    Height and width in pixels; aspect, height / width; mean and standard deviation of each channel, 0 … 255; mask_area, the mask's share of
    the image, 0 for an empty mask and None without one.
    """
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


def tabulate_round_trip(cases: Sequence[Case], target_sizes: Sequence[int]) -> list[dict]:
    """Tabulate, by target size, the mean Dice of the cases' masks after the way into the square and back, thresholded late and early."""
    rows = []
    for size in target_sizes:
        late, early = np.mean(list(map_threads(partial(round_trips, target_size=size), cases)), axis=0)
        rows.append({"target_size": size, "dice": float(late), "dice_thresholded_early": float(early)})
    return rows


def round_trips(case: Case, target_size: int) -> tuple[float, float]:
    """Dice of a case's mask after the round trip, with the late threshold and with the early one."""
    mask = read_mask(case.mask)
    return round_trip_dice(mask, target_size), round_trip_dice(mask, target_size, early=True)


def check_dataset(root: str | Path) -> list[dict]:
    """Report every problem of a data set as rows of severity, file, problem and remedy; no row means that nothing was found.

    An "error" stops training or prediction until it is mended; a "warning" is read as its remedy states; a "note" needs no mending.
    """
    root, rows, thumbnails, masks, gains = Path(root), check_strays(Path(root)), {}, {}, {}
    for part in ("Train", "Test"):
        images = find_files(root / part / "Image")
        mask_files = find_files(root / part / "Mask") if part == "Train" else {}
        rows += check_names(f"{part}/Image", images)
        if part == "Train":
            rows += check_names("Train/Mask", mask_files) + check_pairs(images, mask_files)
        cases = [Case(stem, paths[0], mask_files.get(stem, [None])[0]) for stem, paths in images.items()]
        for case, (problems, thumbnail, mask, gain) in zip(cases, map_threads(check_case, cases)):
            rows += problems
            if thumbnail is not None:
                thumbnails[f"{part}/Image/{case.image.name}"] = thumbnail
            if mask is not None:
                masks[f"Train/Mask/{case.mask.name}"] = mask
                gains[f"Train/Mask/{case.mask.name}"] = gain
    rows += check_duplicates(thumbnails) + check_inverted(masks) + check_shifts(gains) + check_tables(root)
    return merge_rows(rows)


def problem(severity: str, file: str, what: str, remedy: str) -> dict:
    """One row of the table of `check_dataset`."""
    return {"severity": severity, "file": file, "problem": what, "remedy": remedy}


def merge_rows(rows: Sequence[dict]) -> list[dict]:
    """Sort rows by severity, and join those that say the same of more than five files of a folder."""
    alike = defaultdict(list)
    for row in sorted(rows, key=lambda row: (["error", "warning", "note"].index(row["severity"]), row["file"])):
        alike[row["severity"], str(Path(row["file"]).parent), row["problem"], row["remedy"]].append(row)
    merged = []
    for (severity, folder, what, remedy), group in alike.items():
        names = abridge(Path(row["file"]).name for row in group)
        merged += group if len(group) <= 5 else [problem(severity, folder, f"{what}: {names}", remedy)]
    return merged


def check_strays(root: Path) -> list[dict]:
    """Find what lies in the folders of images and masks and is passed over: hidden files, folders, other types."""
    rows = []
    for folder in (root / "Train" / "Image", root / "Train" / "Mask", root / "Test" / "Image"):
        used = {path for paths in find_files(folder).values() for path in paths}
        if strays := [path.name for path in folder.glob("*") if path not in used]:
            rows.append(problem("note", "/".join(folder.parts[-2:]), f"passed over: {abridge(strays)}", "remove it, or convert it to PNG"))
    return rows


def check_names(folder: str, found: Mapping[str, list[Path]]) -> list[dict]:
    """Find what is wrong with the names in one folder: none at all, two files of one stem, and names that other programs may change."""
    if not found:
        return [problem("error", folder, "no folder, or no images in it", f"expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")]
    twice = [paths for paths in found.values() if len(paths) > 1]
    rows = [problem("error", f"{folder}/{paths[1].name}", f"same stem as {paths[0].name}", "remove one of them") for paths in twice]
    if odd := [stem for stem in found if not re.fullmatch(r"[\w.-]+", stem, re.ASCII)]:
        rows.append(problem("note", folder, f"names with spaces or unusual characters: {abridge(odd)}", "kept as they are"))
    if fragile := [stem for stem in found if re.fullmatch(r"0\d+|\d+[eE]\d+|\d+-\d+(-\d+)?", stem)]:
        remedy = "do not open the submission in one"
        rows.append(problem("note", folder, f"names that a spreadsheet would take for numbers or dates: {abridge(fragile)}", remedy))
    return rows


def check_pairs(images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]]) -> list[dict]:
    """Find training images without a mask of the same stem, and masks without an image, which may only be named otherwise."""

    def plain(stem: str) -> str:
        return unicodedata.normalize("NFC", stem).casefold()

    bare, orphans = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    rows = []
    for stem in bare:
        remedy = "add a mask of the same stem, or remove it"
        rows.append(problem("error", f"Train/Image/{images[stem][0].name}", "image without a mask", remedy))
    for stem in orphans:
        alike = max((image for image in bare if plain(stem).startswith(plain(image))), key=len, default=None)
        remedy = f"give it the stem of its image, {alike!r}" if alike else "add its image, or remove it"
        rows.append(problem("error", f"Train/Mask/{masks[stem][0].name}", "mask without an image", remedy))
    return rows


def check_case(case: Case) -> tuple[list[dict], np.ndarray | None, np.ndarray | None, float]:
    """Find what is wrong with the files of one case.

    Also return thumbnails, None where a file cannot be read: float32 (24, 24, 3) of the image, and (24, 24), 0 … 1, of the mask; and what
    `measure_shift` says, 0 where it cannot be asked.
    """
    name = "/".join(case.image.parts[-3:])
    try:
        rows = check_header(case.image, name)
        size = read_size(case.image)
        image = read_image(case.image, min_size=2 * SHIFT_SIZE, window=find_window([case]))
    except ValueError as error:
        rows = [problem("error", name, f"cannot be read: {error.__cause__ or error}", "replace the file or remove the case")]
        size = image = None
    if image is not None and image.min() == image.max():
        rows.append(problem("warning", name, "a single colour", "see that it is meant; there is nothing to learn from it"))
    mask_rows, mask = ([], None) if case.mask is None else check_mask(case, size)
    rows += mask_rows
    gain = measure_shift(image, mask) if mask is not None and image is not None and mask.shape == size else 0.0
    small = (THUMBNAIL, THUMBNAIL)
    return rows, None if image is None else average_area(image, small), None if mask is None else average_area(mask, small), gain


def check_header(path: Path, name: str) -> list[dict]:
    """Find what is unusual in the header of an image: type, mode, size, orientation."""
    with opened(path) as image:
        size, mode, orientation = image.size, image.mode, image.getexif().get(EXIF_ORIENTATION, 1)
        kind, named = image.format, Image.registered_extensions()[path.suffix.lower()]
    odd = {
        f"a {kind} file, not {named}": (kind != named, "read all the same"),
        f"{mode} colours": (mode not in ("L", "RGB", "I;16", "I", "F", "I;16B"), "read as RGB, an alpha channel dropped"),
        "more than 8 bits": (mode.startswith(("I", "F")), "set window_low and window_high, or they are found on the training images"),
        "rotated by its EXIF tag": (orientation != 1, "read upright; see that its mask is upright too"),
        f"only {size[0]} × {size[1]} pixels": (min(size) < 16, "see that it is whole"),
        f"very long, {size[0]} × {size[1]}": (max(size) > 4 * min(size), "the longer side has to fit into the square: crop it"),
    }
    return [problem("warning", name, what, remedy) for what, (found, remedy) in odd.items() if found]


def check_mask(case: Case, size: tuple[int, int] | None) -> tuple[list[dict], np.ndarray | None]:
    """Find what is wrong with the mask of a case whose image is `size` (H, W), if known; also return it, bool (H, W), if it can be read."""
    name = "/".join(case.mask.parts[-3:])
    try:
        values = read_mask_values(case.mask)
    except ValueError as error:
        return [problem("error", name, f"cannot be read: {error.__cause__}", "replace the file or remove the case")], None
    rows, kind = [], describe_mask(values)
    severity, remedy = MASK_KINDS[kind]
    if severity:
        rows.append(problem(severity, name, f"{kind}: {np.unique(values)[:5].tolist()}", remedy))
    if case.mask.suffix.lower() in (".jpg", ".jpeg"):
        rows.append(problem("warning", name, "saved with loss", "export it as PNG; its edges are cut at half its maximum"))
    if size and values.shape != size:
        turned = "; it is transposed, or its image is turned by an EXIF tag" if values.shape == size[::-1] else ""
        remedy = f"export the mask at the image's size{turned}"
        rows.append(problem("error", name, f"{values.shape} but its image is {size} (H, W)", remedy))
    return rows, values > values.max() / 2


def measure_shift(image: np.ndarray, mask: np.ndarray) -> float:
    """How much better a mask would fit its image if it were moved by 5 to 15 % of the width; 0 if it fits best where it is.

    Two measures of fit have to agree: the share of the colours' variance that the mask explains (Hotelling's T²), and the mean gradient of
    the image along the mask's outline. Returned is the smaller of the logarithms of their gains, the gradient's doubled, at the best move.

    Args:
        image: uint8 (h, w, 3), of any size.
        mask: bool (H, W), of the image's own size; an empty or nearly full one gives 0.
    """
    scale = SHIFT_SIZE / max(mask.shape)
    size = tuple(max(1, round(side * scale)) for side in mask.shape)
    small, target = average_area(image, size) / 255, average_area(mask, size)
    if min(size) < 8 or not 0.005 < target.mean() < 0.97:
        return 0.0
    slopes = np.linalg.norm(np.gradient(ndimage.gaussian_filter(small, (0.7, 0.7, 0)), axis=(0, 1)), axis=0).sum(axis=2)
    reach = round(0.15 * size[1])
    steps = np.unique(np.round(np.linspace(-reach, reach, 7)).astype(int)) + reach

    def moved(values: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach), size)
        return windows[np.ix_(steps, steps)].reshape(-1, values.size)

    pixels = small.reshape(-1, 3) - small.reshape(-1, 3).mean(axis=0)
    masks, outlines = moved(target), moved(np.hypot(*np.gradient(target)))
    share = np.clip(masks.mean(axis=1), 1e-3, 1 - 1e-3)
    difference = masks @ pixels / masks.shape[1] / (share * (1 - share))[:, None]  # of the mean colours inside and outside
    whitened = np.linalg.solve(pixels.T @ pixels / len(pixels) + 1e-5 * np.eye(3), difference.T).T
    explained = (difference * whitened).sum(axis=1) * share * (1 - share)
    slope = outlines @ slopes.ravel() / np.maximum(outlines.sum(axis=1), 1e-6)
    here = len(masks) // 2
    gains = np.log((explained + 0.02) / (explained[here] + 0.02)), 2 * np.log((slope + 0.01) / (slope[here] + 0.01))
    return float(np.minimum(*gains).max())


def check_duplicates(thumbnails: Mapping[str, np.ndarray]) -> list[dict]:
    """Find nearly the same images among thumbnails (24, 24, 3) by file."""
    names, rows = list(thumbnails), []
    for first, second in find_duplicates(list(thumbnails.values())):
        across = names[first].split("/")[0] != names[second].split("/")[0]
        remedy = "its train mask is nearly the answer; do not count on its score" if across else "they are kept in one fold"
        rows.append(problem("warning", names[second], f"nearly the same image as {names[first]}", remedy))
    return rows


def check_shifts(gains: Mapping[str, float]) -> list[dict]:
    """Find masks that seem shifted, from `measure_shift` by file.

    Where regions differ little from what is around them, masks in place seem shifted as well; so a mask has to stand out among the others.
    """
    if not gains:
        return []
    if np.median(list(gains.values())) > SHIFT_GAIN:
        return [problem("warning", "Train/Mask", "most masks fit their images better when they are moved", "look at them in notebook 01")]
    limit = max(SHIFT_GAIN, 3.5 * np.quantile(list(gains.values()), 0.75))
    remedy = "look at it in notebook 01; export it again if it is shifted, flipped or another image's"
    moved = [name for name, gain in gains.items() if gain > limit]
    return [problem("warning", name, "fits its image better when it is moved", remedy) for name in moved]


def check_inverted(masks: Mapping[str, np.ndarray]) -> list[dict]:
    """Find masks, as thumbnails (24, 24) by file, that look like the inverse of what masks of this data set look like."""
    if not masks:
        return []
    average, rows = np.mean(list(masks.values()), axis=0), []
    if np.mean([average[0], average[-1], average[:, 0], average[:, -1]]) > 0.5:
        remedy = "invert them if they are inverted"
        rows.append(problem("warning", "Train/Mask", "most masks are foreground along the edge of the image", remedy))
    remedy = "look at it in notebook 01; invert it if it is inverted"
    usual = normalise(average)
    odd = [name for name, mask in masks.items() if normalise(mask) @ usual < INVERTED_CORRELATION]
    return rows + [problem("warning", name, "foreground where other masks have background", remedy) for name in odd]


def check_tables(root: Path) -> list[dict]:
    """Find a sample submission or run-length codes beside the data set that do not agree with it."""
    try:
        check_contest_files(root)
    except (ValueError, OSError) as error:
        what, _, remedy = str(error).partition("; ")
        return [problem("error", "CSV files", what, remedy or "make it readable")]
    return []


def normalise(values: np.ndarray) -> np.ndarray:
    """Any array as a float32 vector with mean 0 and length 1; a constant one becomes zeros."""
    vector = values.ravel() - values.mean()
    return vector / max(np.linalg.norm(vector), 1e-6)


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink uint8 (H, W, 3) to float32 (24, 24, 3)."""
    return average_area(image, (THUMBNAIL, THUMBNAIL))


def find_duplicates(thumbnails: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return the index pairs (i < j) of nearly the same images, be one flipped or turned: thumbnails (24, 24, 3) that correlate above
    `DUPLICATE_CORRELATION` in one of the eight orientations.
    """
    if not len(thumbnails):
        return []
    upright, alike = np.array([normalise(thumbnail) for thumbnail in thumbnails]), False
    for turns in range(4):
        for step in (1, -1):
            turned = np.array([normalise(np.rot90(thumbnail, turns)[:, ::step]) for thumbnail in thumbnails])
            alike = alike | (upright @ turned.T > DUPLICATE_CORRELATION)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(alike, k=1))]


def main() -> None:
    """Print the table for the data set named on the command line; end with status 1 if there is an error in it."""
    rows = check_dataset(find_data_root(sys.argv[1]))
    for row in rows:
        print("{severity:8} {file}: {problem}; {remedy}".format(**row))
    counts = {severity: sum(row["severity"] == severity for row in rows) for severity in ("error", "warning", "note")}
    print(", ".join(f"{n} {severity}s" for severity, n in counts.items()))
    sys.exit(1 if counts["error"] else 0)


if __name__ == "__main__":
    main()
