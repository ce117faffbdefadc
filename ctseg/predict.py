"""Probability maps at the images' own size, and validation predictions kept for later decisions."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ctseg.data import Case, SegmentationDataset, Squares, map_threads
from ctseg.files import atomic_path
from ctseg.model import predict_squares
from ctseg.postprocess import postprocess_mask
from ctseg.transforms import make_frame


def predict_cases(models: Sequence[nn.Module], dataset: SegmentationDataset, *, batch_size: int = 8) -> Iterator[tuple[Case, np.ndarray]]:
    """Yield (case, probability) with probability float32 (H, W) in [0, 1] at the image's own size, the mean over `models`.

    Holds one batch of squares and one native map at a time, however many images there are.
    """
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        squares, _, frames = zip(*map_threads(dataset.__getitem__, indices))
        batch = torch.stack(squares)
        mean = torch.stack([predict_squares(model, batch) for model in models]).mean(dim=0).numpy()
        for index, frame, probability in zip(indices, frames, mean):
            yield dataset.cases[index], frame.undo(probability)


def predict_masks(
    models: Sequence[nn.Module], dataset: SegmentationDataset, *, threshold: float = 0.5, steps: Iterable[str] = ()
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, mask), bool (H, W) at the image's own size: the way back first, then the threshold, then post-processing."""
    for case, probability in predict_cases(models, dataset):
        yield case.image_id, postprocess_mask(probability > threshold, steps)


def write_masks(predictions: Iterable[tuple[str, np.ndarray]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Write each mask as `folder/<image_id>.png`, 0 and 255, and pass it on."""
    for image_id, mask in predictions:
        with atomic_path(folder / f"{image_id}.png") as partial:
            Image.fromarray(mask).convert("L").save(partial)
        yield image_id, mask


def write_oof(path: Path, model: nn.Module, validation: Squares) -> None:
    """Keep out-of-fold predictions: image_ids (N,), sizes (N, 2) as (H, W), and probabilities as uint8 squares (N, S, S) of 0 … 255."""
    probabilities = predict_squares(model, validation.images).numpy()
    with atomic_path(path) as partial:
        np.savez_compressed(
            partial,
            image_ids=[case.image_id for case in validation.cases],
            sizes=[frame.original_size for frame in validation.frames],
            probabilities=np.round(probabilities * 255).astype(np.uint8),
        )


def read_oof(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image_id, probability) of what `write_oof` kept, probability float32 (H, W) in [0, 1] at the image's own size."""
    with np.load(path) as kept:
        image_ids, sizes, probabilities = kept["image_ids"], kept["sizes"], kept["probabilities"]
    for image_id, size, square in zip(image_ids, sizes, probabilities):
        frame = make_frame((int(size[0]), int(size[1])), square.shape[0])
        yield str(image_id), frame.undo(square.astype(np.float32) / 255)
