"""The file that is submitted: one run-length code per image, refused unless it fits the test images."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ctseg.contest import A0, Contest
from ctseg.data import Case, map_threads, printable, read_size
from ctseg.files import atomic_path

_AGAIN = "write it again with notebook 04"


def encode_rle(mask: np.ndarray, contest: Contest = A0) -> str:
    """Encode a mask, bool (H, W), as "start length start length …", as the contest numbers pixels.

    A mask without foreground is its `empty_mask`.

    >>> mask = np.array([[0, 1, 1], [1, 0, 0]], bool)
    >>> encode_rle(mask, Contest()), encode_rle(mask, Contest(pixel_order="F", first_pixel=0))
    ('2 3', '1 2 4 1')
    """
    flat = np.asarray(mask, dtype=bool).ravel(order=contest.pixel_order)
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    numbers = np.stack([starts + contest.first_pixel, ends - starts], axis=1).ravel()
    return " ".join(map(str, numbers.tolist())) or contest.empty_mask


def decode_rle(rle: str, shape: tuple[int, int], contest: Contest = A0) -> np.ndarray:
    """Decode `encode_rle`'s text to a bool mask of `shape` (H, W).

    >>> decode_rle("2 3", (2, 3), Contest()).astype(int)
    array([[0, 1, 1],
           [1, 0, 0]])

    Raises:
        ValueError: see `read_runs`.
    """
    size = shape[0] * shape[1]
    edges = np.concatenate([[0], read_runs(rle, shape, contest).ravel(), [size]])
    is_run = np.arange(len(edges) - 1) % 2 == 1  # background and runs alternate
    return np.repeat(is_run, np.diff(edges)).reshape(shape, order=contest.pixel_order)


def read_runs(rle: str, shape: tuple[int, int], contest: Contest = A0) -> np.ndarray:
    """The runs of a code for a mask of `shape` (H, W): each one's first pixel, and the one after it; (N, 2).

    Pixels are counted from 0 in the contest's order.

    Raises:
        ValueError: not whole numbers, an odd count, an empty run, runs that overlap or descend, a run beyond
            the mask, or no run where the contest writes another text for that.
    """
    size, first = shape[0] * shape[1], contest.first_pixel
    if rle == contest.empty_mask:
        return np.empty((0, 2), np.int64)
    if not rle.strip():
        raise ValueError(f"run-length code without a run; expected {contest.empty_mask!r} for an empty mask")
    try:
        numbers = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"run-length code is not made of whole numbers: {error}; expected 'start length start length …'"
        ) from None
    fix = "encode at the image's own size"
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers; expected pairs of start and length")
    if np.any(numbers > size):
        raise ValueError(
            f"run-length code holds {numbers.max()}, but a mask of {shape} has {size} pixels; {fix}"
        )
    starts, lengths = numbers[::2] - first, numbers[1::2]
    ends = starts + lengths
    if np.any(lengths < 1) or np.any(starts < 0) or np.any(starts[1:] < ends[:-1]):
        raise ValueError(
            "run-length code has runs that are empty, overlap or descend; expected ascending starts from "
            f"{first} and lengths from 1"
        )
    if ends[-1] > size:
        last = ends[-1] - 1 + first
        raise ValueError(f"run-length code ends at pixel {last}, but a mask of {shape} has {size}; {fix}")
    return np.stack([starts, ends], axis=1)


def find_id(case: Case, contest: Contest) -> str:
    """The id of an image in a submission."""
    return printable(case.image.name) if contest.id_with_extension else case.image_id


def write_submission(
    path: Path,
    predictions: Iterable[tuple[str, np.ndarray]],
    cases: Sequence[Case],
    contest: Contest = A0,
) -> None:
    """Write a row for each test case, read it back and check it; `path` stays as it was if anything is wrong.

    Args:
        predictions: (image_id, mask), mask bool (H, W) at the image's own size; may be a generator, one mask
            is held at a time.
        cases: the test images; rows are in their order.

    Raises:
        ValueError: a mask of another size than its image, or an id that is unknown, missing or repeated.
    """
    sizes, rles = _read_sizes(cases), {}
    for image_id, mask in predictions:
        if image_id not in sizes or image_id in rles:
            what = "is repeated" if image_id in rles else "is not a test image"
            raise ValueError(f"prediction for {image_id!r}, which {what}; expected each test image once")
        if mask.shape != sizes[image_id]:
            raise ValueError(
                f"the mask of {image_id!r} is {mask.shape}, its image {sizes[image_id]} (H, W); undo the "
                "letterbox before the threshold"
            )
        rles[image_id] = encode_rle(mask, contest)
    rows = [
        _make_row(case, sizes[case.image_id], rles[case.image_id], contest)
        for case in cases
        if case.image_id in rles
    ]
    with atomic_path(path) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, contest.read_columns(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        try:
            check_submission(partial, cases, contest)
        except ValueError as error:
            raise ValueError(str(error).replace(str(partial), str(path))) from None


def _read_sizes(cases: Sequence[Case]) -> dict[str, tuple[int, int]]:
    """(H, W) of each case's image, by id."""
    sizes = map_threads(lambda case: read_size(case.image), cases)
    return {case.image_id: size for case, size in zip(cases, sizes)}


def _make_row(case: Case, size: tuple[int, int], rle: str, contest: Contest) -> dict[str, str]:
    """A case's row of the submission, {column: text}."""
    known = {"id": find_id(case, contest), "mask": rle, "height": str(size[0]), "width": str(size[1])}
    row = contest.read_columns()
    for name, text in known.items():
        row = {column: text if value == f"{{{name}}}" else value for column, value in row.items()}
    return row


def check_submission(path: Path, cases: Sequence[Case], contest: Contest = A0) -> None:
    """Check a submission against the test images.

    Raises:
        ValueError: other columns, a repeated, missing or unknown id, a mask that does not fit its image, or
            another value in a column that is given; the message names the first.
    """
    rows, column_of = (
        read_rows(path, contest),
        {value: name for name, value in contest.read_columns().items()},
    )
    ids, codes = column_of["{id}"], column_of["{mask}"]
    counts = Counter(row[ids] for row in rows)
    expected = {find_id(case, contest): case for case in cases}
    duplicate = sorted(image_id for image_id, count in counts.items() if count > 1)
    wrong = sorted(counts.keys() ^ expected.keys())
    if duplicate or wrong:
        found = f"duplicate ids {duplicate[:5]}, missing or unknown ids {wrong[:5]} ({len(wrong)})"
        is_strange = counts.keys() - expected.keys()
        hint = " (was it saved by a spreadsheet, which takes ids for numbers?)" if is_strange else ""
        expectation = f"expected each of {len(expected)} test images once{hint}"
        raise ValueError(f"{path}: {found}; {expectation}; {_AGAIN}")
    sizes = _read_sizes(cases)
    for row in rows:
        case, rle = expected[row[ids]], row[codes]
        try:
            read_runs(rle, sizes[case.image_id], contest)
        except ValueError as error:
            raise ValueError(f"{path}, {ids} {row[ids]}: {error}") from error
        if row != (right := _make_row(case, sizes[case.image_id], rle, contest)):
            raise ValueError(f"{path}, {ids} {row[ids]}: got {row}, expected {right}; {_AGAIN}")


def describe_submission(path: Path, contest: Contest = A0) -> str:
    """What a submission that has been checked is like, in a sentence."""
    rows = read_rows(path, contest)
    (mask,) = [name for name, value in contest.read_columns().items() if value == "{mask}"]
    n_empty = sum(row[mask] == contest.empty_mask for row in rows)
    empty = f"; {n_empty} without foreground" if n_empty else ""
    return f"{path.name}: {len(rows)} rows, valid: each test image once, with a mask of its size{empty}"


def read_rows(path: Path, contest: Contest = A0) -> list[dict]:
    """Read the rows of a submission; ValueError unless it is UTF-8 with the columns of `write_submission`."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; {_AGAIN}") from None
    if text.startswith("\ufeff") or "\r\n" in text:
        found = "a byte-order mark" if text.startswith("\ufeff") else "Windows line ends"
        raise ValueError(f"{path} has {found}, as spreadsheets and editors write; expected none; {_AGAIN}")
    reader, columns = make_reader(io.StringIO(text, newline="")), list(contest.read_columns())
    if (found := list(reader.fieldnames or ())) != columns:
        raise ValueError(
            f"{path} has the columns {found}; expected {columns}; {_AGAIN}, or pass submission_columns"
        )
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, row {number} does not have {len(columns)} columns; expected {','.join(columns)}; "
                f"{_AGAIN}"
            )
    return rows


def make_reader(lines: Iterable[str]) -> csv.DictReader:
    """A reader of CSV with fields longer than Python's limit of 131,072 characters, as large masks have."""
    csv.field_size_limit(2**31 - 1)
    return csv.DictReader(lines)
