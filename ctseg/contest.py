"""What differs from contest to contest: its name, its folders, and the format of its submission."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Where Kaggle mounts the data that is attached; CTSEG_KAGGLE_INPUT names another folder, for trials.
KAGGLE_INPUT = Path(os.environ.get("CTSEG_KAGGLE_INPUT", "/kaggle/input"))
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
TEST_MASKS = "test_masks"  # next to the data root, where they are known; a contest hides them

# Usual folders of a data set, of training images with their masks and of test images; letter case does not
# matter.
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
    """Where a data set's files are; a folder of masks or test images may be missing."""

    train_images: Path
    train_masks: Path
    test_images: Path


@dataclass(frozen=True)
class Contest:
    """The facts of one contest. All are parameters, and these are the contest's that the kit is made for."""

    slug: str = "a0-2025-medical-image-segmentation"  # the contest's name in Kaggle's addresses
    notebooks_only: bool = False  # whether it takes versions of kernels, and no files
    # Folders below the data root; "" looks for usual ones
    train_images: str = ""
    train_masks: str = ""
    test_images: str = ""
    mask_prefix: str = ""  # a mask's stem is prefix + its image's stem + suffix
    mask_suffix: str = ""
    # The submission, and any table of run-length codes that comes with the data
    submission_columns: str = "ID,Mask"  # the id's and the code's; others as name=value, see `read_columns`
    id_with_extension: bool = False  # whether ids are the images' file names, or their stems
    # C: pixels are counted row by row, F: column by column
    pixel_order: str = field(default="C", metadata={"options": ("C", "F")})
    first_pixel: int = field(default=1, metadata={"range": (0, 1)})  # the number of the first pixel
    empty_mask: str = ""  # how a mask without foreground is written

    def mounts(self) -> tuple[str, str]:
        """Places of the contest's data below Kaggle's input: today's and the older one."""
        return f"competitions/{self.slug}", self.slug

    def read_columns(self) -> dict[str, str]:
        """The submission's columns in order, and what each holds.

        {id}, {mask}, {height} and {width} stand for an image's own, other text for itself.

        >>> Contest(submission_columns="img,class=1,pixels").read_columns()
        {'img': '{id}', 'class': '1', 'pixels': '{mask}'}

        Raises:
            ValueError: not one column of ids and one of codes, or a name twice.
        """
        texts = [text.strip() for text in self.submission_columns.split(",")]
        entries = [text.partition("=") for text in texts]
        values = [value for _, sign, value in entries if sign]
        plain = [value for value in ("{id}", "{mask}") if value not in values]
        names = [name for name, _, _ in entries]
        known = {"id", "mask", "height", "width"}
        if unknown := set(re.findall(r"{(.*?)}", self.submission_columns)) - known:
            raise ValueError(
                f"parameter submission_columns: got {{{min(unknown)}}} in {self.submission_columns!r}; "
                "expected {id}, {mask}, {height}, {width} or plain text"
            )
        if (
            [sign for _, sign, _ in entries].count("") != len(plain)
            or len(set(names)) < len(names)
            or "" in names
        ):
            raise ValueError(
                f"parameter submission_columns: got {self.submission_columns!r}, expected the names of the "
                "ids' and the codes' columns, others with their value, as in 'ID,Mask' or 'id,class=1,rle'"
            )
        return {name: value if sign else plain.pop(0) for name, sign, value in entries}

    def find_folders(self, root: Path) -> Folders:
        """The folders of the data set at `root`.

        Raises:
            FileNotFoundError: no folders of the names that are set, or of usual ones.
            ValueError: more than one of usual names.
        """
        names = list(_find_subfolders(root))
        known = {name.lower(): root / name for name in reversed(names)}
        pairs = []
        for usual_images, usual_masks in _TRAIN_FOLDERS:
            images = root / self.train_images if self.train_images else known.get(usual_images.lower())
            masks = root / self.train_masks if self.train_masks else known.get(usual_masks.lower())
            if images and images.is_dir():
                is_clear = self.train_images or "/" in usual_images
                pairs.append((images, masks or root / usual_masks, is_clear))
        whole = [(images, masks) for images, masks, _ in pairs if _has_images(images) and _has_images(masks)]
        whole = [pair for pair in whole if pair[0] != pair[1]] or whole
        found = whole or [(images, masks) for images, masks, is_clear in pairs if is_clear]
        if not found:
            looked_for = self.train_images or "Train/Image, train/images, images or the like"
            present = ", ".join(names[:20]) or "no folders"
            raise FileNotFoundError(
                f"no training images in {looked_for} of {root}, which has {present}; pass its folders as "
                "-p train_images, -p train_masks and -p test_images"
            )
        if len(set(whole)) > 1:
            listed = (f"{images.relative_to(root)} with {masks.relative_to(root)}" for images, masks in whole)
            raise ValueError(
                f"{root} has more than one set of training images: {', '.join(dict.fromkeys(listed))}; pass "
                "-p train_images and -p train_masks"
            )
        test = [known[name.lower()] for name in _TEST_FOLDERS if name.lower() in known]
        images = found[0][0].relative_to(root).as_posix()
        namesake = images.replace("Train", "Test").replace("train", "test")
        usual_test = next(filter(_has_images, test), root / (namesake if namesake != images else "test"))
        return Folders(*found[0], root / self.test_images if self.test_images else usual_test)


A0 = Contest()  # the contest that the kit is made for


def _find_subfolders(root: Path) -> Iterator[str]:
    """The folders below `root`, two levels of them, by their paths from there."""
    for folder in sorted(root.glob("*/")):
        yield folder.name
        yield from (f"{folder.name}/{below.name}" for below in sorted(folder.glob("*/")))


def _has_images(folder: Path) -> bool:
    """Whether a folder directly contains images."""
    return folder.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
