"""Run-length codes, and the file that is submitted."""

import itertools

import numpy as np
import pytest
from PIL import Image

from ctseg.contest import A0, Contest
from ctseg.data import Case
from ctseg.submission import check_submission, decode_rle, describe_submission, encode_rle, write_submission

CONTESTS = [Contest(pixel_order=order, first_pixel=first) for order in "CF" for first in (0, 1)]
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
def test_codes_agree_with_codes_written_by_hand(mask, order, rle):
    contest = Contest(pixel_order=order)
    assert encode_rle(mask, contest) == rle
    assert np.array_equal(decode_rle(rle, mask.shape, contest), mask)


def encode_plainly(values: list[int]) -> str:
    """The format's definition over a flat list of 0 and 1, in plain Python."""
    numbers, place = [], 1
    for value, group in itertools.groupby(values):
        length = len(list(group))
        numbers += [place, length] if value else []
        place += length
    return " ".join(map(str, numbers))


def test_random_masks_come_back_and_agree_with_a_slow_encoder():
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(rng.integers(1, 18, 2)) < rng.random()
        assert encode_rle(mask, A0) == encode_plainly(mask.ravel().tolist())
        for contest in CONTESTS:
            assert np.array_equal(decode_rle(encode_rle(mask, contest), mask.shape, contest), mask)


INVALID = ["1", "0 2", "1 0", "1 -1", "3 2 1 1", "1 3 2 2", "5 3", "1.5 2", "a b"]
HUGE = ["1 99999999999999999999", "9223372036854775807 5"]


@pytest.mark.parametrize("rle", INVALID + HUGE)
def test_codes_that_are_not_valid_are_refused(rle):
    with pytest.raises(ValueError, match="run-length code"):
        decode_rle(rle, (2, 3), A0)


@pytest.fixture
def cases(tmp_path):
    """Three test images of 17 x 11 whose ids hold a space, a dot and a comma."""
    paths = [tmp_path / f"{name}.png" for name in ("a b", "a.b", "a,b")]
    for path in paths:
        Image.new("RGB", (11, 17)).save(path)
    return [Case(path.stem, path) for path in paths]


MASK = np.zeros((17, 11), bool)


def test_a_submission_has_a_row_per_image_in_order(cases, tmp_path):
    full = ~MASK
    write_submission(tmp_path / "s.csv", [("a,b", full), ("a b", MASK), ("a.b", MASK)], cases, A0)
    # The text of an empty mask is empty.
    assert (tmp_path / "s.csv").read_bytes() == b'ID,Mask\na b,\na.b,\n"a,b",1 187\n'


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([("a b", MASK), ("a.b", MASK)], "missing or unknown ids .*a,b"),
        ([("a b", MASK), ("a.b", MASK), ("a,b", MASK), ("c", MASK)], "'c', which is not a test image"),
        ([("a b", MASK), ("a b", MASK)], "'a b', which is repeated"),
        ([("a b", MASK.T)], r"\(11, 17\), its image \(17, 11\)"),
    ],
)
def test_a_wrong_submission_is_refused_and_replaces_nothing(cases, tmp_path, predictions, message):
    path = tmp_path / "s.csv"
    path.write_text("the one before")
    with pytest.raises(ValueError, match=message):
        write_submission(path, predictions, cases, A0)
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
        ("ID,Mask\na b\n", "row 2 does not have 2 columns"),
        ('ID,Mask\na b,1 188\na.b,\n"a,b",\n', "ID a b: .*holds 188"),
    ],
)
def test_a_file_that_is_not_a_submission_is_refused(cases, tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_submission(tmp_path / "s.csv", cases, A0)


# Of the fuzz tests, whose encoder and decoder share nothing with the kit's.
N_MASKS = 100_000


def is_valid(numbers: list[int], size: int) -> bool:
    """Whether numbers are pairs of ascending, separate runs within `size` pixels."""
    if len(numbers) % 2:
        return False
    end = 0
    for start, length in zip(numbers[::2], numbers[1::2]):
        if start <= end or length < 1:
            return False
        end = start + length - 1
    return end <= size


def decode_plainly(numbers: list[int], size: int) -> list[bool]:
    """The pixels of valid runs, one by one."""
    runs = zip(numbers[::2], numbers[1::2])
    inside = {pixel for start, length in runs for pixel in range(start, start + length)}
    return [pixel in inside for pixel in range(1, size + 1)]


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    """A random mask of a random shape up to 31 x 31: noise of any density, blocks, or a mixture."""
    shape = rng.integers(1, 32, 2)
    mask = rng.random(shape) < rng.random()
    if rng.random() < 0.5:
        top, left = rng.integers(shape)
        mask[top : top + rng.integers(1, 32), left : left + rng.integers(1, 32)] = rng.random() < 0.5
    return mask


def damage(rng: np.random.Generator, numbers: list[int], size: int) -> None:
    """Insert, delete or change up to two numbers of a code, in place."""
    for _ in range(rng.integers(0, 3)):
        place = rng.integers(len(numbers) + 1)
        match rng.integers(3):
            case 0:
                numbers.insert(place, int(rng.integers(-1, size + 3)))
            case 1:
                del numbers[place : place + 1]
            case 2 if place < len(numbers):
                numbers[place] += int(rng.integers(-2, 3))


def test_pixels_are_counted_from_where_the_contest_says():
    contest = Contest(pixel_order="F", first_pixel=0)
    assert encode_rle(DRAWN, contest) == "1 2 4 1"
    assert np.array_equal(decode_rle("1 2 4 1", (2, 3), contest), DRAWN)
    assert decode_rle("5 1", (2, 3), contest)[1, 2]
    for rle, message in (("6 1", "ends at pixel 6"), ("-1 1", "ascending starts from 0")):
        with pytest.raises(ValueError, match=message):
            decode_rle(rle, (2, 3), contest)


@pytest.mark.parametrize("empty_mask", ["", "-1", "1 1", "-"])
def test_an_empty_mask_is_written_as_the_contest_says(empty_mask):
    contest = Contest(empty_mask=empty_mask)
    assert encode_rle(np.zeros((2, 3), bool), contest) == empty_mask
    assert encode_rle(DRAWN, contest) == "2 3"
    assert not decode_rle(empty_mask, (2, 3), contest).any()


@pytest.mark.parametrize(("rle", "empty_mask"), [("", "-1"), (" ", ""), ("-1", "")])
def test_another_text_for_an_empty_mask_is_refused(rle, empty_mask):
    with pytest.raises(ValueError, match="run-length code"):
        decode_rle(rle, (2, 3), Contest(empty_mask=empty_mask))


def test_a_submission_has_the_contests_columns_in_their_order(cases, tmp_path):
    path, mask = tmp_path / "s.csv", MASK.copy()
    mask[1, :2] = True
    columns = "img,height={height},w={width},class=1,pixels"
    numbering = {"pixel_order": "F", "first_pixel": 0, "empty_mask": "-1"}
    contest = Contest(submission_columns=columns, id_with_extension=True, **numbering)
    write_submission(path, [("a b", mask), ("a.b", MASK), ("a,b", MASK)], cases, contest)
    assert path.read_text() == (
        'img,height,w,class,pixels\na b.png,17,11,1,1 1 18 1\na.b.png,17,11,1,-1\n"a,b.png",17,11,1,-1\n'
    )
    for old, new in ((",11,1,-1", ",11,2,-1"), ("17,11", "11,17"), ("1 1 18 1", ""), (".png", "")):
        text = path.read_text()
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match="s.csv"):
            check_submission(path, cases, contest)
        path.write_text(text)
    check_submission(path, cases, contest)


def test_the_code_may_come_before_the_id(cases, tmp_path):
    contest = Contest(submission_columns="EncodedPixels={mask},ImageId={id}")
    write_submission(tmp_path / "s.csv", [(case.image_id, MASK) for case in cases], cases, contest)
    assert (tmp_path / "s.csv").read_text() == 'EncodedPixels,ImageId\n,a b\n,a.b\n,"a,b"\n'


@pytest.mark.fuzz
def test_codes_are_those_of_an_independent_implementation():
    rng = np.random.default_rng(20)
    for _ in range(N_MASKS):
        mask = draw_mask(rng)
        for order, flat in (("C", mask.tolist()), ("F", mask.T.tolist())):
            contest = Contest(pixel_order=order)
            rle = encode_rle(mask, contest)
            assert rle == encode_plainly(list(itertools.chain(*flat)))
            assert np.array_equal(decode_rle(rle, mask.shape, contest), mask)


@pytest.mark.fuzz
def test_broken_codes_are_refused_and_only_those():
    rng = np.random.default_rng(21)
    refused = 0
    for _ in range(N_MASKS):
        mask = draw_mask(rng)
        numbers = [int(number) for number in encode_rle(mask, A0).split()]
        damage(rng, numbers, mask.size)
        rle = " ".join(map(str, numbers))
        if is_valid(numbers, mask.size):
            assert decode_rle(rle, mask.shape, A0).ravel().tolist() == decode_plainly(numbers, mask.size)
        else:
            refused += 1
            with pytest.raises(ValueError, match="run-length code"):
                decode_rle(rle, mask.shape, A0)
    assert refused > N_MASKS / 4


@pytest.mark.parametrize("empty", ["", "-1"])
def test_a_submission_is_described_with_its_empty_masks(tmp_path, empty):
    contest = Contest(submission_columns="id,class=1,rle", empty_mask=empty)
    path = tmp_path / "submission.csv"
    path.write_text(f"id,class,rle\na,1,1 5\nb,1,{empty}\n")
    expected = "submission.csv: 2 rows, valid: each test image once, with a mask of its size; 1 without"
    assert describe_submission(path, contest) == f"{expected} foreground"
    path.write_text("id,class,rle\na,1,1 5\n")
    assert describe_submission(path, contest).endswith("a mask of its size")
