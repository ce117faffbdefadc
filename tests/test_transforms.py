import numpy as np
import pytest
import torch

from ctseg.train import make_generator
from ctseg.transforms import Augment, EvalTransform, ResizeAndPad, TrainTransform, favour_contrast, make_frame, round_trip_dice, to_float

SIZES = [(17, 11), (11, 17), (13, 13), (1, 40), (300, 200), (64, 64)]


@pytest.mark.parametrize("size", SIZES)
def test_the_frame_brings_every_size_back(size):
    frame = make_frame(size, 64)
    assert max(frame.resized_size) == 64
    assert frame.undo(np.full((64, 64), 0.25, np.float32)).shape == size
    assert np.allclose(frame.undo(np.full((64, 64), 0.25, np.float32)), 0.25)


@pytest.mark.parametrize("size", [(170, 110), (110, 170), (300, 290)])
def test_a_disc_survives_the_round_trip_and_the_late_threshold_is_the_better_one(size):
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y - 0.6 * size[0], x - 0.4 * size[1]) < 0.25 * min(size)
    late, early = round_trip_dice(disc, 64), round_trip_dice(disc, 64, early=True)
    assert late > 0.99
    assert late > early


def test_the_position_of_a_corner_is_kept_to_a_fraction_of_a_pixel():
    mask = np.zeros((90, 60), bool)
    mask[:30, :30] = True
    square, target, frame = ResizeAndPad(30)(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mask)
    assert frame.resized_size == (30, 20) and frame.offset == (0, 5)
    assert target[0, 5] == 255 and target[9, 14] == 255 and target[10, 14] == target[9, 15] == target[0, 4] == 0
    back = frame.undo(target / np.float32(255)) > 0.5
    assert np.argwhere(back != mask).tolist() == [[29, 29]]  # bilinear interpolation rounds the corner, and moves nothing
    assert square[0, 5].tolist() == [255, 255, 255] and square[0, 4].tolist() == [0, 0, 0]


def test_a_soft_target_is_the_covered_share():
    mask = np.zeros((4, 4), bool)
    mask[0, :3] = True
    _, target, _ = ResizeAndPad(2)(np.zeros((4, 4, 3), np.uint8), mask)
    assert target.tolist() == [[128, 64], [0, 0]]


def test_undo_refuses_a_map_of_another_frame():
    with pytest.raises(ValueError, match=r"\(32, 32\).*expected \(64, 64\)"):
        make_frame((10, 10), 64).undo(np.zeros((32, 32), np.float32))


def batch():
    """A batch of four whose target is its red channel, smooth, with black padding above and below."""
    y, x = np.mgrid[:48, :48] / 47
    squares = torch.zeros(4, 3, 48, 48, dtype=torch.uint8)
    squares[:, 0] = torch.from_numpy((255 * y * (1 - x)).astype(np.uint8))
    squares[:, :, :6] = squares[:, :, -6:] = 0
    return squares, squares[:, :1].clone()


GEOMETRY = {"flip": 0.5, "turn": 0.5, "scale": 0.5, "rotation": 30, "elastic": 0.02}
INTENSITY = {"brightness": 0.2, "contrast": 0.5, "gamma": 0.5, "colour": 0.3, "noise": 0.1}


@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_target_move_together(name):
    images, targets = TrainTransform(Augment(**{name: GEOMETRY[name]}))(*batch(), make_generator(3))
    assert torch.allclose(images[:, :1], targets, atol=1 / 500)
    assert not torch.allclose(targets, to_float(batch()[1]), atol=0.05)


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_changes_leave_target_and_padding_alone(name):
    images, targets = TrainTransform(Augment(**{name: INTENSITY[name]}))(*batch(), make_generator(3))
    assert torch.allclose(targets, to_float(batch()[1]), atol=1e-6)
    assert (images[:, :, :6] < 1e-6).all() and images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images[:, :1], targets, atol=0.01)


def test_no_augmentation_changes_nothing():
    images, targets = TrainTransform(Augment())(*batch(), make_generator(0))
    assert torch.allclose(images, to_float(batch()[0]), atol=1e-5)
    assert torch.allclose(targets, to_float(batch()[1]), atol=1e-5)


def test_flips_and_quarter_turns_are_exact_and_reach_all_eight_orientations():
    square = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(400, 3, 4, 4) * 16
    images, _ = TrainTransform(Augment(flip=0.5, turn=0.5))(square, square[:, :1], make_generator(0))
    seen = {tuple((image[0] * 255).round().int().flatten().tolist()) for image in images}
    original = square[0, 0].int()
    expected = {tuple(turned.flatten().tolist()) for k in range(4) for turned in (original.rot90(k), original.flip(0).rot90(k))}
    assert seen == expected


def test_the_same_key_draws_the_same_and_another_key_another():
    augmented = TrainTransform(Augment(**GEOMETRY, **INTENSITY))
    first, again, other = (augmented(*batch(), make_generator(*key))[0] for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_favoured_contrast_widens_the_strong_channel_and_leaves_grey_alone():
    rng = np.random.default_rng(0)
    strong, weak = rng.normal(128, 30, (20, 20)), rng.normal(128, 10, (20, 20))
    image = np.stack([strong, weak, weak], axis=2).clip(0, 255).astype(np.uint8)
    favoured = favour_contrast(image).astype(float)
    assert favoured[..., 0].std() > 1.2 * image[..., 0].std()
    assert favoured[..., 1].std() < 0.8 * image[..., 1].std()
    grey = np.repeat(image[..., :1], 3, axis=2)
    assert np.array_equal(favour_contrast(grey), grey)


def test_eval_transform_gives_tensors_of_the_square():
    square, target, frame = EvalTransform(32)(np.zeros((20, 10, 3), np.uint8), np.ones((20, 10), bool))
    assert square.shape == (3, 32, 32) and square.dtype == torch.uint8
    assert target.shape == (1, 32, 32) and target.max() == 255
    assert EvalTransform(32)(np.zeros((20, 10, 3), np.uint8))[1] is None
    assert frame.original_size == (20, 10)
