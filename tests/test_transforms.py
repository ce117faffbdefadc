"""From an image of any size into the square and back."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctseg.transforms import EvalTransform, ResizeAndPad, make_letterbox, weight_channels_by_contrast

SIZES = [(17, 11), (11, 17), (13, 13), (1, 40), (300, 200), (64, 64)]


@pytest.mark.parametrize("size", SIZES)
def test_the_letterbox_brings_every_size_back(size):
    letterbox = make_letterbox(size, 64)
    assert max(letterbox.resized_size) == 64
    assert letterbox.undo(np.full((64, 64), 0.25, np.float32)).shape == size
    assert np.allclose(letterbox.undo(np.full((64, 64), 0.25, np.float32)), 0.25)


def test_a_corner_keeps_its_place_to_a_fraction_of_a_pixel():
    mask = np.zeros((90, 60), bool)
    mask[:30, :30] = True
    image, target, letterbox = ResizeAndPad(30)(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mask)
    assert letterbox.resized_size == (30, 20) and letterbox.offset == (0, 5)
    assert target[0, 5] == 255 and target[9, 14] == 255
    assert target[10, 14] == target[9, 15] == target[0, 4] == 0
    undone = letterbox.undo(target / np.float32(255)) > 0.5
    # Bilinear interpolation rounds the corner, and moves nothing.
    assert np.argwhere(undone != mask).tolist() == [[29, 29]]
    assert image[0, 5].tolist() == [255, 255, 255] and image[0, 4].tolist() == [0, 0, 0]


def test_a_soft_target_is_the_covered_share():
    mask = np.zeros((4, 4), bool)
    mask[0, :3] = True
    _, target, _ = ResizeAndPad(2)(np.zeros((4, 4, 3), np.uint8), mask)
    assert target.tolist() == [[128, 64], [0, 0]]


@pytest.mark.parametrize("size", [(1000, 777), (64, 64), (31, 64), (3, 500), (13, 9)])
def test_undone_probabilities_stay_between_0_and_1(size):
    rng = np.random.default_rng(0)
    letterbox = make_letterbox(size, 64)
    for probability in (rng.random((64, 64)), rng.random((64, 64)) > 0.5, np.ones((64, 64))):
        probability = probability.astype(np.float32)
        full = letterbox.undo(probability)
        assert full.min() >= probability.min() and full.max() <= probability.max()


@pytest.mark.parametrize("size", SIZES)
def test_a_map_moves_between_squares_by_way_of_its_image(size):
    small, large = make_letterbox(size, 32), make_letterbox(size, 64)
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((32, 32)), 3).astype(np.float32)
    moved = small.transfer(smooth, large)
    assert moved.shape == (64, 64) and moved.sum() == pytest.approx(moved[large.inside].sum())
    assert np.abs(large.undo(moved) - small.undo(smooth)).max() < 0.02
    assert np.abs(large.transfer(moved, small) - smooth)[small.inside].max() < 0.02
    assert small.transfer(smooth, small) is smooth


def test_undo_refuses_a_map_of_another_letterbox():
    with pytest.raises(ValueError, match=r"\(32, 32\).*expected \(64, 64\)"):
        make_letterbox((10, 10), 64).undo(np.zeros((32, 32), np.float32))


@pytest.fixture
def colored():
    """An image whose first channel has three times the contrast of the others."""
    rng = np.random.default_rng(0)
    strong, weak = rng.normal(128, 30, (20, 20)), rng.normal(128, 10, (20, 20))
    return np.stack([strong, weak, weak], axis=2).clip(0, 255).astype(np.uint8)


def test_weighting_widens_the_strong_channel_and_leaves_gray(colored):
    weighted = weight_channels_by_contrast(colored).astype(float)
    assert weighted[..., 0].std() > 1.2 * colored[..., 0].std()
    assert weighted[..., 1].std() < 0.8 * colored[..., 1].std()
    gray = np.repeat(colored[..., :1], 3, axis=2)
    assert np.array_equal(weight_channels_by_contrast(gray), gray)


def test_eval_transform_weights_channels_where_it_is_asked_to(colored):
    weighted, _, _ = EvalTransform(20, weight_channels_by_contrast=True)(colored)
    expected, _, _ = EvalTransform(20)(weight_channels_by_contrast(colored))
    assert torch.equal(weighted, expected)
    assert not torch.equal(weighted, EvalTransform(20)(colored)[0])


def test_eval_transform_gives_tensors_of_the_network_size():
    image, target, letterbox = EvalTransform(32)(np.zeros((20, 10, 3), np.uint8), np.ones((20, 10), bool))
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert target.shape == (1, 32, 32) and target.max() == 255
    assert EvalTransform(32)(np.zeros((20, 10, 3), np.uint8))[1] is None
    assert letterbox.original_size == (20, 10)
