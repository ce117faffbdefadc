import numpy as np
import pytest
from PIL import Image

from ctseg.data import Case
from ctseg.submission import check_submission, decode_rle, encode_rle, write_submission

DRAWN = np.array([[0, 1, 1], [1, 0, 0]], bool)


@pytest.mark.parametrize(
    ("mask", "order", "rle"),
    [
        (DRAWN, "C", "2 3"),
        (DRAWN, "F", "2 2 5 1"),
        (np.zeros((2, 3), bool), "C", ""),
        (np.ones((2, 3), bool), "C", "1 6"),
        (np.array([[1, 0, 1]], bool), "C", "1 1 3 1"),
    ],
)
def test_codes_agree_with_ones_written_by_hand(mask, order, rle):
    assert encode_rle(mask, order) == rle
    assert np.array_equal(decode_rle(rle, mask.shape, order), mask)


def slow_encode(mask):
    """The format's definition, pixel by pixel."""
    runs, previous = [], False
    for place, value in enumerate(mask.ravel(), start=1):
        if value and not previous:
            runs.append([place, 0])
        if value:
            runs[-1][1] += 1
        previous = value
    return " ".join(f"{start} {length}" for start, length in runs)


def test_random_masks_survive_a_round_trip_and_agree_with_a_slow_encoder():
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(rng.integers(1, 18, 2)) < rng.random()
        assert encode_rle(mask) == slow_encode(mask)
        for order in "CF":
            assert np.array_equal(decode_rle(encode_rle(mask, order), mask.shape, order), mask)


@pytest.mark.parametrize(
    "rle", ["1", "0 2", "1 0", "1 -1", "3 2 1 1", "1 3 2 2", "5 3", "1.5 2", "a b", "1 99999999999999999999", "9223372036854775807 5"]
)
def test_codes_that_are_not_valid_are_refused(rle):
    with pytest.raises(ValueError, match="run-length code"):
        decode_rle(rle, (2, 3))


@pytest.fixture
def cases(tmp_path):
    """Three test images of 17 x 11 whose ids hold a space, a dot and a comma."""
    paths = [tmp_path / f"{name}.png" for name in ("a b", "a.b", "a,b")]
    for path in paths:
        Image.new("RGB", (11, 17)).save(path)
    return [Case(path.stem, path) for path in paths]


MASK = np.zeros((17, 11), bool)


def test_a_submission_has_a_row_for_each_image_in_order_and_empty_text_for_an_empty_mask(cases, tmp_path):
    full = ~MASK
    write_submission(tmp_path / "s.csv", [("a,b", full), ("a b", MASK), ("a.b", MASK)], cases)
    assert (tmp_path / "s.csv").read_bytes() == b'ID,Mask\na b,\na.b,\n"a,b",1 187\n'


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([("a b", MASK), ("a.b", MASK)], "missing or unknown ids .*a,b"),
        ([("a b", MASK), ("a.b", MASK), ("a,b", MASK), ("c", MASK)], "'c', which is no test image"),
        ([("a b", MASK), ("a b", MASK)], "'a b', which is there twice"),
        ([("a b", MASK.T)], r"\(11, 17\), its image \(17, 11\)"),
    ],
)
def test_a_wrong_submission_is_refused_and_the_one_before_it_stays(cases, tmp_path, predictions, message):
    path = tmp_path / "s.csv"
    path.write_text("the one before")
    with pytest.raises(ValueError, match=message):
        write_submission(path, predictions, cases)
    assert path.read_text() == "the one before"
    assert [file.name for file in tmp_path.glob(".partial*")] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,mask\na b,\n", "columns"),
        ("\ufeffID,Mask\na b,\n", "byte-order mark"),
        ("ID,Mask\r\na b,\r\n", "Windows line ends"),
        ('ID,Mask\n1,\na.b,\n"a,b",\n', "missing or unknown ids .*saved by a spreadsheet"),
        ("ID,Mask\na b,\na b,\na.b,\n", "duplicate ids"),
        ("ID,Mask\na b\n", "row 2 has not two columns"),
        ('ID,Mask\na b,1 188\na.b,\n"a,b",\n', "ID a b: .*holds 188"),
    ],
)
def test_a_file_that_is_no_submission_is_refused(cases, tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_submission(tmp_path / "s.csv", cases)
