"""The folders of a data set, named or usual, and the files in them."""

import numpy as np
import pytest
from conftest import save_image

from ctseg.check import check_dataset
from ctseg.contest import A0, Contest
from ctseg.data import find_cases
from ctseg.folders import find_folders

IMAGE = np.zeros((4, 5, 3), np.uint8)


def lay_out(root, *folders: str, names=("a.png", "b.png")):
    """Put two images into each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            save_image(root / folder / name, IMAGE)


@pytest.mark.parametrize(
    ("images", "masks", "test"),
    [
        ("Train/Image", "Train/Mask", "Test/Image"),
        ("train/image", "train/mask", "test/image"),
        ("train/images", "train/masks", "test/images"),
        ("TRAIN/Images", "TRAIN/labels", "test"),
        ("images/train", "masks/train", "images/test"),
        ("images/training", "annotations/training", "images/testing"),
        ("imagesTr", "labelsTr", "imagesTs"),
        ("train_images", "train_masks", "test_images"),
        ("train", "train_masks", "test"),
        ("images", "masks", "test"),
    ],
)
def test_usual_folders_are_found_without_being_told(tmp_path, images, masks, test):
    lay_out(tmp_path, images, masks, test)
    folders = find_folders(tmp_path, A0)
    found = folders.train_images, folders.train_masks, folders.test_images
    assert found == (tmp_path / images, tmp_path / masks, tmp_path / test)
    assert [case.mask for case in find_cases(tmp_path, "train", A0)] == sorted((tmp_path / masks).iterdir())
    assert [case.image_id for case in find_cases(tmp_path, "test", A0)] == ["a", "b"]


def test_folders_that_are_named_win(tmp_path):
    lay_out(tmp_path, "images", "masks", "test", "deep/below/x", "y", "z")
    contest = Contest(train_images="deep/below/x", train_masks="y", test_images="z")
    folders = find_folders(tmp_path, contest)
    found = folders.train_images, folders.train_masks, folders.test_images
    assert found == (tmp_path / "deep/below/x", tmp_path / "y", tmp_path / "z")


def test_two_usual_layouts_at_once_are_refused(tmp_path):
    lay_out(tmp_path, "images", "masks", "train/images", "train/masks")
    with pytest.raises(ValueError, match="images: train/images with train/masks, images with masks; pass"):
        find_folders(tmp_path, A0)
    assert find_folders(tmp_path, Contest(train_images="images", train_masks="masks"))


def test_two_folders_of_masks_are_refused_and_other_files_are_none(tmp_path):
    lay_out(tmp_path, "images", "masks")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert find_folders(tmp_path, A0).train_masks == tmp_path / "masks"
    lay_out(tmp_path, "labels")
    with pytest.raises(ValueError, match="images with masks, images with labels; pass"):
        find_folders(tmp_path, A0)
    assert find_folders(tmp_path, Contest(train_masks="labels")).train_masks == tmp_path / "labels"


def test_what_is_there_instead_of_a_data_set_is_said(tmp_path):
    lay_out(tmp_path, "pictures", "truth")
    with pytest.raises(FileNotFoundError, match="has pictures, truth; pass its folders as -p train_images"):
        find_folders(tmp_path, A0)
    lay_out(tmp_path / "b", "images", "masks")
    with pytest.raises(FileNotFoundError, match="images or the like with masks in maskz of .*images, masks"):
        find_folders(tmp_path / "b", Contest(train_masks="maskz"))
    with pytest.raises(FileNotFoundError, match="no training images in photos of"):
        find_folders(tmp_path, Contest(train_images="photos"))


@pytest.mark.parametrize("name", ["train_masks", "test_images"])
def test_a_folder_that_is_named_has_to_be_there(tmp_path, name):
    lay_out(tmp_path, "Train/Image", "Train/Mask", "Test/Image")
    with pytest.raises(
        ValueError, match=f"parameter {name}: no folder 'Test/Imags' in .* Test/Image, .*; fix"
    ):
        find_folders(tmp_path, Contest(**{name: "Test/Imags"}))


@pytest.mark.parametrize("name", ["train_images", "train_masks", "test_images"])
@pytest.mark.parametrize("value", ["/elsewhere/images", "../images", "a/../../b"])
def test_folders_are_below_the_data_root(tmp_path, name, value):
    lay_out(tmp_path, "Train/Image", "Train/Mask", "Test/Image")
    with pytest.raises(ValueError, match=f"parameter {name}: got '{value}', expected a folder below"):
        find_folders(tmp_path, Contest(**{name: value}))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("stage1/images", "stage1/masks"),
        ("stage1/photos", "stage1/Labels"),
        ("stage1/train/photos", "stage1/train/mask"),
        ("photos", "masks"),
        ("photos", "Train/Mask"),
    ],
)
def test_masks_of_named_images_are_beside_them_or_in_a_usual_folder(tmp_path, images, masks):
    lay_out(tmp_path, images, masks, "test")
    assert find_folders(tmp_path, Contest(train_images=images)).train_masks == tmp_path / masks


def test_masks_beside_named_images_win_over_usual_ones_and_may_be_among_them(tmp_path):
    lay_out(tmp_path, "stage1/images", "stage1/masks", "Train/Image", "Train/Mask")
    folders = find_folders(tmp_path, Contest(train_images="stage1/images"))
    assert folders.train_masks == tmp_path / "stage1/masks"
    lay_out(tmp_path / "b", "photos", names=("a.png", "a_mask.png"))
    contest = Contest(train_images="photos", mask_suffix="_mask")
    assert [case.image_id for case in find_cases(tmp_path / "b", "train", contest)] == ["a"]
    with pytest.raises(ValueError, match="images without a mask"):
        find_cases(tmp_path / "b", "train", Contest(train_images="photos"))


def test_hidden_files_make_no_data_set(tmp_path):
    lay_out(tmp_path, "images", "masks")
    lay_out(tmp_path, "train/images", "train/masks", "__MACOSX/images", names=("._a.png", ".b.png"))
    assert find_folders(tmp_path, A0).train_images == tmp_path / "images"


def test_masks_among_test_images_are_no_test_images(tmp_path):
    lay_out(tmp_path, "train", "test", names=("a.png", "a_mask.png", "b.png", "b_mask.png"))
    lay_out(tmp_path, "test", names=("lone_mask.png",))
    contest = Contest(mask_suffix="_mask")
    found = [case.image_id for case in find_cases(tmp_path, "test", contest)]
    assert found == ["a", "b", "lone_mask"]
    lay_out(tmp_path / "apart", "train/images", "test/images", names=("2.png", "21.png"))
    lay_out(tmp_path / "apart", "train/masks", names=("21.png", "211.png"))
    found = find_cases(tmp_path / "apart", "test", Contest(mask_suffix="1"))
    assert [case.image_id for case in found] == ["2", "21"]  # masks have a folder of their own


def test_training_needs_no_test_images(tmp_path):
    lay_out(tmp_path, "images", "masks")
    assert len(find_cases(tmp_path, "train", A0)) == 2 and find_cases(tmp_path, "test", A0) == []
    assert find_folders(tmp_path, A0).test_images == tmp_path / "test"
    (tmp_path / "images").rename(tmp_path / "train_images")
    (tmp_path / "masks").rename(tmp_path / "train_masks")
    assert find_folders(tmp_path, A0).test_images == tmp_path / "test_images"


@pytest.mark.parametrize(
    "ends", [{"mask_suffix": "_mask"}, {"mask_prefix": "seg-"}, {"mask_prefix": "m", "mask_suffix": "0"}]
)
@pytest.mark.parametrize("folder", ["train", "train_masks"])
def test_a_masks_name_may_begin_and_end_with_more_than_its_images(tmp_path, ends, folder):
    lay_out(tmp_path, "train", names=("a.png", "b.png"))
    start, end = ends.get("mask_prefix", ""), ends.get("mask_suffix", "")
    lay_out(tmp_path, folder, names=(f"{start}a{end}.gif", f"{start}b{end}.png"))
    contest = Contest(**ends)
    cases = find_cases(tmp_path, "train", contest)
    assert [(case.image_id, case.image.name) for case in cases] == [("a", "a.png"), ("b", "b.png")]
    assert [case.mask.name for case in cases] == [f"{start}a{end}.gif", f"{start}b{end}.png"]
    with pytest.raises(ValueError, match="mask"):
        find_cases(tmp_path, "train", A0)


@pytest.mark.parametrize(("name", "end"), [("mask_suffix", "_mask"), ("mask_prefix", "seg-")])
@pytest.mark.parametrize("folder", ["train", "train_masks"])
def test_the_check_says_which_parameter_fits_the_masks_names(tmp_path, folder, name, end):
    stems = [f"case{index}" for index in range(8)]
    lay_out(tmp_path, "train", names=[f"{stem}.png" for stem in stems])
    lay_out(
        tmp_path,
        folder,
        names=[f"{stem}{end}.png" if name == "mask_suffix" else f"{end}{stem}.png" for stem in stems],
    )
    remedies = [row["remedy"] for row in check_dataset(tmp_path, A0) if row["severity"] == "error"]
    assert any(f"-p {name} {end}" in remedy for remedy in remedies)
    rows = check_dataset(tmp_path, Contest(**{name: end}))
    assert not any("not UTF-8" in row["problem"] for row in rows)
    assert not [row for row in rows if row["severity"] == "error" and "all masks are" not in row["problem"]]


def test_a_suffix_that_no_mask_has_is_said_to_be_wrong(tmp_path):
    lay_out(tmp_path, "images")
    lay_out(tmp_path, "masks", names=("a_mask.png", "b_mask.png"))
    (row,) = (
        row for row in check_dataset(tmp_path, Contest(mask_suffix="_msk")) if row["severity"] == "error"
    )
    assert row["problem"] == "no name fits mask_prefix '' and mask_suffix '_msk': a_mask, b_mask (2)"


def test_files_without_the_suffix_are_no_masks(tmp_path):
    lay_out(tmp_path, "images")
    lay_out(tmp_path, "masks", names=("a_seg.png", "b_seg.png", "a_superpixels.png"))
    assert len(find_cases(tmp_path, "train", Contest(mask_suffix="_seg"))) == 2
    rows = check_dataset(tmp_path, Contest(mask_suffix="_seg"))
    assert any("ignored: a_superpixels.png" in row["problem"] for row in rows)
