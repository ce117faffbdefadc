"""Random changes of whole batches: image and target agree, and one seed draws one change."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ctseg.augment import Augment, TrainTransform
from ctseg.config import AUGMENTATIONS
from ctseg.seeds import make_generator
from ctseg.transforms import to_float

# Every change is in one of the two tables, and is tried with the strength here and with the one that shows.
GEOMETRY = {"flip": 0.5, "rot90": 0.5, "scale": 0.5, "rotation": 30, "elastic": 0.02}
INTENSITY = {"brightness": 0.2, "contrast": 0.5, "gamma": 0.5, "color": 0.3, "noise": 0.1}


def list_strengths(table):
    """Each name of a table with its strength, and with the strength at which a picture shows it."""
    pairs = [(name, strength) for name in table for strength in (table[name], AUGMENTATIONS[name])]
    return list(dict.fromkeys(pairs))


def make_batch():
    """Images and targets of a batch of four: its red channel, smooth, with black padding above and below."""
    y, x = np.mgrid[:48, :48] / 47
    images = torch.zeros(4, 3, 48, 48, dtype=torch.uint8)
    images[:, 0] = torch.from_numpy((255 * y * (1 - x)).astype(np.uint8))
    images[:, :, :6] = images[:, :, -6:] = 0
    return images, images[:, :1].clone()


def augment(*key, **strengths):
    """The batch after one draw of the changes."""
    return TrainTransform(Augment(**strengths))(torch.cat(make_batch(), dim=1), make_generator(*key))


def test_the_tables_name_every_augmentation_of_the_config():
    assert sorted([*GEOMETRY, *INTENSITY]) == sorted(AUGMENTATIONS)


def test_an_unknown_augmentation_is_refused_by_name():
    with pytest.raises(TypeError, match="unknown augmentation 'sharpness'; expected names of flip, rot90, "):
        Augment(flip=0.5, sharpness=1.0)


@pytest.mark.parametrize(("name", "strength"), list_strengths(GEOMETRY))
def test_image_and_target_move_together(name, strength):
    images, targets = augment(3, **{name: strength})
    assert torch.allclose(images[:, :1], targets, atol=1 / 500)
    assert not torch.allclose(targets, to_float(make_batch()[1]), atol=0.05)


@pytest.mark.parametrize(("name", "strength"), list_strengths(INTENSITY))
def test_intensity_changes_leave_target_and_padding_alone(name, strength):
    images, targets = augment(3, **{name: strength})
    assert torch.allclose(targets, to_float(make_batch()[1]), atol=1e-6)
    assert (images[:, :, :6] < 1e-6).all() and images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images[:, :1], targets, atol=0.01)


def test_no_augmentation_changes_nothing():
    images, targets = augment(0)
    assert torch.allclose(images, to_float(make_batch()[0]), atol=1e-5)
    assert torch.allclose(targets, to_float(make_batch()[1]), atol=1e-5)


def test_flip_and_rot90_are_exact_and_reach_all_8_orientations():
    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(400, 4, 4, 4) * 16
    changed, _ = TrainTransform(Augment(flip=0.5, rot90=0.5))(images, make_generator(0))
    seen = {tuple((image[0] * 255).round().int().flatten().tolist()) for image in changed}
    original = images[0, 0].int()
    orientations = [image.rot90(k) for image in (original, original.flip(0)) for k in range(4)]
    assert seen == {tuple(image.flatten().tolist()) for image in orientations}


class CountCopies(TorchDispatchMode):
    """Counts what is copied from one device to another."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        self.n += isinstance(result, torch.Tensor) and any(t.device != result.device for t in tensors)
        return result


def test_another_device_is_sent_two_tensors_a_step_and_draws_nothing_itself():
    pixels, strengths = torch.cat(make_batch(), dim=1), GEOMETRY | INTENSITY | {"noise": 0}
    for device, n in (("meta", 2), ("cpu", 0)):
        generator = make_generator(4)
        with CountCopies() as copies:
            images, targets = TrainTransform(Augment(**strengths), device)(pixels, generator)
        assert copies.n == n and {images.device.type, targets.device.type} == {device}
        assert generator.get_state().equal(draw_once(strengths).get_state())


def draw_once(strengths):
    """A generator after the draws of a batch of four."""
    generator = make_generator(4)
    Augment(**strengths).draw(4, generator)
    return generator


def test_one_key_draws_one_change_and_another_key_another():
    first, again, other = (augment(*key, **GEOMETRY, **INTENSITY)[0] for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
