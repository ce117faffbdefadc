"""`make fuzz`: run-length codes of 100,000 random masks against an implementation that shares nothing with the kit's; broken codes."""

import itertools

import numpy as np
import pytest

from ctseg.submission import decode_rle, encode_rle

N_MASKS = 100_000


def encode_plainly(values: list[int]) -> str:
    """The format's definition over a flat list of 0 and 1, in plain Python."""
    numbers, place = [], 1
    for value, group in itertools.groupby(values):
        length = len(list(group))
        numbers += [place, length] if value else []
        place += length
    return " ".join(map(str, numbers))


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
    inside = {pixel for start, length in zip(numbers[::2], numbers[1::2]) for pixel in range(start, start + length)}
    return [pixel in inside for pixel in range(1, size + 1)]


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    """A random mask of a random shape up to 31 x 31: noise of any density, blocks, or a mixture."""
    shape = rng.integers(1, 32, 2)
    mask = rng.random(shape) < rng.random()
    if rng.random() < 0.5:
        top, left = rng.integers(shape)
        mask[top : top + rng.integers(1, 32), left : left + rng.integers(1, 32)] = rng.random() < 0.5
    return mask


def test_codes_are_those_of_an_independent_implementation_and_come_back_as_their_masks():
    rng = np.random.default_rng(20)
    for _ in range(N_MASKS):
        mask = draw_mask(rng)
        for order, flat in (("C", mask.tolist()), ("F", mask.T.tolist())):
            rle = encode_rle(mask, order)
            assert rle == encode_plainly(list(itertools.chain(*flat)))
            assert np.array_equal(decode_rle(rle, mask.shape, order), mask)


def test_broken_codes_are_refused_and_only_those():
    rng = np.random.default_rng(21)
    refused = 0
    for _ in range(N_MASKS):
        mask = draw_mask(rng)
        numbers = [int(number) for number in encode_rle(mask).split()]
        for _ in range(rng.integers(0, 3)):
            place = rng.integers(len(numbers) + 1)
            match rng.integers(3):
                case 0:
                    numbers.insert(place, int(rng.integers(-1, mask.size + 3)))
                case 1:
                    del numbers[place : place + 1]
                case 2 if place < len(numbers):
                    numbers[place] += int(rng.integers(-2, 3))
        rle = " ".join(map(str, numbers))
        if is_valid(numbers, mask.size):
            assert decode_rle(rle, mask.shape).ravel().tolist() == decode_plainly(numbers, mask.size)
        else:
            refused += 1
            with pytest.raises(ValueError, match="run-length code"):
                decode_rle(rle, mask.shape)
    assert refused > N_MASKS / 4
