"""From an image of any size to the square that the network sees, and back: geometry that undoes itself."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from skimage.measure import block_reduce
from skimage.transform import resize_local_mean
from torch import Tensor


@dataclass(frozen=True)
class Letterbox:
    """Where a resized image lies in its square; `undo` inverts `ResizeAndPad`.

    Sizes are (H, W) in pixels, the offset is (top, left).
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    offset: tuple[int, int]
    target_size: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the square that hold the image; the rest is padding."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.resized_size))

    def undo(self, probability: np.ndarray) -> np.ndarray:
        """Bring a network-sized map back to the image's own size.

        Args:
            probability: float32 (S, S) in [0, 1], S = target_size.

        Returns:
            float32 (H, W) in [0, 1], read-only, (H, W) = original_size: bilinear when the image is larger
            than the square, averaged when smaller.

        Raises:
            ValueError: probability is not (S, S).
        """
        expected = (self.target_size, self.target_size)
        if probability.shape != expected:
            raise ValueError(
                f"a map of {probability.shape} does not fit this letterbox, expected {expected}; undo with "
                "the one that was made for the same image"
            )
        image = Image.fromarray(np.ascontiguousarray(probability[self.inside], dtype=np.float32))
        return np.asarray(image.resize(self.original_size[::-1], Image.Resampling.BILINEAR))

    def transfer(self, probability: np.ndarray, other: "Letterbox") -> np.ndarray:
        """Bring a map, float32 (S, S), into the square of another letterbox of the image; padding is 0."""
        if self == other:
            return probability
        moved = np.zeros((other.target_size, other.target_size), np.float32)
        moved[other.inside] = replace(self, original_size=other.resized_size).undo(probability)
        return moved


def shrink_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) of an image whose longer side has at most `side` pixels, at least one pixel wide.

    >>> shrink_size((3000, 4000), 512), shrink_size((30, 40), 512)
    ((384, 512), (30, 40))
    """
    scale = min(1.0, side / max(size))
    height, width = (max(1, round(scale * pixels)) for pixels in size)
    return height, width


def find_stride(array: np.ndarray) -> int:
    """The n of `thin_out`: 512 to 1,023 pixels remain of the longer side of an array, (H, W, …)."""
    return max(1, max(array.shape[:2]) // 512)


def thin_out(array: np.ndarray) -> np.ndarray:
    """Keep every n-th row and column of an image (H, W, 3) or map (H, W), to draw or measure it faster.

    Of a mask, bool (H, W), a pixel says whether there is foreground in n x n pixels: no region is lost, and
    what is connected stays connected.
    """
    stride = find_stride(array)
    if array.dtype == bool and stride > 1:
        return block_reduce(array, stride, np.max)
    return np.ascontiguousarray(array[::stride, ::stride])


def make_letterbox(original_size: tuple[int, int], target_size: int) -> Letterbox:
    """Fit (H, W) into a square: the longer side fills it, the shorter is centered, at least one pixel wide.

    >>> make_letterbox((30, 40), 16)
    Letterbox(original_size=(30, 40), resized_size=(12, 16), offset=(2, 0), target_size=16)
    """
    scale = target_size / max(original_size)
    resized_size = tuple(max(1, round(side * scale)) for side in original_size)
    offset = tuple((target_size - side) // 2 for side in resized_size)
    return Letterbox(tuple(original_size), resized_size, offset, target_size)


@dataclass(frozen=True)
class ResizeAndPad:
    """Resize the longer side to `target_size`, zero-pad the other; the letterbox undoes it."""

    target_size: int

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, original_size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, Letterbox]:
        """Return (square image, target, letterbox).

        Args:
            image: uint8 (H, W, 3).
            mask: bool (H, W), or None where it is unknown.
            original_size: the file's own (H, W), if `image` was already decoded smaller than that.

        Returns:
            image uint8 (S, S, 3), antialiased; target uint8 (S, S), 255 times the share of each pixel that
            the mask covers (an area average: a threshold here would cost up to .02 Dice at full size), or
            None; the letterbox.

        >>> mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
        >>> _, target, _ = ResizeAndPad(2)(np.zeros((2, 4, 3), np.uint8), mask)
        >>> target  # two of four pixels, one of four; the second row is padding
        array([[128,  64],
               [  0,   0]], dtype=uint8)
        """
        letterbox = make_letterbox(original_size or image.shape[:2], self.target_size)
        square = np.zeros((self.target_size, self.target_size, 3), np.uint8)
        resized = Image.fromarray(image).resize(letterbox.resized_size[::-1], Image.Resampling.BILINEAR)
        square[letterbox.inside] = np.asarray(resized)  # Pillow's resize is antialiased
        if mask is None:
            return square, None, letterbox
        target = np.zeros((self.target_size, self.target_size), np.uint8)
        target[letterbox.inside] = np.round(255 * average_area(mask, letterbox.resized_size))
        return square, target, letterbox


def average_area(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to float32 of `size` (H, W): the exact mean over each new pixel's area."""
    channel_axis = 2 if values.ndim == 3 else None
    return resize_local_mean(values.astype(np.float32), size, preserve_range=True, channel_axis=channel_axis)


def weight_channels_by_contrast(image: np.ndarray) -> np.ndarray:
    """Scale each color channel about its mean so that channels with more contrast count for more.

    uint8 (H, W, 3) to the same. A channel's weight is its standard deviation over the mean standard deviation
    of the three, so the weights average to 1; a gray or constant image is returned unchanged.
    """
    pixels = image.reshape(-1, 3).astype(np.float32)
    contrast = pixels.std(axis=0)
    if contrast.max() == contrast.min():
        return image
    mean = pixels.mean(axis=0)
    weighted = mean + (pixels - mean) * contrast / contrast.mean()
    return np.clip(weighted + 0.5, 0, 255).astype(np.uint8).reshape(image.shape)


@dataclass(frozen=True)
class EvalTransform:
    """Prepare an image for the network, the same in training and prediction, without randomness."""

    target_size: int
    weight_channels_by_contrast: bool = False

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, original_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None, Letterbox]:
        """As `ResizeAndPad`, but the image is a uint8 tensor (3, S, S), the target (1, S, S) or None."""
        if self.weight_channels_by_contrast:
            image = weight_channels_by_contrast(image)
        square, target, letterbox = ResizeAndPad(self.target_size)(image, mask, original_size)
        tensor = torch.from_numpy(square).permute(2, 0, 1).contiguous()
        return tensor, None if target is None else torch.from_numpy(target)[None], letterbox


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in [0, 1]."""
    return images.float() / 255
