"""A contest's facts: where its files are, and the columns of its submission."""

import numpy as np
import pytest
from conftest import save_image

from ctseg.check import check_dataset
from ctseg.contest import A0, Contest
from ctseg.data import find_cases

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
    folders = A0.find_folders(tmp_path)
    found = folders.train_images, folders.train_masks, folders.test_images
    assert found == (tmp_path / images, tmp_path / masks, tmp_path / test)
    assert [case.mask for case in find_cases(tmp_path, "train")] == sorted((tmp_path / masks).iterdir())
    assert [case.image_id for case in find_cases(tmp_path, "test")] == ["a", "b"]


def test_folders_that_are_named_win(tmp_path):
    lay_out(tmp_path, "images", "masks", "test", "deep/below/x", "y", "z")
    contest = Contest(train_images="deep/below/x", train_masks="y", test_images="z")
    folders = contest.find_folders(tmp_path)
    found = folders.train_images, folders.train_masks, folders.test_images
    assert found == (tmp_path / "deep/below/x", tmp_path / "y", tmp_path / "z")


def test_two_usual_layouts_at_once_are_refused(tmp_path):
    lay_out(tmp_path, "images", "masks", "train/images", "train/masks")
    with pytest.raises(ValueError, match="images: train/images with train/masks, images with masks; pass"):
        A0.find_folders(tmp_path)
    assert Contest(train_images="images", train_masks="masks").find_folders(tmp_path)


def test_two_folders_of_masks_are_refused_and_other_files_are_none(tmp_path):
    lay_out(tmp_path, "images", "masks")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert A0.find_folders(tmp_path).train_masks == tmp_path / "masks"
    lay_out(tmp_path, "labels")
    with pytest.raises(ValueError, match="images with masks, images with labels; pass"):
        A0.find_folders(tmp_path)
    assert Contest(train_masks="labels").find_folders(tmp_path).train_masks == tmp_path / "labels"


def test_what_is_there_instead_of_a_data_set_is_said(tmp_path):
    lay_out(tmp_path, "pictures", "truth")
    with pytest.raises(FileNotFoundError, match="has pictures, truth; pass its folders as -p train_images"):
        A0.find_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match="no training images in photos of"):
        Contest(train_images="photos").find_folders(tmp_path)


def test_training_needs_no_test_images(tmp_path):
    lay_out(tmp_path, "images", "masks")
    assert len(find_cases(tmp_path, "train")) == 2 and find_cases(tmp_path, "test") == []
    assert A0.find_folders(tmp_path).test_images == tmp_path / "test"
    (tmp_path / "images").rename(tmp_path / "train_images")
    (tmp_path / "masks").rename(tmp_path / "train_masks")
    assert A0.find_folders(tmp_path).test_images == tmp_path / "test_images"


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
        find_cases(tmp_path, "train")


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
    remedies = [row["remedy"] for row in check_dataset(tmp_path) if row["severity"] == "error"]
    assert any(f"-p {name} {end}" in remedy for remedy in remedies)
    rows = check_dataset(tmp_path, Contest(**{name: end}))
    assert not any("not UTF-8" in row["problem"] for row in rows)
    assert not [row for row in rows if row["severity"] == "error" and "all masks are" not in row["problem"]]


def test_files_without_the_suffix_are_no_masks(tmp_path):
    lay_out(tmp_path, "images")
    lay_out(tmp_path, "masks", names=("a_seg.png", "b_seg.png", "a_superpixels.png"))
    assert len(find_cases(tmp_path, "train", Contest(mask_suffix="_seg"))) == 2
    rows = check_dataset(tmp_path, Contest(mask_suffix="_seg"))
    assert any("ignored: a_superpixels.png" in row["problem"] for row in rows)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("ID,Mask", {"ID": "{id}", "Mask": "{mask}"}),
        ("id,height={height},rle", {"id": "{id}", "height": "{height}", "rle": "{mask}"}),
        ("rle={mask},id={id}", {"rle": "{mask}", "id": "{id}"}),
        ("rle={mask},id", {"rle": "{mask}", "id": "{id}"}),
        ("id, rle", {"id": "{id}", "rle": "{mask}"}),
        ("id,note=,rle", {"id": "{id}", "note": "", "rle": "{mask}"}),
    ],
)
def test_columns_are_the_id_the_code_and_others_with_their_values(text, columns):
    found = Contest(submission_columns=text).read_columns()
    assert list(found.items()) == list(columns.items())


@pytest.mark.parametrize(
    "text", ["", "ID", "ID,Mask,Third", "ID,ID", "ID,Mask,", "ID,Mask,ID=1", "ID,h={Height},Mask"]
)
def test_columns_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match="submission_columns: got"):
        Contest(submission_columns=text).read_columns()
