"""The data check on a sound data set that is damaged in many ways, and on real ones."""

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_DATA, REPOSITORY, needs_real_data, save_image, write_pair
from PIL import Image
from scipy import ndimage
from tifffile import imwrite

from ctseg import check
from ctseg.check import COLUMNS, check_dataset, check_images, count_pairs, measure_shift, print_warnings
from ctseg.contest import A0
from ctseg.data import (
    Case,
    SegmentationDataset,
    find_cases,
    find_window,
    load_training_set,
    read_image,
    read_mask,
    read_mask_values,
)
from ctseg.phantom import write_phantom
from ctseg.split import make_thumbnail
from ctseg.transforms import EvalTransform

IMAGE, MASK, TEST = "Train/Image/train_003.jpg", "Train/Mask/train_003.png", "Test/Image/test_001.jpg"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A phantom whose regions are lighter than their surroundings, without which no shift of a mask shows."""
    root = write_phantom(tmp_path_factory.mktemp("sound") / "phantom", n_train=16, n_test=2)
    for case in find_cases(root, "train", A0):
        lighter = load(root, case.image) + 80 * read_mask(case.mask)[..., None]
        save_image(case.image, np.clip(lighter, 0, 255).astype(np.uint8), quality=95)
    return root


@pytest.fixture
def root(sound, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "Dataset"))


def load(root, name=MASK) -> np.ndarray:
    """The stored values of a file of the data set."""
    return np.asarray(Image.open(root / name))


def save(root, name, array, mode=None, **options):
    """Replace a file of the data set."""
    save_image(root / name, array, mode, **options)


def remove(root, name, new=None) -> Path:
    """Remove a file and return the path of its successor, of the same name unless `new` is given."""
    (root / name).unlink()
    return root / (new or name)


def rename(root, name, new):
    """Give a file another name in its folder."""
    (root / name).rename((root / name).with_name(new))


def cut(root, name, share):
    """Keep only the first share of a file's bytes."""
    (root / name).write_bytes((root / name).read_bytes()[: int(share * (root / name).stat().st_size)])


def write_bomb(path):
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def rotate_by_exif(root, orientation):
    """Give the image an EXIF orientation, and its mask none."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(root, IMAGE, load(root, IMAGE), exif=exif)


def shift(mask: np.ndarray) -> np.ndarray:
    """A mask moved right by a tenth of the width."""
    moved, step = np.zeros_like(mask), mask.shape[1] // 10
    moved[:, step:] = mask[:, :-step]
    return moved


def invert_all_masks(root):
    """Exchange foreground and background of every mask."""
    for path in (root / "Train/Mask").iterdir():
        save(root, path, 255 - load(root, path))


def add_label(mask: np.ndarray) -> np.ndarray:
    """A mask whose first 40 rows have a value of their own."""
    return mask // 2 + np.uint8(60) * (np.indices(mask.shape)[0] < 40)


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask next to its edge."""
    return mask - mask * ndimage.binary_erosion(mask, iterations=2)


def soften(mask: np.ndarray) -> np.ndarray:
    """A mask exported at half its size and enlarged again."""
    return np.asarray(Image.fromarray(mask[::2, ::2].copy()).resize(mask.shape[::-1]))


def add_image(root, new, **options):
    """Add a training pair whose image is train_003's, changed."""
    image = Image.fromarray(load(root, IMAGE))
    for change, argument in options.items():
        image = getattr(image, change)(argument)
    image.save(root / "Train" / "Image" / new, quality=90)
    Image.new("L", image.size).save(root / "Train" / "Mask" / f"{Path(new).stem}.png")


def write_codes(root, encode):
    """Write a table with the run-length code of one mask next to the images."""
    (root / "train.csv").write_text(f"ID,Mask\ntrain_003,{encode(load(root) > 0)}\n")


def write_sample(root, text):
    """Write a sample submission next to the images."""
    (root / "sample_submission.csv").write_text(text)


def encode_columns(mask: np.ndarray) -> str:
    """The run-length code of a mask, column by column."""
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=False))
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
MIRROR, ROTATE = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90
# By severity, {kind of damage: (file, part of the problem's or the remedy's text, how it is done)}.
ERRORS = {
    "truncated JPEG": (IMAGE, "truncated", lambda r: cut(r, IMAGE, 0.5)),
    "truncated JPEG in Test": (TEST, "truncated", lambda r: cut(r, TEST, 0.5)),
    "truncated PNG": (MASK, "cannot be read", lambda r: cut(r, MASK, 0.5)),
    "zero bytes": (IMAGE, "cannot be read", lambda r: (r / IMAGE).write_bytes(b"")),
    "a mask of zero bytes": (MASK, "cannot be read", lambda r: (r / MASK).write_bytes(b"")),
    "text instead of an image": (IMAGE, "cannot be read", lambda r: (r / IMAGE).write_text("<html>")),
    "PostScript, which Pillow would hand to a program": (
        IMAGE,
        "cannot identify",
        lambda r: (r / IMAGE).write_bytes(POSTSCRIPT),
    ),
    "a folder named as an image": (IMAGE, "cannot be read", lambda r: remove(r, IMAGE).mkdir()),
    "a symlink loop": (IMAGE, "cannot be read", lambda r: remove(r, IMAGE).symlink_to(r / IMAGE)),
    "a broken symlink": (TEST, "cannot be read", lambda r: remove(r, TEST).symlink_to(r / "gone.jpg")),
    "bomb-sized header": (
        TEST[:-3] + "png",
        "exceeds limit",
        lambda r: write_bomb(remove(r, TEST, TEST[:-3] + "png")),
    ),
    "not finite": (
        TEST,
        "NaN or infinite values",
        lambda r: save(r, TEST, np.full((50, 60), np.nan, np.float32), format="TIFF"),
    ),
    "rotated by EXIF, mask not rotated": (MASK, "rotated by an EXIF tag", lambda r: rotate_by_exif(r, 6)),
    "mask transposed": (MASK, "it is transposed", lambda r: save(r, MASK, load(r).T.copy())),
    "mask of another size": (MASK, "but its image is", lambda r: save(r, MASK, load(r)[::2, ::2].copy())),
    "a mask in its alpha channel": (
        MASK,
        "painted in its alpha channel",
        lambda r: save(r, MASK, np.stack([load(r) * 0] * 3 + [load(r)], axis=2)),
    ),
    "16 bits among 8, in the test images": (
        TEST,
        "more than 8 bits, where the training images have 8",
        lambda r: save(r, TEST, load(r, TEST)[..., 0].astype(np.uint16) * 9, format="PNG"),
    ),
    "three values": (MASK, "several labels", lambda r: save(r, MASK, add_label(load(r)))),
    "no mask": (IMAGE, "image without a mask", lambda r: (r / MASK).unlink()),
    "no image": (MASK, "mask without an image", lambda r: (r / IMAGE).unlink()),
    "masks named by a suffix": (
        "Train/Mask/train_003_segmentation.png",
        "misnamed mask: of the image 'train_003'; give it the stem of its image",
        lambda r: rename(r, MASK, "train_003_segmentation.png"),
    ),
    "masks in capitals": (
        "Train/Mask/TRAIN_003.png",
        "'train_003'",
        lambda r: rename(r, MASK, "TRAIN_003.png"),
    ),
    "no folder of masks": ("Train/Mask", "no folder", lambda r: shutil.rmtree(r / "Train/Mask")),
    "same stem twice": (
        "Train/Image/train_003.png",
        "same stem",
        lambda r: save(r, "Train/Image/train_003.png", load(r, IMAGE)),
    ),
    "codes in column-major order": (
        "CSV files",
        "codes column by column, but the settings",
        lambda r: write_codes(r, encode_columns),
    ),
    "codes of other masks": ("CSV files", "another mask", lambda r: write_codes(r, lambda mask: "1 5")),
    "a code of more characters than Python's CSV reader takes": (
        "CSV files",
        "another mask",
        lambda r: write_codes(r, lambda mask: "1 1 " * 40_000),
    ),
    "a sample submission of other images": (
        "CSV files",
        "differ in test_001, test_002 (2)",
        lambda r: write_sample(r, "ID,Mask\ntest_000,1 1\ntest_002,1 1\n"),
    ),
    "a sample submission of other columns": (
        "CSV files",
        "has the columns id,rle, but the settings say the columns ID,Mask",
        lambda r: write_sample(r, "id,rle\ntest_000,1 1\ntest_001,1 1\n"),
    ),
}
WARNINGS = {
    "no test images": ("Test/Image", "no test images", lambda r: shutil.rmtree(r / "Test")),
    "another type than its name says": (
        IMAGE,
        "not the type that its name says: PNG, not JPEG",
        lambda r: save(r, IMAGE, load(r, IMAGE), format="PNG"),
    ),
    "CMYK": (IMAGE, "CMYK colors", lambda r: save(r, IMAGE, load(r, IMAGE), "CMYK")),
    "palette": (TEST, "P colors", lambda r: save(r, TEST, load(r, TEST), "P", format="PNG")),
    "gray with alpha": (TEST, "LA colors", lambda r: save(r, TEST, load(r, TEST), "LA", format="PNG")),
    "16 bits among 8, in training": (
        IMAGE,
        "more than 8 bits",
        lambda r: save(r, IMAGE, load(r, IMAGE)[..., 0].astype(np.uint16) * 9, format="PNG"),
    ),
    "8 bits among 16": (
        "Train/Image",
        "8 bits, where training images have more: train_000.jpg, train_001.jpg",
        lambda r: save(r, IMAGE, load(r, IMAGE)[..., 0].astype(np.uint16) * 9, format="PNG"),
    ),
    "one pixel": (TEST, "very small: 1 × 1 pixels", lambda r: save(r, TEST, np.zeros((1, 1, 3), np.uint8))),
    "20,000 pixels wide": (
        TEST,
        "very long: 20000 × 40",
        lambda r: save(r, TEST, np.zeros((40, 20_000, 3), np.uint8)),
    ),
    "a single color": (TEST, "a single color", lambda r: save(r, TEST, np.full((80, 90, 3), 7, np.uint8))),
    "upside down by EXIF": (IMAGE, "rotated by its EXIF or TIFF tag", lambda r: rotate_by_exif(r, 3)),
    "mask shifted": (
        MASK,
        "fits its image better when it is moved",
        lambda r: save(r, MASK, shift(load(r))),
    ),
    "mask inverted": (
        MASK,
        "foreground where other masks have background",
        lambda r: save(r, MASK, 255 - load(r)),
    ),
    "all masks inverted": ("Train/Mask", "most masks are foreground along the edge", invert_all_masks),
    "anti-aliased": (MASK, "anti-aliased", lambda r: save(r, MASK, soften(load(r)))),
    "another foreground value": (
        "Train/Mask",
        "masks of the values 0/255 (15), 0/127 (train_003.png); the upper value is foreground",
        lambda r: save(r, MASK, load(r) // 2),
    ),
    "a mask in color": (
        "Train/Mask",
        "0/255 (15), 0/(255, 0, 0) (train_003.png)",
        lambda r: save(r, MASK, load(r)[..., None] * np.uint8([1, 0, 0])),
    ),
    "a mask that draws an outline": (
        MASK,
        "only outlines are drawn; fill them",
        lambda r: save(r, MASK, outline(load(r))),
    ),
    "a mask whose white is 0": (
        MASK[:-3] + "tif",
        "a TIFF whose white is 0; its stored values count",
        lambda r: (imwrite(r / (MASK[:-3] + "tif"), load(r) > 0), remove(r, MASK)),
    ),
    "empty": (MASK, "empty", lambda r: save(r, MASK, load(r) * 0)),
    "full": (MASK, "full", lambda r: save(r, MASK, load(r) * 0 + 255)),
    "a lossy mask": (
        MASK[:-3] + "jpg",
        "saved with loss",
        lambda r: (save(r, MASK[:-3] + "jpg", load(r), quality=30), remove(r, MASK)),
    ),
    "a duplicate in Train": (
        "Train/Image/zz.png",
        "nearly the same image",
        lambda r: add_image(r, "zz.png"),
    ),
    "a smaller copy": (
        "Train/Image/zz.png",
        "kept in one fold",
        lambda r: add_image(r, "zz.png", resize=(100, 80)),
    ),
    "a recompressed copy": (
        "Train/Image/zz.jpg",
        "nearly the same image",
        lambda r: add_image(r, "zz.jpg"),
    ),
    "a mirrored copy": (
        "Train/Image/zz.png",
        "nearly the same",
        lambda r: add_image(r, "zz.png", transpose=MIRROR),
    ),
    "a rotated copy": (
        "Train/Image/zz.png",
        "nearly the same",
        lambda r: add_image(r, "zz.png", transpose=ROTATE),
    ),
    "a copy in Test": (
        "Test/Image/zz.jpg",
        "do not count on its score",
        lambda r: shutil.copy(r / IMAGE, r / "Test/Image/zz.jpg"),
    ),
}
NOTES = {
    "unicode in a name": ("Test/Image", "münchen", lambda r: rename(r, TEST, "münchen.jpg")),
    "spaces in a name": ("Test/Image", "a b", lambda r: rename(r, TEST, "a b.jpg")),
    "a comma and a line break in a name": (
        "Test/Image",
        "unusual characters",
        lambda r: rename(r, TEST, "a,\nb.jpg"),
    ),
    "a name like a number": (
        "Test/Image",
        "a spreadsheet would take",
        lambda r: rename(r, TEST, "00012.jpg"),
    ),
    "hidden files": (
        "Train/Mask",
        "ignored: ._train_003.png",
        lambda r: shutil.copy(r / MASK, r / "Train/Mask/._train_003.png"),
    ),
    "__MACOSX": (
        "Train/Image",
        "__MACOSX",
        lambda r: shutil.copytree(r / "Test/Image", r / "Train/Image/__MACOSX"),
    ),
    "an unknown type": ("Test/Image", "x.dcm", lambda r: (r / "Test/Image/x.dcm").write_bytes(b"DICM")),
}
DAMAGE = {
    kind: (severity, *entry)
    for severity, kinds in (("error", ERRORS), ("warning", WARNINGS), ("note", NOTES))
    for kind, entry in kinds.items()
}
HARMLESS = [kind for kind, (severity, file, *_) in DAMAGE.items() if severity != "error" and "Train" in file]


def test_a_sound_data_set_has_no_rows(sound):
    assert check_dataset(sound, A0) == []


def test_the_phantom_has_no_problems(phantom):
    assert check_dataset(phantom, A0) == []


def test_sixty_kinds_of_damage_are_tried():
    assert len(DAMAGE) >= 60


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_in_the_table_with_a_remedy(root, kind):
    severity, file, text, damage = DAMAGE[kind]
    damage(root)
    rows = [row for row in check_dataset(root, A0) if row["severity"] == severity and row["file"] == file]
    found = any(text in f"{row['problem']}; {row['remedy']}" and row["remedy"] for row in rows)
    assert found, check_dataset(root, A0)


@pytest.mark.parametrize("kind", HARMLESS)
def test_warnings_and_notes_do_not_stop_a_run(root, kind):
    *_, damage = DAMAGE[kind]
    damage(root)
    cases = find_cases(root, "train", A0)
    dataset = SegmentationDataset(cases, EvalTransform(32), find_window(cases))
    assert len(load_training_set(dataset)) >= 12


def change_bytes(path, rng):
    """Replace random bytes of a file, and sometimes cut it."""
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, min(len(content), 10 ** rng.integers(2, 6)), rng.integers(1, 9)):
        content[place] = rng.integers(256)
    path.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)


def test_random_bytes_crash_nothing_and_the_unreadable_is_an_error(root, monkeypatch):
    rng = np.random.default_rng(0)
    files = sorted(path for path in root.glob("T*/*/*") if path.suffix in (".jpg", ".png"))
    for path in files:
        change_bytes(path, rng)
    unreadable = set()
    for path in files:
        try:
            (read_mask_values if path.parent.name == "Mask" else read_image)(path)
        except ValueError as error:
            assert f"cannot read {path}" in str(error)
            unreadable.add("/".join(path.parts[-3:]))
    monkeypatch.setattr(check, "_merge_rows", list)
    errors = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    reported = {row["file"] for row in errors if row["problem"].startswith("cannot be read")}
    assert len(unreadable) > 5 and reported == unreadable


def test_rows_alike_are_joined_and_errors_come_first(root):
    for path in (root / "Train" / "Mask").iterdir():
        save(root, path, load(root, path) // 255 * 254)
    (root / "Test" / "Image" / "x.dcm").write_bytes(b"")
    cut(root, TEST, 0.5)
    rows = check_dataset(root, A0)
    assert [row["severity"] for row in rows] == ["error", "warning", "note"]
    assert rows[1]["file"] == "Train/Mask" and rows[1]["problem"] == "masks of the values 0/254 (16)"


@pytest.mark.parametrize(
    ("damage", "row"),
    [
        (lambda mask, n: mask[: 90 + n, :100], "of another size: train_000.png ((90, 100) but its image is"),
        (lambda mask, n: mask * 0, "all masks are empty"),
        (lambda mask, n: mask * 0 + 255, "all masks are full"),
        (lambda mask, n: np.dstack([mask * 0] * 3 + [mask]), "cannot be read: it is painted in its alpha"),
    ],
)
def test_one_fault_in_all_masks_is_one_row(root, damage, row):
    for n, path in enumerate(sorted((root / "Train" / "Mask").iterdir())):
        save(root, path, damage(load(root, path), n))
    (found,) = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    assert found["file"] == "Train/Mask" and found["problem"].startswith(row)


NAMES = {  # by kind, a mask's name for its image's number, and the image's
    "suffix": ("ISIC_00{}_segmentation", "ISIC_00{}"),
    "suffix with a space": ("benign ({}) mask", "benign ({})"),
    "prefix": ("mask_{}", "img_{}"),
    "another suffix": ("{}_msk", "{}_img"),
    "words": ("case {} label v2", "case {} image"),
    "prefix and suffix": ("seg-{}-final", "{}"),
    "within": ("train_label_{}", "train_image_{}"),
    "within, before a word": ("{}_label_final", "{}_image_final"),
    "alike letters": ("segmentation_{}", "volume_{}"),
    "a percent sign": ("{}%mask", "{}"),
    "a dash first": ("-{}", "image-{}"),
    "a quote": ("it's {}", "{}"),
    "capitals": ("CASE_{}", "case_{}"),
}


def rename_all(root, mask_name, image_name, n=16):
    """Give all training images and masks other names."""
    for index in range(n):
        rename(root, f"Train/Image/train_{index:03}.jpg", image_name.format(index + 10) + ".jpg")
        rename(root, f"Train/Mask/train_{index:03}.png", mask_name.format(index + 10) + ".png")


@pytest.mark.parametrize("kind", NAMES)
def test_masks_named_in_another_way_are_one_row_whose_command_renames_them(root, kind):
    rename_all(root, *NAMES[kind])
    (row,) = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    assert row["file"] == "Train/Mask" and row["problem"].startswith("masks named ")
    assert row["problem"].endswith("… (16)")
    command = row["remedy"].partition("in their folder: ")[2]
    subprocess.run(["bash", "-euc", command], cwd=root / "Train/Mask", check=True)
    assert [row for row in check_dataset(root, A0) if row["severity"] == "error"] == []


def test_no_command_is_offered_that_would_rename_right_masks(root):
    rename_all(root, "{}", "x-{}")
    for number in range(10, 18):
        rename(root, f"Train/Mask/{number}.png", f"x-{number}.png")
    (row,) = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    assert row["problem"].startswith("masks named <id> for the image x-<id>: 18, 19")
    assert row["remedy"] == "give them the stems of their images"


def test_leading_zeros_are_one_row(root):
    rename_all(root, "mask 00{}", "img{}")
    (row,) = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    assert row["problem"].startswith("misnamed mask: mask 0010.png (of the image 'img10'), mask 0011")


def test_words_in_another_order_are_not_matched(root):
    for index in range(16):
        rename(root, f"Train/Image/train_{index:03}.jpg", f"P{index // 4}_S{index % 4}.jpg")
        rename(root, f"Train/Mask/train_{index:03}.png", f"mask_S{index // 4}_P{index % 4}.png")
    errors = {
        row["problem"].partition(":")[0] for row in check_dataset(root, A0) if row["severity"] == "error"
    }
    assert errors == {"image without a mask", "mask without an image"}


def test_the_suffix_of_misnamed_masks_is_named(root):
    rename_all(root, *NAMES["suffix"])
    (row,) = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    beginning = "masks named <id>_segmentation for the image <id>: ISIC_0010_segmentation, ISIC_0011"
    assert row["problem"].startswith(beginning)


def test_several_masks_of_an_image_are_to_be_merged(root):
    rename_all(root, "benign ({})_mask", "benign ({})")
    for new in ("benign (12)_mask_1.png", "benign (12)_mask_2.png"):
        shutil.copy(root / "Train/Mask/benign (12)_mask.png", root / "Train/Mask" / new)
    errors = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    several = [row["file"] for row in errors if row["problem"] == "one of several masks of an image"]
    assert several == [f"Train/Mask/benign (12)_mask{end}.png" for end in ("", "_1", "_2")]
    assert all(
        row["remedy"].startswith("merge them into one file") for row in errors if row["file"] in several
    )
    assert [row["problem"][:48] for row in errors if row["file"] == "Train/Mask"] == [
        "masks named <id>_mask for the image <id>: benign"
    ]


def test_a_second_mask_next_to_the_right_one_is_to_be_merged(root):
    shutil.copy(root / MASK, root / "Train/Mask/train_003_2.png")
    (row,) = [row for row in check_dataset(root, A0) if row["severity"] == "error"]
    assert row["file"] == "Train/Mask/train_003_2.png" and row["remedy"].startswith("merge them")


def test_a_number_is_not_cut_where_names_are_matched(root):
    rename(root, MASK, "train_0030.png")
    rows = {(row["file"], row["problem"]) for row in check_dataset(root, A0) if row["severity"] == "error"}
    assert rows == {(IMAGE, "image without a mask"), ("Train/Mask/train_0030.png", "mask without an image")}


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 255), (85, 170)])
def test_labels_in_separate_files_are_counted_in_one_row(root, first, second):
    for index, path in enumerate(sorted((root / "Train" / "Mask").iterdir())):
        save(root, path, (load(root, path) > 0) * np.uint8(second if index % 4 == 0 else first))
    (row,) = check_dataset(root, A0)
    counts = {f"0/{first} (12)", f"0/{second} (4)"}
    assert row["severity"] == "warning" and row["file"] == "Train/Mask"
    assert set(row["problem"].removeprefix("masks of the values ").split(", ")) == counts
    assert "labels of several classes" in row["remedy"]


def test_errors_stop_with_their_rows_and_warnings_are_printed(root, capsys):
    save(root, MASK, load(root) * 0)
    check.stop_at_errors(check_dataset(root, A0))
    assert capsys.readouterr().out == f"warning: {MASK}: empty: 0; kept: there is nothing to find\n"
    (root / MASK).unlink()
    with pytest.raises(
        ValueError, match=f"1 errors in the data.*make check.*\n{IMAGE}: image without a mask"
    ):
        check.stop_at_errors(check_dataset(root, A0))


def test_a_window_that_is_given_serves_deep_test_images(root):
    save(root, TEST, load(root, TEST)[..., 0].astype(np.uint16) * 9, format="PNG")
    rows = check_dataset(root, A0, has_window=True)
    assert {row["severity"] for row in rows} == {"warning"}


def test_negative_values_stored_as_large_ones_are_found(root):
    for name in (IMAGE, TEST):
        values = load(root, name)[..., 0].astype(np.int16) * 12 - 1024
        save(root, name, values.view(np.uint16), format="PNG")
    found = {row["file"] for row in check_dataset(root, A0) if row["problem"].startswith("negative values")}
    assert found == {IMAGE, TEST}
    save(root, TEST, load(root, TEST) // 2, format="PNG")
    found = {row["file"] for row in check_dataset(root, A0) if row["problem"].startswith("negative values")}
    assert found == {IMAGE}


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_the_program_prints_to_any_terminal(root, encoding):
    os.rename(root / MASK, os.fsencode(root / "Train/Mask") + b"/l\xe9sion.png")
    rename(root, TEST, "a\r\x1b[31mb.jpg")
    for index in range(6):
        (root / "Train/Image" / f"note{index}.txt").touch()
    done = subprocess.run(
        [sys.executable, "-m", "ctseg.check", str(root)],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    more = "…" if encoding == "utf-8" else "\\u2026"
    printed = done.stdout.decode(encoding)
    assert done.returncode == 1 and f"note4.txt {more} (6)" in printed, done
    assert "Train/Mask/l\\xe9sion.png: mask without an image" in printed
    assert "a\\r\\x1b[31mb" in printed and "\x1b" not in printed


def test_a_name_with_letters_is_utf8_whatever_the_locale(root):
    rename(root, TEST, "münchen.jpg")
    environment = {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "ctseg.check", str(root)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0 and "not UTF-8" not in done.stdout and "m\\xfcnchen" in done.stdout, done


def test_a_copy_is_found_within_train_and_across_to_test(tiny):
    write_pair(tiny, "copy", load(tiny, "Train/Image/case_0.png"), np.zeros((30, 40), np.uint8))
    shutil.copy(tiny / "Train/Image/case_2.png", tiny / "Test/Image/again.png")
    found = {(row["severity"], row["file"]): row["problem"] for row in check_dataset(tiny, A0)}
    assert found["warning", "Train/Image/copy.png"] == "nearly the same image: as Train/Image/case_0.png"
    assert found["warning", "Test/Image/again.png"] == "nearly the same image: as Train/Image/case_2.png"


def test_agreeing_codes_and_a_sample_submission_raise_nothing(root):
    write_sample(root, "\ufeffID,Mask\r\ntest_001,1 1\r\ntest_000,1 1\r\n")
    (root / "other.csv").write_text("a,b\n1,2\n")
    write_codes(root, lambda mask: encode_columns(mask.T))
    assert check_dataset(root, A0) == []


def test_the_order_of_files_does_not_matter(root, monkeypatch):
    add_image(root, "zz.png")
    rows, listing = check_dataset(root, A0), Path.glob
    cases = find_cases(root, "train", A0)

    def list_backwards(self, pattern):
        return iter(sorted(listing(self, pattern), reverse=True))

    monkeypatch.setattr(Path, "glob", list_backwards)
    assert check_dataset(root, A0) == rows and find_cases(root, "train", A0) == cases


def test_a_tiny_mask_an_empty_and_a_full_one_have_no_shift():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for mask in (np.zeros((60, 80), bool), np.ones((60, 80), bool), np.zeros((1, 2), bool)):
        assert measure_shift(image, mask) == 0


def test_the_program_prints_the_table_and_fails_on_an_error(root, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check", str(root)])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 0 and capsys.readouterr().out.splitlines() == [
        f"data in {root}: 16 training pairs, 2 test images",
        "0 errors, 0 warnings, 0 notes",
    ]
    (root / MASK).unlink()
    with pytest.raises(SystemExit) as end:
        check.main()
    printed = capsys.readouterr().out
    assert end.value.code == 1 and f"error    {IMAGE}: image without a mask; add a mask" in printed


@needs_real_data
@pytest.mark.parametrize(("name", "every", "limit"), [("a0", 4, 3), ("ct", 1, 1)])
def test_at_most_one_in_a_hundred_real_pairs_is_flagged(name, every, limit, tmp_path):
    cases = find_cases(REAL_DATA / name / "Dataset", "train", A0)[::every]
    for kind in ("Image", "Mask"):
        (tmp_path / "Train" / kind).mkdir(parents=True)
        for case in cases:
            path = getattr(case, kind.lower())
            os.symlink(path, tmp_path / "Train" / kind / path.name)
    rows = [row for row in check_dataset(tmp_path, A0) if not row["file"].startswith("Test")]
    assert len(rows) <= limit and {row["severity"] for row in rows} <= {"warning"}, rows


@needs_real_data
def test_three_in_five_shifted_real_masks_and_an_inverted_are_found():
    cases = find_cases(REAL_DATA / "a0" / "Dataset", "train", A0)[::20]
    masks = {case.image_id: read_mask(case.mask) for case in cases}
    images = [np.asarray(Image.open(case.image)) for case in cases]
    gains = [measure_shift(image, shift(mask)) for image, mask in zip(images, masks.values())]
    assert np.mean(np.array(gains) > check._SHIFT_GAIN) > 0.6
    thumbnails = {image_id: make_thumbnail(mask) for image_id, mask in masks.items()}
    name = cases[0].image_id
    found = check._check_inverted("masks", thumbnails | {name: 1 - thumbnails[name]})
    assert [row["file"] for row in found] == [name]


def test_new_images_that_are_read_otherwise_than_expected_are_listed(tmp_path, capsys):
    save_image(tmp_path / "plain.png", np.zeros((20, 20), np.uint16))
    save_image(tmp_path / "eight.png", np.zeros((20, 20), np.uint8))
    frames = [Image.new("L", (20, 20), value) for value in (0, 9)]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    (tmp_path / "more").mkdir()
    cases = [Case(path.stem, path) for path in sorted(tmp_path.glob("*.*"))]
    rows = check_images(tmp_path, SegmentationDataset(cases, EvalTransform(32), (0, 9)))
    found = {(row["file"], row["problem"]) for row in rows if row["severity"] == "warning"}
    assert found == {
        (tmp_path.name, "left out: more (1)"),
        ("eight.png", "8 bits, so it is not read through the window"),
        ("stack.tif", "8 bits, so it is not read through the window"),
        ("stack.tif", "several frames: 2"),
    }
    print_warnings(rows)
    assert capsys.readouterr().out.count("warning: ") == 4
    rows = check_images(tmp_path, SegmentationDataset(cases, EvalTransform(32)))
    assert not [row for row in rows if "8 bits" in row["problem"]]


def test_pairs_are_counted_and_the_tables_columns_known(tiny):
    assert count_pairs(tiny) == 4
    (tiny / "Train" / "Mask" / "case_0.png").unlink()
    assert count_pairs(tiny) == 3
    assert all(tuple(row) == COLUMNS for row in check_dataset(tiny)) and check_dataset(tiny)
