"""The folders of a data set: named or usual ones, and which of their files are images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctseg.contest import Contest

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
# Usual folders of training images with their masks, and of test images; letter case does not matter.
_TRAIN_FOLDERS = (
    ("Train/Image", "Train/Mask"),
    ("train/images", "train/masks"),
    ("train/images", "train/labels"),
    ("training/images", "training/masks"),
    ("images/train", "masks/train"),
    ("images/train", "labels/train"),
    ("images/training", "annotations/training"),
    ("imagesTr", "labelsTr"),
    ("train_images", "train_masks"),
    ("train", "train_masks"),
    ("train", "masks"),
    ("images", "masks"),
    ("images", "labels"),
    ("image", "mask"),
    ("train", "train"),  # masks next to the images, told by mask_suffix or mask_prefix
)
_TEST_FOLDERS = (
    "Test/Image",
    "test/images",
    "images/test",
    "images/testing",
    "imagesTs",
    "test_images",
    "test",
)


@dataclass(frozen=True)
class Folders:
    """Where a data set's files are; of masks and test images, a usual folder may be missing."""

    train_images: Path
    train_masks: Path
    test_images: Path


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; hidden files, such as `._a.png` in archives, are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def find_folders(root: Path, contest: Contest) -> Folders:
    """The folders of the data set at `root`.

    Raises:
        FileNotFoundError: no training images in the folder that the contest names, or in usual ones.
        ValueError: several usual ones, or a name of a folder of masks or test images that is not there.
    """
    names = list(_find_subfolders(root))
    usual = {name.lower(): root / name for name in reversed(names)}
    present = f"{root}, which has {', '.join(names[:20]) or 'no folders'}"
    images, masks, test = (_find_named(root, name, contest) for name in _NAMES)
    pairs = [(images, masks)] if images and masks else _list_pairs(root, usual, contest, images, masks)
    pairs = [pair for pair in pairs if pair[0].is_dir()]
    whole = [pair for pair in pairs if all(map(has_images, pair))]
    whole = list(dict.fromkeys([pair for pair in whole if pair[0] != pair[1]] or whole))
    if len(whole) > 1:
        listed = ", ".join(" with ".join(str(folder.relative_to(root)) for folder in pair) for pair in whole)
        raise ValueError(
            f"{root} has more than one set of training images: {listed}; pass -p train_images and "
            "-p train_masks"
        )
    # Without masks, a name such as "images" alone does not tell that these are training's.
    found = whole or [pair for pair in pairs if images or pair[0].parent != root]
    if not found:
        looked_for = contest.train_images or "Train/Image, train/images, images or the like"
        looked_for += f" with masks in {contest.train_masks}" if contest.train_masks else ""
        raise FileNotFoundError(
            f"no training images in {looked_for} of {present}; pass its folders as -p train_images, "
            "-p train_masks and -p test_images"
        )
    for name, folder in zip(_NAMES[1:], (masks, test)):
        if folder and not folder.is_dir():
            raise ValueError(
                f"parameter {name}: no folder {getattr(contest, name)!r} in {present}; fix the name, or "
                "leave it out where there is none yet"
            )
    return Folders(*found[0], test or _find_test_images(root, found[0][0], usual))


_NAMES = ("train_images", "train_masks", "test_images")


def _find_named(root: Path, name: str, contest: Contest) -> Path | None:
    """The folder that a parameter names, None if it names none; ValueError if it is not below `root`."""
    value = getattr(contest, name)
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise ValueError(
            f"parameter {name}: got {value!r}, expected a folder below the data root {root}, as its path "
            "from there"
        )
    return root / value if value else None


def _list_pairs(
    root: Path, usual: Mapping[str, Path], contest: Contest, images: Path | None, masks: Path | None
) -> list[tuple[Path, Path]]:
    """Folders of training images and where their masks would be, in usual places; one may be named."""
    if images:
        return [(images, folder) for folder in _list_mask_folders(root, usual, contest, images)]
    present = [pair for pair in _TRAIN_FOLDERS if pair[0].lower() in usual]
    return [
        (usual[name.lower()], masks or usual.get(mask_name.lower(), root / mask_name))
        for name, mask_name in present
    ]


def _list_mask_folders(root: Path, usual: Mapping[str, Path], contest: Contest, images: Path) -> list[Path]:
    """Where the masks of named images may be: next to their folder, in it, or in a usual folder."""
    words = {PurePosixPath(name).name.lower() for pair in _TRAIN_FOLDERS for name in pair[1:]} - {"train"}
    siblings = [folder for folder in sorted(images.parent.glob("*/")) if folder.name.lower() in words]
    known = [usual[name.lower()] for _, name in _TRAIN_FOLDERS if name.lower() in usual]
    mixed = [images] if contest.mask_prefix or contest.mask_suffix else []
    for folders in (siblings, known):
        if found := [folder for folder in folders if has_images(folder) and folder != images]:
            return found
    return mixed or [images.with_name("masks")]


def _find_test_images(root: Path, train_images: Path, usual: Mapping[str, Path]) -> Path:
    """A usual folder that has test images; else where they would be, by the training images' place."""
    known = [usual[name.lower()] for name in _TEST_FOLDERS if name.lower() in usual]
    name = train_images.relative_to(root).as_posix()
    namesake = name.replace("Train", "Test").replace("train", "test")
    return next(filter(has_images, known), root / (namesake if namesake != name else "test"))


def _find_subfolders(root: Path) -> Iterator[str]:
    """The folders below `root`, two levels of them, by their paths from there."""
    for folder in sorted(root.glob("*/")):
        yield folder.name
        yield from (f"{folder.name}/{below.name}" for below in sorted(folder.glob("*/")))


def has_images(folder: Path) -> bool:
    """Whether a folder directly contains images."""
    return folder.is_dir() and any(map(is_image, folder.iterdir()))
