"""Probability squares, the masks they make at the images' own size, and validation predictions kept for later decisions."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ctseg.data import Case, SegmentationDataset, Squares, map_threads, read_mask
from ctseg.files import atomic_path, lock_folder
from ctseg.metrics import dice_score
from ctseg.model import predict_squares
from ctseg.postprocess import PostProcess, make_mask, make_probability, postprocess_mask
from ctseg.transforms import Frame, make_frame


def predict_cases(
    models: Sequence[nn.Module], dataset: SegmentationDataset, *, tta: str = "none", batch_size: int = 8
) -> Iterator[tuple[Case, np.ndarray, Frame]]:
    """Yield (case, probability square float32 (S, S) in [0, 1], its frame), the mean over `models` and over the views of `tta`.

    Holds one batch at a time, however many images there are.
    """
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        squares, _, frames = zip(*map_threads(dataset.__getitem__, indices))
        batch = torch.stack(squares)
        mean = torch.stack([predict_squares(model, batch, tta=tta) for model in models]).mean(dim=0).numpy()
        yield from zip((dataset.cases[index] for index in indices), mean, frames)


def predict_masks(
    models: Sequence[nn.Module], dataset: SegmentationDataset, chosen: PostProcess, *, tta: str = "none"
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, mask), bool (H, W) at the image's own size."""
    for case, square, frame in predict_cases(models, dataset, tta=tta):
        yield case.image_id, make_mask(square, frame, chosen)


def write_masks(predictions: Iterable[tuple[str, np.ndarray]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Write each mask as `folder/<image_id>.png`, 0 and 255, and pass it on."""
    with lock_folder(folder):
        for image_id, mask in predictions:
            with atomic_path(folder / f"{image_id}.png") as partial:
                Image.fromarray(mask).convert("L").save(partial)
            yield image_id, mask


def score_masks(folder: Path, truths: Path) -> dict[str, float]:
    """Dice of every `<image_id>.png` of `folder` with its namesake in `truths`, {image_id: Dice}."""
    return {path.stem: dice_score(read_mask(path), read_mask(truths / path.name)) for path in sorted(folder.glob("[!.]*.png"))}


def write_oof(path: Path, model: nn.Module, validation: Squares, *, tta: str = "none") -> None:
    """Keep out-of-fold predictions: image_ids (N,), sizes (N, 2) as (H, W), and probabilities as uint8 squares (N, S, S) of 0 … 255."""
    probabilities = predict_squares(model, validation.images, tta=tta).numpy()
    with atomic_path(path) as partial:
        np.savez_compressed(
            partial,
            image_ids=[case.image_id for case in validation.cases],
            sizes=[frame.original_size for frame in validation.frames],
            probabilities=np.round(probabilities * 255).astype(np.uint8),
        )


def read_oof(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_oof` kept, by name."""
    with np.load(path) as kept:
        return dict(kept)


class OutOfFold:
    """Predictions on images that their network was not trained on, and what a way to make masks of them scores.

    Args:
        paths: files that `write_oof` left, one a fold.
        cases: the training cases, among them those of the files.

    Attributes:
        cases, frames: of the N predictions.
        squares: uint8 (N, S, S), 255 times the probability.
        parts: the number of the file that each comes from (N,); with a single file, of one of five parts of it.
    """

    def __init__(self, paths: Sequence[Path], cases: Sequence[Case]):
        by_id = {case.image_id: case for case in cases}
        files = [read_oof(path) for path in paths]
        self.squares = np.concatenate([file["probabilities"] for file in files])
        self.cases = [by_id[str(image_id)] for file in files for image_id in file["image_ids"]]
        self.frames = [make_frame((int(h), int(w)), self.squares.shape[-1]) for file in files for h, w in file["sizes"]]
        counts = [len(file["sizes"]) for file in files]
        self.parts = np.arange(counts[0]) % 5 if len(files) == 1 else np.repeat(np.arange(len(files)), counts)
        self.scores: dict[PostProcess, np.ndarray] = {}

    def read(self, index: int) -> tuple[np.ndarray, Frame, np.ndarray]:
        """Return (probability square float32 (S, S) in [0, 1], frame, truth bool (H, W)) of a prediction."""
        return self.squares[index].astype(np.float32) / 255, self.frames[index], read_mask(self.cases[index].mask)

    def score(self, choices: Sequence[PostProcess]) -> dict[PostProcess, np.ndarray]:
        """Return each choice's Dice of every case at its own size, (N,) in [0, 1]; what was asked before is remembered."""
        new = [chosen for chosen in choices if chosen not in self.scores]

        def score_case(index: int) -> list[float]:
            (square, frame, truth), scores = self.read(index), {}
            for smoothing in {chosen.smoothing for chosen in new}:
                probability = make_probability(square, frame, smoothing)  # one at a time: 49 MB for 12 megapixels
                for chosen in new:
                    if chosen.smoothing == smoothing:
                        scores[chosen] = dice_score(postprocess_mask(probability > chosen.threshold, chosen), truth)
            return [scores[chosen] for chosen in new]

        if new:
            self.scores |= dict(zip(new, np.array(list(map_threads(score_case, range(len(self.cases))))).T))
        return {chosen: self.scores[chosen] for chosen in choices}
