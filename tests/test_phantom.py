import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ctseg.data import find_cases, read_image, read_mask
from ctseg.metrics import dice_score
from ctseg.phantom import KINDS, make_slice, read_kinds, write_phantom
from ctseg.postprocess import keep_largest_component


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The phantom at its real size."""
    return write_phantom(tmp_path_factory.mktemp("full") / "phantom")


def test_it_has_the_layout_mixed_sizes_and_hidden_test_masks(full):
    train, test = find_cases(full, "Train"), find_cases(full, "Test")
    assert (len(train), len(test)) == (160, 40)
    assert len({Image.open(case.image).size for case in train}) >= 12
    for case in train[:5]:
        assert read_mask(case.mask).shape == read_image(case.image).shape[:2]
    assert {path.stem for path in (full.parent / "test_masks").iterdir()} == {case.image_id for case in test}
    assert not (full / "Test" / "Mask").exists()


def test_a_fifth_or_more_are_hard_and_of_every_kind(full):
    kinds = read_kinds(full.parent)
    for part, count in (("train", 160), ("test", 40)):
        of_part = [kind for image_id, kind in kinds.items() if image_id.startswith(part)]
        assert len(of_part) == count and set(of_part) == set(KINDS)
        assert sum(kind != "plain" for kind in of_part) >= count / 5


@pytest.mark.parametrize(("kind", "regions"), [("plain", 1), ("two", 2), ("tiny", 1)])
def test_a_kind_looks_as_it_is_called(kind, regions):
    masks = [make_slice(kind, np.random.default_rng(seed))[1] for seed in range(10)]
    assert all(mask.any() for mask in masks)
    assert all(ndimage.label(mask)[1] == regions for mask in masks)
    assert (np.mean([mask.mean() for mask in masks]) < 0.01) == (kind == "tiny")


def test_the_same_seed_writes_the_same_bytes_and_an_existing_one_is_left_alone(tmp_path):
    first, again = (write_phantom(tmp_path / name, n_train=4, n_test=1) for name in "ab")
    files = [path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file()]
    assert len(files) == 4 + 4 + 1 + 1 + 1
    assert all((first.parent / path).read_bytes() == (again.parent / path).read_bytes() for path in files)
    (first / "Train/Image/train_000.jpg").unlink()
    write_phantom(tmp_path / "a")
    assert len(list((first / "Train/Image").iterdir())) == 3


def smooth_cases(root, part, masks):
    """Smoothed grey image and mask of each case, at half size to be quick."""
    for case in find_cases(root, part):
        grey = ndimage.gaussian_filter(read_image(case.image)[..., 0].astype(np.float32), 2)
        yield grey[::2, ::2], read_mask(masks / f"{case.image_id}.png")[::2, ::2]


def interval_dice(cases, low, high):
    return np.mean([dice_score(keep_largest_component((grey >= low) & (grey < high)), mask) for grey, mask in cases])


def test_grey_values_alone_do_not_solve_it(full):
    train = list(smooth_cases(full, "Train", full / "Train" / "Mask"))
    intervals = [(low, high) for low in range(50, 200, 15) for high in range(low + 15, 245, 15)]
    best = max(intervals, key=lambda interval: interval_dice(train[::4], *interval))
    assert 0.05 < interval_dice(smooth_cases(full, "Test", full.parent / "test_masks"), *best) <= 0.60
