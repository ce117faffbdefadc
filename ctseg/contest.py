"""The facts of one contest: its name, its mounts on Kaggle, its folders, and the format of its submission."""

import os
from pathlib import Path

SLUG = "a0-2025-medical-image-segmentation"

# Where Kaggle mounts the data that is attached; CTSEG_KAGGLE_INPUT names another folder, for trials.
KAGGLE_INPUT = Path(os.environ.get("CTSEG_KAGGLE_INPUT", "/kaggle/input"))
MOUNTS = (f"competitions/{SLUG}", SLUG)  # places of the contest's data below it: today's and the older one

# The archive contains one folder, the data root, with these folders in it. An image and its mask share the
# file stem, which is also the id in the submission.
DATASET = "Dataset"
IMAGE_FOLDERS = {"train": "Train/Image", "test": "Test/Image"}  # by subset
MASK_FOLDER = "Train/Mask"
TEST_MASKS = "test_masks"  # next to the data root, where they are known; a contest hides them

# The submission, and any table of run-length codes that comes with the data.
ID_COLUMN, MASK_COLUMN = "ID", "Mask"
COLUMNS = (ID_COLUMN, MASK_COLUMN)
PIXEL_ORDER = "C"  # row-major, as in the submissions that this contest accepted; "F" is column-major
EMPTY_MASK = ""  # how a mask without foreground is written
