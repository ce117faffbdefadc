"""What the tables that come with a contest's data say of its submission, and whether the settings agree."""

import csv
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from ctseg.contest import Contest
from ctseg.data import (
    MaskSet,
    abridge,
    find_test_files,
    find_training_files,
    printable,
    read_mask,
    read_size,
)
from ctseg.folders import find_folders
from ctseg.submission import decode_rle, encode_rle, make_reader

_NUMBERINGS = [{"pixel_order": order, "first_pixel": first} for order in "CF" for first in (1, 0)]
_NAMES_OF_CODES = re.compile(r"mask|rle|pixel|predict|encod|segment|code", re.IGNORECASE)
_SURE_NAMES = re.compile(r"mask|rle|encod|segment", re.IGNORECASE)
_RUNS = re.compile(r"\s*\d+\s+\d+(\s+\d+\s+\d+)*\s*")
_NO_RUN = re.compile(r"\s*[01] [01]\s*")  # how some contests write a mask without foreground
_SAMPLE = re.compile(r"(?<![a-z])sample(?!s[^u])")  # sample_submission, SampleSubmission


@dataclass(frozen=True)
class _Table:
    """A CSV file; only the first rows are read if none of them has an image's id."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    ids: str  # the column of ids, "" if there is none
    has_extensions: bool = False  # whether ids are file names rather than stems


def check_tables(root: Path, contest: Contest, *, limit: int | None = None) -> None:
    """Check the settings against the tables that come with the data: `*.csv` in `root` or the folder above.

    A table with "sample" in its name is this contest's sample submission if it has its test images or its
    columns, or lies in `root` and is called a submission; in the folder above, where other contests' may be,
    if most of its rows are of test images. Run-length codes of training masks may be in any table. Other
    tables are ignored.

    Args:
        limit: how many codes of a table are compared with their masks, evenly spread; None for all.

    Raises:
        ValueError: a sample of other ids than the test images, a code of another mask than its image's, or a
            table in another format than the submission would have; then the message ends with the parameters
            that fit.
    """
    folders = find_folders(root, contest)
    images, masks = (
        {stem: paths[0] for stem, paths in found.items()} for found in find_training_files(folders, contest)
    )
    test = {stem: paths[0] for stem, paths in find_test_files(folders, contest).items()}
    told, columns, lines = {}, {}, []
    has_sample = False
    paths = [*root.glob("[!.]*.csv"), *root.parent.glob("[!.]*.csv")]
    for path in sorted(filter(Path.is_file, paths)):
        codes, sample = _read_table(path, images), _read_table(path, test)
        found = {}
        if _SAMPLE.search(path.name.lower()) and _is_ours(sample, test, root, contest):
            columns = found = _read_sample(sample, test, contest)
            has_sample = True
        elif codes.ids:
            found = _read_codes(codes, masks, contest, limit)
        differing = {name: value for name, value in found.items() if value != getattr(contest, name)}
        if differing:
            lines.append(f"{path} has {_describe(differing)}")
            told |= differing
    if has_sample:  # it knows the columns better than a table of training codes
        told.pop("submission_columns", None)
    told = {name: value for name, value in (told | columns).items() if value != getattr(contest, name)}
    if told:
        parameters = " ".join(
            # A text that -p would take for another value is passed as it is.
            f"{'-r' if value in ('None', 'True', 'False') else '-p'} {name} {shlex.quote(str(value))}"
            for name, value in told.items()
        )
        settings = _describe({name: getattr(contest, name) for name in told})
        raise ValueError(f"{', '.join(lines)}, but the settings say {settings}; pass {parameters}")


def _read_table(path: Path, images: Mapping[str, Path]) -> _Table:
    """Read a table; its ids are in the column in which most of the first rows name an image."""
    names = {printable(image.name) for image in images.values()}
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = make_reader(file)
            reader.restval = ""  # as in a footer
            columns, rows = list(reader.fieldnames or ()), list(islice(reader, 100))
            hits = {name: sum(_find_stem(row[name], images) is not None for row in rows) for name in columns}
            ids = max(hits, key=hits.get, default="")
            if not hits.get(ids):
                return _Table(path, columns, rows, "")
            rows += reader
    except csv.Error:  # not a table after all
        return _Table(path, [], [], "")
    names -= images.keys()
    return _Table(path, columns, rows, ids, any(row[ids] in names for row in rows))


def _is_ours(table: _Table, test: Mapping[str, Path], root: Path, contest: Contest) -> bool:
    """Whether a table that is called a sample is this contest's sample submission."""
    has_columns = table.columns == list(contest.read_columns())
    is_called_so = "sub" in table.path.name.lower()
    if not (has_columns or is_called_so or any(map(_NAMES_OF_CODES.search, table.columns))):
        return False
    if table.path.parent == root:
        return bool(table.ids or has_columns or is_called_so)
    known = [_find_stem(row[table.ids], test) for row in table.rows if table.ids]
    return has_columns if not test else len(known) - known.count(None) > len(known) / 2


def _read_sample(table: _Table, test: Mapping[str, Path], contest: Contest) -> dict:
    """The columns and the kind of ids of a sample submission.

    A contest that takes notebooks only has other test images when it scores.

    Raises:
        ValueError: its ids are not the test images' or are repeated, or a column has values that the kit
            cannot know.
    """
    if len(table.columns) < 2:
        raise ValueError(
            f"{table.path} has the columns {table.columns}; expected ids and codes, with commas between them"
        )
    is_usual = table.columns == list(contest.read_columns())
    usual_ids = {value: name for name, value in contest.read_columns().items()}["{id}"]
    ids = table.ids or (usual_ids if is_usual else next(iter(table.columns), ""))
    expected = {printable(image.name) if table.has_extensions else stem for stem, image in test.items()}
    if test and not contest.notebooks_only and (odd := {row[ids] for row in table.rows} ^ expected):
        raise ValueError(
            f"{table.path}: its ids and the test images differ in {abridge(map(str, odd))}; get the missing "
            "files, or the contest's data again, or make the ids the images' names"
        )
    if repeated := [name for name, count in Counter(row[ids] for row in table.rows).items() if count > 1]:
        raise ValueError(
            f"{table.path} has several rows for {abridge(repeated)}, such as one for each region or class; "
            "the kit writes one for each image; remove the table to train all the same"
        )
    found = {"id_with_extension": table.has_extensions} if test else {}
    return (
        found if is_usual else found | {"submission_columns": _derive_columns(replace(table, ids=ids), test)}
    )


def _derive_columns(table: _Table, images: Mapping[str, Path]) -> str:
    """A table's columns as a parameter; ValueError if they cannot be one."""
    repeated = len(set(table.columns)) < len(table.columns)
    if repeated or any(re.search("[,={}]|^$", name) for name in table.columns):
        raise ValueError(
            f"{table.path} has the columns {table.columns}, which the kit cannot write; expected different "
            "names without commas, '=' and braces; remove the table to train all the same"
        )
    others = [name for name in table.columns if name != table.ids]
    named = [name for name in others if _NAMES_OF_CODES.search(name)] or others
    # "ImageId,EncodedPixels,PredictedClass": the name alone does not tell, but codes do, or their absence.
    for is_code in (_RUNS.fullmatch, lambda text: not text):
        named = [name for name in named if any(is_code(row[name]) for row in table.rows)] or named
    named = [name for name in named if _SURE_NAMES.search(name)] or named
    entries = {}
    for name in table.columns:
        if name == table.ids:
            entries[name] = "{id}"
        elif name == named[-1]:
            entries[name] = "{mask}"
        else:
            entries[name] = _find_value(table, name, images)
    own = [value for value in entries.values() if value in ("{id}", "{mask}")]
    is_plain = own == ["{id}", "{mask}"]
    return ",".join(
        name if is_plain and value in own else f"{name}={value}" for name, value in entries.items()
    )


def _find_value(table: _Table, name: str, images: Mapping[str, Path]) -> str:
    """What a column holds: `{height}` or `{width}` of the images, or the same in all rows.

    Raises:
        ValueError: neither.
    """
    by_name = {printable(image.name): image for image in images.values()} | dict(images)
    rows = [row for row in table.rows if row[table.ids] in by_name]
    sizes = [read_size(by_name[row[table.ids]]) for row in rows]
    sides = [
        side
        for axis, side in enumerate(("{height}", "{width}"))
        if rows and all(row[name] == str(size[axis]) for row, size in zip(rows, sizes))
    ]
    if sides:  # of square images, the name tells
        return "{width}" if len(sides) == 2 and "w" in name.lower() else sides[0]
    values = {row[name] for row in table.rows}
    if not rows and name.lower() in ("height", "width"):  # a row in place of images that nobody has
        return f"{{{name.lower()}}}"
    if len(values) == 1 and not set(min(values)) & set(",{}"):
        return values.pop()
    raise ValueError(
        f"{table.path}: the column {name} is not the same in all rows, or has commas or braces; expected an "
        "id, a code, a constant, the image's height or width; pass -p submission_columns with a value for "
        f"it, such as 'ID,{name}=1,Mask'"
    )


def _read_codes(table: _Table, masks: Mapping[str, Path], contest: Contest, limit: int | None) -> dict:
    """The format of a table's codes of training masks; {} if it has none.

    Boxes, sizes and other numbers are not codes: none of them is its mask's. A column that is called as the
    contest's codes has to hold them, if it holds pairs of numbers at all.

    Raises:
        ValueError: see `_read_numbering`.
    """
    usual = {value: name for name, value in contest.read_columns().items()}["{mask}"]
    for column in sorted(table.columns, key=lambda name: name != usual):
        written = islice((row[column] for row in table.rows if row[column]), 100)
        has_runs = any(map(_RUNS.fullmatch, written))
        if has_runs or column == usual:
            has_to_fit = has_runs and column == usual
            found = _read_numbering(table, column, masks, contest, limit, has_to_fit)
            if found is not None:
                is_whole = len(table.columns) == 2 and set(table.columns) != set(contest.read_columns())
                return found | ({"submission_columns": f"{table.ids},{column}"} if is_whole else {})
    return {}


def _read_numbering(
    table: _Table,
    column: str,
    masks: Mapping[str, Path],
    contest: Contest,
    limit: int | None,
    has_to_fit: bool,
) -> dict | None:
    """How codes of training masks number pixels, and write an empty mask; None if no code is its mask's.

    Ids with several rows, one for each region or class, are left out.

    Raises:
        ValueError: a code is that of another mask, while others are their masks', or the column `has_to_fit`.
    """
    counts, mask_set = Counter(row[table.ids] for row in table.rows), MaskSet(list(masks.values()))
    stems = {row[table.ids]: _find_stem(row[table.ids], masks) for row in table.rows}
    rows = [row for row in table.rows if stems[row[table.ids]] and counts[row[table.ids]] == 1]
    usual = {name: getattr(contest, name) for name in ("pixel_order", "first_pixel")}
    fitting, empty = [usual, *(numbering for numbering in _NUMBERINGS if numbering != usual)], set()
    n_fitting, odd = 0, []
    for row in rows[:: math.ceil(len(rows) / limit) if limit and rows else 1]:
        mask, code = read_mask(masks[stems[row[table.ids]]], mask_set), row[column]
        if not mask.any() and (_NO_RUN.fullmatch(code) or not _RUNS.fullmatch(code)):
            empty.add(code)
            continue
        found = [numbering for numbering in fitting if _fits(code, mask, replace(contest, **numbering))]
        if found:
            fitting, n_fitting = found, n_fitting + 1
        else:
            odd.append(row[table.ids])
        if len(odd) >= 20 and not n_fitting:
            break  # these are not codes
    if odd and (n_fitting or has_to_fit):
        raise ValueError(
            f"{table.path}, {table.ids} {odd[0]}: a run-length code of another mask, in any order "
            f"({len(odd)} of {len(odd) + n_fitting} codes); fix the table or the mask or, if images were "
            "resized or the codes are predictions, remove the table"
        )
    if odd or not rows:
        return None
    # One text for all; a file's name, for instance, is another one in each row.
    return ({"empty_mask": empty.pop()} if len(empty) == 1 else {}) | fitting[0]


def _find_stem(name: str, masks: Mapping[str, Path]) -> str | None:
    """The stem of an image by its id, its file's name or its path; None if there is none."""
    file = PurePosixPath(name)
    known = (stem for stem in (name, file.name, file.stem) if stem in masks)
    return next(known, None) if name else None


def _fits(code: str, mask: np.ndarray, contest: Contest) -> bool:
    """Whether a code is a mask's."""
    if code == encode_rle(mask, contest):
        return True
    try:
        return np.array_equal(decode_rle(code, mask.shape, contest), mask)
    except ValueError:
        return False


def _describe(found: Mapping) -> str:
    """Some of a contest's facts in words."""
    words = {
        "submission_columns": lambda value: f"the columns {value}",
        "id_with_extension": lambda value: f"ids {'with' if value else 'without'} an extension",
        "pixel_order": lambda value: f"codes {'row by row' if value == 'C' else 'column by column'}",
        "first_pixel": lambda value: f"a first pixel {value}",
        "empty_mask": lambda value: f"{value!r} for an empty mask",
    }
    return ", ".join(words[name](value) for name, value in found.items())
