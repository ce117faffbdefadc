"""Folds of equal mix, with near-duplicates together."""

import numpy as np
import pytest
from conftest import load_cases, write_pair
from PIL import Image

from ctseg.split import find_duplicates, make_folds, make_thumbnail, normalize, split_cases


def test_folds_have_like_sizes_and_areas_and_keep_groups_together():
    rng = np.random.default_rng(0)
    areas, groups = rng.random(203), np.arange(203) // 2
    folds = make_folds(areas, groups, 5, seed=1)
    assert np.bincount(folds).min() >= 38
    assert all(len(set(folds[groups == group])) == 1 for group in range(102))
    means = [areas[folds == fold].mean() for fold in range(5)]
    assert np.ptp(means) < 0.05
    assert np.array_equal(folds, make_folds(areas, groups, 5, seed=1))
    assert not np.array_equal(folds, make_folds(areas, groups, 5, seed=2))


def test_more_folds_than_images_is_an_error():
    with pytest.raises(ValueError, match="3 distinct images cannot be split into 5 folds"):
        make_folds(np.ones(4), np.array([0, 1, 2, 2]), 5, seed=0)


@pytest.mark.parametrize("split", ["random", "stratified"])
@pytest.mark.parametrize("n_folds", [1, 4])
def test_every_case_is_in_one_of_like_folds_and_one_means_a_tenth(phantom, split, n_folds):
    sizes = np.bincount(split_cases(load_cases(phantom), n_folds=n_folds, split=split, seed=0))
    assert sizes.sum() == 24
    assert sizes.tolist() == [6] * 4 if n_folds > 1 else sizes[0] in (2, 3)


def test_three_images_can_be_split_and_a_single_one_cannot(phantom):
    training_set = load_cases(phantom)
    three = training_set.select(range(3))
    assert sorted(split_cases(three, n_folds=1, split="stratified", seed=0)) == [0, 1, 2]
    with pytest.raises(ValueError, match="1 distinct images cannot be split into 2 folds"):
        split_cases(training_set.select([0]), n_folds=1, split="random", seed=0)


def test_the_folds_do_not_depend_on_the_target_size(phantom):
    def folds(size):
        return split_cases(load_cases(phantom, size), n_folds=5, split="stratified", seed=0).tolist()

    assert folds(32) == folds(96)


def test_duplicates_are_never_split(tiny):
    original = np.asarray(Image.open(tiny / "Train/Image/case_0.png"))
    for copy in range(8):
        write_pair(tiny, f"copy_{copy}", original, np.zeros((30, 40), np.uint8))
    training_set = load_cases(tiny)
    names = [case.image_id for case in training_set.cases]
    alike = [i for i, name in enumerate(names) if name.startswith("copy") or name == "case_0"]
    folds = split_cases(training_set, n_folds=4, split="stratified", seed=0)
    assert len(alike) == 9 and len(set(folds[alike])) == 1 and len(set(folds)) == 4


def test_flipped_and_rotated_copies_are_duplicates_and_noise_is_not():
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 255, (2, 48, 48, 3), np.uint8)
    images = [image, other, image[:, ::-1], np.rot90(image), 255 - other]
    assert find_duplicates([make_thumbnail(values) for values in images]) == [(0, 2), (0, 3), (2, 3)]
    assert find_duplicates([]) == []


def test_products_of_normalized_arrays_are_their_correlation():
    values = np.random.default_rng(0).random((5, 4))
    vector = normalize(values)
    assert vector @ vector == pytest.approx(1) and vector.sum() == pytest.approx(0)
    assert vector @ normalize(3 - 2 * values) == pytest.approx(-1)
    assert normalize(np.ones((5, 4))).tolist() == [0] * 20
