"""Pairing, reading and holding images and masks; what stops a run is in the data check's table as well."""

import shutil

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, load_cases, needs_real_data, save_image, write_pair
from PIL import Image

from ctseg.check import check_dataset
from ctseg.data import (
    Case,
    SegmentationDataset,
    describe_mask,
    find_cases,
    find_window,
    load_training_set,
    read_image,
    read_mask,
    read_size,
)
from ctseg.transforms import EvalTransform

RGB = np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8)
SOFT = np.zeros((30, 40), np.uint8)
SOFT[5:20, 5:20] = 90
SOFT[6:19, 6:19] = 255
LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:20, 5:20] = 1
LABELS[5:20, 25:35] = 2
EMPTY = np.zeros((30, 40), np.uint8)


def problems(root) -> dict:
    """The table of the data check as {(severity, file): problem}."""
    return {(row["severity"], row["file"]): row["problem"] for row in check_dataset(root)}


def test_pairs_are_made_by_stem_whatever_the_order_and_the_type(tiny):
    (tiny / "Train/Image/case_1.png").rename(tiny / "Train/Image/case_1.PNG")
    (tiny / "Train/Image/.hidden.png").write_bytes(b"")
    cases = find_cases(tiny, "train")
    assert [case.image_id for case in cases] == ["case_0", "case_1", "case_2", "case_3"]
    assert all(case.image.stem == case.mask.stem for case in cases)


def test_test_images_come_without_masks(tiny):
    assert find_cases(tiny, "test") == [Case("case_9", tiny / "Test" / "Image" / "case_9.jpg")]


@pytest.mark.parametrize("image_id", ["with space", "a.dotted.name", "münchen"])
def test_ids_may_hold_spaces_and_dots(tiny, image_id):
    write_pair(tiny, image_id, RGB, EMPTY)
    assert image_id in [case.image_id for case in find_cases(tiny, "train")]


@pytest.mark.parametrize(
    ("damage", "message", "row"),
    [
        (
            lambda root: (root / "Train/Mask/case_2.png").unlink(),
            "images without a mask.*case_2",
            ("error", "Train/Image/case_2.png"),
        ),
        (
            lambda root: (root / "Train/Image/case_2.png").unlink(),
            "masks without an image.*case_2",
            ("error", "Train/Mask/case_2.png"),
        ),
        (
            lambda root: save_image(root / "Train/Image/case_2.jpg", RGB),
            "two files of one stem.*case_2",
            ("error", "Train/Image/case_2.png"),
        ),
        (
            lambda root: shutil.rmtree(root / "Train/Mask"),
            r"images without a mask.*case_0.*\(4\)",
            ("error", "Train/Mask"),
        ),
        (
            lambda root: [path.unlink() for path in (root / "Train/Image").iterdir()],
            "no images in",
            ("error", "Train/Image"),
        ),
    ],
)
def test_files_that_do_not_pair_stop_a_run_and_are_in_the_table(tiny, damage, message, row):
    damage(tiny)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_cases(tiny, "train")
    assert row in problems(tiny)


def test_two_masks_of_one_stem_are_not_blamed_on_the_images(tiny):
    save_image(tiny / "Train/Mask/case_2.bmp", EMPTY)
    with pytest.raises(ValueError, match=r"two files of one stem: case_2 \(1\)") as error:
        find_cases(tiny, "train")
    assert "Image" not in str(error.value)
    assert problems(tiny)["error", "Train/Mask/case_2.png"] == "same stem as case_2.bmp"


def test_gray_rgba_and_palette_images_become_rgb(tmp_path):
    assert np.array_equal(read_image(save_image(tmp_path / "rgb.png", RGB)), RGB)
    gray = read_image(save_image(tmp_path / "gray.png", RGB[..., 0]))
    assert np.array_equal(gray, np.repeat(RGB[..., :1], 3, axis=2))
    assert np.array_equal(read_image(save_image(tmp_path / "rgba.png", RGB, "RGBA")), RGB)
    palette = read_image(save_image(tmp_path / "p.png", RGB, "P"))
    cmyk = read_image(save_image(tmp_path / "cmyk.jpg", RGB, "CMYK"))
    assert palette.shape == cmyk.shape == RGB.shape


def test_sixteen_bits_go_through_the_window_of_the_training_set(tiny):
    deep = np.linspace(1000, 3000, 1200).astype(np.uint16).reshape(30, 40)
    write_pair(tiny, "deep", deep, EMPTY)
    cases = find_cases(tiny, "train")
    low, high = find_window(cases)
    assert 1000 < low < 1030 and 2970 < high < 3000
    assert find_window(cases, 500, 4000) == (500, 4000)
    image = read_image(tiny / "Train/Image/deep.png", window=(1000, 3000))
    assert image.dtype == np.uint8 and image[0, 0, 0] == 0 and image[-1, -1].tolist() == [255] * 3
    with pytest.raises(ValueError, match="deep.png.*window_low"):
        read_image(tiny / "Train/Image/deep.png")
    # A test image may have 16 bits where no training image has.
    assert find_window(cases[:-1]) is None and find_window(cases[:-1], 500, 4000) == (500, 4000)


def test_a_rotated_image_is_read_upright_and_said_to_be(tiny):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_image(tiny / "Test/Image/rotated.jpg", RGB, exif=exif)
    assert read_size(path) == (40, 30) and read_image(path).shape == (40, 30, 3)
    assert "EXIF" in problems(tiny)["warning", "Test/Image/rotated.jpg"]


def test_a_large_jpeg_is_decoded_small_but_its_size_remembered(tmp_path):
    path = save_image(tmp_path / "large.jpg", np.kron(RGB, np.ones((40, 40, 1), np.uint8)))
    assert read_image(path, min_size=256).shape == (300, 400, 3)

    image, _, letterbox = SegmentationDataset([Case("large", path)], EvalTransform(256))[0]
    assert image.shape == (3, 256, 256) and letterbox.original_size == (1200, 1600)


def test_a_truncated_file_is_named_and_is_in_the_table(tiny):
    (tiny / "Train/Image/case_1.png").unlink()
    path = save_image(tiny / "Train/Image/case_1.jpg", RGB)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot read .*case_1.jpg.*truncated"):
        load_cases(tiny)
    assert "truncated" in problems(tiny)["error", "Train/Image/case_1.jpg"]


@pytest.mark.parametrize(
    ("values", "kind", "area"),
    [
        (EMPTY, "empty", 0),
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
    mask = read_mask(save_image(tmp_path / "mask.png", values))
    assert mask.dtype == bool and mask.sum() == area


def test_several_labels_are_refused_and_are_in_the_table(tiny):
    save_image(tiny / "Train/Mask/case_1.png", LABELS)
    save_image(tiny / "Train/Mask/case_2.png", SOFT)
    save_image(tiny / "Train/Mask/case_3.png", EMPTY)
    with pytest.raises(ValueError, match=r"case_1.png holds several labels \[0, 1, 2\]"):
        read_mask(tiny / "Train/Mask/case_1.png")
    found = problems(tiny)
    assert "several labels" in found["error", "Train/Mask/case_1.png"]
    assert "anti-aliased" in found["warning", "Train/Mask/case_2.png"]
    assert "empty" in found["warning", "Train/Mask/case_3.png"]


def test_a_mask_of_another_size_is_refused_and_in_the_table(tiny):
    save_image(tiny / "Train/Mask/case_1.png", SOFT.T)
    with pytest.raises(ValueError, match=r"case_1.png is \(40, 30\), its image .* is \(30, 40\)"):
        load_cases(tiny)
    assert "(40, 30) but its image is (30, 40)" in problems(tiny)["error", "Train/Mask/case_1.png"]


def test_a_training_set_keeps_what_belongs_to_one_case_together(phantom):
    dataset = SegmentationDataset(find_cases(phantom, "train"), EvalTransform(64))
    image, target, letterbox = dataset[5]
    some = load_training_set(dataset).select([5, 2])
    assert torch.equal(some.images[0], image) and torch.equal(some.targets[0], target)
    assert some.letterboxes[0] == letterbox
    assert some.cases[0] == dataset.cases[5]
    assert some.areas.tolist() == [read_mask(dataset.cases[i].mask).mean() for i in (5, 2)]


@needs_real_data
def test_images_of_many_megapixels_load_at_their_own_size():
    letterboxes = load_cases(REAL_DATA / "native/Dataset", 256).letterboxes
    assert max(np.prod(letterbox.original_size) for letterbox in letterboxes) > 10_000_000
