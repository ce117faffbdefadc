"""Pairing, reading and holding images and masks; what stops a run is in the data check's table as well."""

import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, load_cases, needs_real_data, save_image, write_pair
from PIL import Image
from tifffile import imwrite

from ctseg.check import check_dataset
from ctseg.contest import A0
from ctseg.data import (
    Case,
    MaskSet,
    SegmentationDataset,
    describe_mask,
    find_cases,
    find_window,
    load_training_set,
    read_image,
    read_mask,
    read_mask_values,
    read_size,
)
from ctseg.predict import read_masks, write_masks
from ctseg.submission import write_submission
from ctseg.transforms import EvalTransform

RGB = np.random.default_rng(1).integers(0, 255, (30, 40, 3), np.uint8)
SOFT = np.zeros((30, 40), np.uint8)
SOFT[5:20, 5:20] = 90
SOFT[6:19, 6:19] = 255
LABELS = np.zeros((30, 40), np.uint8)
LABELS[5:20, 5:20] = 1
LABELS[5:20, 25:35] = 2
EMPTY = np.zeros((30, 40), np.uint8)
REGION = LABELS == 1


def problems(root) -> dict:
    """The table of the data check as {(severity, file): problem}."""
    return {(row["severity"], row["file"]): row["problem"] for row in check_dataset(root, A0)}


def test_pairs_are_made_by_stem_whatever_the_order_and_the_type(tiny):
    (tiny / "Train/Image/case_1.png").rename(tiny / "Train/Image/case_1.PNG")
    (tiny / "Train/Image/.hidden.png").write_bytes(b"")
    cases = find_cases(tiny, "train", A0)
    assert [case.image_id for case in cases] == ["case_0", "case_1", "case_2", "case_3"]
    assert all(case.image.stem == case.mask.stem for case in cases)


def test_test_images_come_without_masks(tiny):
    assert find_cases(tiny, "test", A0) == [Case("case_9", tiny / "Test" / "Image" / "case_9.jpg")]


@pytest.mark.parametrize("image_id", ["with space", "a.dotted.name", "münchen"])
def test_ids_may_hold_spaces_and_dots(tiny, image_id):
    write_pair(tiny, image_id, RGB, EMPTY)
    assert image_id in [case.image_id for case in find_cases(tiny, "train", A0)]


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
        find_cases(tiny, "train", A0)
    assert row in problems(tiny)


def test_two_masks_of_one_stem_are_not_blamed_on_the_images(tiny):
    save_image(tiny / "Train/Mask/case_2.bmp", EMPTY)
    with pytest.raises(ValueError, match=r"two files of one stem: case_2 \(1\)") as error:
        find_cases(tiny, "train", A0)
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
    cases = find_cases(tiny, "train", A0)
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
    with pytest.raises(ValueError, match="case_1.png holds several labels: 0, 1, 2;"):
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
    dataset = SegmentationDataset(find_cases(phantom, "train", A0), EvalTransform(64))
    image, target, letterbox = dataset[5]
    everything = load_training_set(dataset)
    some = everything.select([5, 2])
    assert torch.equal(some.get_image(0), image)
    assert torch.equal(some.get_batch(torch.tensor([0]))[0], torch.cat([image, target]))
    assert torch.equal(some.select([0]).get_batch(torch.tensor([0])), some.get_batch(torch.tensor([0])))
    assert some.pixels is everything.pixels  # nothing is copied
    assert np.array_equal(some.get_mask(1), read_mask(dataset.cases[2].mask))
    assert some.letterboxes[0] == letterbox
    assert some.cases[0] == dataset.cases[5]
    assert some.areas.tolist() == [read_mask(dataset.cases[i].mask).mean() for i in (5, 2)]


PAIRS = [
    (0, 255),
    (0, 1),
    (1, 2),
    (2, 3),
    (127, 255),
    (128, 255),
    (200, 255),
    (254, 255),
    (0, 65535),
    (32768, 65535),
]


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_the_upper_of_any_two_values_is_foreground(low, high, tmp_path):
    values = np.where(REGION, high, low).astype(np.uint8 if high < 256 else np.uint16)
    assert np.array_equal(read_mask(save_image(tmp_path / "mask.png", values)), REGION)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-1, 1, np.float32), (-1, 0, np.float32), (-1, 0, np.int16), (-1000, 1, np.int16), (0.5, 1, np.float32)]
    + [(0, 1, kind) for kind in (np.uint8, np.uint16, np.uint32, np.float32, bool)],
)
def test_two_values_of_any_type_are_told_apart(low, high, dtype, tmp_path):
    imwrite(tmp_path / "mask.tif", np.where(REGION, high, low).astype(dtype))
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), REGION)


COLORS = {
    "black": (0, 0, 0),
    "white": (255,) * 3,
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}
COLOR_PAIRS = [
    ("black", "red"),
    ("green", "red"),
    ("red", "green"),
    ("white", "red"),
    ("white", "blue"),
    ("red", "blue"),
]


def paint(region: np.ndarray, background: str, foreground: str) -> np.ndarray:
    """A mask in two colors."""
    return np.where(region[..., None], COLORS[foreground], COLORS[background]).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize(("background", "foreground"), COLOR_PAIRS)
def test_the_color_along_the_border_is_background(background, foreground, mode, tmp_path):
    path = save_image(tmp_path / "mask.png", paint(REGION, background, foreground), mode)
    assert np.array_equal(read_mask(path), REGION)


@pytest.mark.parametrize(("background", "foreground"), COLOR_PAIRS)
def test_most_masks_tell_the_background_color_of_all(background, foreground, tmp_path):
    regions = {
        "a": REGION,
        "b": REGION,
        "c": REGION[::-1],
        "0_large": ~REGION,
        "full": EMPTY == 0,
        "empty": EMPTY > 0,
    }
    for name, region in regions.items():
        write_pair(tmp_path, name, RGB, paint(region, background, foreground))
    for case in find_cases(tmp_path, "train", A0):
        assert np.array_equal(read_mask(case.mask, case.mask_set), regions[case.image_id]), case.image_id


@pytest.mark.parametrize(("low", "high"), [(128, 255), (2, 3)])
def test_most_masks_tell_the_background_of_a_mask_of_one_value(low, high, tmp_path):
    regions = {"a": REGION, "b": REGION[::-1], "full": EMPTY == 0, "empty": EMPTY > 0}
    for name, region in regions.items():
        write_pair(tmp_path, name, RGB, np.where(region, high, low).astype(np.uint8))
    for case in find_cases(tmp_path, "train", A0):
        assert np.array_equal(read_mask(case.mask, case.mask_set), regions[case.image_id]), case.image_id
    assert load_cases(tmp_path).areas.tolist() == [REGION.mean(), REGION.mean(), 0, 1]


def test_a_color_mask_among_gray_ones_has_their_background(tmp_path):
    regions = {"a": REGION, "b": REGION[::-1], "red": ~REGION, "full": EMPTY == 0, "empty": EMPTY > 0}
    for name, region in regions.items():
        gray = (region * 255).astype(np.uint8)
        write_pair(tmp_path, name, RGB, gray if name < "c" else paint(region, "black", "red"))
    for case in find_cases(tmp_path, "train", A0):
        assert np.array_equal(read_mask(case.mask, case.mask_set), regions[case.image_id]), case.image_id


def test_palettes_of_one_color_are_read_by_it(tmp_path):
    regions = {"a": REGION, "b": REGION[::-1], "full": EMPTY == 0, "empty": EMPTY > 0}
    for name, region in regions.items():
        write_pair(tmp_path, name, RGB, EMPTY)
        Image.fromarray(paint(region, "black", "red")).quantize().save(tmp_path / f"Train/Mask/{name}.png")
    for case in find_cases(tmp_path, "train", A0):
        assert np.array_equal(read_mask(case.mask, case.mask_set), regions[case.image_id]), case.image_id


@pytest.mark.parametrize("region", [REGION, ~REGION, EMPTY == 0, EMPTY > 0])
def test_a_tiff_of_bool_is_read_as_it_is_stored(region, tmp_path):
    imwrite(tmp_path / "mask.tif", region)  # marked as white is 0
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), region)


@pytest.mark.parametrize("high", [1, 2**32 - 1])
def test_large_unsigned_numbers_do_not_become_negative(high, tmp_path):
    imwrite(tmp_path / "mask.tif", np.where(REGION, high, 0).astype(np.uint32))
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), REGION)


@pytest.mark.parametrize("pair", [("black", "red"), ("white", "blue"), ("green", "red")])
def test_colors_saved_as_jpeg_are_read(pair, tmp_path):
    region = np.kron(REGION, np.ones((12, 12), bool))
    path = save_image(tmp_path / "mask.jpg", paint(region, *pair), quality=75)
    wrong = read_mask(path) != region
    assert wrong.mean() < 0.01 and describe_mask(read_mask_values(path)) == "anti-aliased"


def test_a_16_bit_color_of_a_bmp_is_one_of_a_pixel(tmp_path):
    header = struct.pack("<2sIHHI", b"BM", 54 + 2 * 4, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0
    )
    (tmp_path / "mask.bmp").write_bytes(header + struct.pack("<4H", 0, 0x7FFF, 0, 0))
    assert read_mask(tmp_path / "mask.bmp").sum() == 1


def test_two_foreground_colors_are_two_labels(tmp_path):
    values = paint(REGION, "red", "green")
    paths = [save_image(tmp_path / f"{n}.png", paint(REGION, "black", "red")) for n in "ab"]
    paths.append(save_image(tmp_path / "c.png", values))
    three = np.where((LABELS == 2)[..., None], np.uint8([0, 0, 255]), paint(REGION, "black", "red"))
    paths.append(save_image(tmp_path / "d.png", three))
    for path in paths[2:]:
        with pytest.raises(ValueError, match="several labels"):
            read_mask(path, MaskSet(paths))


def test_a_palette_without_colors_is_read_by_its_numbers(tmp_path):
    image = Image.fromarray(REGION.astype(np.uint8), "P")
    image.putpalette([0, 0, 0] * 256)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), REGION)


def save_deep_png(path, values):
    """Write a PNG of 16 bits per channel, (H, W, C)."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def save_frames(path, *arrays):
    """Write a TIFF of several frames."""
    first, *others = map(Image.fromarray, arrays)
    first.save(path, save_all=True, append_images=others)


HALF = (REGION * 255).astype(np.uint8)
DEEP = REGION[..., None] * np.uint16([65535] * 3)
UNREADABLE_MASKS = {
    "NaN": ("NaN or infinite", lambda p: imwrite(p, np.where(REGION, 1, np.nan).astype(np.float32))),
    "infinite": ("NaN or infinite", lambda p: imwrite(p, np.where(REGION, np.inf, 0).astype(np.float32))),
    "64-bit floats": ("64-bit floating point", lambda p: imwrite(p, REGION.astype(np.float64))),
    "64-bit integers": ("64-bit signed integers", lambda p: imwrite(p, REGION.astype(np.int64))),
    "half precision": ("16-bit floating point", lambda p: imwrite(p, REGION.astype(np.float16))),
    "frames": ("2 frames, expected one", lambda p: save_frames(p, HALF, HALF[::-1])),
    "16-bit colors in TIFF": ("16 bits per channel", lambda p: imwrite(p, DEEP, photometric="rgb")),
    "16-bit colors in planes": (
        "16 bits per channel",
        lambda p: imwrite(p, np.moveaxis(DEEP, 2, 0), photometric="rgb", planarconfig="separate"),
    ),
    "64 bits in a large TIFF": ("64-bit floating", lambda p: imwrite(p, REGION.astype(float), bigtiff=True)),
    "five channels": (
        "5 channel",
        lambda p: imwrite(
            p, np.repeat(HALF[..., None], 5, 2), photometric="minisblack", planarconfig="contig"
        ),
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE_MASKS)
def test_a_mask_that_cannot_be_read_is_named_and_in_the_table(kind, tiny):
    reason, save = UNREADABLE_MASKS[kind]
    (tiny / "Train/Mask/case_1.png").unlink()
    save(tiny / "Train/Mask/case_1.tif")
    with pytest.raises(ValueError, match=f"cannot read .*case_1.tif: .*{reason}.*; replace or remove it"):
        load_cases(tiny)
    assert reason in problems(tiny)["error", "Train/Mask/case_1.tif"]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_png_of_16_bit_colors_is_refused_as_a_mask_and_warned_of_as_an_image(channels, tiny):
    for kind in ("Mask", "Image"):
        save_deep_png(tiny / f"Train/{kind}/case_1.png", np.repeat(DEEP[..., :1], channels, axis=2))
    with pytest.raises(ValueError, match="case_1.png: it has 16 bits per channel in color; save it with 8"):
        read_mask(tiny / "Train/Mask/case_1.png")
    table = check_dataset(tiny, A0)
    found = {row["problem"] for row in table if row["file"] == "Train/Image/case_1.png"}
    assert "16 bits per channel in color" in found
    assert "16 bits per channel" in problems(tiny)["error", "Train/Mask/case_1.png"]


def test_the_first_frame_of_an_image_is_read_with_a_warning(tiny):
    (tiny / "Train/Image/case_1.png").unlink()
    save_frames(tiny / "Train/Image/case_1.tif", RGB, RGB[::-1])
    assert np.array_equal(read_image(tiny / "Train/Image/case_1.tif"), RGB)
    assert problems(tiny)["warning", "Train/Image/case_1.tif"] == "several frames: 2"


def test_more_channels_than_colors_are_warned_of(tiny):
    (tiny / "Train/Image/case_1.png").unlink()
    imwrite(tiny / "Train/Image/case_1.tif", np.dstack([RGB, RGB]), photometric="rgb")
    assert np.array_equal(read_image(tiny / "Train/Image/case_1.tif"), RGB)
    assert problems(tiny)["warning", "Train/Image/case_1.tif"] == "more than four channels: 6"


@pytest.mark.parametrize("kind", ["black paint", "white paint", "paint under a palette"])
def test_a_mask_painted_in_its_alpha_channel_is_refused(kind, tmp_path):
    if kind == "paint under a palette":
        image = Image.fromarray(REGION.astype(np.uint8), "P")
        image.putpalette([9, 9, 9] * 256)
        image.save(tmp_path / "mask.png", transparency=b"\0\xff")
    else:
        color = 255 if kind == "white paint" else 0
        save_image(tmp_path / "mask.png", np.dstack([np.full((30, 40, 3), color, np.uint8), HALF]))
    with pytest.raises(ValueError, match="mask.png: it is painted in its alpha channel; save that channel"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize(("value", "kind"), [(0, "empty"), (255, "full")])
def test_masks_that_are_all_empty_or_all_full_stop_training(value, kind, tiny):
    for path in (tiny / "Train/Mask").iterdir():
        save_image(path, EMPTY + np.uint8(value))
    with pytest.raises(ValueError, match=f"all 4 masks are {kind}, such as .*case_0.png; expected regions"):
        load_cases(tiny)
    assert problems(tiny)["error", "Train/Mask"] == f"all masks are {kind}"


TRANSPOSES = {  # what undoes each orientation tag, from the TIFF specification
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
INVERSE = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def save_tagged(path, upright, tag, **options):
    """Write an image that its orientation tag turns upright."""
    image = Image.fromarray(upright)
    if tag in TRANSPOSES:
        image = image.transpose(INVERSE.get(tag, TRANSPOSES[tag]))
    exif = Image.Exif()
    exif[0x0112] = tag
    tagged = {"tiffinfo": {0x0112: tag}} if path.suffix == ".tif" else {"exif": exif}
    image.save(path, **tagged, **options)
    return path


@pytest.mark.parametrize("tag", [*range(9), 99])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".tif", {}),
        (".tif", {"compression": "tiff_lzw"}),
        (".jpg", {"quality": 100, "subsampling": 0}),
    ],
)
def test_an_image_and_its_mask_are_read_upright_whatever_their_tag(suffix, options, tag, tmp_path):
    if options.get("compression") and tag not in range(1, 9):
        pytest.skip("libtiff does not write such a tag")
    smooth = np.linspace(0, 200, 1200).astype(np.uint8).reshape(30, 40)
    for upright in (smooth, np.dstack([smooth, smooth[::-1], smooth[:, ::-1]])):
        path = save_tagged(tmp_path / f"image{suffix}", upright, tag, **options)
        image = read_image(path)
        assert read_size(path) == image.shape[:2] == (30, 40)
        expected = upright if upright.ndim == 3 else np.dstack([upright] * 3)
        assert np.abs(image.astype(int) - expected).max() < 9
    mask = save_tagged(tmp_path / f"mask{suffix}", HALF, tag, **options)
    assert np.array_equal(read_mask(mask), REGION)
    mask = save_tagged(tmp_path / f"color{suffix}", paint(REGION, "green", "red"), tag, **options)
    assert np.array_equal(read_mask(mask), REGION)


@pytest.fixture
def latin(tiny):
    """A data set in which names of a training pair and of a test image are not UTF-8."""
    for folder, old, new in (
        ("Train/Image", "case_1.png", b"l\xe9sion.png"),
        ("Train/Mask", "case_1.png", b"l\xe9sion.png"),
        ("Test/Image", "case_9.jpg", b"t\xe9st.jpg"),
    ):
        try:
            os.rename(os.fsencode(tiny / folder / old), os.fsencode(tiny / folder) + b"/" + new)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    return tiny


def test_names_that_are_not_utf8_are_shown_with_escapes_and_crash_nothing(latin, tmp_path):
    (case,) = find_cases(latin, "test", A0)
    assert case.image_id == "t\\xe9st" and "l\\xe9sion" in [
        case.image_id for case in find_cases(latin, "train", A0)
    ]
    assert load_cases(latin).areas.max() < 1
    assert (
        problems(latin)["warning", "Test/Image"]
        == "names that are not UTF-8, or hold a carriage return: t\\xe9st (1)"
    )
    write_masks([(case.image_id, EMPTY > 0, 1.0)], tmp_path / "masks")
    write_submission(tmp_path / "submission.csv", read_masks(tmp_path / "masks"), [case], A0)
    assert (tmp_path / "submission.csv").read_text() == "ID,Mask\nt\\xe9st,\n"
    with pytest.raises(ValueError, match=r"t\\xe9st.jpg"):
        read_mask_values(cut(case.image))


def cut(path):
    """A file, now damaged."""
    path.write_bytes(path.read_bytes()[:-200])
    return path


def test_a_name_of_251_bytes_goes_through(tmp_path):
    write_masks([("x" * 251, REGION, 1.0)], tmp_path)
    ((image_id, mask),) = read_masks(tmp_path)
    assert image_id == "x" * 251 and np.array_equal(mask, REGION)


def test_a_training_set_says_what_it_holds(tiny):
    assert load_cases(tiny).describe()[:2] == ["case_0 30x40 70", "case_1 30x40 84"]


@needs_real_data
def test_images_of_many_megapixels_load_at_their_own_size():
    letterboxes = load_cases(REAL_DATA / "native/Dataset", 256).letterboxes
    assert max(np.prod(letterbox.original_size) for letterbox in letterboxes) > 10_000_000
