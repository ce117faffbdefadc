"""Probabilities, the masks they make at the images' own size, and predictions kept for later decisions."""

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ctseg.contest import TEST_MASKS
from ctseg.data import (
    Case,
    MaskSet,
    SegmentationDataset,
    TrainingSet,
    find_files,
    map_threads,
    pack_mask,
    png_path,
    printable,
    read_mask,
    unpack_mask,
)
from ctseg.device import MEMORY_FORMAT, autocast, choose_precision
from ctseg.files import atomic_path, lock_folder
from ctseg.metrics import dice_score
from ctseg.postprocess import PostProcess, make_mask, make_probability, measure_mask, postprocess_mask
from ctseg.transforms import Letterbox, make_letterbox, shrink_size, to_float

ORIENTATIONS = {  # of test-time augmentation, by name, as (quarter turns, mirrored)
    "none": [(0, False)],
    "flips": [(0, False), (0, True), (2, False), (2, True)],
    "d4": [(rot90, mirrored) for rot90 in range(4) for mirrored in (False, True)],
}


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module, images: Tensor, *, tta: str = "none", batch_size: int = 16
) -> Tensor:
    """Return probabilities float32 (N, S, S) on the CPU for uint8 images (N, 3, S, S).

    The model is put into evaluation mode. `tta` names the orientations whose probabilities are averaged:
    "none", "flips" (4) or "d4" (8: all that flips and quarter turns can make of a square).
    """
    probabilities = []
    for batch in images.split(batch_size):
        each = _predict_orientations(model, batch, tta)
        probabilities.append(sum(probability / len(ORIENTATIONS[tta]) for probability in each).cpu())
    return torch.cat(probabilities)


@torch.inference_mode()
def predict_each(networks: Sequence[nn.Module], images: Tensor) -> np.ndarray:
    """What each network says of each of four orientations, all upright: float32 (networks · 4, N, S, S).

    To see where they disagree; images as in `predict_probabilities`, N small.
    """
    each = [_predict_orientations(network, images, "flips") for network in networks]
    return torch.stack([probability for found in each for probability in found]).cpu().numpy()


def _predict_orientations(model: nn.Module, images: Tensor, tta: str) -> Iterator[Tensor]:
    """Yield the probability (B, S, S), upright, by each orientation of uint8 images (B, 3, S, S)."""
    device = next(model.parameters()).device
    dtype = choose_precision(device)
    model.eval()

    def predict(oriented: Tensor) -> Tensor:
        with autocast(device, dtype):
            return model(oriented.contiguous(memory_format=MEMORY_FORMAT)).float().sigmoid()[:, 0]

    upright = to_float(images.to(device))
    for rot90, mirrored in ORIENTATIONS[tta]:
        oriented = upright.rot90(rot90, (2, 3))
        probability = predict(oriented.flip(3)).flip(2) if mirrored else predict(oriented)
        yield probability.rot90(-rot90, (1, 2))


def predict_training_set(
    model: nn.Module, training_set: TrainingSet, *, tta: str = "none", batch_size: int = 16
) -> Iterator[np.ndarray]:
    """Yield the probability of each case, float32 (S, S), holding one batch at a time."""
    for rows in training_set.rows.split(batch_size):
        yield from predict_probabilities(model, training_set.pixels[rows, :3], tta=tta).numpy()


@dataclass(frozen=True)
class Predictor:
    """Networks that see a data set's images in the same way: those of a run."""

    networks: Sequence[nn.Module]
    dataset: SegmentationDataset
    tta: str = "none"

    def predict(self, indices: Iterable[int]) -> tuple[np.ndarray, Sequence[Letterbox]]:
        """Each network's probability, the mean over orientations, and the letterboxes.

        They are float32 (B, networks, S, S).
        """
        images, _, letterboxes = zip(*map_threads(self.dataset.__getitem__, indices))
        batch = torch.stack(images)
        each = [predict_probabilities(network, batch, tta=self.tta) for network in self.networks]
        return torch.stack(each, dim=1).numpy(), letterboxes


class Prediction(NamedTuple):
    """What networks say of an image.

    Attributes:
        case, letterbox: the image, and where it lies in its square.
        probability: float32 (S, S), the mean over runs, their networks and orientations.
        agreement: how much the networks agree, see `measure_agreement`.
    """

    case: Case
    probability: np.ndarray
    letterbox: Letterbox
    agreement: float


def predict_cases(predictors: Sequence[Predictor], *, batch_size: int = 8) -> Iterator[Prediction]:
    """Yield the prediction of each case by predictors of the same cases, in the largest one's square.

    Holds one batch at a time, however many images there are.
    """
    cases = predictors[0].dataset.cases
    for start in range(0, len(cases), batch_size):
        indices = range(start, min(start + batch_size, len(cases)))
        by_run = zip(*[predictor.predict(indices) for predictor in predictors])
        by_image = (zip(*each) for each in by_run)
        for index, maps, letterboxes in zip(indices, *by_image):
            largest = max(letterboxes, key=lambda letterbox: letterbox.target_size)
            probability = _average([each.mean(axis=0) for each in maps], letterboxes, largest)
            in_squares = [largest.transfer(probability, letterbox) for letterbox in letterboxes]
            yield Prediction(cases[index], probability, largest, measure_agreement(maps, in_squares))


def _average(maps: Sequence[np.ndarray], letterboxes: Sequence[Letterbox], largest: Letterbox) -> np.ndarray:
    """The mean of maps of one image, float32 (S, S) each in its own square, in one of the squares."""
    moved = [letterbox.transfer(each, largest) for each, letterbox in zip(maps, letterboxes)]
    return np.mean(moved, axis=0)


def measure_agreement(maps: Sequence[np.ndarray], means: Sequence[np.ndarray]) -> float:
    """How much networks agree on an image, in [0, 1]: the mean Dice of each one's mask with that of the mean.

    Masks are cut at one half; where none finds anything, they agree. Without a true mask it tells which
    predictions to doubt (Roy et al., Bayesian QuickNAT, 2019). A single network is asked whether it is sure:
    it is the Dice of its masks cut at 0.3 and at 0.7.

    Args:
        maps: of each run its networks' probabilities (networks, S, S).
        means: the mean over all of them in each run's square (S, S).
    """
    pairs = [(each, mean) for found, mean in zip(maps, means) for each in found]
    if len(pairs) == 1:
        return dice_score(means[0] > 0.3, means[0] > 0.7)
    return float(np.mean([dice_score(each > 0.5, mean > 0.5) for each, mean in pairs]))


def measure_spread(predictors: Sequence[Predictor], index: int) -> np.ndarray:
    """Where predictions of an image disagree: float32 (H, W) at its own size, in [0, 0.5].

    The standard deviation of the probability over all networks and four orientations.
    """
    items = [predictor.dataset[index] for predictor in predictors]
    largest = max((letterbox for _, _, letterbox in items), key=lambda letterbox: letterbox.target_size)
    moved = []
    for predictor, (image, _, letterbox) in zip(predictors, items):
        maps = predict_each(predictor.networks, image[None])[:, 0]
        moved += [letterbox.transfer(probability, largest) for probability in maps]
    return largest.undo(np.std(moved, axis=0))


def predict_masks(
    predictors: Sequence[Predictor], chosen: PostProcess
) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield (image_id, mask, agreement): bool (H, W) at the image's own size, and see `measure_agreement`."""
    for case, probability, letterbox, agreement in predict_cases(predictors):
        yield case.image_id, make_mask(probability, letterbox, chosen), agreement


def write_masks(predictions: Iterable[tuple[str, np.ndarray, float]], folder: Path) -> dict[str, dict]:
    """Write each mask, bool (H, W), as `folder/<image_id>.png` of 0 and 255, one at a time.

    Once all are written, other masks in the folder, of an earlier prediction, are removed.

    Args:
        predictions: as `predict_masks` yields them.

    Returns:
        What `measure_mask` finds in each mask, and its `agreement`, by the image's id.

    Raises:
        ValueError: an image_id is repeated.
    """
    found: dict[str, dict] = {}
    with lock_folder(folder):
        for image_id, mask, agreement in predictions:
            if image_id in found:
                raise ValueError(f"prediction for {image_id!r}, which is repeated; expected each image once")
            with atomic_path(png_path(folder, image_id)) as partial:
                Image.fromarray(mask).convert("L").save(partial)
            found[image_id] = measure_mask(mask) | {"agreement": agreement}
        for path in list(folder.glob("*.png")):
            if printable(path.stem) not in found:
                path.unlink()
    return found


def read_masks(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, mask), bool (H, W), of all masks that `write_masks` wrote."""
    for path in sorted(folder.glob("[!.]*.png")):
        yield printable(path.stem), read_mask(path)


def find_true_masks(data_root: Path, cases: Sequence[Case]) -> Path | None:
    """The folder of true masks next to a data root; None unless it has all of these cases."""
    folder = data_root.parent / TEST_MASKS
    return folder if all(png_path(folder, case.image_id).is_file() for case in cases) else None


def score_masks(folder: Path, true_masks: Path) -> dict[str, float]:
    """Dice of every `<image_id>.png` of `folder` with its namesake in `true_masks`, {image_id: Dice}."""
    true_paths = {stem: paths[0] for stem, paths in find_files(true_masks).items()}
    true_set = MaskSet(list(true_paths.values()))
    return {
        image_id: dice_score(
            mask, read_mask(true_paths.get(image_id, png_path(true_masks, image_id)), true_set)
        )
        for image_id, mask in read_masks(folder)
    }


def write_oof(
    path: Path,
    model: nn.Module,
    validation: TrainingSet,
    *,
    tta: str = "none",
    threshold: float = 0.5,
    on_case: Callable[[], object] = lambda: None,
) -> None:
    """Keep out-of-fold predictions of N cases; `on_case` is called after each.

    image_ids (N,), sizes (N, 2) as (H, W), probabilities uint8 (N, S, S), 255 times the probability, and
    scores (N,), each image's Dice at its own size by the plain threshold.
    """
    plain = PostProcess(threshold=threshold)

    def score(predicted: tuple[int, np.ndarray]) -> tuple[np.ndarray, float]:
        index, probability = predicted
        kept = np.round(probability * 255).astype(np.uint8)
        pred_mask = make_mask(kept.astype(np.float32) / 255, validation.letterboxes[index], plain)
        on_case()
        return kept, dice_score(pred_mask, validation.get_mask(index))

    predicted = enumerate(predict_training_set(model, validation, tta=tta))
    probabilities, scores = zip(*map_threads(score, predicted))
    with atomic_path(path) as partial:
        np.savez_compressed(
            partial,
            image_ids=[case.image_id for case in validation.cases],
            sizes=[letterbox.original_size for letterbox in validation.letterboxes],
            probabilities=probabilities,
            scores=scores,
        )


def read_scores(path: Path) -> dict[str, float]:
    """Each image's Dice by id, as `write_oof` kept it; ValueError if the file is damaged or an old one."""
    with _open_oof(path) as stored:
        return dict(zip(stored["image_ids"].tolist(), stored["scores"].tolist()))


@contextmanager
def _open_oof(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays that `write_oof` kept, by name; ValueError if they cannot be read."""
    try:
        with np.load(path) as stored:
            yield stored
    except (EOFError, KeyError, ValueError, BadZipFile, zlib.error):
        raise ValueError(
            f"cannot read {path}: it is damaged, or of an earlier version; delete it, and run 03 again"
        ) from None


def select_common(members: Sequence["OutOfFold"]) -> list["OutOfFold"]:
    """Of each run's predictions those of the images that all of them have, in the first one's order.

    Raises:
        ValueError: there is no such image.
    """
    places = [{case.image_id: index for index, case in enumerate(member.cases)} for member in members]
    common = [image_id for image_id in places[0] if all(image_id in found for found in places)]
    if not common:
        raise ValueError(
            "the runs have no validation image in common, so that nothing says what their mean is worth; "
            "average runs of the same folds, or of all"
        )
    return [member.select([found[name] for name in common]) for member, found in zip(members, places)]


class OutOfFold:
    """Predictions on images that their network was not trained on, and their scores under a post-processing.

    Args:
        paths: files that `write_oof` wrote, one per fold.
        cases: the training cases, among them those of the files.

    Attributes:
        cases, letterboxes: of the N predictions.
        probabilities: uint8 (N, S, S), 255 times the probability.
        folds: the number of each one's file (N,); with a single file, of one of five groups of its cases.
    """

    def __init__(self, paths: Sequence[Path], cases: Sequence[Case]):
        by_id = {case.image_id: case for case in cases}
        files = []
        for path in paths:
            with _open_oof(path) as stored:
                files.append(dict(stored))
        self.probabilities = np.concatenate([file["probabilities"] for file in files])
        self.cases = [by_id[str(image_id)] for file in files for image_id in file["image_ids"]]
        sizes = [(int(height), int(width)) for file in files for height, width in file["sizes"]]
        self.letterboxes = [make_letterbox(size, self.probabilities.shape[-1]) for size in sizes]
        counts = [len(file["sizes"]) for file in files]
        self.folds = np.arange(counts[0]) % 5 if len(files) == 1 else np.repeat(np.arange(len(files)), counts)
        self._packed_masks: dict[int, bytes] = {}
        self._scores: dict[PostProcess, np.ndarray] = {}

    @staticmethod
    def average(members: Sequence["OutOfFold"]) -> "OutOfFold":
        """The mean of predictions of the same images (see `select_common`), in the largest one's square.

        Folds are those of the first.
        """
        if len(members) == 1:
            return members[0]
        mean = copy.copy(members[0])
        side = max(member.probabilities.shape[-1] for member in members)
        mean.letterboxes = [make_letterbox(each.original_size, side) for each in mean.letterboxes]
        mean._packed_masks, mean._scores = {}, {}
        mean.probabilities = np.empty((len(mean.cases), side, side), np.uint8)
        for index, letterbox in enumerate(mean.letterboxes):
            maps = [member.probabilities[index].astype(np.float32) for member in members]
            squares = [member.letterboxes[index] for member in members]
            mean.probabilities[index] = _average(maps, squares, letterbox).round()
        return mean

    def select(self, indices: Sequence[int]) -> "OutOfFold":
        """The predictions with these indices, in this order."""
        chosen = copy.copy(self)
        chosen.cases = [self.cases[index] for index in indices]
        chosen.letterboxes = [self.letterboxes[index] for index in indices]
        chosen.probabilities, chosen.folds = self.probabilities[indices], self.folds[indices]
        chosen._packed_masks, chosen._scores = {}, {}
        return chosen

    def shrink(self, side: int = 512) -> "OutOfFold":
        """The same predictions on images whose longer side has at most `side` pixels, or twice the square's.

        To choose a post-processing: what many candidates are worth shows there too, in a fraction of the time
        that images of several megapixels take. Smaller images stay as they are.
        """
        side = max(side, 2 * self.probabilities.shape[-1])
        if all(max(letterbox.original_size) <= side for letterbox in self.letterboxes):
            return self
        small = copy.copy(self)
        sizes = [shrink_size(letterbox.original_size, side) for letterbox in self.letterboxes]
        small.letterboxes = [
            replace(letterbox, original_size=size) for letterbox, size in zip(self.letterboxes, sizes)
        ]
        small._packed_masks, small._scores = {}, {}

        def resize(index: int) -> bytes:
            true_mask, (height, width) = Image.fromarray(self.get_mask(index)), sizes[index]
            return pack_mask(np.asarray(true_mask.resize((width, height), Image.Resampling.NEAREST)))

        small._packed_masks = dict(enumerate(map_threads(resize, range(len(self.cases)))))
        return small

    def get_mask(self, index: int) -> np.ndarray:
        """The true mask of a prediction, bool (H, W); its file is read once."""
        if index not in self._packed_masks:
            true_mask = read_mask(self.cases[index].mask, self.cases[index].mask_set)
            self._packed_masks[index] = pack_mask(true_mask)
            return true_mask
        return unpack_mask(self._packed_masks[index], self.letterboxes[index].original_size)

    def read(self, index: int) -> tuple[np.ndarray, Letterbox, np.ndarray]:
        """Return (probability float32 (S, S) in [0, 1], letterbox, true mask bool (H, W)) of a prediction."""
        probability = self.probabilities[index].astype(np.float32) / 255
        return probability, self.letterboxes[index], self.get_mask(index)

    def score(self, candidate: PostProcess) -> np.ndarray:
        """Return a candidate's Dice of every case at its own size, (N,) in [0, 1]."""
        return self.score_each([candidate])[0]

    def score_each(self, candidates: Sequence[PostProcess]) -> np.ndarray:
        """Return C candidates' Dice of every case, (C, N) in [0, 1]; scores already computed are reused."""
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self._scores]
        if new:
            rows = list(map_threads(lambda index: self._score_case(index, new), range(len(self.cases))))
            self._scores |= dict(zip(new, np.array(rows).T))
        return np.array([self._scores[candidate] for candidate in candidates])

    def _score_case(self, index: int, candidates: Sequence[PostProcess]) -> list[float]:
        """Dice of one case under each candidate."""
        (probability, letterbox, true_mask), scores = self.read(index), {}
        for smoothing in {candidate.smoothing for candidate in candidates}:
            # One full-sized map at a time: 49 MB for 12 megapixels.
            full = make_probability(probability, letterbox, smoothing)
            for candidate in candidates:
                if candidate.smoothing == smoothing:
                    pred_mask = postprocess_mask(full > candidate.threshold, candidate)
                    scores[candidate] = dice_score(pred_mask, true_mask)
        return [scores[candidate] for candidate in candidates]
