"""Which cases train and which validate: folds of equal mix that keep near-duplicates together."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ctseg.data import TrainingSet
from ctseg.transforms import average_area

_THUMBNAIL = 24  # pixels
# Measured on 324 dermoscopy and 117 CT images: copies at half size or JPEG quality 30 correlate above .995,
# different images below .987, flipped or rotated ones too.
_DUPLICATE_CORRELATION = 0.992


def split_cases(training_set: TrainingSet, *, n_folds: int, split: str, seed: int, groups=None) -> np.ndarray:
    """Return each case's fold (N,): those of fold k validate, the others train.

    Args:
        n_folds: 1 means a single split: ten folds are made (or as many as there are distinct images), and
            fold 0, about a tenth, validates.
        split: "stratified" by region size with near-duplicates together, or "random", the reference's.

    Raises:
        ValueError: fewer distinct images than folds, or a single one.
    """
    if split == "random":
        areas = np.random.default_rng(seed).random(len(training_set))
        groups = np.arange(len(training_set))
    else:
        areas, groups = training_set.areas, _group_duplicates(training_set)
    if n_folds == 1:
        n_folds = max(2, min(10, len(np.unique(groups))))
    return make_folds(areas, groups, n_folds, seed=seed)


def make_folds(areas: np.ndarray, groups: np.ndarray, n_folds: int, *, seed: int) -> np.ndarray:
    """Assign cases to folds of nearly equal size and mix of region sizes; return each case's fold (N,).

    scikit-learn's StratifiedGroupKFold would want classes; areas are a continuum.

    Args:
        areas: each case's region, as a share of its image (N,); 0 for an empty mask.
        groups: cases with the same number stay together (N,).

    Raises:
        ValueError: fewer groups than folds.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = group.max() + 1
    if n_groups < n_folds:
        raise ValueError(
            f"{n_groups} distinct images cannot be split into {n_folds} folds; lower n_folds or add images"
        )
    rng = np.random.default_rng(seed)
    by_area = np.argsort(np.bincount(group, weights=areas) / np.bincount(group), kind="stable")
    fold_of_group = np.empty(n_groups, int)
    for start in range(0, n_groups, n_folds):  # neighbors in size go to different folds
        neighbors = by_area[start : start + n_folds]
        fold_of_group[neighbors] = rng.permutation(n_folds)[: len(neighbors)]
    return fold_of_group[group]


def _group_duplicates(training_set: TrainingSet) -> np.ndarray:
    """Return a group number for each case (N,): near-duplicates, and their duplicates in turn, share one."""
    thumbnails = [
        make_thumbnail(image.permute(1, 2, 0).numpy()[letterbox.inside])
        for image, letterbox in zip(training_set.images, training_set.letterboxes)
    ]
    pairs = np.array(find_duplicates(thumbnails)).reshape(-1, 2)
    n = len(training_set)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def make_thumbnail(values: np.ndarray) -> np.ndarray:
    """Shrink an image, uint8 (H, W, 3), to float32 (24, 24, 3), or a mask, bool (H, W), to (24, 24)."""
    return average_area(values, (_THUMBNAIL, _THUMBNAIL))


def find_duplicates(thumbnails: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return the index pairs (i < j) of near-duplicates, flipped and rotated ones too.

    Their thumbnails (24, 24, 3) correlate above a limit in one of the eight orientations.
    """
    if not len(thumbnails):
        return []
    upright, alike = np.array([normalize(thumbnail) for thumbnail in thumbnails]), False
    for rot90 in range(4):
        for step in (1, -1):
            oriented = [normalize(np.rot90(thumbnail, rot90)[:, ::step]) for thumbnail in thumbnails]
            alike = alike | (upright @ np.array(oriented).T > _DUPLICATE_CORRELATION)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(alike, k=1))]


def normalize(values: np.ndarray) -> np.ndarray:
    """Any array as a vector of mean 0 and length 1, so that products are correlations; a constant gives 0."""
    vector = values.ravel() - values.mean()
    return vector / max(np.linalg.norm(vector), 1e-6)


def find_groups(image_ids, pattern):
    raise NotImplementedError


def read_groups(path, image_ids):
    raise NotImplementedError
