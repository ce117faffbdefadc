"""Data sets like those of public contests: other folders, names, types of files, columns, orders of pixels.

`python tests/tools/formats.py FOLDER` writes all of them.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ctseg.phantom import make_slice

# By name: the parameters with which the kit reads such a data set and writes a submission to it.
FORMATS = {
    "salt": {"submission_columns": "id,rle_mask", "pixel_order": "F"},
    "nerves": {"mask_suffix": "_mask", "submission_columns": "img,pixels", "pixel_order": "F"},
    "ships": {"submission_columns": "ImageId,EncodedPixels", "pixel_order": "F", "empty_mask": "-1"},
    "cars": {"submission_columns": "img,rle_mask", "id_with_extension": True},
}
_PLACES = {  # of training images, their masks and test images, with what is added to the stem
    "salt": ("train/images/{}.png", "train/masks/{}.png", "test/images/{}.png"),
    "nerves": ("train/{}.tif", "train/{}_mask.tif", "test/{}.tif"),
    "ships": ("train_images/{}.jpg", "train_masks/{}.png", "test_images/{}.jpg"),
    "cars": ("train/{}.jpg", "train_masks/{}.gif", "test/{}.jpg"),
}


def write_format(
    name: str, root: Path, *, n_train: int = 24, n_test: int = 4, sample: bool = True, codes: bool = True
) -> dict[str, np.ndarray]:
    """Write a data set of phantom images in the format `name`; return the true test masks by stem.

    The third training image shows nothing, and its mask is empty. `sample_submission.csv` and
    `train_codes.csv` are written where they are asked for.
    """
    places, parameters, truth, rows = _PLACES[name], FORMATS[name], {}, []
    for subset, count in (("train", n_train), ("test", n_test)):
        for index in range(count):
            image, mask = make_slice("plain", np.random.default_rng((3, subset == "test", index)))
            mask &= (subset, index) != ("train", 2)
            stem = f"{subset[:2]}_{index:03d}"
            path = root / places[0 if subset == "train" else 2].format(stem)
            _save(Image.fromarray(image).convert("RGB"), path)
            if subset == "train":
                _save(Image.fromarray(mask).convert("L"), root / places[1].format(stem))
                image_id = path.name if parameters.get("id_with_extension") else stem
                rows.append((image_id, _encode(mask, parameters)))
            else:
                truth[stem] = mask
    columns = parameters["submission_columns"].split(",")
    ids = [
        Path(places[2].format(stem)).name if parameters.get("id_with_extension") else stem for stem in truth
    ]
    if sample:
        _write_table(root / "sample_submission.csv", columns, [(image_id, "1 1") for image_id in ids])
    if codes:
        _write_table(root / "train_codes.csv", columns, rows)
    return truth


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _encode(mask: np.ndarray, parameters: dict) -> str:
    """A run-length code, pixel by pixel, by nothing of the kit's."""
    flat = (mask.T if parameters.get("pixel_order") == "F" else mask).ravel().tolist()
    runs, start = [], None
    for number, value in enumerate([*flat, False], start=1):
        if value and start is None:
            start = number
        elif not value and start is not None:
            runs += [start, number - start]
            start = None
    return " ".join(map(str, runs)) or parameters.get("empty_mask", "")


def _write_table(path: Path, columns: list[str], rows: list[tuple]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


if __name__ == "__main__":
    for name in FORMATS:
        write_format(name, Path(sys.argv[1]) / name)
