"""The file that is submitted: `ID,Mask` with run-length codes, refused unless it is complete and fits the images."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ctseg.data import Case, abridge, find_files, read_mask, read_size
from ctseg.files import atomic_path

COLUMNS = ["ID", "Mask"]


def encode_rle(mask: np.ndarray, order: str = "C") -> str:
    """Encode a mask, bool (H, W), as "start length start length …" with 1-indexed starts; an empty mask gives "".

    `order` is "C" for row-major, which this contest's accepted submissions use, or "F" for column-major, which many others use.
    """
    flat = np.asarray(mask, dtype=bool).ravel(order=order)
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def decode_rle(rle: str, shape: tuple[int, int], order: str = "C") -> np.ndarray:
    """Decode `encode_rle`'s text to a bool mask of `shape` (H, W).

    Raises:
        ValueError: not whole numbers, an odd count, a run of no length, runs that overlap or descend, or a run beyond the mask.
    """
    try:
        numbers = np.array(rle.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"run-length code is not made of whole numbers: {error}; expected 'start length start length …'") from None
    size = shape[0] * shape[1]
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers; expected pairs of start and length")
    if np.any(numbers > size):
        raise ValueError(f"run-length code holds {numbers.max()}, but a mask of {shape} has {size} pixels; encode at the image's own size")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    if np.any(lengths < 1) or np.any(starts < 0) or np.any(starts[1:] < ends[:-1]):
        raise ValueError("run-length code has runs that are empty, overlap or descend; expected ascending starts from 1 and lengths from 1")
    if len(ends) and ends[-1] > size:
        raise ValueError(f"run-length code ends at pixel {ends[-1]}, but a mask of {shape} has {size}; encode at the image's own size")
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [size]])
    inside = np.arange(len(edges) - 1) % 2 == 1  # background and runs by turns
    return np.repeat(inside, np.diff(edges)).reshape(shape, order=order)


def write_submission(path: Path, predictions: Iterable[tuple[str, np.ndarray]], cases: Sequence[Case]) -> None:
    """Write `ID,Mask` for exactly the test cases, read it back and check it; nothing is left at `path` if anything is wrong.

    Args:
        predictions: (image_id, mask), mask bool (H, W) at the image's own size; may be a generator, one mask is held at a time.
        cases: the test images; rows are in their order.

    Raises:
        ValueError: a mask of another size than its image, or an id that is unknown, missing or there twice.
    """
    sizes = {case.image_id: read_size(case.image) for case in cases}
    rles: dict[str, str] = {}
    for image_id, mask in predictions:
        if image_id not in sizes or image_id in rles:
            what = "is there twice" if image_id in rles else "is no test image"
            raise ValueError(f"prediction for {image_id!r}, which {what}; expected each test image once")
        if mask.shape != sizes[image_id]:
            raise ValueError(
                f"the mask of {image_id!r} is {mask.shape}, its image {sizes[image_id]} (H, W); undo the frame before the threshold"
            )
        rles[image_id] = encode_rle(mask)
    with atomic_path(path) as partial:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows((image_id, rles[image_id]) for image_id in sizes if image_id in rles)
        check_submission(partial, cases)


def read_rows(path: Path) -> list[dict]:
    """Read the rows of a submission; ValueError if it is not UTF-8 with the columns `ID,Mask`, as `write_submission` writes it."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; write it again with notebook 04") from None
    if text.startswith("\ufeff") or "\r" in text:
        found = "a byte-order mark" if text.startswith("\ufeff") else "Windows line ends"
        raise ValueError(f"{path} has {found}, as spreadsheets and editors leave; expected none; write it again with notebook 04")
    reader = make_reader(io.StringIO(text, newline=""))
    if reader.fieldnames != COLUMNS:
        raise ValueError(f"{path} has the columns {reader.fieldnames}; expected {COLUMNS}")
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}, row {number} has not two columns; expected {','.join(COLUMNS)}")
    return rows


def make_reader(lines: Iterable[str]) -> csv.DictReader:
    """A reader of CSV whose fields may be longer than the 131,072 characters that Python allows by itself, as codes of large masks are."""
    csv.field_size_limit(2**31 - 1)
    return csv.DictReader(lines)


def check_contest_files(root: Path) -> None:
    """Check the data against what the contest gives beside it: `*.csv` in `root` or in the folder above, other tables are passed over.

    A file with "sample" in its name is a sample submission; run-length codes of training masks may stand in any file with `ID,Mask`.

    Raises:
        ValueError: a sample submission of other columns or ids than the submission would have; or a code that is that of its mask in
            column-major order, or of another mask: submissions would be written in a wrong order.
    """
    masks = {stem: paths[0] for stem, paths in find_files(root / "Train" / "Mask").items()}
    for path in sorted([*root.glob("*.csv"), *root.parent.glob("*.csv")]):
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = make_reader(file)
            rows = list(reader) if reader.fieldnames == COLUMNS else []
        if "sample" in path.name.lower():
            if reader.fieldnames != COLUMNS:
                raise ValueError(
                    f"{path} has the columns {reader.fieldnames}; expected {COLUMNS}; set COLUMNS in submission.py to the sample's"
                )
            if odd := {row["ID"] for row in rows} ^ find_files(root / "Test" / "Image").keys():
                raise ValueError(
                    f"{path}: its ids and the test images differ in {abridge(odd)}; get the missing files, or the contest's data again"
                )
        for row in rows:
            if row["ID"] in masks and row["Mask"] != encode_rle(mask := read_mask(masks[row["ID"]])):
                what = "its mask in column-major order" if row["Mask"] == encode_rle(mask, "F") else "another mask"
                raise ValueError(
                    f"{path}, ID {row['ID']}: a run-length code of {what}, expected row-major order and starts from 1; mend the file, or "
                    "give encode_rle in write_submission the order of its codes"
                )


def check_submission(path: Path, cases: Sequence[Case]) -> None:
    """Check a submission against the test images.

    Raises:
        ValueError: other columns, a duplicate, missing or unknown id, or a mask that does not fit its image; the message names the first.
    """
    rows = read_rows(path)
    ids = [row["ID"] for row in rows]
    expected = {case.image_id: case for case in cases}
    duplicate = sorted({image_id for image_id in ids if ids.count(image_id) > 1})
    wrong = sorted(set(ids) ^ expected.keys())
    if duplicate or wrong:
        found = f"duplicate ids {duplicate[:5]}, missing or unknown ids {wrong[:5]} ({len(wrong)})"
        hint = " (was it saved by a spreadsheet, which takes ids for numbers?)" if set(ids) - expected.keys() else ""
        raise ValueError(f"{path}: {found}; expected each of {len(expected)} test images once{hint}; write it again with notebook 04")
    for row in rows:
        try:
            decode_rle(row["Mask"], read_size(expected[row["ID"]].image))
        except ValueError as error:
            raise ValueError(f"{path}, ID {row['ID']}: {error}") from error
