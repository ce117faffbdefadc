"""What differs from contest to contest: its name, its folders, and the format of its submission."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

# Where Kaggle mounts the data that is attached; CTSEG_KAGGLE_INPUT names another folder, for trials.
KAGGLE_INPUT = Path(os.environ.get("CTSEG_KAGGLE_INPUT", "/kaggle/input"))
TEST_MASKS = "test_masks"  # next to the data root, where they are known; a contest hides them


@dataclass(frozen=True)
class Contest:
    """The facts of one contest. All are parameters, and these are the contest's that the kit is made for."""

    slug: str = "a0-2025-medical-image-segmentation"  # the contest's name in Kaggle's addresses
    notebooks_only: bool = False  # whether it takes versions of kernels, and no files
    # Folders below the data root; "" looks for usual ones, see `folders.find_folders`
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


A0 = Contest()  # the contest that the kit is made for
