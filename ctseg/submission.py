"""The file that is submitted: one run-length code per image, refused unless it fits the test images."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ctseg.contest import COLUMNS, EMPTY_MASK, ID_COLUMN, IMAGE_FOLDERS, MASK_COLUMN, MASK_FOLDER, PIXEL_ORDER
from ctseg.data import Case, MaskSet, abridge, find_files, read_mask, read_size
from ctseg.files import atomic_path

_AGAIN = "write it again with notebook 04"


def encode_rle(mask: np.ndarray, order: str = PIXEL_ORDER) -> str:
    """Encode a mask, bool (H, W), as "start length start length …", starts from 1; if empty, `EMPTY_MASK`.

    `order` is "C" for row-major or "F" for column-major, which many other contests use.

    >>> mask = np.array([[0, 1, 1], [1, 0, 0]], bool)
    >>> encode_rle(mask, "C"), encode_rle(mask, "F")
    ('2 3', '2 2 5 1')
    """
    flat = np.asarray(mask, dtype=bool).ravel(order=order)
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    numbers = np.stack([starts + 1, ends - starts], axis=1).ravel()
    return " ".join(map(str, numbers.tolist())) or EMPTY_MASK


def decode_rle(rle: str, shape: tuple[int, int], order: str = PIXEL_ORDER) -> np.ndarray:
    """Decode `encode_rle`'s text to a bool mask of `shape` (H, W).

    >>> decode_rle("2 3", (2, 3)).astype(int)
    array([[0, 1, 1],
           [1, 0, 0]])

    Raises:
        ValueError: not whole numbers, an odd count, an empty run, runs that overlap or descend, or a
            run beyond the mask.
    """
    try:
        numbers = np.array([] if rle == EMPTY_MASK else rle.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"run-length code is not made of whole numbers: {error}; expected 'start length start length …'"
        ) from None
    size = shape[0] * shape[1]
    fix = "encode at the image's own size"
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers; expected pairs of start and length")
    if np.any(numbers > size):
        raise ValueError(
            f"run-length code holds {numbers.max()}, but a mask of {shape} has {size} pixels; {fix}"
        )
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    if np.any(lengths < 1) or np.any(starts < 0) or np.any(starts[1:] < ends[:-1]):
        raise ValueError(
            "run-length code has runs that are empty, overlap or descend; expected ascending starts from 1 "
            "and lengths from 1"
        )
    if len(ends) and ends[-1] > size:
        raise ValueError(f"run-length code ends at pixel {ends[-1]}, but a mask of {shape} has {size}; {fix}")
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [size]])
    is_run = np.arange(len(edges) - 1) % 2 == 1  # background and runs alternate
    return np.repeat(is_run, np.diff(edges)).reshape(shape, order=order)


def write_submission(
    path: Path, predictions: Iterable[tuple[str, np.ndarray]], cases: Sequence[Case]
) -> None:
    """Write a row for each test case, read it back and check it; `path` stays as it was if anything is wrong.

    Args:
        predictions: (image_id, mask), mask bool (H, W) at the image's own size; may be a generator, one mask
            is held at a time.
        cases: the test images; rows are in their order.

    Raises:
        ValueError: a mask of another size than its image, or an id that is unknown, missing or repeated.
    """
    sizes = {case.image_id: read_size(case.image) for case in cases}
    rles: dict[str, str] = {}
    for image_id, mask in predictions:
        if image_id not in sizes or image_id in rles:
            what = "is repeated" if image_id in rles else "is not a test image"
            raise ValueError(f"prediction for {image_id!r}, which {what}; expected each test image once")
        if mask.shape != sizes[image_id]:
            raise ValueError(
                f"the mask of {image_id!r} is {mask.shape}, its image {sizes[image_id]} (H, W); undo the "
                "letterbox before the threshold"
            )
        rles[image_id] = encode_rle(mask)
    with atomic_path(path) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows((image_id, rles[image_id]) for image_id in sizes if image_id in rles)
        check_submission(partial, cases)


def check_submission(path: Path, cases: Sequence[Case]) -> None:
    """Check a submission against the test images.

    Raises:
        ValueError: other columns, a repeated, missing or unknown id, or a mask that does not fit its image;
            the message names the first.
    """
    rows = read_rows(path)
    counts = Counter(row[ID_COLUMN] for row in rows)
    expected = {case.image_id: case for case in cases}
    duplicate = sorted(image_id for image_id, count in counts.items() if count > 1)
    wrong = sorted(counts.keys() ^ expected.keys())
    if duplicate or wrong:
        found = f"duplicate ids {duplicate[:5]}, missing or unknown ids {wrong[:5]} ({len(wrong)})"
        is_strange = counts.keys() - expected.keys()
        hint = " (was it saved by a spreadsheet, which takes ids for numbers?)" if is_strange else ""
        expectation = f"expected each of {len(expected)} test images once{hint}"
        raise ValueError(f"{path}: {found}; {expectation}; {_AGAIN}")
    for row in rows:
        try:
            decode_rle(row[MASK_COLUMN], read_size(expected[row[ID_COLUMN]].image))
        except ValueError as error:
            raise ValueError(f"{path}, {ID_COLUMN} {row[ID_COLUMN]}: {error}") from error


def read_rows(path: Path) -> list[dict]:
    """Read the rows of a submission; ValueError unless it is UTF-8 with the columns of `write_submission`."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; {_AGAIN}") from None
    if text.startswith("\ufeff") or "\r\n" in text:
        found = "a byte-order mark" if text.startswith("\ufeff") else "Windows line ends"
        raise ValueError(f"{path} has {found}, as spreadsheets and editors write; expected none; {_AGAIN}")
    reader = _make_reader(io.StringIO(text, newline=""))
    if _columns(reader) != COLUMNS:
        raise ValueError(f"{path} has the columns {reader.fieldnames}; expected {list(COLUMNS)}; {_AGAIN}")
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, row {number} does not have two columns; expected {','.join(COLUMNS)}; {_AGAIN}"
            )
    return rows


def _make_reader(lines: Iterable[str]) -> csv.DictReader:
    """A reader of CSV with fields longer than Python's limit of 131,072 characters, as large masks have."""
    csv.field_size_limit(2**31 - 1)
    return csv.DictReader(lines)


def _columns(reader: csv.DictReader) -> tuple[str, ...]:
    """The columns of a table; () of an empty file."""
    return tuple(reader.fieldnames or ())


def check_contest_files(root: Path) -> None:
    """Check the data against the tables that come with it: `*.csv` in `root` or in the folder above.

    A file with "sample" in its name is a sample submission; run-length codes of training masks may be in any
    table with the submission's columns. Other tables are ignored.

    Raises:
        ValueError: a sample submission of other columns or ids than the submission would have; or a code that
            is that of its mask in column-major order, or of another mask: submissions would be written in a
            wrong order.
    """
    masks = {stem: paths[0] for stem, paths in find_files(root / MASK_FOLDER).items()}
    mask_set = MaskSet(list(masks.values()))
    for path in sorted([*root.glob("*.csv"), *root.parent.glob("*.csv")]):
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = _make_reader(file)
            rows = list(reader) if _columns(reader) == COLUMNS else []
        if "sample" in path.name.lower():
            _check_sample(path, _columns(reader), {row[ID_COLUMN] for row in rows}, root)
        for row in rows:
            if row[ID_COLUMN] in masks:
                _check_code(path, row, read_mask(masks[row[ID_COLUMN]], mask_set))


def _check_sample(path: Path, columns: Sequence[str], ids: set[str], root: Path) -> None:
    """Raise ValueError unless a sample submission has the columns and the ids that ours would have."""
    if columns != COLUMNS:
        raise ValueError(
            f"{path} has the columns {list(columns)}; expected {list(COLUMNS)}; set COLUMNS in contest.py "
            "to the sample's"
        )
    if odd := ids ^ find_files(root / IMAGE_FOLDERS["test"]).keys():
        raise ValueError(
            f"{path}: its ids and the test images differ in {abridge(odd)}; get the missing files, or the "
            "contest's data again"
        )


def _check_code(path: Path, row: dict, mask: np.ndarray) -> None:
    """Raise ValueError unless a row's run-length code is that of the training mask."""
    if row[MASK_COLUMN] == encode_rle(mask):
        return
    names = {"C": "row-major", "F": "column-major"}
    other = "F" if PIXEL_ORDER == "C" else "C"
    is_other = row[MASK_COLUMN] == encode_rle(mask, other)
    what = f"its mask in {names[other]} order" if is_other else "another mask"
    raise ValueError(
        f"{path}, {ID_COLUMN} {row[ID_COLUMN]}: a run-length code of {what}, expected {names[PIXEL_ORDER]} "
        "order and starts from 1; fix the file, or set PIXEL_ORDER in contest.py to the order of its codes"
    )
