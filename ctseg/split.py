"""Which cases train and which validate: folds of equal size and mix that keep near-duplicates together."""

import csv
import math
import re
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from ctseg.data import TrainingSet
from ctseg.transforms import average_area

_THUMBNAIL = 24  # pixels
_SKETCH = 6  # pixels; a thumbnail's means over 4 x 4 pixels
# Measured on 324 dermoscopy and 117 CT images: copies at half size or JPEG quality 30 correlate above .995,
# different images below .987, flipped or rotated ones too.
_DUPLICATE_CORRELATION = 0.992
_ROUNDING = 1e-5  # more than float32 products of unit vectors are off by
_BLOCK = 512  # thumbnails; the products of two blocks fit into a processor's cache
_FEW = 4  # images; an image and its near-duplicates, where nobody filmed, are rarely more


def split_cases(
    training_set: TrainingSet,
    *,
    n_folds: int,
    split: str,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Return each case's fold (N,): those of fold k validate, the others train.

    Args:
        n_folds: 1 means a single split: ten folds are made (or as many as there are groups), and the one
            whose size is nearest to a tenth of the images is fold 0, which validates.
        split: "stratified" by region size with near-duplicates together, or "random", the reference's.
        groups: a label for each case (N,); cases with the same one stay together, a case with None is alone.

    Raises:
        ValueError: fewer groups than folds, or a single one.
    """
    units = _number_labels([None] * len(training_set) if groups is None else groups)
    if split == "random":
        areas, together = np.random.default_rng(seed).random(len(training_set)), units
    else:
        areas, together = training_set.areas, _join_duplicates(training_set, units, n_folds)
    if n_folds > 1:
        return make_folds(areas, together, n_folds, seed=seed)
    folds = make_folds(areas, together, _count_tenths(len(np.unique(together))), seed=seed)
    return _validate_a_tenth(folds)


def _number_labels(labels: Sequence[Hashable]) -> np.ndarray:
    """Number labels from 0 in the order in which they appear (N,); each None has a number of its own."""
    distinct = [object() if label is None else label for label in labels]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(distinct))}
    return np.array([numbers[label] for label in distinct])


def _count_tenths(n_groups: int) -> int:
    """The number of folds to make where one of them is to hold a tenth of the images."""
    return max(2, min(10, n_groups))


def _validate_a_tenth(folds: np.ndarray) -> np.ndarray:
    """Make the fold nearest to a tenth of the images fold 0, unless fold 0 is as near but for an image."""
    sizes = np.bincount(folds)
    distances = np.abs(sizes - len(folds) / 10)
    numbers, nearest = np.arange(len(sizes)), np.argmax(distances < distances.min() + 1)
    numbers[[0, nearest]] = nearest, 0
    return numbers[folds]


def make_folds(areas: np.ndarray, groups: np.ndarray, n_folds: int, *, seed: int) -> np.ndarray:
    """Assign cases to folds of nearly equal size and mix of region sizes; return each case's fold (N,).

    Large groups, such as a patient's images, are dealt first, by size. The others are dealt in the order of
    their mean areas, so that neighbors in area go to different folds; a fold with large groups gets fewer.
    scikit-learn's StratifiedGroupKFold would want classes; areas are a continuum.

    Args:
        areas: each case's region, as a share of its image (N,); 0 for an empty mask.
        groups: cases with the same number stay together (N,).

    Raises:
        ValueError: fewer groups than folds.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < n_folds:
        remedy = "lower n_folds, or add" if len(sizes) > 1 else "add"
        raise ValueError(
            f"{len(sizes)} distinct images or groups cannot be split into {n_folds} folds; {remedy} images, "
            "or choose smaller groups with -p group"
        )
    rng = np.random.default_rng(seed)
    by_area = np.argsort(np.bincount(group, weights=areas) / sizes, kind="stable")
    is_large = sizes[by_area] > max(len(group) / n_folds / 4, _FEW)
    large, others = by_area[is_large], by_area[~is_large]
    large = large[np.argsort(-sizes[large], kind="stable")]
    fold_of_group = np.empty(len(sizes), int)
    fold_of_group[large] = _deal_by_size(sizes[large], n_folds, rng)
    n_images = np.bincount(fold_of_group[large], weights=sizes[large], minlength=n_folds)
    # Pairs and triples of near-duplicates do not make folds unequal; a patient's images do.
    weights = sizes[others] if sizes.max() > _FEW else np.ones_like(others)
    shares = _share_out(weights.sum(), n_images)
    fold_of_group[others] = _deal_by_shares(weights, shares, rng)
    return fold_of_group[group]


def _deal_by_size(sizes: np.ndarray, n_folds: int, rng: np.random.Generator) -> list[int]:
    """Give each group in turn, of as many images as `sizes` says (n,), to the fold with the fewest (n,)."""
    n_images, folds = np.zeros(n_folds, int), []
    for size in sizes:
        order = rng.permutation(n_folds)  # decides between equals
        folds.append(order[np.argmin(n_images[order])])
        n_images[folds[-1]] += size
    return folds


def _deal_by_shares(weights: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Give each group in turn to the fold that lacks most of its share (K,) of the weight so far (n,).

    Equal weights and shares make rounds: each fold gets one group in each, in random order.
    """
    n_folds, dealt, folds = len(shares), np.zeros(len(shares)), []
    for number, (weight, total) in enumerate(zip(weights, np.cumsum(weights))):
        if number % n_folds == 0:
            order = rng.permutation(n_folds)  # decides between equals
        lacks = shares * total - dealt
        folds.append(order[np.argmax(lacks[order])])
        dealt[folds[-1]] += weight
    return folds


def _share_out(amount: int, levels: np.ndarray) -> np.ndarray:
    """The shares of an amount (K,), their sum 1, that raise the lowest of levels (K,) to a common one."""
    # The common level of the k lowest falls with k as long as they are below it.
    common = ((np.cumsum(np.sort(levels)) + amount) / np.arange(1, len(levels) + 1)).min()
    return np.maximum(common - levels, 0) / max(amount, 1)


def _join_duplicates(training_set: TrainingSet, units: np.ndarray, n_folds: int) -> np.ndarray:
    """Return a group number for each case (N,): units with near-duplicates, and theirs in turn, share one.

    Frames of a video are near-duplicates in turn, from its first to its last. Where units that are joined are
    more than a fold, they are cut into pieces of neighbors, and a line says so.

    Args:
        units: numbers from 0 (N,); cases with the same one are never separated.
    """
    graph, sizes = _link_duplicates(training_set, units), np.bincount(units)
    joined = connected_components(graph, directed=False)[1]
    if n_folds == 1:
        n_folds = _count_tenths(len(sizes))
    fold_size, n_cut = max(len(units) / n_folds, _FEW), 0
    is_chain = (np.bincount(joined, weights=sizes) > math.ceil(fold_size)) & (np.bincount(joined) > 1)
    for number in np.flatnonzero(is_chain):
        members = np.flatnonzero(joined == number)
        members = members[reverse_cuthill_mckee(graph[members][:, members])]  # neighbors stay near
        # Cut where folds would be full if all chains were one, so that pieces fill folds of equal size.
        middles = n_cut + np.cumsum(sizes[members]) - sizes[members] / 2
        pieces = (middles // fold_size).astype(int)
        n_images = sizes[members].sum()
        n_cut += n_images
        joined[members] = joined.max() + 1 + pieces
        first = training_set.cases[np.flatnonzero(np.isin(units, members))[0]].image_id
        print(
            f"{n_images} images, {first} among them, are a chain of near-duplicates and more than a fold: "
            f"cut into {len(np.unique(pieces))} pieces; -p group keeps images of one patient or video "
            "together",
            flush=True,
        )
    return joined[units]


def _link_duplicates(training_set: TrainingSet, units: np.ndarray) -> csr_array:
    """A graph (U, U) of the units (N,): those with near-duplicates of each other are linked."""
    thumbnails = [
        make_thumbnail(training_set.get_image(index).permute(1, 2, 0).numpy()[letterbox.inside])
        for index, letterbox in enumerate(training_set.letterboxes)
    ]
    pairs, n_units = units[_find_pairs(thumbnails)], units.max() + 1
    return csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_units, n_units))


def make_thumbnail(values: np.ndarray) -> np.ndarray:
    """Shrink an image, uint8 (H, W, 3), to float32 (24, 24, 3), or a mask, bool (H, W), to (24, 24)."""
    return average_area(values, (_THUMBNAIL, _THUMBNAIL))


def find_duplicates(thumbnails: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return the index pairs (i < j) of near-duplicates, flipped and rotated ones too, in their order.

    Their thumbnails (24, 24, 3) correlate above a limit in one of the eight orientations; a constant one
    correlates with none.
    """
    return list(zip(*_find_pairs(thumbnails).T.tolist()))


def _find_pairs(thumbnails: Sequence[np.ndarray]) -> np.ndarray:
    """Return the pairs of `find_duplicates` as an array (M, 2), with memory for the thumbnails and the pairs.

    For vectors u, v and a projection P, u · v <= Pu · Pv + |u - Pu| |v - Pv|. Sketches hold Pu and |u - Pu|,
    so their products bound the correlations: whole vectors are multiplied only where a bound is high.
    """
    n, vectors = len(thumbnails), np.empty((len(thumbnails), _THUMBNAIL**2 * 3), np.float32)
    for vector, thumbnail in zip(vectors, thumbnails):
        vector[:] = normalize(thumbnail)
    sketches = np.array([_sketch(vector) for vector in vectors])
    turns = np.array([np.append(turn, len(turn)) for turn in _find_turns(_SKETCH)])  # |u - Pu| stays last
    found = [np.empty(0, int)]
    for i in range(0, n, _BLOCK):
        turned = sketches[i : i + _BLOCK, turns].reshape(-1, sketches.shape[1])  # (B * 8, 109)
        for j in range(i, n, _BLOCK):
            is_close = turned @ sketches[j : j + _BLOCK].T > _DUPLICATE_CORRELATION - _ROUNDING  # (B * 8, B)
            if is_close.any():
                is_pair = _correlate(vectors[i : i + _BLOCK], vectors[j : j + _BLOCK], is_close)
                first, second = np.nonzero(np.triu(is_pair, i - j + 1))  # i + first < j + second
                found.append((i + first) * n + j + second)
    return np.stack(np.divmod(np.sort(np.concatenate(found)), max(n, 1)), axis=1)


def _correlate(upper: np.ndarray, lower: np.ndarray, is_close: np.ndarray) -> np.ndarray:
    """Whether two thumbnails' vectors (B, 1728), (C, 1728) are near-duplicates, bool (B, C).

    Args:
        is_close: whether they may be (B * 8, C), for each of the eight orientations of the first.
    """
    is_pair = np.zeros((len(upper), len(lower)), bool)
    for k, turn in enumerate(_find_turns(_THUMBNAIL)):
        rows, columns = is_close[k::8].any(axis=1), is_close[k::8].any(axis=0)
        products = upper[np.ix_(rows, turn)] @ lower[columns].T
        is_pair[np.ix_(rows, columns)] |= products > _DUPLICATE_CORRELATION
    return is_pair


def _sketch(vector: np.ndarray) -> np.ndarray:
    """Project a thumbnail's vector (1728,) on means over 4 x 4 pixels; append the rest's length (109,)."""
    step = _THUMBNAIL // _SKETCH
    blocks = vector.reshape(_SKETCH, step, _SKETCH, step, 3)
    means = blocks.mean(axis=(1, 3), keepdims=True)
    return np.append(step * means, np.linalg.norm(blocks - means))


def _find_turns(side: int) -> list[np.ndarray]:
    """The eight orders of the values of an image (side, side, 3), flattened, that flip and rotate it."""
    values, turns = np.arange(side * side * 3).reshape(side, side, 3), []
    for rot90 in range(4):
        for step in (1, -1):
            turns.append(np.rot90(values, rot90)[:, ::step].ravel())
    return turns


def normalize(values: np.ndarray) -> np.ndarray:
    """Any array as a vector of mean 0 and length 1, so that products are correlations; a constant gives 0."""
    vector = values.ravel() - values.mean()
    length = np.linalg.norm(vector)
    if length <= 1e-6 * np.linalg.norm(values):  # a constant, and the rounding of its mean
        return np.zeros_like(vector)
    return vector / length


def find_groups(image_ids: Sequence[str], pattern: str) -> list[str | None]:
    r"""Find each id's group: what the first capture group of a regular expression that is there matches.

    Without capture groups it is the whole match; None where nothing is found.

    >>> find_groups(["v0_001", "v0_002", "v1_001", "x"], r"^(v\d+)_")
    ['v0', 'v0', 'v1', None]

    Raises:
        ValueError: the pattern is not a regular expression, or finds no group, or only one that has all ids.
    """
    try:
        matches = [re.search(pattern, image_id) for image_id in image_ids]
    except re.error as error:
        raise ValueError(
            f"parameter group: {pattern!r} is not a regular expression: {error}; expected one such as "
            r"'^(\w+)_', which finds what the ids of one patient or video share, or a CSV file"
        ) from None
    labels = [match and next(filter(None, match.groups() or [match[0]]), None) for match in matches]
    if len(set(labels)) == 1:
        what = f"all in one group, {labels[0]!r}" if labels[0] else "nothing"
        raise ValueError(
            f"parameter group: {pattern!r} finds {what} in {len(labels)} ids such as {image_ids[0]}; "
            r"expected a regular expression that finds two groups or more, such as '^(\w+)_'"
        )
    return labels


def read_groups(path: Path, image_ids: Sequence[str]) -> list[str | None]:
    """Read each id's group from a CSV file; None for an id that is not in it, or has no group there.

    The first column holds ids, with or without a file extension. The column `group` holds the groups, or the
    second one where none is called so.

    Raises:
        ValueError: there is no second column, none of the ids, or an id in two groups.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except csv.Error as error:
        raise ValueError(f"parameter group: cannot read {path}: {error}; expected a CSV file") from None
    if not rows or len(rows[0]) < 2:
        got = ",".join(rows[0]) if rows else "nothing"
        raise ValueError(
            f"parameter group: {path} begins with {got!r}; expected two columns, ids and groups, with commas "
            "between them"
        )
    names = [name.lower() for name in rows[0][1:]]
    column, known, label_of = names.index("group") + 1 if "group" in names else 1, set(image_ids), {}
    for row in rows:  # the first one as well: it may have an id in place of a name
        image_id = row[0] if row[0] in known else Path(row[0]).stem
        label = row[column] if len(row) > column and row[column] else None
        if image_id in known and label_of.setdefault(image_id, label) != label:
            raise ValueError(
                f"parameter group: {path} has {image_id} in the groups {label_of[image_id]!r} and {label!r}; "
                "expected one"
            )
    if not label_of:
        raise ValueError(
            f"parameter group: {path} has none of the {len(known)} ids such as {image_ids[0]} in its first "
            f"column, which begins with {rows[0][0]!r}; expected ids, with or without a file extension"
        )
    return [label_of.get(image_id) for image_id in image_ids]
