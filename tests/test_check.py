"""The data doctor on a sound data set that is damaged in many ways, and on real ones."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from ctseg import check
from ctseg.check import check_dataset, measure_shift
from ctseg.data import SegmentationDataset, find_cases, load_squares, read_image, read_mask, read_mask_values
from ctseg.phantom import write_phantom
from ctseg.transforms import EvalTransform

REAL = REPOSITORY.parent / "shared" / "data"
IMAGE, MASK, TEST = "Train/Image/train_003.jpg", "Train/Mask/train_003.png", "Test/Image/test_001.jpg"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A phantom whose regions are lighter than what is around them, as a shifted mask can be told by nothing else."""
    root = write_phantom(tmp_path_factory.mktemp("sound") / "phantom", n_train=16, n_test=2)
    for case in find_cases(root, "Train"):
        image, mask = np.asarray(Image.open(case.image)), read_mask(case.mask)
        Image.fromarray(np.clip(image + 80 * mask[..., None], 0, 255).astype(np.uint8)).save(case.image, quality=95)
    return root


@pytest.fixture
def root(sound, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "Dataset"))


def draw(root: Path, name: str = MASK) -> np.ndarray:
    return np.asarray(Image.open(root / name))


def save(root: Path, name: str, array: np.ndarray, mode: str | None = None, **options) -> None:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(root / name, **options)


def replace(root: Path, name: str, new: str) -> Path:
    (root / name).unlink()
    return root / new


def cut(root, name, share):
    (root / name).write_bytes((root / name).read_bytes()[: int(share * (root / name).stat().st_size)])


def write_bomb(path: Path) -> None:
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def turn_by_exif(root, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(root, IMAGE, draw(root, IMAGE), exif=exif)


def shift(mask: np.ndarray) -> np.ndarray:
    """A mask moved right by a tenth of the width."""
    moved, step = np.zeros_like(mask), mask.shape[1] // 10
    moved[:, step:] = mask[:, :-step]
    return moved


def copy(root, name, new):
    shutil.copy(root / name, root / new)


def add_image(root, new, **options):
    """Add a training pair whose image is train_003's, changed."""
    image = Image.fromarray(draw(root, IMAGE))
    for change, argument in options.items():
        image = getattr(image, change)(argument)
    image.save(root / "Train" / "Image" / new, quality=90)
    Image.new("L", image.size).save(root / "Train" / "Mask" / f"{Path(new).stem}.png")


def write_codes(root, encode):
    (root / "train.csv").write_text(f"ID,Mask\ntrain_003,{encode(draw(root) > 0)}\n")


def write_sample(root, text):
    (root / "sample_submission.csv").write_text(text)


def encode_columns(mask):
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=False))
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


# kind of damage: (what does it, severity, file, part of the problem's or the remedy's text)
DAMAGE = {
    "truncated JPEG": (lambda r: cut(r, IMAGE, 0.5), "error", IMAGE, "truncated"),
    "truncated JPEG in Test": (lambda r: cut(r, TEST, 0.5), "error", TEST, "truncated"),
    "truncated PNG": (lambda r: cut(r, MASK, 0.5), "error", MASK, "cannot be read"),
    "zero bytes": (lambda r: (r / IMAGE).write_bytes(b""), "error", IMAGE, "cannot be read"),
    "a mask of zero bytes": (lambda r: (r / MASK).write_bytes(b""), "error", MASK, "cannot be read"),
    "text instead of an image": (lambda r: (r / IMAGE).write_text("<html>"), "error", IMAGE, "cannot be read"),
    "PostScript, which Pillow would hand to a program": (
        lambda r: (r / IMAGE).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        "error", IMAGE, "cannot identify",
    ),
    "another type than its name says": (lambda r: save(r, IMAGE, draw(r, IMAGE), format="PNG"), "warning", IMAGE, "a PNG file, not JPEG"),
    "a folder named as an image": (lambda r: replace(r, IMAGE, IMAGE).mkdir(), "error", IMAGE, "cannot be read"),
    "a symlink loop": (lambda r: replace(r, IMAGE, IMAGE).symlink_to(r / IMAGE), "error", IMAGE, "cannot be read"),
    "a broken symlink": (lambda r: replace(r, TEST, TEST).symlink_to(r / "gone.jpg"), "error", TEST, "cannot be read"),
    "bomb-sized header": (lambda r: write_bomb(replace(r, TEST, TEST[:-3] + "png")), "error", TEST[:-3] + "png", "exceeds limit"),
    "CMYK": (lambda r: save(r, IMAGE, draw(r, IMAGE), "CMYK"), "warning", IMAGE, "CMYK colours"),
    "palette": (lambda r: save(r, TEST, draw(r, TEST), "P", format="PNG"), "warning", TEST, "P colours"),
    "grey with alpha": (lambda r: save(r, TEST, draw(r, TEST), "LA", format="PNG"), "warning", TEST, "LA colours"),
    "16 bits among 8": (
        lambda r: save(r, TEST, draw(r, TEST)[..., 0].astype(np.uint16) * 9, format="PNG"), "warning", TEST, "more than 8 bits",
    ),
    "not finite": (
        lambda r: save(r, TEST, np.full((50, 60), np.nan, np.float32), format="TIFF"), "error", TEST, "no finite numbers",
    ),
    "one pixel": (lambda r: save(r, TEST, np.zeros((1, 1, 3), np.uint8)), "warning", TEST, "only 1 × 1 pixels"),
    "20,000 pixels wide": (lambda r: save(r, TEST, np.zeros((40, 20_000, 3), np.uint8)), "warning", TEST, "very long, 20000 × 40"),
    "a single colour": (lambda r: save(r, TEST, np.full((80, 90, 3), 7, np.uint8)), "warning", TEST, "a single colour"),
    "turned by EXIF, mask not turned": (lambda r: turn_by_exif(r, 6), "error", MASK, "turned by an EXIF tag"),
    "upside down by EXIF": (lambda r: turn_by_exif(r, 3), "warning", IMAGE, "rotated by its EXIF tag"),
    "mask transposed": (lambda r: save(r, MASK, draw(r).T.copy()), "error", MASK, "it is transposed"),
    "mask of another size": (lambda r: save(r, MASK, draw(r)[::2, ::2].copy()), "error", MASK, "but its image is"),
    "mask shifted": (lambda r: save(r, MASK, shift(draw(r))), "warning", MASK, "fits its image better when it is moved"),
    "mask inverted": (lambda r: save(r, MASK, 255 - draw(r)), "warning", MASK, "foreground where other masks have background"),
    "all masks inverted": (
        lambda r: [save(r, f"Train/Mask/{p.name}", 255 - draw(r, f"Train/Mask/{p.name}")) for p in (r / "Train/Mask").iterdir()],
        "warning", "Train/Mask", "most masks are foreground along the edge",
    ),
    "three values": (
        lambda r: save(r, MASK, draw(r) // 2 + np.uint8(60) * (np.indices(draw(r).shape)[0] < 40)), "error", MASK, "several labels",
    ),
    "anti-aliased": (
        lambda r: save(r, MASK, np.asarray(Image.fromarray(draw(r)[::2, ::2].copy()).resize(draw(r).shape[::-1]))),
        "warning", MASK, "anti-aliased",
    ),
    "another foreground value": (lambda r: save(r, MASK, draw(r) // 2), "warning", MASK, "two values"),
    "a mask in colour": (lambda r: save(r, MASK, draw(r)[..., None] * np.uint8([1, 0, 0])), "warning", MASK, "two values"),
    "a mask in its alpha channel": (
        lambda r: save(r, MASK, np.stack([draw(r) * 0] * 3 + [draw(r)], axis=2)), "warning", MASK, "empty",
    ),
    "empty": (lambda r: save(r, MASK, draw(r) * 0), "warning", MASK, "empty"),
    "full": (lambda r: save(r, MASK, draw(r) * 0 + 255), "warning", MASK, "full"),
    "a lossy mask": (
        lambda r: (save(r, MASK[:-3] + "jpg", draw(r), quality=30), (r / MASK).unlink()),
        "warning", MASK[:-3] + "jpg", "saved with loss",
    ),
    "no mask": (lambda r: (r / MASK).unlink(), "error", IMAGE, "image without a mask"),
    "no image": (lambda r: (r / IMAGE).unlink(), "error", MASK, "mask without an image"),
    "masks named by a suffix": (
        lambda r: (r / MASK).rename(r / "Train/Mask/train_003_segmentation.png"),
        "error", "Train/Mask/train_003_segmentation.png", "give it the stem of its image, 'train_003'",
    ),
    "masks in capitals": (lambda r: (r / MASK).rename(r / "Train/Mask/TRAIN_003.png"), "error", "Train/Mask/TRAIN_003.png", "'train_003'"),
    "no folder of masks": (lambda r: shutil.rmtree(r / "Train/Mask"), "error", "Train/Mask", "no folder"),
    "no test images": (lambda r: shutil.rmtree(r / "Test"), "error", "Test/Image", "no folder"),
    "same stem twice": (lambda r: save(r, "Train/Image/train_003.png", draw(r, IMAGE)), "error", "Train/Image/train_003.png", "same stem"),
    "a duplicate in Train": (lambda r: add_image(r, "zz.png"), "warning", "Train/Image/zz.png", "nearly the same image"),
    "a smaller copy": (lambda r: add_image(r, "zz.png", resize=(100, 80)), "warning", "Train/Image/zz.png", "kept in one fold"),
    "a recompressed copy": (lambda r: add_image(r, "zz.jpg"), "warning", "Train/Image/zz.jpg", "nearly the same image"),
    "a mirrored copy": (
        lambda r: add_image(r, "zz.png", transpose=Image.Transpose.FLIP_LEFT_RIGHT), "warning", "Train/Image/zz.png", "nearly the same",
    ),
    "a turned copy": (
        lambda r: add_image(r, "zz.png", transpose=Image.Transpose.ROTATE_90), "warning", "Train/Image/zz.png", "nearly the same",
    ),
    "a copy in Test": (lambda r: copy(r, IMAGE, "Test/Image/zz.jpg"), "warning", "Test/Image/zz.jpg", "do not count on its score"),
    "unicode in a name": (lambda r: (r / TEST).rename(r / "Test/Image/münchen.jpg"), "note", "Test/Image", "münchen"),
    "spaces in a name": (lambda r: (r / TEST).rename(r / "Test/Image/a b.jpg"), "note", "Test/Image", "a b"),
    "a comma and a line break in a name": (
        lambda r: (r / TEST).rename(r / "Test/Image/a,\nb.jpg"), "note", "Test/Image", "unusual characters",
    ),
    "a name like a number": (lambda r: (r / TEST).rename(r / "Test/Image/00012.jpg"), "note", "Test/Image", "a spreadsheet would take"),
    "hidden files": (lambda r: copy(r, MASK, "Train/Mask/._train_003.png"), "note", "Train/Mask", "passed over: ._train_003.png"),
    "__MACOSX": (lambda r: shutil.copytree(r / "Test/Image", r / "Train/Image/__MACOSX"), "note", "Train/Image", "__MACOSX"),
    "an unknown type": (lambda r: (r / "Test/Image/x.dcm").write_bytes(b"DICM"), "note", "Test/Image", "x.dcm"),
    "codes in column-major order": (lambda r: write_codes(r, encode_columns), "error", "CSV files", "column-major"),
    "codes of other masks": (lambda r: write_codes(r, lambda mask: "1 5"), "error", "CSV files", "another mask"),
    "a code of more characters than Python's CSV reader takes": (
        lambda r: write_codes(r, lambda mask: "1 1 " * 40_000), "error", "CSV files", "another mask",
    ),
    "a sample submission of other images": (
        lambda r: write_sample(r, "ID,Mask\ntest_000,1 1\ntest_002,1 1\n"), "error", "CSV files", "differ in test_001, test_002 (2)",
    ),
    "a sample submission of other columns": (
        lambda r: write_sample(r, "id,rle\ntest_000,1 1\n"), "error", "CSV files", "has the columns ['id', 'rle']; expected",
    ),
    "a table that cannot be read": (lambda r: (r / "train.csv").mkdir(), "error", "CSV files", "Is a directory"),
}  # fmt: skip


def test_a_sound_data_set_has_no_rows(sound):
    assert check_dataset(sound) == []


def test_forty_kinds_of_damage_are_tried():
    assert len(DAMAGE) >= 40


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_stands_in_the_table_with_a_remedy(root, kind):
    damage, severity, file, text = DAMAGE[kind]
    damage(root)
    rows = [row for row in check_dataset(root) if row["severity"] == severity and row["file"] == file]
    assert any(text in f"{row['problem']}; {row['remedy']}" and row["remedy"] for row in rows), check_dataset(root)


@pytest.mark.parametrize("kind", [kind for kind, (_, severity, file, _) in DAMAGE.items() if severity != "error" and "Train" in file])
def test_what_is_no_error_does_not_stop_a_run(root, kind):
    DAMAGE[kind][0](root)
    assert len(load_squares(SegmentationDataset(find_cases(root, "Train"), EvalTransform(32)))) >= 12


def test_files_with_random_bytes_changed_crash_nothing_and_what_cannot_be_read_is_an_error(root, monkeypatch):
    rng = np.random.default_rng(0)
    files = sorted(path for path in root.glob("T*/*/*") if path.suffix in (".jpg", ".png"))
    for path in files:
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, min(len(content), 10 ** rng.integers(2, 6)), rng.integers(1, 9)):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)
    unreadable = set()
    for path in files:
        try:
            (read_mask_values if path.parent.name == "Mask" else read_image)(path)
        except ValueError as error:
            assert f"cannot read {path}" in str(error)
            unreadable.add("/".join(path.parts[-3:]))
    monkeypatch.setattr(check, "merge_rows", list)
    rows = check_dataset(root)
    said = {row["file"] for row in rows if row["severity"] == "error" and row["problem"].startswith("cannot be read")}
    assert len(unreadable) > 5 and said == unreadable


def test_what_is_said_of_many_files_is_said_once_errors_first(root):
    for path in (root / "Train" / "Mask").iterdir():
        save(root, f"Train/Mask/{path.name}", draw(root, f"Train/Mask/{path.name}") // 255 * 254)
    (root / "Test" / "Image" / "x.dcm").write_bytes(b"")
    cut(root, TEST, 0.5)
    rows = check_dataset(root)
    assert [row["severity"] for row in rows] == ["error", "warning", "note"]
    assert rows[1]["file"] == "Train/Mask" and rows[1]["problem"].startswith("two values: [0, 254]: train_000.png, train_001.png,")
    assert rows[1]["problem"].endswith("… (16)")


def test_agreeing_codes_and_a_sample_submission_raise_nothing(root):
    write_sample(root, "\ufeffID,Mask\r\ntest_001,1 1\r\ntest_000,1 1\r\n")
    (root / "other.csv").write_text("a,b\n1,2\n")
    write_codes(root, lambda mask: encode_columns(mask.T))
    assert check_dataset(root) == []


def test_the_order_of_files_does_not_matter(root, monkeypatch):
    DAMAGE["a duplicate in Train"][0](root)
    rows, listing = check_dataset(root), Path.glob
    cases = find_cases(root, "Train")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(sorted(listing(self, pattern), reverse=True)))
    assert check_dataset(root) == rows and find_cases(root, "Train") == cases


def test_a_mask_of_a_corner_an_empty_and_a_full_one_have_no_shift():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for mask in (np.zeros((60, 80), bool), np.ones((60, 80), bool), np.zeros((1, 2), bool)):
        assert measure_shift(image, mask) == 0


def test_the_doctor_prints_the_table_and_fails_on_an_error(root, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check", str(root)])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 0 and capsys.readouterr().out == "0 errors, 0 warnings, 0 notes\n"
    (root / MASK).unlink()
    with pytest.raises(SystemExit) as end:
        check.main()
    printed = capsys.readouterr().out
    assert end.value.code == 1 and f"error    {IMAGE}: image without a mask; add a mask" in printed


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data at hand")
@pytest.mark.parametrize(("name", "every", "most"), [("a0", 4, 3), ("ct", 1, 1)])
def test_at_most_one_in_a_hundred_real_pairs_is_flagged(name, every, most, tmp_path):
    cases = find_cases(REAL / name / "Dataset", "Train")[::every]
    for kind in ("Image", "Mask"):
        (tmp_path / "Train" / kind).mkdir(parents=True)
        for case in cases:
            path = getattr(case, kind.lower())
            os.symlink(path, tmp_path / "Train" / kind / path.name)
    rows = [row for row in check_dataset(tmp_path) if not row["file"].startswith("Test")]
    assert len(rows) <= most and {row["severity"] for row in rows} <= {"warning"}, rows


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data at hand")
def test_most_shifted_and_inverted_real_masks_are_found():
    cases = find_cases(REAL / "a0" / "Dataset", "Train")[::20]
    images = [np.asarray(Image.open(case.image)) for case in cases]
    found = [measure_shift(image, shift(read_mask(case.mask))) > check.SHIFT_GAIN for image, case in zip(images, cases)]
    assert np.mean(found) > 0.6
    masks = {case.image_id: check.average_area(read_mask(case.mask), (24, 24)) for case in cases}
    name = cases[0].image_id
    assert [row["file"] for row in check.check_inverted(masks | {name: 1 - masks[name]})] == [name]
