"""The synthetic data set: complete, hard enough, and the same each time."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ctseg.contest import A0
from ctseg.data import find_cases, read_image, read_mask
from ctseg.metrics import dice_score
from ctseg.phantom import KINDS, make_slice, read_kinds, write_phantom
from ctseg.postprocess import keep_largest_component


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The phantom at its real size."""
    return write_phantom(tmp_path_factory.mktemp("full") / "phantom")


def test_it_has_all_folders_mixed_sizes_and_hidden_test_masks(full):
    train, test = find_cases(full, "train", A0), find_cases(full, "test", A0)
    assert (len(train), len(test)) == (160, 40)
    assert len({Image.open(case.image).size for case in train}) >= 12
    for case in train[:5]:
        assert read_mask(case.mask).shape == read_image(case.image).shape[:2]
    hidden = {path.stem for path in (full.parent / "test_masks").iterdir()}
    assert hidden == {case.image_id for case in test}
    assert not (full / "Test" / "Mask").exists()


def test_a_fifth_or_more_are_hard_and_of_every_kind(full):
    kinds = read_kinds(full.parent)
    for subset, count in (("train", 160), ("test", 40)):
        of_subset = [kind for image_id, kind in kinds.items() if image_id.startswith(subset)]
        assert len(of_subset) == count and set(of_subset) == set(KINDS)
        assert sum(kind != "plain" for kind in of_subset) >= count / 5


def test_another_data_set_has_no_kinds(tiny):
    assert read_kinds(tiny.parent) == {}


@pytest.mark.parametrize(("kind", "regions"), [("plain", 1), ("two", 2), ("tiny", 1)])
def test_a_kind_looks_as_it_is_called(kind, regions):
    masks = [make_slice(kind, np.random.default_rng(seed))[1] for seed in range(10)]
    assert all(mask.any() for mask in masks)
    assert all(ndimage.label(mask)[1] == regions for mask in masks)
    assert (np.mean([mask.mean() for mask in masks]) < 0.01) == (kind == "tiny")


def test_a_seed_writes_the_same_bytes_and_an_old_set_is_kept(tmp_path):
    first, again = (write_phantom(tmp_path / name, n_train=4, n_test=1) for name in "ab")
    files = [path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file()]
    assert len(files) == 4 + 4 + 1 + 1 + 1
    assert all((first.parent / path).read_bytes() == (again.parent / path).read_bytes() for path in files)
    (first / "Train/Image/train_000.jpg").unlink()
    write_phantom(tmp_path / "a")
    assert len(list((first / "Train/Image").iterdir())) == 3


def smooth_cases(root, subset, masks):
    """Smoothed gray image and mask of each case, at half size to be quick."""
    for case in find_cases(root, subset, A0):
        gray = ndimage.gaussian_filter(read_image(case.image)[..., 0].astype(np.float32), 2)
        yield gray[::2, ::2], read_mask(masks / f"{case.image_id}.png")[::2, ::2]


def interval_dice(cases, low, high):
    """Mean Dice of the largest component of the gray values in [low, high)."""
    each = ((keep_largest_component((gray >= low) & (gray < high)), mask) for gray, mask in cases)
    return np.mean([dice_score(pred_mask, mask) for pred_mask, mask in each])


def test_gray_values_alone_do_not_solve_it(full):
    train = list(smooth_cases(full, "train", full / "Train" / "Mask"))
    intervals = [(low, high) for low in range(50, 200, 15) for high in range(low + 15, 245, 15)]
    best = max(intervals, key=lambda interval: interval_dice(train[::4], *interval))
    test = smooth_cases(full, "test", full.parent / "test_masks")
    assert 0.05 < interval_dice(test, *best) <= 0.60
