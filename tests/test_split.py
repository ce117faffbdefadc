"""Folds of equal size and mix, with near-duplicates and groups together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_cases, write_pair
from PIL import Image
from scipy import ndimage

from ctseg.data import Case, TrainingSet
from ctseg.split import (
    find_duplicates,
    find_groups,
    make_folds,
    make_thumbnail,
    normalize,
    read_groups,
    split_cases,
)
from ctseg.transforms import make_letterbox


def make_film(seed: int, n_frames: int) -> list[np.ndarray]:
    """Views of a smooth scene, uint8 (48, 48, 3), each a pixel further to the right.

    Neighbors are near-duplicates, frames ten apart are not.
    """
    rng = np.random.default_rng(seed)
    scene = ndimage.gaussian_filter(rng.standard_normal((48, 48 + n_frames, 3)), (9, 9, 0))
    scene = ((scene - scene.min()) / np.ptp(scene) * 255).astype(np.uint8)
    return [scene[:, k : k + 48] for k in range(n_frames)]


def make_singles(n: int) -> list[np.ndarray]:
    """Images of noise, uint8 (48, 48, 3), that are not like others."""
    return list(np.random.default_rng(7).integers(0, 255, (n, 48, 48, 3), np.uint8))


def gather(images: list[np.ndarray]) -> TrainingSet:
    """A training set of square images (S, S, 3) with ids c000, c001 …, and empty masks."""
    n, side = len(images), len(images[0])
    pixels = torch.zeros((n, 4, side, side), dtype=torch.uint8)
    pixels[:, :3] = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    cases = [Case(f"c{k:03d}", Path(f"c{k:03d}.png")) for k in range(n)]
    boxes = [make_letterbox((side, side), side)] * n
    return TrainingSet(pixels, torch.arange(n), cases, boxes, np.zeros(n), [""] * n, [b""] * n)


def make_groups(sizes: list[int]) -> np.ndarray:
    """A group number for each case (N,), shuffled, for groups of these sizes."""
    return np.random.default_rng(3).permutation(np.repeat(np.arange(len(sizes)), sizes))


def deal_in_rounds(areas, groups, n_folds, seed):
    """The folds of groups of equal size: by area, a round of `n_folds` groups after the other."""
    _, group = np.unique(groups, return_inverse=True)
    n_groups = group.max() + 1
    rng = np.random.default_rng(seed)
    by_area = np.argsort(np.bincount(group, weights=areas) / np.bincount(group), kind="stable")
    fold_of_group = np.empty(n_groups, int)
    for start in range(0, n_groups, n_folds):
        neighbors = by_area[start : start + n_folds]
        fold_of_group[neighbors] = rng.permutation(n_folds)[: len(neighbors)]
    return fold_of_group[group]


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


@pytest.mark.parametrize(
    ("largest", "n_images", "n_folds"),
    [(1, 203, 5), (1, 7, 5), (2, 203, 5), (4, 60, 10), (4, 862, 5), (3, 100, 2)],
)
def test_groups_of_a_few_are_dealt_in_rounds(largest, n_images, n_folds):
    rng = np.random.default_rng(n_images)
    groups = make_groups(rng.integers(1, largest + 1, n_images))[:n_images]
    areas = rng.random(n_images) * (rng.random(n_images) > 0.2)
    for seed in (0, 42):
        expected = deal_in_rounds(areas, groups, n_folds, seed)
        assert np.array_equal(make_folds(areas, groups, n_folds, seed=seed), expected)


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_many_patients_have_like_numbers_of_images(seed):
    rng = np.random.default_rng(seed)
    groups = make_groups(rng.integers(1, 20, 80))
    in_folds = np.bincount(make_folds(rng.random(len(groups)), groups, 5, seed=seed))
    assert np.ptp(in_folds) <= 20


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([80] + [1] * 20, [5, 5, 5, 5, 80]),
        ([80] + [1] * 40, [10, 10, 10, 10, 80]),
        ([30] + [1] * 70, [17, 17, 18, 18, 30]),
        ([20, 20] + [1] * 60, [20, 20, 20, 20, 20]),
        ([15] + [1] * 85, [20, 20, 20, 20, 20]),
        ([40, 6, 6] + [1] * 8, [4, 4, 6, 6, 40]),
        ([12] * 10, [24, 24, 24, 24, 24]),
        ([50, 40, 30, 20, 10, 10, 20, 30, 40, 50], [60, 60, 60, 60, 60]),
        ([90, 2, 3, 1, 1], [1, 1, 2, 3, 90]),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_as_equal_as_large_groups_allow(sizes, expected, seed):
    groups = make_groups(sizes)
    folds = make_folds(np.random.default_rng(0).random(len(groups)), groups, 5, seed=seed)
    assert sorted(np.bincount(folds)) == expected


@pytest.mark.parametrize("seed", range(30))
def test_no_fold_is_larger_than_a_fair_one_or_the_largest_group(seed):
    rng = np.random.default_rng(seed)
    n_folds = int(rng.integers(2, 11))
    sizes = rng.integers(1, 3, 200)
    sizes[: rng.integers(4)] = rng.integers(sizes.sum() // n_folds, 300)
    groups = make_groups(sizes)
    folds = make_folds(rng.random(len(groups)), groups, n_folds, seed=seed)
    in_folds = np.bincount(folds, minlength=n_folds)
    assert all(len(set(folds[groups == group])) == 1 for group in range(len(sizes)))
    without_large = sizes.max() <= 2  # as many groups in each; an image more or less in some of them
    assert without_large or in_folds.max() <= max(sizes.max(), len(groups) / n_folds + 2)
    assert in_folds.min() > 0


def test_the_areas_of_folds_are_alike_next_to_a_large_group():
    areas, groups = np.random.default_rng(0).random(400), make_groups([60] + [1] * 340)
    folds = make_folds(areas, groups, 5, seed=0)
    assert np.ptp([areas[folds == fold].mean() for fold in range(5)]) < 0.05
    assert np.bincount(folds).tolist() == [80] * 5


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [0, 1, 2, 2],
            "3 distinct images or groups cannot be split into 5 folds; lower n_folds, or add images",
        ),
        (
            [0, 0, 0, 0],
            "1 distinct images or groups cannot be split into 5 folds; add images, or choose smaller",
        ),
    ],
)
def test_more_folds_than_groups_is_an_error(groups, message):
    with pytest.raises(ValueError, match=message):
        make_folds(np.ones(4), np.array(groups), 5, seed=0)


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
    for one, groups in ((training_set.select([0]), None), (three, ["a"] * 3)):
        with pytest.raises(ValueError, match="1 distinct images or groups .* 2 folds; add images, or choose"):
            split_cases(one, n_folds=1, split="random", seed=0, groups=groups)


def test_the_folds_do_not_depend_on_the_target_size(phantom):
    def folds(size):
        return split_cases(load_cases(phantom, size), n_folds=5, split="stratified", seed=0).tolist()

    assert folds(32) == folds(96)


@pytest.mark.parametrize("n_copies", [1, 3])
def test_duplicates_are_never_split(tiny, n_copies):
    original = np.asarray(Image.open(tiny / "Train/Image/case_0.png"))
    for copy in range(n_copies):
        write_pair(
            tiny,
            f"copy_{copy}",
            np.rot90(original, copy),
            np.zeros(np.rot90(original, copy).shape[:2], np.uint8),
        )
    training_set = load_cases(tiny)
    names = [case.image_id for case in training_set.cases]
    alike = [i for i, name in enumerate(names) if name.startswith("copy") or name == "case_0"]
    folds = split_cases(training_set, n_folds=4, split="stratified", seed=0)
    assert len(alike) == n_copies + 1 and len(set(folds[alike])) == 1 and len(set(folds)) == 4


@pytest.mark.parametrize(
    ("n_frames", "n_singles", "n_folds", "n_pieces"),
    [(40, 0, 5, 5), (41, 0, 1, 10), (40, 10, 5, 4), (40, 60, 5, 2), (10, 40, 5, 1)],
)
def test_a_film_is_cut_into_pieces_of_neighbors_no_larger_than_a_fold(
    n_frames, n_singles, n_folds, n_pieces, capsys
):
    training_set = gather(make_film(0, n_frames) + make_singles(n_singles))
    folds = split_cases(training_set, n_folds=n_folds, split="stratified", seed=0)
    lines = capsys.readouterr().out.splitlines()
    expected = (
        f"{n_frames} images, c000 among them, are a chain of near-duplicates and more than a fold: cut into "
        f"{n_pieces} pieces; -p group keeps images of one patient or video together"
    )
    assert lines == [expected] * (n_pieces > 1)
    film = folds[:n_frames]
    assert np.count_nonzero(np.diff(film)) == n_pieces - 1
    starts = np.flatnonzero(np.diff(film, prepend=-1, append=-1))
    assert np.ptp(np.diff(starts)) <= 1
    assert np.ptp(np.bincount(folds)) <= 1


def test_films_of_equal_length_fill_folds_of_equal_size():
    training_set = gather([frame for seed in range(3) for frame in make_film(seed, 30)])
    folds = split_cases(training_set, n_folds=5, split="stratified", seed=0)
    assert np.bincount(folds).tolist() == [18] * 5
    apart = sum(np.count_nonzero(np.diff(folds[start : start + 30])) for start in (0, 30, 60))
    assert apart == 4  # the cuts between five folds


def test_each_chain_has_its_line_and_the_other_duplicates_stay_together(capsys):
    singles = make_singles(30)
    training_set = gather(make_film(0, 20) + singles + make_film(1, 20) + [singles[3][::-1]])
    folds = split_cases(training_set, n_folds=5, split="stratified", seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" among")[0] for line in lines] == ["20 images, c000", "20 images, c050"]
    assert folds[23] == folds[70]


def test_a_group_is_never_cut_and_near_duplicates_join_groups(capsys):
    training_set = gather(make_film(0, 40) + make_singles(20))
    halves = ["first"] * 19 + ["second"] * 21 + [None] * 20
    folds = split_cases(training_set, n_folds=3, split="stratified", seed=0, groups=halves)
    assert len(set(folds[:19])) == len(set(folds[19:40])) == 1 and folds[0] != folds[19]
    assert "40 images, c000 among them" in capsys.readouterr().out and len(set(folds[40:])) > 1
    tens = np.repeat(np.arange(6), 10).tolist()  # the frames' four join: 8 images are not more than a fold
    few = training_set.select([8, 9, 10, 11, 18, 19, 20, 21, *range(40, 60)])
    folds = split_cases(few, n_folds=2, split="stratified", seed=0, groups=tens[:28])
    assert len(set(folds[:8])) == 1


@pytest.mark.parametrize(
    ("sizes", "n_singles", "n_folds", "n_pieces"),
    [([6, 6, 6, 6, 6, 10], 0, 4, 4), ([5, 6, 9], 2, 2, 2), ([9, 6, 5], 2, 2, 2), ([25, 1, 1, 1], 12, 5, 2)],
)
def test_groups_in_a_chain_are_cut_into_pieces_of_about_a_fold(sizes, n_singles, n_folds, n_pieces, capsys):
    training_set = gather(make_film(0, sum(sizes)) + make_singles(n_singles))
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist() + [None] * n_singles
    split_cases(training_set, n_folds=n_folds, split="stratified", seed=0, groups=labels)
    assert f"{sum(sizes)} images, c000 among them" in (line := capsys.readouterr().out)
    assert f"cut into {n_pieces} pieces" in line


@pytest.mark.parametrize("split", ["random", "stratified"])
@pytest.mark.parametrize("n_folds", [1, 3])
def test_cases_with_one_label_stay_together_and_those_without_are_alone(split, n_folds, capsys):
    training_set = gather(make_singles(40))
    labels = [None, ("patient", 7), None, "b"] * 10
    folds = split_cases(training_set, n_folds=n_folds, split=split, seed=0, groups=labels)
    assert len(set(folds[1::4])) == len(set(folds[3::4])) == 1
    assert len(set(folds[0::2])) == (3 if n_folds == 3 else 8)  # of 10 folds, the labels' have enough
    assert not capsys.readouterr().out


def test_a_random_split_keeps_no_duplicates_together(capsys):
    training_set = gather([make_singles(1)[0]] * 40)
    folds = split_cases(training_set, n_folds=4, split="random", seed=0)
    assert np.bincount(folds).tolist() == [10] * 4 and not capsys.readouterr().out
    expected = make_folds(np.random.default_rng(0).random(40), np.arange(40), 4, seed=0)
    assert np.array_equal(folds, expected)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1] * 43, [4, 5]),
        ([30] + [1] * 30, [3, 4]),
        ([10] * 10, [10]),
        ([20, 9, 1], [1, 9]),
        ([50, 12], [12]),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_single_split_validates_on_the_fold_nearest_to_a_tenth(sizes, expected, seed):
    groups = make_groups(sizes).tolist()
    training_set = gather([np.zeros((8, 8, 3), np.uint8)] * len(groups))
    folds = split_cases(training_set, n_folds=1, split="random", seed=seed, groups=groups)
    in_folds = np.bincount(folds)
    assert in_folds[0] in expected and len(in_folds) == min(10, len(sizes)) and in_folds.min() > 0


@pytest.mark.parametrize("n", [24, 31, 862])
def test_a_single_split_validates_on_the_first_fold_where_all_are_alike(n):
    training_set = gather([np.zeros((8, 8, 3), np.uint8)] * n)
    for seed in range(10):
        dealt = make_folds(np.random.default_rng(seed).random(n), np.arange(n), 10, seed=seed)
        assert np.array_equal(split_cases(training_set, n_folds=1, split="random", seed=seed), dealt)


def test_a_single_split_exchanges_the_numbers_of_two_folds_where_the_first_is_too_large():
    training_set, groups = gather([np.zeros((8, 8, 3), np.uint8)] * 57), ["a"] * 30 + [None] * 27
    n_moved = []
    for seed in range(30):
        areas = np.random.default_rng(seed).random(57)
        dealt = make_folds(areas, np.r_[[0] * 30, 1:28], 10, seed=seed)
        folds = split_cases(training_set, n_folds=1, split="random", seed=seed, groups=groups)
        renumbered = dict(zip(dealt.tolist(), folds.tolist()))
        n_moved.append(sum(before != after for before, after in renumbered.items()))
        assert np.array_equal(folds, [renumbered[fold] for fold in dealt])
        assert n_moved[-1] == (2 if dealt[0] == 0 else 0)
        assert np.bincount(folds)[0] == 3
    assert set(n_moved) == {0, 2}


def test_flipped_and_rotated_copies_are_duplicates_and_noise_is_not():
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 255, (2, 48, 48, 3), np.uint8)
    images = [image, other, image[:, ::-1], np.rot90(image), 255 - other]
    assert find_duplicates([make_thumbnail(values) for values in images]) == [(0, 2), (0, 3), (2, 3)]
    assert find_duplicates([]) == []
    assert find_duplicates([make_thumbnail(image)]) == []


def orient(thumbnail: np.ndarray, k: int) -> np.ndarray:
    """The k-th of the eight orientations of a thumbnail (24, 24, 3)."""
    return np.rot90(thumbnail, k % 4)[:, :: (1, -1)[k // 4]]


@pytest.mark.parametrize("smoothness", [0, 1, 4])
@pytest.mark.parametrize(("n", "block"), [(1, 7), (40, 40), (300, 64), (300, 7), (300, 1000)])
def test_duplicates_are_the_pairs_that_correlate_in_one_of_eight_orientations(
    monkeypatch, smoothness, n, block
):
    monkeypatch.setattr("ctseg.split._BLOCK", block)
    rng = np.random.default_rng(n)
    thumbnails, noise = ndimage.gaussian_filter(
        rng.standard_normal((2, n, 24, 24, 3)), (0, 0, smoothness, smoothness, 0)
    )
    for copy, original in rng.permutation(n)[: n // 4 * 2].reshape(-1, 2):
        turned = orient(thumbnails[original], int(rng.integers(8)))
        thumbnails[copy] = turned + rng.uniform(0, 0.2) * noise[copy]
    thumbnails = thumbnails.astype(np.float32)
    vectors = np.array([normalize(thumbnail) for thumbnail in thumbnails])
    oriented = [[normalize(orient(thumbnail, k)) for thumbnail in thumbnails] for k in range(8)]
    correlation = np.max([vectors @ np.array(others).T for others in oriented], axis=0)
    expected = np.argwhere(np.triu(correlation > 0.992, k=1)).tolist()
    assert find_duplicates(list(thumbnails)) == [tuple(pair) for pair in expected]
    assert n < 300 or 20 < len(expected) < 70  # some of the 75 copies are too noisy


def test_all_pairs_of_many_copies_are_found():
    thumbnail = make_thumbnail(make_singles(1)[0])
    pairs = find_duplicates([thumbnail] * 600)
    assert pairs == [(i, j) for i in range(600) for j in range(i + 1, 600)]


@pytest.mark.parametrize("value", [0, 255, 200.3, 0.1, 1e-3])
def test_a_constant_thumbnail_correlates_with_nothing(value):
    constant, noise = np.full((24, 24, 3), value, np.float32), make_thumbnail(make_singles(1)[0])
    assert find_duplicates([constant, noise, constant.copy(), noise]) == [(1, 3)]


def test_products_of_normalized_arrays_are_their_correlation():
    values = np.random.default_rng(0).random((5, 4))
    vector = normalize(values)
    assert vector @ vector == pytest.approx(1) and vector.sum() == pytest.approx(0)
    assert vector @ normalize(3 - 2 * values) == pytest.approx(-1)
    assert normalize(np.ones((5, 4))).tolist() == [0] * 20


IDS = ["v0_000", "v0_001", "v1_000", "scan"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^(v\d+)_", ["v0", "v0", "v1", None]),
        (r"^v\d+", ["v0", "v0", "v1", None]),
        (r"^[a-z]+", ["v", "v", "v", "scan"]),
        (r"^(?:v(\d)|(sc))", ["0", "0", "1", "sc"]),
        (r"_00(\d)", ["0", "1", "0", None]),
        (r"(v0)?", ["v0", "v0", None, None]),
    ],
)
def test_a_pattern_finds_groups_in_ids(pattern, expected):
    assert find_groups(IDS, pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "^(v",
            r"parameter group: '\^\(v' is not a regular expression: missing \), .*; expected one such as",
        ),
        ("patient", "parameter group: 'patient' finds nothing in 4 ids such as v0_000; expected a regular"),
        ("x*", "parameter group: 'x\\*' finds nothing in 4 ids"),
        ("[vs]()|(c)", "finds nothing in 4 ids"),
        ("(?:v|s)|", "finds all in one group"),
    ],
)
def test_a_pattern_that_groups_nothing_is_an_error(pattern, message):
    ids = [image_id.replace("scan", "v_scan") for image_id in IDS]
    with pytest.raises(ValueError, match=message):
        find_groups(ids, pattern)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image_id,patient\nv0_000,a\nv0_001,a\nv1_000,b\nscan,c\n", ["a", "a", "b", "c"]),
        ("\ufeffid,patient\r\nv0_000.png,a\r\nscan.JPG,b\r\n", ["a", None, None, "b"]),
        ("id,age,Group\nv0_000,50,a\nv0_001,50,\nv1_000,50\nscan,51,a\n", ["a", None, None, "a"]),
        ("\ufeffv0_000,a\nv0_001,a\n", ["a", "a", None, None]),
        ("id,patient\n\nTrain/Image/v0_000.png, a\nother,b\nv0_000,a\n", ["a", None, None, None]),
    ],
)
def test_groups_are_read_from_a_table(tmp_path, text, expected):
    path = tmp_path / "groups.csv"
    path.write_bytes(text.encode())
    assert read_groups(path, IDS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\nv0_000\n", "begins with 'id'; expected two columns, ids and groups"),
        ("", "begins with 'nothing'; expected two columns"),
        ("id;patient\nv0_000;a\n", "begins with 'id;patient'; expected two columns, .* with commas"),
        (
            "id,patient\nx,a\n",
            "has none of the 4 ids such as v0_000 in its first column, which begins with 'id'",
        ),
        ("id,patient\nscan,a\nscan.png,b\n", "has scan in the groups 'a' and 'b'; expected one"),
    ],
)
def test_a_table_without_groups_is_an_error(tmp_path, text, message):
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"parameter group: .*groups.csv {message}"):
        read_groups(path, IDS)
