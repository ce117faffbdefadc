"""The data check: every problem of a data set in one table, before it costs a run."""

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

from ctseg.contest import IMAGE_FOLDERS, MASK_FOLDER
from ctseg.data import (
    EXIF_ORIENTATION,
    IMAGE_SUFFIXES,
    Case,
    abridge,
    describe_mask,
    find_files,
    find_window,
    is_deep,
    map_threads,
    opened,
    read_image,
    read_mask_values,
    read_size,
)
from ctseg.paths import find_data_root
from ctseg.split import find_duplicates, make_thumbnail, normalize
from ctseg.submission import check_contest_files
from ctseg.transforms import average_area

_SEVERITIES = ("error", "warning", "note")
_SHIFT_SIZE = 64  # pixels of the longer side, where a mask is tried at other places
_MASK_KINDS = {
    "0/1": (None, ""),
    "0/255": (None, ""),
    "two values": ("warning", "the upper value is foreground"),
    "anti-aliased": ("warning", "cut at half its maximum"),
    "empty": ("warning", "kept: there is nothing to find"),
    "full": ("warning", "kept: everything is foreground; make sure that it is meant"),
    "several labels": ("error", "merge or drop labels until two values are left"),
}
# Of 862 dermoscopy and 78 CT masks none correlates below -.06 with the average mask; inverted, 99 % and 83 %
# do below -.2.
_INVERTED_CORRELATION = -0.2
# See `measure_shift` and `_check_shifts`: 5 of 862 dermoscopy and none of 78 CT masks in place exceed it;
# shifted by a tenth of the width, 77 % and 55 % do.
_SHIFT_GAIN = 0.3


def check_dataset(root: str | Path) -> list[dict]:
    """Report every problem of a data set as rows of severity, file, problem and remedy; no row, no problem.

    An "error" stops training or prediction until it is fixed; a "warning" is read as its remedy states; a
    "note" needs no action.
    """
    root = Path(root)
    rows, thumbnails, masks, gains = _check_strays(root), {}, {}, {}
    for subset, folder in IMAGE_FOLDERS.items():
        images = find_files(root / folder)
        mask_files = find_files(root / MASK_FOLDER) if subset == "train" else {}
        rows += _check_names(folder, images)
        if subset == "train":
            rows += _check_names(MASK_FOLDER, mask_files) + _check_pairs(images, mask_files)
        cases = [Case(stem, paths[0], mask_files.get(stem, [None])[0]) for stem, paths in images.items()]
        found = map_threads(partial(_check_case, root), cases)
        for case, (problems, thumbnail, mask, gain) in zip(cases, found):
            rows += problems
            if thumbnail is not None:
                thumbnails[_name(case.image, root)] = thumbnail
            if mask is not None:
                masks[_name(case.mask, root)] = mask
                gains[_name(case.mask, root)] = gain
    rows += (
        _check_duplicates(thumbnails) + _check_inverted(masks) + _check_shifts(gains) + _check_tables(root)
    )
    return _merge_rows(rows)


def _problem(severity: str, file: str, what: str, remedy: str) -> dict:
    """One row of the table of `check_dataset`."""
    return {"severity": severity, "file": file, "problem": what, "remedy": remedy}


def _name(path: Path, root: Path) -> str:
    """A file's name in the table: its path below the data root."""
    return path.relative_to(root).as_posix()


def _merge_rows(rows: Sequence[dict]) -> list[dict]:
    """Sort rows by severity, and join those that say the same of more than five files of a folder."""
    alike = defaultdict(list)
    for row in sorted(rows, key=lambda row: (_SEVERITIES.index(row["severity"]), row["file"])):
        folder = str(Path(row["file"]).parent)
        alike[row["severity"], folder, row["problem"], row["remedy"]].append(row)
    merged = []
    for (severity, folder, what, remedy), group in alike.items():
        names = abridge(Path(row["file"]).name for row in group)
        merged += group if len(group) <= 5 else [_problem(severity, folder, f"{what}: {names}", remedy)]
    return merged


def _check_strays(root: Path) -> list[dict]:
    """Find what is ignored in the folders of images and masks: hidden files, folders, other types."""
    rows = []
    for name in (*IMAGE_FOLDERS.values(), MASK_FOLDER):
        folder = root / name
        used = {path for paths in find_files(folder).values() for path in paths}
        if strays := [path.name for path in folder.glob("*") if path not in used]:
            what = f"ignored: {abridge(strays)}"
            rows.append(_problem("note", name, what, "remove it, or convert it to PNG"))
    return rows


def _check_names(folder: str, found: Mapping[str, list[Path]]) -> list[dict]:
    """Find problems of the names in a folder: none at all, a stem twice, names that other programs change."""
    if not found:
        remedy = f"expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        return [_problem("error", folder, "no folder, or no images in it", remedy)]
    rows = []
    for paths in found.values():
        if len(paths) > 1:
            what = f"same stem as {paths[0].name}"
            rows.append(_problem("error", f"{folder}/{paths[1].name}", what, "remove one of them"))
    if odd := [stem for stem in found if not re.fullmatch(r"[\w.-]+", stem, re.ASCII)]:
        what = f"names with spaces or unusual characters: {abridge(odd)}"
        rows.append(_problem("note", folder, what, "kept as they are"))
    if fragile := [stem for stem in found if re.fullmatch(r"0\d+|\d+[eE]\d+|\d+-\d+(-\d+)?", stem)]:
        what = f"names that a spreadsheet would take for numbers or dates: {abridge(fragile)}"
        rows.append(_problem("note", folder, what, "do not open the submission in one"))
    return rows


def _check_pairs(images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]]) -> list[dict]:
    """Find images without a mask of the same stem, and masks without an image, perhaps only misnamed."""

    def plain(stem: str) -> str:
        return unicodedata.normalize("NFC", stem).casefold()

    bare, orphans = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    rows = []
    for stem in bare:
        file = f"{IMAGE_FOLDERS['train']}/{images[stem][0].name}"
        remedy = "add a mask of the same stem, or remove it"
        rows.append(_problem("error", file, "image without a mask", remedy))
    for stem in orphans:
        alike = max((image for image in bare if plain(stem).startswith(plain(image))), key=len, default=None)
        file = f"{MASK_FOLDER}/{masks[stem][0].name}"
        remedy = f"give it the stem of its image, {alike!r}" if alike else "add its image, or remove it"
        rows.append(_problem("error", file, "mask without an image", remedy))
    return rows


def _check_case(root: Path, case: Case) -> tuple[list[dict], np.ndarray | None, np.ndarray | None, float]:
    """Find problems in the files of one case.

    Also return thumbnails, None where a file cannot be read: float32 (24, 24, 3) of the image, and (24, 24),
    0 … 1, of the mask; and the result of `measure_shift`, 0 where it cannot be measured.
    """
    name = _name(case.image, root)
    try:
        rows = _check_header(case.image, name)
        size = read_size(case.image)
        image = read_image(case.image, min_size=2 * _SHIFT_SIZE, window=find_window([case]))
    except ValueError as error:
        what = f"cannot be read: {error.__cause__ or error}"
        rows = [_problem("error", name, what, "replace the file or remove the case")]
        size = image = None
    if image is not None and image.min() == image.max():
        remedy = "make sure that it is meant; there is nothing to learn from it"
        rows.append(_problem("warning", name, "a single color", remedy))
    mask_rows, mask = ([], None) if case.mask is None else _check_mask(case, size, _name(case.mask, root))
    rows += mask_rows
    measurable = mask is not None and image is not None and mask.shape == size
    gain = measure_shift(image, mask) if measurable else 0.0
    thumbnails = (None if values is None else make_thumbnail(values) for values in (image, mask))
    return rows, *thumbnails, gain


def _check_header(path: Path, name: str) -> list[dict]:
    """Find unusual facts in the header of an image: type, mode, size, orientation."""
    with opened(path) as image:
        (width, height), mode, kind = image.size, image.mode, image.format
        orientation, deep = image.getexif().get(EXIF_ORIENTATION, 1), is_deep(image)
    expected = Image.registered_extensions()[path.suffix.lower()]
    common = ("L", "RGB", "I;16", "I", "F", "I;16B")
    odd = {
        f"a {kind} file, not {expected}": (kind != expected, "read all the same"),
        f"{mode} colors": (mode not in common, "read as RGB, an alpha channel dropped"),
        "more than 8 bits": (
            deep,
            "set window_low and window_high, or they are found on the training images",
        ),
        "rotated by its EXIF tag": (
            orientation != 1,
            "read upright; make sure that its mask is upright too",
        ),
        f"only {width} × {height} pixels": (min(width, height) < 16, "make sure that it is whole"),
        f"very long, {width} × {height}": (
            max(width, height) > 4 * min(width, height),
            "the longer side has to fit into the square: crop it",
        ),
    }
    return [_problem("warning", name, what, remedy) for what, (found, remedy) in odd.items() if found]


def _check_mask(case: Case, size: tuple[int, int] | None, name: str) -> tuple[list[dict], np.ndarray | None]:
    """Find problems of the mask of a case whose image is `size` (H, W), if known.

    Also return the mask, bool (H, W), if it can be read.
    """
    try:
        values = read_mask_values(case.mask)
    except ValueError as error:
        what = f"cannot be read: {error.__cause__}"
        return [_problem("error", name, what, "replace the file or remove the case")], None
    rows, kind = [], describe_mask(values)
    severity, remedy = _MASK_KINDS[kind]
    if severity:
        rows.append(_problem(severity, name, f"{kind}: {np.unique(values)[:5].tolist()}", remedy))
    if case.mask.suffix.lower() in (".jpg", ".jpeg"):
        remedy = "export it as PNG; its edges are cut at half its maximum"
        rows.append(_problem("warning", name, "saved with loss", remedy))
    if size and values.shape != size:
        transposed = values.shape == size[::-1]
        cause = "; it is transposed, or its image is rotated by an EXIF tag" if transposed else ""
        what = f"{values.shape} but its image is {size} (H, W)"
        rows.append(_problem("error", name, what, f"export the mask at the image's size{cause}"))
    return rows, values > values.max() / 2


def measure_shift(image: np.ndarray, mask: np.ndarray) -> float:
    """How much better a mask would fit its image if it were moved by 5 to 15 % of the width; 0 if not better.

    Two measures of fit have to agree: the share of the colors' variance that the mask explains (Hotelling's
    T²), and the mean gradient of the image along the mask's outline. The result is the smaller of the
    logarithms of their gains, the gradient's doubled, at the best move.

    Args:
        image: uint8 (h, w, 3), of any size.
        mask: bool (H, W), of the image's own size; an empty or nearly full one gives 0.
    """
    scale = _SHIFT_SIZE / max(mask.shape)
    size = tuple(max(1, round(side * scale)) for side in mask.shape)
    small, target = average_area(image, size) / 255, average_area(mask, size)
    if min(size) < 8 or not 0.005 < target.mean() < 0.97:
        return 0.0
    masks, outlines = _move(target), _move(np.hypot(*np.gradient(target)))
    explained, slope = _explain_colors(small, masks), _measure_slopes(small, outlines)
    here = len(masks) // 2
    color_gain = np.log((explained + 0.02) / (explained[here] + 0.02))
    slope_gain = 2 * np.log((slope + 0.01) / (slope[here] + 0.01))
    return float(np.minimum(color_gain, slope_gain).max())


def _move(values: np.ndarray) -> np.ndarray:
    """A map (h, w), moved by up to 15 % of its width each way: (moves, h w), unmoved in the middle."""
    reach = round(0.15 * values.shape[1])
    steps = np.unique(np.round(np.linspace(-reach, reach, 7)).astype(int)) + reach
    moved = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach), values.shape)
    return moved[np.ix_(steps, steps)].reshape(-1, values.size)


def _explain_colors(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of the variance of an image (h, w, 3) that each of the masks (moves, h w) explains."""
    pixels = image.reshape(-1, 3) - image.reshape(-1, 3).mean(axis=0)
    share = np.clip(masks.mean(axis=1), 1e-3, 1 - 1e-3)
    # Of the mean colors inside and outside, (moves, 3).
    difference = masks @ pixels / masks.shape[1] / (share * (1 - share))[:, None]
    whitened = np.linalg.solve(pixels.T @ pixels / len(pixels) + 1e-5 * np.eye(3), difference.T).T
    return (difference * whitened).sum(axis=1) * share * (1 - share)


def _measure_slopes(image: np.ndarray, outlines: np.ndarray) -> np.ndarray:
    """The mean gradient of an image (h, w, 3) along each of the outlines (moves, h w)."""
    smooth = ndimage.gaussian_filter(image, (0.7, 0.7, 0))
    slopes = np.linalg.norm(np.gradient(smooth, axis=(0, 1)), axis=0).sum(axis=2)
    return outlines @ slopes.ravel() / np.maximum(outlines.sum(axis=1), 1e-6)


def _check_duplicates(thumbnails: Mapping[str, np.ndarray]) -> list[dict]:
    """Find nearly the same images among thumbnails (24, 24, 3) by file."""
    names, rows = list(thumbnails), []
    for first, second in find_duplicates(list(thumbnails.values())):
        across = Path(names[first]).parent != Path(names[second]).parent
        remedy = "they are kept in one fold"
        if across:
            remedy = "its train mask is nearly the answer; do not count on its score"
        what = f"nearly the same image as {names[first]}"
        rows.append(_problem("warning", names[second], what, remedy))
    return rows


def _check_shifts(gains: Mapping[str, float]) -> list[dict]:
    """Find masks that seem shifted, from `measure_shift` by file.

    Where regions differ little from their surroundings, masks in place seem shifted as well; so a mask has to
    stand out among the others.
    """
    if not gains:
        return []
    values = list(gains.values())
    if np.median(values) > _SHIFT_GAIN:
        what = "most masks fit their images better when they are moved"
        return [_problem("warning", MASK_FOLDER, what, "look at them in notebook 01")]
    limit = max(_SHIFT_GAIN, 3.5 * np.quantile(values, 0.75))
    remedy = "look at it in notebook 01; export it again if it is shifted, flipped or another image's"
    shifted = [name for name, gain in gains.items() if gain > limit]
    return [_problem("warning", name, "fits its image better when it is moved", remedy) for name in shifted]


def _check_inverted(masks: Mapping[str, np.ndarray]) -> list[dict]:
    """Find masks, thumbnails (24, 24) by file, that look like the inverse of the average mask."""
    if not masks:
        return []
    average, rows = np.mean(list(masks.values()), axis=0), []
    if np.mean([average[0], average[-1], average[:, 0], average[:, -1]]) > 0.5:
        what = "most masks are foreground along the edge of the image"
        rows.append(_problem("warning", MASK_FOLDER, what, "invert them if they are inverted"))
    remedy = "look at it in notebook 01; invert it if it is inverted"
    usual = normalize(average)
    odd = [name for name, mask in masks.items() if normalize(mask) @ usual < _INVERTED_CORRELATION]
    return rows + [
        _problem("warning", name, "foreground where other masks have background", remedy) for name in odd
    ]


def _check_tables(root: Path) -> list[dict]:
    """Find a sample submission or run-length codes next to the data set that do not agree with it."""
    try:
        check_contest_files(root)
    except (ValueError, OSError) as error:
        what, _, remedy = str(error).partition("; ")
        return [_problem("error", "CSV files", what, remedy or "make it readable")]
    return []


def main() -> None:
    """Print the table for the data set named on the command line; exit with status 1 if it has an error."""
    rows = check_dataset(find_data_root(sys.argv[1]))
    for row in rows:
        print("{severity:8} {file}: {problem}; {remedy}".format(**row))
    counts = {name: sum(row["severity"] == name for row in rows) for name in _SEVERITIES}
    print(", ".join(f"{n} {severity}s" for severity, n in counts.items()))
    sys.exit(1 if counts["error"] else 0)


if __name__ == "__main__":
    main()
