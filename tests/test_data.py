import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pair
from PIL import Image

from ctseg.check import check_dataset, describe_cases
from ctseg.data import (
    Case,
    SegmentationDataset,
    describe_mask,
    find_cases,
    find_data_root,
    find_window,
    load_squares,
    read_image,
    read_mask,
    read_size,
)
from ctseg.split import make_folds, split_cases
from ctseg.transforms import EvalTransform

RGB = np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8)
REAL = Path(__file__).parent.parent.parent / "shared" / "data"


def problems(root):
    """The table of the data check as {(severity, file): problem}."""
    return {(row["severity"], row["file"]): row["problem"] for row in check_dataset(root)}


# Finding


def test_the_data_root_is_found_by_path_by_variable_and_one_folder_up(tiny, monkeypatch):
    assert find_data_root(tiny) == find_data_root(tiny.parent) == tiny
    monkeypatch.setenv("CTSEG_DATA", str(tiny.parent))
    assert find_data_root() == tiny


def test_no_data_root_is_an_error_that_lists_the_places_and_never_the_phantom(tmp_path, monkeypatch):
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="/kaggle/input/competitions/a0-2025.*CTSEG_DATA"):
        find_data_root()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_data_root("nowhere")


def test_both_kaggle_mounts_are_found(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("competitions/a0-2025-medical-image-segmentation", "a0-2025-medical-image-segmentation", "some/other/name"):
        mount = tmp_path / name.replace("/", "_") / "input"
        (mount / name).mkdir(parents=True)
        shutil.copytree(tiny, mount / name / "Dataset")
        monkeypatch.setattr("ctseg.data.KAGGLE_INPUT", mount)
        assert find_data_root() == mount / name / "Dataset"


# Pairing


def test_pairs_are_made_by_stem_whatever_the_order_and_the_type(tiny):
    (tiny / "Train/Image/case_1.png").rename(tiny / "Train/Image/case_1.PNG")
    (tiny / "Train/Image/.hidden.png").write_bytes(b"")
    cases = find_cases(tiny, "Train")
    assert [case.image_id for case in cases] == ["case_0", "case_1", "case_2", "case_3"]
    assert all(case.image.stem == case.mask.stem for case in cases)


@pytest.mark.parametrize("image_id", ["with space", "a.dotted.name", "münchen"])
def test_ids_may_hold_spaces_and_dots(tiny, image_id):
    write_pair(tiny, image_id, RGB, np.zeros((30, 40), np.uint8))
    assert image_id in [case.image_id for case in find_cases(tiny, "Train")]


@pytest.mark.parametrize(
    ("damage", "message", "row"),
    [
        (lambda root: (root / "Train/Mask/case_2.png").unlink(), "images without a mask.*case_2", ("error", "Train/Image/case_2.png")),
        (lambda root: (root / "Train/Image/case_2.png").unlink(), "masks without an image.*case_2", ("error", "Train/Mask/case_2.png")),
        (
            lambda root: Image.fromarray(RGB).save(root / "Train/Image/case_2.jpg"),
            "two files of one stem.*case_2",
            ("error", "Train/Image/case_2.png"),
        ),
        (lambda root: shutil.rmtree(root / "Train/Mask"), r"images without a mask.*case_0.*\(4\)", ("error", "Train/Mask")),
        (lambda root: [path.unlink() for path in (root / "Train/Image").iterdir()], "no images in", ("error", "Train/Image")),
    ],
)
def test_files_that_do_not_pair_stop_the_run_and_stand_in_the_table(tiny, damage, message, row):
    damage(tiny)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_cases(tiny, "Train")
    assert row in problems(tiny)


# Reading


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_grey_rgba_and_palette_images_become_rgb(tmp_path):
    assert np.array_equal(read_image(save(tmp_path / "rgb.png", RGB)), RGB)
    grey = read_image(save(tmp_path / "grey.png", RGB[..., 0]))
    assert np.array_equal(grey, np.repeat(RGB[..., :1], 3, axis=2))
    assert np.array_equal(read_image(save(tmp_path / "rgba.png", RGB, "RGBA")), RGB)
    assert read_image(save(tmp_path / "p.png", RGB, "P")).shape == read_image(save(tmp_path / "cmyk.jpg", RGB, "CMYK")).shape == RGB.shape


def test_sixteen_bit_images_go_through_the_window_of_the_training_set(tiny):
    deep = np.linspace(1000, 3000, 1200).astype(np.uint16).reshape(30, 40)
    write_pair(tiny, "deep", deep, np.zeros((30, 40), np.uint8))
    cases = find_cases(tiny, "Train")
    low, high = find_window(cases)
    assert 1000 < low < 1030 and 2970 < high < 3000
    assert find_window(cases, 500, 4000) == (500, 4000)
    image = read_image(tiny / "Train/Image/deep.png", window=(1000, 3000))
    assert image.dtype == np.uint8 and image[0, 0, 0] == 0 and image[-1, -1].tolist() == [255] * 3
    with pytest.raises(ValueError, match="deep.png.*window_low"):
        read_image(tiny / "Train/Image/deep.png")
    assert find_window(cases[:-1]) is None and find_window(cases[:-1], 500, 4000) == (500, 4000)  # a test image may have 16 bits


def test_a_rotated_image_is_read_upright_and_said_to_be(tiny):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tiny / "Test/Image/turned.jpg", RGB, exif=exif)
    assert read_size(path) == (40, 30) and read_image(path).shape == (40, 30, 3)
    assert "EXIF" in problems(tiny)["warning", "Test/Image/turned.jpg"]


def test_a_large_jpeg_is_decoded_small_and_its_own_size_remembered(tmp_path):
    path = save(tmp_path / "large.jpg", np.kron(RGB, np.ones((40, 40, 1), np.uint8)))
    assert read_image(path, min_size=256).shape == (300, 400, 3)

    square, _, frame = SegmentationDataset([Case("large", path)], EvalTransform(256))[0]
    assert square.shape == (3, 256, 256) and frame.original_size == (1200, 1600)


def test_a_truncated_file_is_named_and_stands_in_the_table(tiny):
    path = tiny / "Train/Image/case_1.png"
    save(path.with_suffix(".jpg"), RGB)
    path.unlink()
    path = path.with_suffix(".jpg")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot read .*case_1.jpg.*truncated"):
        load_squares(SegmentationDataset(find_cases(tiny, "Train"), EvalTransform(32)))
    assert "truncated" in problems(tiny)["error", "Train/Image/case_1.jpg"]


SOFT = np.zeros((30, 40), np.uint8)
SOFT[5:20, 5:20] = 90
SOFT[6:19, 6:19] = 255
LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:20, 5:20] = 1
LABELS[5:20, 25:35] = 2


@pytest.mark.parametrize(
    ("values", "kind", "area"),
    [
        (np.zeros((30, 40), np.uint8), "empty", 0),
        ((SOFT == 255).astype(np.uint8), "0/1", 169),
        ((SOFT == 255) * np.uint8(255), "0/255", 169),
        ((SOFT == 255) * np.uint8(7), "two values", 169),
        ((SOFT == 255) * np.uint16(65535), "two values", 169),
        (SOFT, "anti-aliased", 169),
        (np.full((30, 40), 255, np.uint8), "full", 1200),
    ],
)
def test_every_kind_of_mask_is_told_apart_and_read(tmp_path, values, kind, area):
    assert describe_mask(values) == kind
    mask = read_mask(save(tmp_path / "mask.png", values))
    assert mask.dtype == bool and mask.sum() == area


def test_a_mask_of_several_labels_is_refused_and_stands_in_the_table(tiny):
    save(tiny / "Train/Mask/case_1.png", LABELS)
    save(tiny / "Train/Mask/case_2.png", SOFT)
    save(tiny / "Train/Mask/case_3.png", np.zeros((30, 40), np.uint8))
    with pytest.raises(ValueError, match=r"case_1.png holds several labels \[0, 1, 2\]"):
        read_mask(tiny / "Train/Mask/case_1.png")
    found = problems(tiny)
    assert "several labels" in found["error", "Train/Mask/case_1.png"]
    assert "anti-aliased" in found["warning", "Train/Mask/case_2.png"]
    assert "empty" in found["warning", "Train/Mask/case_3.png"]


def test_a_mask_of_another_size_is_refused_and_stands_in_the_table(tiny):
    save(tiny / "Train/Mask/case_1.png", SOFT.T)
    with pytest.raises(ValueError, match=r"case_1.png is \(40, 30\), its image .* is \(30, 40\)"):
        load_squares(SegmentationDataset(find_cases(tiny, "Train"), EvalTransform(32)))
    assert "(40, 30) but its image is (30, 40)" in problems(tiny)["error", "Train/Mask/case_1.png"]


# Describing, checking, splitting


def test_a_sound_data_set_has_no_problems(phantom):
    assert check_dataset(phantom) == []


def test_a_copy_is_found_within_train_and_across_to_test(tiny):
    write_pair(tiny, "copy", np.asarray(Image.open(tiny / "Train/Image/case_0.png")), np.zeros((30, 40), np.uint8))
    shutil.copy(tiny / "Train/Image/case_2.png", tiny / "Test/Image/again.png")
    found = problems(tiny)
    assert found["warning", "Train/Image/copy.png"] == "nearly the same image as Train/Image/case_0.png"
    assert found["warning", "Test/Image/again.png"] == "nearly the same image as Train/Image/case_2.png"


def test_descriptions_give_size_colour_and_area(tiny):
    row = describe_cases(find_cases(tiny, "Train"))[0]
    image = np.asarray(Image.open(tiny / "Train/Image/case_0.png"))
    assert (row["height"], row["width"], row["aspect"]) == (30, 40, 0.75)
    assert row["mean_g"] == pytest.approx(image[..., 1].mean()) and row["std_b"] == pytest.approx(image[..., 2].std(), abs=0.01)
    assert row["mask_area"] == 5 * 14 / 1200


def test_folds_have_like_sizes_like_areas_and_keep_groups_together():
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
    with pytest.raises(ValueError, match="3 distinct images cannot be dealt into 5 folds"):
        make_folds(np.ones(4), np.array([0, 1, 2, 2]), 5, seed=0)


@pytest.mark.parametrize("split", ["random", "stratified"])
@pytest.mark.parametrize("n_folds", [1, 4])
def test_every_case_is_dealt_into_one_of_like_folds_and_one_fold_means_a_tenth(phantom, split, n_folds):
    squares = load_squares(SegmentationDataset(find_cases(phantom, "Train"), EvalTransform(32)))
    sizes = np.bincount(split_cases(squares, n_folds=n_folds, split=split, seed=0))
    assert sizes.sum() == 24
    assert sizes.tolist() == [6] * 4 if n_folds > 1 else sizes[0] in (2, 3)


def test_a_handful_of_images_can_be_split_and_a_single_one_cannot(phantom):
    squares = load_squares(SegmentationDataset(find_cases(phantom, "Train"), EvalTransform(32)))
    assert sorted(split_cases(squares.subset(range(3)), n_folds=1, split="stratified", seed=0)) == [0, 1, 2]
    with pytest.raises(ValueError, match="1 distinct images cannot be dealt into 2 folds"):
        split_cases(squares.subset([0]), n_folds=1, split="random", seed=0)


def test_the_folds_do_not_depend_on_the_size_of_the_squares(phantom):
    def folds(size):
        squares = load_squares(SegmentationDataset(find_cases(phantom, "Train"), EvalTransform(size)))
        return split_cases(squares, n_folds=5, split="stratified", seed=0).tolist()

    assert folds(32) == folds(96)


def test_duplicates_never_straddle_the_split(tiny):
    for copy in range(8):
        write_pair(tiny, f"copy_{copy}", np.asarray(Image.open(tiny / "Train/Image/case_0.png")), np.zeros((30, 40), np.uint8))
    squares = load_squares(SegmentationDataset(find_cases(tiny, "Train"), EvalTransform(32)))
    alike = [i for i, case in enumerate(squares.cases) if case.image_id.startswith("copy") or case.image_id == "case_0"]
    folds = split_cases(squares, n_folds=4, split="stratified", seed=0)
    assert len(alike) == 9 and len(set(folds[alike])) == 1 and len(set(folds)) == 4


def test_squares_hold_image_target_and_frame_of_the_same_case(phantom):
    dataset = SegmentationDataset(find_cases(phantom, "Train"), EvalTransform(64))
    squares = load_squares(dataset)
    square, target, frame = dataset[5]
    some = squares.subset([5, 2])
    assert torch.equal(some.images[0], square) and torch.equal(some.targets[0], target) and some.frames[0] == frame
    assert some.cases[0] == dataset.cases[5]


@pytest.mark.skipif(not (REAL / "native").is_dir(), reason="no large images at hand")
def test_images_of_many_megapixels_load_at_native_frames():
    squares = load_squares(SegmentationDataset(find_cases(REAL / "native/Dataset", "Train"), EvalTransform(256)))
    assert max(np.prod(frame.original_size) for frame in squares.frames) > 10_000_000
