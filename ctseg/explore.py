"""The measures of notebooks 01 and 02: properties of the cases, and the cost of the round trip."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, uniform_filter
from scipy.stats import median_abs_deviation, rankdata
from skimage.color import rgb2gray, rgb2hsv, rgb2lab
from torch import Tensor

from ctseg.augment import Augment, Draws
from ctseg.config import Config
from ctseg.data import (
    Case,
    MaskSet,
    SegmentationDataset,
    find_training_files,
    find_window,
    map_threads,
    read_image,
    read_mask,
    read_size,
)
from ctseg.folders import find_folders
from ctseg.metrics import dice_score
from ctseg.split import find_duplicates, make_thumbnail
from ctseg.transforms import EvalTransform, average_area, make_letterbox, shrink_size, to_float


class Example(NamedTuple):
    """A case made small: image uint8 (h, w, 3), mask bool (h, w), or None without one."""

    image_id: str
    image: np.ndarray
    mask: np.ndarray | None


def read_example(case: Case, window: tuple[float, float] | None = None, *, side: int = 384) -> Example:
    """Read a case so that its longer side has at most `side` pixels.

    Raises:
        ValueError: a file cannot be read, or the mask's size is not the image's.
    """
    image, mask, size = SegmentationDataset([case], EvalTransform(side), window).read(0)
    small = shrink_size(size, side)[::-1]
    pixels = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX))
    if mask is None:
        return Example(case.image_id, pixels, None)
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(small, Image.Resampling.BOX))
    return Example(case.image_id, pixels, share > (0.5 if (share > 0.5).any() else 0))  # no region is lost


def read_examples(config: Config, n: int) -> list[Example]:
    """Read at most n training pairs, evenly spaced over a data set that may have broken files.

    A pair that cannot be read is replaced by its next neighbor. A 16-bit image is read through the config's
    window, or its own where the config has none.
    """
    images, masks = find_training_files(find_folders(Path(config.data_root), config), config)
    pairs = [(stem, paths[0], masks[stem][0]) for stem, paths in images.items() if stem in masks]
    mask_set = MaskSet([mask for *_, mask in pairs])
    cases = [Case(*pair, mask_set) for pair in pairs]
    examples = []
    for places in np.array_split(np.arange(len(cases)), n):
        tries = (_try_to_read(cases[place], config) for place in places)
        examples += [next(filter(None, tries), None)]
    return list(filter(None, examples))


def _try_to_read(case: Case, config: Config) -> Example | None:
    """A case made small, None if it cannot be read."""
    try:
        return read_example(case, find_window([case], config.window_low, config.window_high))
    except ValueError:  # the data check will name the file
        return None


def pick_evenly(items: Sequence, n: int) -> list:
    """Pick at most n items, evenly spaced from the first to the last.

    >>> pick_evenly("abcdefg", 3), pick_evenly("ab", 3)
    (['a', 'd', 'g'], ['a', 'b'])
    """
    places = np.linspace(0, len(items) - 1, min(n, len(items)))
    return [items[place] for place in places.round().astype(int)]


def pick_typical(targets: Sequence[Tensor]) -> int:
    """The place of the target, each of one shape, whose region is of median size; 0 where all are empty."""
    areas = np.array([float(target.float().mean()) for target in targets])
    order = np.argsort(areas)[np.count_nonzero(areas == 0) :]
    return int(order[len(order) // 2]) if order.size else 0


def describe_cases(cases: Sequence[Case], window: tuple[float, float] | None = None) -> list[dict]:
    """Describe each case in a row.

    Height and width in pixels; aspect, height / width; mean and standard deviation of each channel, 0 … 255;
    mask_area, the mask's share of the image, 0 for an empty mask and None without one.
    """
    return list(map_threads(partial(_describe_case, window=window), cases))


def _describe_case(case: Case, window: tuple[float, float] | None) -> dict:
    """Describe one case, as `describe_cases` does."""
    height, width = read_size(case.image)
    pixels = read_image(case.image, min_size=256, window=window).reshape(-1, 3)
    return {
        "image_id": case.image_id,
        "height": height,
        "width": width,
        "aspect": height / width,
        **{f"mean_{channel}": float(value) for channel, value in zip("rgb", pixels.mean(axis=0))},
        **{f"std_{channel}": float(value) for channel, value in zip("rgb", pixels.std(axis=0))},
        "mask_area": None if case.mask is None else float(read_mask(case.mask, case.mask_set).mean()),
    }


class _Trait(NamedTuple):
    """A number by which cases are compared, from a row of `describe_cases`."""

    measure: Callable[[Sequence[Mapping]], list[float]]  # its value in each row; 0 if it has no logarithm
    is_log: bool  # whether half as much is as far from the median as twice as much
    least_spread: float  # of its values, or their logarithms: less than that, nobody would see
    text: str  # for its value and the median


_TRAITS = (
    _Trait(
        lambda rows: [row["height"] * row["width"] / 1e6 for row in rows],
        True,
        0.1,
        "{:.3g} megapixels\n(median {:.3g})",
    ),
    _Trait(lambda rows: [row["aspect"] for row in rows], True, 0.1, "height / width {:.2f}\n(median {:.2f})"),
    _Trait(lambda rows: average_channels(rows, "mean"), False, 4.0, "brightness {:.0f}\n(median {:.0f})"),
    _Trait(lambda rows: average_channels(rows, "std"), False, 4.0, "contrast {:.0f}\n(median {:.0f})"),
    _Trait(
        lambda rows: [100 * (row["mask_area"] or 0) for row in rows],
        True,
        0.1,
        "mask {:.3g} %\n(median {:.3g} %)",
    ),
)


def average_channels(descriptions: Sequence[Mapping], statistic: str) -> list[float]:
    """The average of a statistic, "mean" or "std", over the channels, of each of `describe_cases`' rows."""
    return [sum(row[f"{statistic}_{channel}"] for channel in "rgb") / 3 for row in descriptions]


_UNUSUAL = 2.0  # standard deviations from the median


def find_outliers(descriptions: Sequence[Mapping], n: int) -> list[tuple[int, str]]:
    """Find the n most unusual of `describe_cases`' rows, the most unusual first: (index, why).

    Of size, shape, brightness, contrast and mask area the one counts that is farthest from the median, in
    standard deviations as estimated from the median absolute deviation. Each has its share of the n, so that
    not all are small regions. Rows less than two standard deviations away are left out; an empty mask is not
    unusual.
    """
    found = [_measure_trait(trait, descriptions) for trait in _TRAITS]
    distances = np.array([trait_distances for trait_distances, _ in found])  # (traits, N)
    order = np.argsort(-distances.max(axis=0), kind="stable")
    trait_of, picked = distances.argmax(axis=0), []
    for trait, (_, texts) in enumerate(found):
        own = [index for index in order if trait_of[index] == trait and distances[trait, index] > _UNUSUAL]
        picked += [(int(index), texts[index]) for index in own[: -(-n // len(found))]]
    return sorted(picked, key=lambda pair: -distances[:, pair[0]].max())[:n]


def _measure_trait(trait: _Trait, descriptions: Sequence[Mapping]) -> tuple[np.ndarray, list[str]]:
    """How far each row's trait is from the median, (N,), 0 where there is none; and in words."""
    values = np.array(trait.measure(descriptions))
    usable = values > 0 if trait.is_log else np.ones(len(values), bool)
    distances = np.zeros(len(values))
    if not usable.any():
        return distances, [""] * len(values)
    scaled = np.log(values[usable]) if trait.is_log else values
    spread = max(median_abs_deviation(scaled, scale="normal"), trait.least_spread)
    distances[usable] = np.abs(scaled - np.median(scaled)) / spread
    return distances, [trait.text.format(value, np.median(values[usable])) for value in values]


def average_masks(cases: Sequence[Case], side: int = 64) -> np.ndarray:
    """Average the masks of cases, each stretched to a square: float32 (side, side), the share of masks."""
    return np.mean(list(map_threads(partial(_shrink_mask, side=side), cases)), axis=0)


def _shrink_mask(case: Case, side: int) -> np.ndarray:
    """A mask averaged to (side, side); `average_area` would be exact, and ten times slower."""
    mask = Image.fromarray(read_mask(case.mask, case.mask_set).astype(np.float32))
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX))


def tabulate_border_cost(cases: Sequence[Case], target_size: int) -> list[dict]:
    """Tabulate what a border that is one pixel off costs, in squares of `target_size`, one row per mask.

    mask_area, its share of the image; dice_grown and dice_shrunk, the Dice of the mask with itself grown and
    shrunk by one pixel, 0 for a region without a pixel in the square. Empty masks are left out.
    """
    rows = map_threads(partial(_measure_border_cost, target_size=target_size), cases)
    return [row for row in rows if row]


def _measure_border_cost(case: Case, target_size: int) -> dict | None:
    """One row of `tabulate_border_cost`."""
    mask = read_mask(case.mask, case.mask_set)
    if not mask.any():
        return None
    small = average_area(mask, make_letterbox(mask.shape, target_size).resized_size) > 0.5
    shrunk = binary_erosion(small, border_value=1)  # a region goes on beyond the edge of its image
    return {
        "image_id": case.image_id,
        "mask_area": float(mask.mean()),
        "dice_grown": dice_score(binary_dilation(small), small) if small.any() else 0.0,
        "dice_shrunk": dice_score(shrunk, small) if small.any() else 0.0,
    }


def find_near_duplicates(train: Sequence[Case], test: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Find near-duplicates as the data check does; pairs with a test image and training pairs take turns."""
    cases = [*train, *test]
    pairs = find_duplicates(list(map_threads(_read_thumbnail, cases)))
    across = [(first, second) for first, second in pairs if first < len(train) <= second]
    within = [(first, second) for first, second in pairs if second < len(train)]
    in_turn = chain(*zip_longest(across, within))
    return [(cases[pair[0]], cases[pair[1]]) for pair in in_turn if pair]


def _read_thumbnail(case: Case) -> np.ndarray:
    """A case's image, float32 (24, 24, 3)."""
    return make_thumbnail(read_image(case.image, min_size=128, window=find_window([case])))


def tabulate_channels(
    cases: Sequence[Case], window: tuple[float, float] | None = None, *, side: int = 64
) -> list[dict]:
    """Tabulate how well each channel alone tells a region from the rest, the best one first.

    auc is the chance that a pixel inside is higher than one outside, averaged over the images; where that is
    below one half, regions are lower, and it is the chance that one is lower. 0.5 tells nothing, 1 all.
    lower_inside is the share of images where regions are lower. Images are at most `side` pixels wide; those
    without a region or a rest are left out, and gray ones count for gray alone.
    """
    found = map_threads(partial(_measure_channels, window=window, side=side), cases)
    areas = [row for row in found if row]  # under curves, of each image
    rows = []
    for name in _CHANNELS:
        values = np.array([row[name] for row in areas if name in row])
        if len(values):
            auc = max(values.mean(), 1 - values.mean())
            shares = {"auc": float(auc), "lower_inside": float(np.mean(values < 0.5))}
            rows.append({"channel": name, **shares, "images": len(values)})
    return sorted(rows, key=lambda row: -row["auc"])


_CHANNELS = (
    *("red", "green", "blue", "gray", "hue", "saturation", "value (brightest color)"),
    *("L* (lightness)", "a* (green to red)", "b* (blue to yellow)"),
)


def _measure_channels(case: Case, window: tuple[float, float] | None, side: int) -> dict[str, float]:
    """The area under the curve of each of a case's channels; {} without a region or a rest."""
    example = read_example(case, window, side=side)
    if example.mask.min() == example.mask.max():
        return {}
    channels = split_channels(example.image)
    return {name: measure_auc(values, example.mask) for name, values in channels.items()}


def split_channels(image: np.ndarray) -> dict[str, np.ndarray]:
    """Split an image, uint8 (h, w, 3), into color channels (h, w): RGB, gray, HSV and CIELAB.

    Hue runs from cyan over red to cyan, so that red is not cut in two. A gray image has gray alone.
    """
    if (image == image[..., :1]).all():
        return {"gray": image[..., 0]}
    hsv = rgb2hsv(image)
    hsv[..., 0] = (hsv[..., 0] + 0.5) % 1
    channels = np.dstack([image, rgb2gray(image), hsv, rgb2lab(image)])
    return dict(zip(_CHANNELS, np.moveaxis(channels, 2, 0)))


def measure_auc(values: np.ndarray, mask: np.ndarray) -> float:
    """The chance that a value inside a mask is higher than one outside, ties counted half: 0 … 1.

    It is the area under the ROC curve (Mann & Whitney, 1947). Both are (h, w), the mask neither empty nor
    full.
    """
    ranks, n_inside = rankdata(values)[mask.ravel()], np.count_nonzero(mask)
    return float((ranks.mean() - (n_inside + 1) / 2) / (mask.size - n_inside))


_RANGES = {  # of the random changes by strength s, as `Augment` draws them
    "flip": lambda s: f"each axis, in {100 * s:g} %",
    "rot90": lambda s: f"by 90°, in {100 * s:g} %",
    "scale": lambda s: f"× {1 / (1 + s):.2f} … {1 + s:.2f}, and a shift",
    "rotation": lambda s: f"± {s:g}°",
    "elastic": lambda s: f"nodes by {100 * s:g} % of the side",
    "brightness": lambda s: f"± {100 * s:g} % of white",
    "contrast": lambda s: f"× {1 - s:.2f} … {1 + s:.2f}",
    "gamma": lambda s: f"exponent {1 / (1 + s):.2f} … {1 + s:.2f}",
    "color": lambda s: f"each channel × {1 - s:.2f} … {1 + s:.2f}",
    "noise": lambda s: f"deviation 0 … {100 * s:g} % of white",
}


def describe_change(name: str, strength: float) -> str:
    """A random change with its range and unit; one of your own with its strength.

    >>> describe_change("rotation", 20), describe_change("scale", 0.25), describe_change("own", 0.5)
    ('rotation: ± 20°', 'scale: × 0.80 … 1.25, and a shift', 'own: 0.5')
    """
    describe = _RANGES.get(name, "{:g}".format)
    return f"{name}: {describe(strength)}"


def make_changes(
    pixels: Tensor, strengths: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Apply each random change alone: by its description, the original and the two most unlike of 64 draws.

    A grid is drawn on the image, so that its bending shows. Changes of strength 0 are left out.

    Args:
        pixels: an image and its target, uint8 (4, S, S).

    Returns:
        float32 (3, 4, S, S) in [0, 1] for each change.
    """
    original, changes = to_float(draw_grid(pixels))[None], {}
    for name, strength in strengths.items():
        if strength:
            augment = Augment(**{name: strength})
            ends = torch.cat(augment(original.repeat(2, 1, 1, 1), draw_ends(augment, generator)), dim=1)
            changes[describe_change(name, strength)] = torch.cat([original, ends])
    return changes


_GRID_COLOR = 86, 180, 233  # Okabe & Ito's sky blue


def draw_grid(pixels: Tensor, n: int = 8) -> Tensor:
    """Draw n lines each way on an image, uint8 (4, S, S), not on its target; return a copy.

    They are blue, which shows on black, white and skin.
    """
    drawn, side = pixels.clone(), pixels.shape[-1]
    is_line = torch.zeros(side, side, dtype=torch.bool)
    places = torch.arange(side // (2 * n), side, max(1, side // n))
    is_line[places], is_line[:, places] = True, True
    drawn[:3, is_line] = torch.tensor(_GRID_COLOR, dtype=torch.uint8)[:, None]
    return drawn


def draw_ends(augment: Augment, generator: torch.Generator, n_draws: int = 64) -> Draws:
    """The two of many random draws that differ most: close to both ends of a change's range."""
    draws = augment.draw(n_draws, generator)
    place = int(torch.cdist(draws.values, draws.values).argmax())
    return draws._replace(values=draws.values[list(divmod(place, n_draws))])


def tabulate_round_trip(cases: Sequence[Case], target_sizes: Sequence[int]) -> list[dict]:
    """Tabulate, by target size, the masks' mean Dice after the round trip, thresholded late and early."""
    each = map_threads(partial(_score_round_trips, target_sizes=target_sizes), cases)
    means = np.mean(list(each), axis=0)  # (sizes, 2)
    return [
        {"target_size": size, "dice": float(late), "dice_thresholded_early": float(early)}
        for size, (late, early) in zip(target_sizes, means)
    ]


def _score_round_trips(case: Case, target_sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Dice of a case's mask after the round trip by each size, with the late and with the early threshold."""
    mask = read_mask(case.mask, case.mask_set)
    trips = [make_round_trips(mask, size) for size in target_sizes]
    return [(dice_score(late, mask), dice_score(early, mask)) for late, early in trips]


def make_round_trips(mask: np.ndarray, target_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring a mask, bool (H, W), into the square and back to its own size, as if a network made its target.

    Returns:
        Two masks, bool (H, W): thresholded late, at their own size; and early, cut to 0 and 1 in the square.
    """
    letterbox = make_letterbox(mask.shape, target_size)
    target = np.zeros((target_size, target_size), np.float32)
    target[letterbox.inside] = average_area(mask, letterbox.resized_size)
    cut = (target > 0.5).astype(np.float32)
    return letterbox.undo(target) > 0.5, letterbox.undo(cut) > 0.5


def find_difference(one: np.ndarray, other: np.ndarray, side: int) -> tuple[slice, slice]:
    """Rows and columns of a square, `side` wide, in which two masks, bool (H, W), differ most.

    It is cut where it would leave the masks; equal masks give their first corner.
    """
    density = (one != other).astype(np.float32)
    for _ in range(2):  # once would be as high anywhere near
        density = uniform_filter(density, max(1, side // 2), mode="constant")
    center = np.unravel_index(density.argmax(), density.shape)
    starts = [
        min(max(0, place - side // 2), max(0, length - side)) for place, length in zip(center, one.shape)
    ]
    return tuple(slice(start, start + side) for start in starts)
