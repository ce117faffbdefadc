"""The data check: every problem of a data set in one table, before it costs a run."""

import argparse
import os
import re
import shlex
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin
from scipy import ndimage

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.config import Config, fill_settings
from ctseg.contest import A0, Contest
from ctseg.data import (
    Case,
    MaskSet,
    SegmentationDataset,
    abridge,
    find_files,
    find_mask_values,
    find_orientation,
    find_test_files,
    find_training_files,
    find_window,
    has_deep_colors,
    has_white_zero,
    is_deep,
    map_threads,
    opened,
    printable,
    read_image,
    read_mask_pixels,
    read_numbers,
    read_size,
)
from ctseg.files import print_anywhere
from ctseg.folders import IMAGE_SUFFIXES, Folders, find_folders, is_image
from ctseg.masks import describe_mask, is_outline
from ctseg.paths import find_data_root
from ctseg.split import find_duplicates, make_thumbnail, normalize
from ctseg.tables import check_tables
from ctseg.transforms import average_area

COLUMNS = ("severity", "file", "problem", "remedy")  # of the table
_SEVERITIES = ("error", "warning", "note")
_LONGEST_NAME = 251  # bytes, so that a file's name with ".png" has the 255 that file systems take
_SHIFT_SIZE = 64  # pixels of the longer side, where a mask is tried at other places
_TWO_VALUES = ("0/1", "0/255", "two values")
_MASK_KINDS = {
    "anti-aliased": (
        "warning",
        "soft edges are cut halfway; if a value between is a class, merge or drop it",
    ),
    "empty": ("warning", "kept: there is nothing to find"),
    "full": ("warning", "kept: everything is foreground; make sure that it is meant"),
    "several labels": ("error", "merge or drop labels until two values are left"),
    "an image": ("error", "export the mask: two values, such as 0 and 255"),
}
# Of 862 dermoscopy and 78 CT masks none correlates below -.06 with the average mask; inverted, 99 % and 83 %
# do below -.2.
_INVERTED_CORRELATION = -0.2
# See `measure_shift` and `_check_shifts`: 5 of 862 dermoscopy and none of 78 CT masks in place exceed it;
# shifted by a tenth of the width, 77 % and 55 % do.
_SHIFT_GAIN = 0.3


@dataclass
class _Findings:
    """What is found in the files of one case; None where a file cannot be read."""

    case: Case
    rows: list[dict]
    thumbnail: np.ndarray | None = None  # of the image, float32 (24, 24, 3)
    deep: bool | None = None  # whether the image has more than 8 bits
    mask: np.ndarray | None = None  # its thumbnail (24, 24), 0 … 1
    kind: str | None = None  # of the mask, see `describe_mask`
    values: str = ""  # of the mask: background/foreground if it has two, else the first of them
    gain: float = 0.0  # see `measure_shift`


def check_dataset(root: str | Path, contest: Contest = A0, *, has_window: bool = False) -> list[dict]:
    """Report every problem of a data set as rows of severity, file, problem and remedy; no row, no problem.

    An "error" stops training or prediction until it is fixed; a "warning" is read as its remedy states; a
    "note" needs no action. `has_window` says that a window for 16-bit images is given.
    """
    root = Path(root)
    folders = find_folders(root, contest)
    images, mask_files = find_training_files(folders, contest)
    mask_folder, test_files = _name(folders.train_masks, root), find_test_files(folders, contest)
    rows = _check_strays(root, folders, [images, mask_files, test_files])
    rows += _check_names(_name(folders.train_images, root), images)
    if folders.train_masks == folders.train_images and not (contest.mask_prefix or contest.mask_suffix):
        return _merge_rows(rows + _suggest_ends(mask_folder, images))
    named = find_files(folders.train_masks)
    if named and not mask_files:
        ends = f"mask_prefix {contest.mask_prefix!r} and mask_suffix {contest.mask_suffix!r}"
        what = f"no name fits {ends}: {abridge(named)}"
        rows.append(_problem("error", mask_folder, what, "fix these parameters, or leave them out"))
        return _merge_rows(rows)
    rows += _check_names(mask_folder, mask_files) + _check_pairs(root, folders, images, mask_files)
    if test_files:
        rows += _check_names(_name(folders.test_images, root), test_files)
    else:
        remedy = "training and validation need none; for a submission, put them there or pass -p test_images"
        rows.append(_problem("warning", _name(folders.test_images, root), "no test images", remedy))
    mask_set = MaskSet([paths[0] for stem, paths in mask_files.items() if stem in images])
    train = [
        Case(stem, paths[0], mask_files.get(stem, [None])[0], mask_set) for stem, paths in images.items()
    ]
    test = [Case(stem, paths[0]) for stem, paths in test_files.items()]
    train, test = (list(map_threads(partial(_check_case, root), cases)) for cases in (train, test))
    rows += [row for findings in (*train, *test) for row in findings.rows]
    rows += _check_depths(root, train, test, has_window)
    rows += _check_values(root, mask_folder, train)
    masked = {_name(findings.case.mask, root): findings for findings in train if findings.mask is not None}
    rows += _check_shifts(mask_folder, {name: findings.gain for name, findings in masked.items()})
    rows += _check_inverted(mask_folder, {name: findings.mask for name, findings in masked.items()})
    rows += _check_duplicates(
        {_name(f.case.image, root): f.thumbnail for f in (*train, *test) if f.thumbnail is not None}
    )
    return _merge_rows(rows + _check_tables(root, contest))


def count_pairs(root: str | Path, contest: Contest = A0) -> int:
    """How many training images have a mask."""
    images, mask_files = find_training_files(find_folders(Path(root), contest), contest)
    return len(images.keys() & mask_files.keys())


def check_images(folder: Path, dataset: SegmentationDataset) -> list[dict]:
    """Report what of a folder of new images is read otherwise than one may expect, as `check_dataset` does.

    Args:
        dataset: those of its images that can be read.
    """
    rows = []
    if strays := [printable(path.name) for path in folder.glob("[!.]*") if not is_image(path)]:
        remedy = "only images right in the folder are predicted"
        rows.append(_problem("warning", printable(folder.name), f"left out: {abridge(strays)}", remedy))
    names = [_name(case.image, folder) for case in dataset.cases]
    pairs = zip(dataset.cases, names)
    headers = map_threads(lambda pair: _check_header(pair[0].image, pair[1]), pairs)
    for name, (found, deep) in zip(names, headers):
        rows += found
        if dataset.window and not deep:
            remedy = "make sure that it was converted in the same way"
            rows.append(_problem("warning", name, "8 bits, so it is not read through the window", remedy))
    return _merge_rows(rows)


def print_warnings(rows: Sequence[dict]) -> None:
    """Print the warnings of a check's table."""
    for row in rows:
        if row["severity"] == "warning":
            print("warning: {file}: {problem}; {remedy}".format(**row))


def stop_at_errors(rows: Sequence[dict]) -> None:
    """Print the warnings of a check's table, and raise a ValueError if there is an error in it."""
    print_warnings(rows)
    errors = [row for row in rows if row["severity"] == "error"]
    if errors:
        found = "\n".join("{file}: {problem}; {remedy}".format(**row) for row in errors[:5])
        raise ValueError(
            f"{len(errors)} errors in the data, fix them first ('make check' lists all):\n{found}"
        )


def _problem(severity: str, file: str, what: str, remedy: str, detail: str = "") -> dict:
    """One row of the table of `check_dataset`; the detail differs among files with the same problem."""
    return {"severity": severity, "file": file, "problem": what, "remedy": remedy, "detail": detail}


def _name(path: Path, root: Path) -> str:
    """A file's name in the table: its path below the data root."""
    return printable(path.relative_to(root).as_posix())


def _merge_rows(rows: Sequence[dict]) -> list[dict]:
    """Sort rows by severity, and join those that say the same of more than five files of a folder."""
    alike = defaultdict(list)
    for row in sorted(rows, key=lambda row: (_SEVERITIES.index(row["severity"]), row["file"])):
        folder = str(Path(row["file"]).parent)
        alike[row["severity"], folder, row["problem"], row["remedy"]].append(row)
    merged = []
    for (severity, folder, what, remedy), group in alike.items():
        if len(group) > 5:
            if len({row["detail"] for row in group}) == 1:
                what = _join(what, group[0]["detail"])
                names = abridge(Path(row["file"]).name for row in group)
            else:
                names = abridge(f"{Path(row['file']).name} ({row['detail']})" for row in group)
            group = [_problem(severity, folder, what, remedy, names)]
        merged += [{**row, "problem": _join(what, row["detail"])} for row in group]
    for row in merged:
        del row["detail"]
    return merged


def _join(what: str, detail: str) -> str:
    """A problem with its detail, if it has one."""
    return f"{what}: {detail}" if detail else what


def _check_strays(root: Path, folders: Folders, found: Sequence[Mapping[str, list[Path]]]) -> list[dict]:
    """Find what is ignored in the folders of images and masks: hidden files, folders, other types, names."""
    used = {path for files in found for paths in files.values() for path in paths}
    known, rows = {folders.train_images, folders.train_masks, folders.test_images}, []
    for folder in sorted(known):
        ignored = set(folder.glob("*")) - used - known
        if strays := [printable(path.name) for path in ignored]:
            what = f"ignored: {abridge(strays)}"
            rows.append(_problem("note", _name(folder, root), what, "remove them, or convert images to PNG"))
    return rows


def _check_names(folder: str, found: Mapping[str, list[Path]]) -> list[dict]:
    """Find problems of the names in a folder: none at all, a stem twice, names that other programs change."""
    if not found:
        remedy = f"expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        return [_problem("error", folder, "no folder, or no images in it", remedy)]
    rows = []
    for paths in found.values():
        if len(paths) > 1:
            what = f"same stem as {printable(paths[0].name)}"
            rows.append(_problem("error", f"{folder}/{printable(paths[1].name)}", what, "remove one of them"))
    foreign = [
        stem
        for stem, (path, *_) in found.items()
        if printable(path.stem) != os.fsencode(path.stem).decode("utf-8", "replace")  # whatever the locale is
    ]
    if foreign:
        what = f"names that are not UTF-8, or hold a carriage return: {abridge(foreign)}"
        remedy = "rename them as the contest lists them; until then, ids have these escapes"
        rows.append(_problem("warning", folder, what, remedy))
    if long := [stem for stem in found if len(stem.encode()) > _LONGEST_NAME]:
        remedy = f"shorten them to {_LONGEST_NAME} bytes, so that a mask's file can have them"
        rows.append(_problem("error", folder, f"names that are too long: {abridge(long)}", remedy))
    usual = re.compile(r"[\w.-]+", re.ASCII)
    if odd := [stem for stem in found if not usual.fullmatch(stem) and stem not in foreign]:
        what = f"names with spaces or unusual characters: {abridge(odd)}"
        rows.append(_problem("note", folder, what, "kept as they are"))
    if fragile := [stem for stem in found if re.fullmatch(r"0\d+|\d+[eE]\d+|\d+-\d+(-\d+)?", stem)]:
        what = f"names that a spreadsheet would take for numbers or dates: {abridge(fragile)}"
        rows.append(_problem("note", folder, what, "do not open the submission in one"))
    return rows


def _suggest_ends(folder: str, found: Mapping[str, list[Path]]) -> list[dict]:
    """The row for images and masks in one folder: what tells the masks' names, if there is such a thing."""
    ends = Counter()
    for stem in found:
        for part in _find_ends(stem):
            if part != stem and part in found:
                is_suffix = stem.startswith(part)
                end = stem[len(part) :] if is_suffix else stem[: -len(part)]
                ends["mask_suffix" if is_suffix else "mask_prefix", end] += 1
    (name, end), _ = ends.most_common(1)[0] if ends else (("mask_suffix", "_mask"), 0)
    remedy = f"pass what the masks' names have more than their images', as in -p {name} {shlex.quote(end)}"
    return [_problem("error", folder, "images and masks in one folder", remedy)]


def _check_pairs(
    root: Path, folders: Folders, images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]]
) -> list[dict]:
    """Find images without a mask, and masks without an image: misnamed, one of several, or alone."""
    orphans = masks.keys() - images.keys()
    image_of = _match_names(orphans, images.keys(), masks.keys())
    masks_of = Counter(image_of.values())
    misnamed = {
        mask: image for mask, image in image_of.items() if image not in masks and masks_of[image] == 1
    }
    rows = _describe_names(_name(folders.train_masks, root), misnamed, images, masks)
    for stem in sorted(orphans - misnamed.keys()):
        file = _name(masks[stem][0], root)
        if stem in image_of:
            what = "one of several masks of an image"
            remedy = "merge them into one file of the image's stem: foreground where any of them has it"
        else:
            what, remedy = "mask without an image", "add its image, or remove it"
        rows.append(_problem("error", file, what, remedy))
    for stem in sorted(images.keys() - masks.keys() - set(image_of.values())):
        file = _name(images[stem][0], root)
        remedy = "add a mask of the same stem, or remove it"
        rows.append(_problem("error", file, "image without a mask", remedy))
    return rows


def _match_names(orphans: Iterable[str], images: Iterable[str], masks: Iterable[str]) -> dict[str, str]:
    """The image that each mask without one of its stem seems to belong to.

    Its name begins or ends with the image's, the longest first; or both have the same words and numbers but
    for those that most names of their folder have, and share no words in another order.
    """
    plain = {_plain(image): image for image in images}
    of_images, of_masks = _split_names(images), _split_names(masks)
    by_id = defaultdict(list)
    for image, name in of_images.items():
        by_id[name.id_words].append(image)
    image_of = {}
    for mask in sorted(orphans):
        alike = [plain[part] for part in _find_ends(_plain(mask)) if part in plain]
        same = by_id[of_masks[mask].id_words] if of_masks[mask].id_words else []
        if alike:
            image_of[mask] = max(alike, key=len)
        elif len(same) == 1 and _agree(of_images[same[0]].common, of_masks[mask].common):
            image_of[mask] = same[0]
    return image_of


def _plain(stem: str) -> str:
    """A name without the differences that some file systems ignore: composed characters and case."""
    return unicodedata.normalize("NFC", stem).casefold()


def _find_ends(stem: str) -> list[str]:
    """The beginnings and ends of a name, itself among them, that do not cut a word or a number."""
    cuts = [0, *(match.start() for match in re.finditer(r"\d+|[^\W\d_]+|[\W_]", stem)), len(stem)]
    return [part for cut in cuts for part in (stem[:cut], stem[cut:]) if part]


@dataclass(frozen=True)
class _Name:
    """A name's words and numbers: those that tell it from others, and those that most names have."""

    id_words: tuple[str, ...]  # numbers without leading zeros
    common: tuple[str, ...]
    start: str  # before the first of its own words
    end: str  # after the last


def _split_names(stems: Iterable[str]) -> dict[str, _Name]:
    """Split names into words; a word is common if more than half of the names have it."""
    found = {stem: list(re.finditer(r"\d+|[^\W\d_]+", stem)) for stem in stems}
    words = {stem: [_plain(match[0]).lstrip("0") or "0" for match in found[stem]] for stem in found}
    frequency = Counter(word for names in words.values() for word in set(names))
    split = {}
    for stem, matches in found.items():
        is_common = [2 * frequency[word] > len(words) for word in words[stem]]
        own = [match for match, common in zip(matches, is_common) if not common]
        split[stem] = _Name(
            tuple(word for word, common in zip(words[stem], is_common) if not common),
            tuple(word for word, common in zip(words[stem], is_common) if common),
            stem[: own[0].start()] if own else stem,
            stem[own[-1].end() :] if own else "",
        )
    return split


def _agree(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the words that both have are in the same order."""
    shared = set(first) & set(second)
    return [word for word in first if word in shared] == [word for word in second if word in shared]


def _describe_names(
    folder: str, image_of: Mapping[str, str], images: Iterable[str], masks: Mapping[str, list[Path]]
) -> list[dict]:
    """Rows for misnamed masks: one per naming rule that more than five follow."""
    of_images, of_masks, rules = _split_names(images), _split_names(masks), defaultdict(list)
    for mask, image in image_of.items():
        start, found, end = mask.partition(image)
        old, new = (start, end), ("", "")
        if not found:
            old, new = ((name.start, name.end) for name in (of_masks[mask], of_images[image]))
        if mask[len(old[0]) : len(mask) - len(old[1])] != image[len(new[0]) : len(image) - len(new[1])]:
            old = new = None  # they differ within, as 1 and 001
        rules[old, new].append(mask)
    rows = []
    for (old, new), group in rules.items():
        if len(group) > 5 and old:
            what = "masks named {}<id>{} for the image {}<id>{}".format(*old, *new)
            described = set(group)
            others = [
                mask
                for mask in masks
                if mask.startswith(old[0]) and mask.endswith(old[1]) and mask not in described
            ]
            is_safe = not others and all(mask == masks[mask][0].stem for mask in group)
            command = f"; in their folder: {_write_rename(old, new)}" if is_safe else ""
            remedy = f"give them the stems of their images{command}"
            if new == ("", ""):
                ends = {"mask_prefix": old[0], "mask_suffix": old[1]}
                parameters = " ".join(f"-p {name} {shlex.quote(end)}" for name, end in ends.items() if end)
                remedy = f"pass {parameters}, or {remedy}"
            rows.append(_problem("error", folder, what, remedy, abridge(group)))
            continue
        for mask in group:
            file = f"{folder}/{printable(masks[mask][0].name)}"
            detail = f"of the image {image_of[mask]!r}"
            rows.append(_problem("error", file, "misnamed mask", "give it the stem of its image", detail))
    return rows


def _write_rename(old: tuple[str, str], new: tuple[str, str]) -> str:
    """The shell's command that changes how all stems in a folder begin and end."""
    (old_start, old_end), (new_start, new_end) = (
        tuple("'" + text.replace("'", "'\"'\"'") + "'" if text else "" for text in ends)
        for ends in (old, new)
    )
    cut = f"n=${{f#{old_start}}}; n=${{n%{old_end}.*}}"
    move = f'mv -n -- "$f" {new_start}"$n"{new_end}."${{f##*.}}"'
    return f"for f in {old_start}*{old_end}.*; do {cut}; {move}; done"


def _check_case(root: Path, case: Case) -> _Findings:
    """Find problems in the files of one case."""
    name, found, size, image = _name(case.image, root), _Findings(case, []), None, None
    try:
        found.rows, found.deep = _check_header(case.image, name)
        size = read_size(case.image)
        image = read_image(case.image, min_size=2 * _SHIFT_SIZE, window=find_window([case]))
    except ValueError as error:
        found.rows = [_report_unreadable(name, error)]
    if image is not None:
        found.thumbnail = make_thumbnail(image)
        if found.deep and _wraps_around(case.image):
            what, remedy = "negative values stored as large ones", "save it as signed integers"
            found.rows.append(_problem("warning", name, what, remedy))
        if image.min() == image.max():
            remedy = "make sure that it is meant; there is nothing to learn from it"
            found.rows.append(_problem("warning", name, "a single color", remedy))
    if case.mask is not None:
        mask = _check_mask(found, size, _name(case.mask, root))
        if mask is not None:
            found.mask = make_thumbnail(mask)
            found.gain = measure_shift(image, mask) if image is not None and mask.shape == size else 0.0
    return found


def _report_unreadable(name: str, error: ValueError) -> dict:
    """The row for a file that a reader refused."""
    remedy = "replace the file or remove the case"
    return _problem("error", name, "cannot be read", remedy, str(error.__cause__ or error))


def _check_header(path: Path, name: str) -> tuple[list[dict], bool]:
    """Find unusual facts in the header of an image: type, mode, size, orientation; and whether it is deep."""
    with opened(path) as image:
        (width, height), mode, kind = image.size, image.mode, image.format
        n_channels = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) if kind == "TIFF" else 1
        n_frames, deep_colors = getattr(image, "n_frames", 1), has_deep_colors(image)
        white_zero, signed_bytes = has_white_zero(image), read_numbers(image) == (8, 2)
        orientation, deep = find_orientation(image), is_deep(image)
    expected = Image.registered_extensions()[path.suffix.lower()]
    common = ("L", "RGB", "I;16", "I", "F", "I;16B")
    odd = {
        "not the type that its name says": (
            kind != expected,
            "read all the same",
            f"{kind}, not {expected}",
        ),
        f"{mode} colors": (mode not in common, "read as RGB, an alpha channel dropped", ""),
        "16 bits per channel in color": (
            deep_colors,
            "only the upper 8 bits are read; convert it to 8, above all if it does not use all 16",
            "",
        ),
        "more than four channels": (n_channels > 4, "only the first three are read", n_channels),
        "signed bytes": (signed_bytes, "read as unsigned: -1 is 255; save it as unsigned bytes", ""),
        "a TIFF whose white is 0": (
            white_zero and deep,
            "its stored values are read, so that it is a negative; save it with 0 as black",
            "",
        ),
        "several frames": (
            n_frames > 1 and kind != "MPO",
            "only the first is read; save it as a file of its own",
            n_frames,
        ),
        "rotated by its EXIF or TIFF tag": (
            orientation != 1,
            "read upright; make sure that its mask is upright too, or has the same tag",
            "",
        ),
        "very small": (min(width, height) < 16, "make sure that it is whole", f"{width} × {height} pixels"),
        "very long": (
            max(width, height) > 4 * min(width, height),
            "the longer side has to fit into the square: crop it",
            f"{width} × {height} pixels",
        ),
    }
    rows = [
        _problem("warning", name, what, remedy, str(detail))
        for what, (is_odd, remedy, detail) in odd.items()
        if is_odd
    ]
    return rows, deep


def _wraps_around(path: Path) -> bool:
    """Whether values of 16 bits are near both ends of their range and nowhere between."""
    with opened(path) as image:
        values = np.asarray(image)
    if values.dtype != np.uint16:
        return False
    below, above = np.mean(values < 2**14), np.mean(values >= 2**16 - 2**14)
    return bool(min(below, above) > 0.01 and below + above > 0.999)


def _check_mask(found: _Findings, size: tuple[int, int] | None, name: str) -> np.ndarray | None:
    """Add a mask's problems, kind and values to the findings of its case, whose image is `size` (H, W).

    Return the mask, bool (H, W), if it can be read.
    """
    case = found.case
    try:
        pixels = read_mask_pixels(case.mask)
        with opened(case.mask) as image:
            white_zero, signed_bytes = has_white_zero(image), read_numbers(image) == (8, 2)
    except ValueError as error:
        found.rows.append(_report_unreadable(name, error))
        return None
    values = find_mask_values(pixels, case.mask_set)
    levels = case.mask_set.find_levels(values)
    mask = values > sum(levels) / 2
    found.kind = describe_mask(values, levels)
    if found.kind in _TWO_VALUES:
        ends = (values.argmin(), values.argmax())
        found.values = "/".join(_name_pixel(pixels.reshape(values.size, -1)[end]) for end in ends)
    else:
        found.values = _name_values(pixels)
    odd = {
        "saved with loss": (
            case.mask.suffix.lower() in (".jpg", ".jpeg"),
            "export it as PNG; its edges are cut halfway",
        ),
        "a TIFF whose white is 0": (white_zero, "its stored values count, the upper one is foreground"),
        "signed bytes": (signed_bytes, "read as unsigned: -1 is 255; save it as unsigned bytes"),
        "only outlines are drawn": (is_outline(mask), "fill them, unless the lines are what is meant"),
    }
    found.rows += [
        _problem("warning", name, what, remedy) for what, (is_odd, remedy) in odd.items() if is_odd
    ]
    if size and values.shape != size:
        transposed = values.shape == size[::-1]
        cause = "; it is transposed, or its image is rotated by an EXIF tag" if transposed else ""
        remedy = f"export the mask at the image's size{cause}"
        detail = f"{values.shape} but its image is {size} (H, W)"
        found.rows.append(_problem("error", name, "of another size", remedy, detail))
    return mask


def _name_pixel(pixel: np.ndarray) -> str:
    """A pixel's gray value, or its color."""
    values = pixel.tolist()
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(map(str, values))})"


def _name_values(pixels: np.ndarray) -> str:
    """The first five values or colors of a mask, in order."""
    if pixels.ndim == 3:
        packed = np.unique(pixels.astype(np.int32) @ [2**16, 2**8, 1])
        present = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    else:
        present = np.unique(pixels)[:, None]
    return ", ".join(map(_name_pixel, present[:5])) + " …" * (len(present) > 5)


def _check_depths(
    root: Path, train: Sequence[_Findings], test: Sequence[_Findings], has_window: bool
) -> list[dict]:
    """Find images of more than 8 bits, and those of 8 bits among them."""
    depths, rows = {findings.deep for findings in train} - {None}, []
    for findings in (*train, *test):
        if findings.deep and depths == {False} and not has_window:
            what, severity = "more than 8 bits, where the training images have 8", "error"
            remedy = (
                "convert it to 8 bits in the same way as them, or pass the values that become black and "
                "white, as in -p window_low 0 -p window_high 65535"
            )
        elif findings.deep:
            what, severity = "more than 8 bits", "warning"
            remedy = "set window_low and window_high, or they are found on the training images"
            if has_window:
                remedy = "read through the window that is given"
        elif findings.deep is False and True in depths:
            what, severity = "8 bits, where training images have more", "warning"
            remedy = "read as it is; make sure that it was converted with the same window"
        else:
            continue
        rows.append(_problem(severity, _name(findings.case.image, root), what, remedy))
    return rows


def _check_values(root: Path, folder: str, train: Sequence[_Findings]) -> list[dict]:
    """Find masks of other kinds and values than 0/1 or 0/255, and whether masks differ in them."""
    read, rows, pairs = [findings for findings in train if findings.kind], [], defaultdict(list)
    kinds = {findings.kind for findings in read}
    if kinds in ({"empty"}, {"full"}):
        remedy = "there is nothing to learn; export them again"
        return [_problem("error", folder, f"all masks are {kinds.pop()}", remedy)]
    for findings in read:
        name = _name(findings.case.mask, root)
        if findings.kind in _TWO_VALUES:
            pairs[findings.values].append(Path(name).name)
        else:
            severity, remedy = _MASK_KINDS[findings.kind]
            rows.append(_problem(severity, name, findings.kind, remedy, findings.values))
    if len(pairs) > 1 or pairs.keys() - {"0/1", "0/255"}:
        counts = [f"{pair} ({names[0] if len(names) == 1 else len(names)})" for pair, names in pairs.items()]
        what = f"masks of the values {', '.join(counts[:8])}{' …' if len(counts) > 8 else ''}"
        remedy = "the upper value is foreground, in color what is not the color along the border"
        if len(pairs) > 1:
            remedy += "; if they are labels of several classes, keep one class"
        rows.append(_problem("warning", folder, what, remedy))
    return rows


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
    names, rows, seen = list(thumbnails), [], set()
    for first, second in find_duplicates(list(thumbnails.values())):
        across = Path(names[first]).parent != Path(names[second]).parent
        if (second, across) in seen:  # frames of a video have many; one of each kind is enough
            continue
        seen.add((second, across))
        remedy = "they are kept in one fold"
        if across:
            remedy = "its train mask is nearly the answer; do not count on its score"
        detail = f"as {names[first]}"
        rows.append(_problem("warning", names[second], "nearly the same image", remedy, detail))
    return rows


def _check_shifts(folder: str, gains: Mapping[str, float]) -> list[dict]:
    """Find masks that seem shifted, from `measure_shift` by file.

    Where regions differ little from their surroundings, masks in place seem shifted as well; so a mask has to
    stand out among the others.
    """
    if not gains:
        return []
    values = list(gains.values())
    if np.median(values) > _SHIFT_GAIN:
        what = "most masks fit their images better when they are moved"
        return [_problem("warning", folder, what, "look at them in notebook 01")]
    limit = max(_SHIFT_GAIN, 3.5 * np.quantile(values, 0.75))
    remedy = "look at it in notebook 01; export it again if it is shifted, flipped or another image's"
    shifted = [name for name, gain in gains.items() if gain > limit]
    return [_problem("warning", name, "fits its image better when it is moved", remedy) for name in shifted]


def _check_inverted(folder: str, masks: Mapping[str, np.ndarray]) -> list[dict]:
    """Find masks, thumbnails (24, 24) by file, that look like the inverse of the average mask."""
    if not masks:
        return []
    average, rows = np.mean(list(masks.values()), axis=0), []
    if np.mean([average[0], average[-1], average[:, 0], average[:, -1]]) > 0.5:
        what = "most masks are foreground along the edge of the image"
        rows.append(_problem("warning", folder, what, "invert them if they are inverted"))
    remedy = "look at it in notebook 01; invert it if it is inverted"
    usual = normalize(average)
    odd = [name for name, mask in masks.items() if normalize(mask) @ usual < _INVERTED_CORRELATION]
    return rows + [
        _problem("warning", name, "foreground where other masks have background", remedy) for name in odd
    ]


def _check_tables(root: Path, contest: Contest) -> list[dict]:
    """Find a sample submission or run-length codes next to the data set that do not agree with it."""
    try:
        check_tables(root, contest)
    except (ValueError, OSError) as error:
        what, _, remedy = str(error).partition("; ")
        return [_problem("error", "CSV files", what, remedy or "make it readable")]
    return []


def main() -> None:
    """Print the table for the data set that the command line says; exit with status 1 if it has an error."""
    parser = argparse.ArgumentParser(description="Check a data set: what is wrong, and what to do about it.")
    parser.add_argument("data_root", nargs="?", default="", help="its folder; nothing to look for it")
    add_parameters(parser)
    given = parse_arguments(parser)
    try:
        parameters = read_arguments(given)
        config = Config(**fill_settings(parameters))
        root = find_data_root(given.data_root or config.data_root, config)
        rows = check_dataset(root, config, has_window=None not in (config.window_low, config.window_high))
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"check: {error}")
    n_test = len(find_test_files(find_folders(root, config), config))
    print(_escape(f"data in {root}: {count_pairs(root, config)} training pairs, {n_test} test images"))
    for row in rows:
        print(_escape("{severity:8} {file}: {problem}; {remedy}".format(**row)))
    counts = {name: sum(row["severity"] == name for row in rows) for name in _SEVERITIES}
    print(", ".join(f"{n} {severity}s" for severity, n in counts.items()))
    sys.exit(1 if counts["error"] else 0)


def _escape(line: str) -> str:
    """A line without line breaks and what else would change how a terminal shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


if __name__ == "__main__":
    print_anywhere()
    main()
