"""Which cases train and which validate: folds with the same mix of region sizes that keep near-duplicates together."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ctseg.check import find_duplicates, make_thumbnail
from ctseg.data import Squares


def group_duplicates(squares: Squares) -> np.ndarray:
    """Return a group number for each case (N,): near-duplicates, and what they are duplicates of, share one."""
    thumbnails = [make_thumbnail(image.permute(1, 2, 0).numpy()[frame.window]) for image, frame in zip(squares.images, squares.frames)]
    pairs = np.array(find_duplicates(thumbnails)).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(squares), len(squares)))
    return connected_components(graph, directed=False)[1]


def make_folds(areas: np.ndarray, groups: np.ndarray, n_folds: int, *, seed: int) -> np.ndarray:
    """Deal cases into folds of nearly the same size and mix of region sizes; return each case's fold (N,) in 0 … n_folds - 1.

    Args:
        areas: each case's region, as a share of its image (N,); 0 for an empty mask.
        groups: cases with the same number stay together (N,).

    Raises:
        ValueError: fewer groups than folds.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = group.max() + 1
    if n_groups < n_folds:
        raise ValueError(f"{n_groups} distinct images cannot be dealt into {n_folds} folds; lower n_folds or add images")
    rng = np.random.default_rng(seed)
    by_area = np.argsort(np.bincount(group, weights=areas) / np.bincount(group), kind="stable")
    fold_of_group = np.empty(n_groups, int)
    for start in range(0, n_groups, n_folds):  # neighbours in size go to different folds
        dealt = by_area[start : start + n_folds]
        fold_of_group[dealt] = rng.permutation(n_folds)[: len(dealt)]
    return fold_of_group[group]


def split_cases(squares: Squares, *, n_folds: int, split: str, seed: int) -> np.ndarray:
    """Return each case's fold (N,): those of fold k validate, the others train.

    Args:
        n_folds: 1 deals ten, or as many as there are distinct images, of which fold 0 is meant: about a tenth for validation.
        split: "stratified" by region size with near-duplicates together, or "random", the reference's.

    Raises:
        ValueError: fewer distinct images than folds, or a single one.
    """
    if split == "random":
        areas, groups = np.random.default_rng(seed).random(len(squares)), np.arange(len(squares))
    else:
        areas, groups = squares.areas, group_duplicates(squares)
    dealt = n_folds if n_folds > 1 else max(2, min(10, len(np.unique(groups))))
    return make_folds(areas, groups, dealt, seed=seed)
