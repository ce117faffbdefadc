"""From an image of any size to the square the network sees, and back; and augmentation of whole batches.

`EvalTransform` is what every case goes through, once. `TrainTransform` is what training batches go through on top, on the training device.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.transform import resize_local_mean
from torch import Tensor

from ctseg.metrics import dice_score


@dataclass(frozen=True)
class Frame:
    """Where a resized image lies in its square: all that is needed to undo `ResizeAndPad`. Sizes are (H, W) in pixels."""

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    offset: tuple[int, int]
    target_size: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that hold the image; the rest is padding."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.resized_size))

    def undo(self, probability: np.ndarray) -> np.ndarray:
        """Bring a network-sized map back to the image's own size.

        Args:
            probability: float32 (S, S) in [0, 1], S = target_size.

        Returns:
            float32 (H, W) in [0, 1], (H, W) = original_size: bilinear when the image is larger than the square, averaged when smaller.

        Raises:
            ValueError: probability is not (S, S).
        """
        expected = (self.target_size, self.target_size)
        if probability.shape != expected:
            raise ValueError(
                f"a map of {probability.shape} is not of this frame, expected {expected}; undo with the frame made for the same image"
            )
        inside = Image.fromarray(np.ascontiguousarray(probability[self.window], dtype=np.float32))
        return np.clip(inside.resize(self.original_size[::-1], Image.Resampling.BILINEAR), 0, 1)


def make_frame(original_size: tuple[int, int], target_size: int) -> Frame:
    """Fit (H, W) into a square of `target_size`: the longer side fills it, the shorter is centred. No side shrinks below a pixel."""
    scale = target_size / max(original_size)
    resized_size = tuple(max(1, round(side * scale)) for side in original_size)
    offset = tuple((target_size - side) // 2 for side in resized_size)
    return Frame(tuple(original_size), resized_size, offset, target_size)


@dataclass(frozen=True)
class ResizeAndPad:
    """Resize the longer side to `target_size`, zero-pad the other; the frame that is returned undoes it."""

    target_size: int

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, original_size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, Frame]:
        """Return (square, target, frame).

        Args:
            image: uint8 (H, W, 3).
            mask: bool (H, W), or None where there is no truth.
            original_size: the file's own (H, W), if `image` was already decoded smaller than that.

        Returns:
            square uint8 (S, S, 3), antialiased; target uint8 (S, S), 255 times the share of each square pixel that the mask covers (an
            area average: a threshold here would cost up to .02 Dice at full size), or None; the frame.
        """
        frame = make_frame(original_size or image.shape[:2], self.target_size)
        square = np.zeros((self.target_size, self.target_size, 3), np.uint8)
        resized = Image.fromarray(image).resize(frame.resized_size[::-1], Image.Resampling.BILINEAR)  # antialiased by Pillow
        square[frame.window] = np.asarray(resized)
        if mask is None:
            return square, None, frame
        target = np.zeros((self.target_size, self.target_size), np.uint8)
        target[frame.window] = np.round(255 * average_area(mask, frame.resized_size))
        return square, target, frame


def average_area(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to float32 of `size` (H, W): the exact mean over the area that each new pixel covers."""
    channel_axis = 2 if values.ndim == 3 else None
    return resize_local_mean(values.astype(np.float32), size, preserve_range=True, channel_axis=channel_axis)


def round_trip_dice(mask: np.ndarray, target_size: int, *, early: bool = False) -> float:
    """Dice of a mask, bool (H, W), with itself after the way into the square and back: what a perfect network could reach.

    `early` cuts the target to 0 and 1 in the square, as a threshold before the way back would.
    """
    frame = make_frame(mask.shape, target_size)
    target = np.zeros((target_size, target_size), np.float32)
    target[frame.window] = average_area(mask, frame.resized_size)
    return dice_score(frame.undo((target > 0.5).astype(np.float32) if early else target) > 0.5, mask)


def favour_contrast(image: np.ndarray) -> np.ndarray:
    """Scale each colour channel about its mean so that channels with more contrast count for more.

    uint8 (H, W, 3) to the same. A channel's weight is its standard deviation over the mean standard deviation of the three, so the weights
    average to 1; a grey or constant image is returned as it is.
    """
    pixels = image.reshape(-1, 3).astype(np.float32)
    contrast = pixels.std(axis=0)
    if contrast.max() == contrast.min():
        return image
    mean = pixels.mean(axis=0)
    favoured = mean + (pixels - mean) * contrast / contrast.mean()
    return np.clip(favoured + 0.5, 0, 255).astype(np.uint8).reshape(image.shape)


@dataclass(frozen=True)
class EvalTransform:
    """What every image goes through before the network, in training and prediction alike; no randomness."""

    target_size: int
    favour_contrast: bool = False

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None = None, original_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None, Frame]:
        """As `ResizeAndPad`, but square is a uint8 tensor (3, S, S) and target one of (1, S, S) or None."""
        if self.favour_contrast:
            image = favour_contrast(image)
        square, target, frame = ResizeAndPad(self.target_size)(image, mask, original_size)
        square = torch.from_numpy(square).permute(2, 0, 1).contiguous()
        return square, None if target is None else torch.from_numpy(target)[None], frame


def to_float(squares: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in [0, 1]."""
    return squares.float() / 255


@dataclass(frozen=True)
class Augment:
    """Random changes to a whole batch at once, on whatever device it is on. Each image draws its own; ranges are symmetric about no change.

    Args:
        flip: probability of a horizontal flip, and again of a vertical one.
        turn: probability of a quarter turn; with both at ½ all eight orientations are equally likely.
        scale: largest zoom z; an image is scaled by a factor in [1 / (1 + z), 1 + z], and a random crop of it is seen.
        rotation: largest angle in degrees.
        elastic: standard deviation of the displacement at the nodes of an 8 x 8 grid, as a share of the image's side.
        brightness, contrast, colour: largest change of the offset, of the factor, and of each channel's factor, as shares.
        gamma: largest g; the exponent lies in [1 / (1 + g), 1 + g].
        noise: largest standard deviation of Gaussian noise; each image draws its own.
    """

    flip: float = 0.0
    turn: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    elastic: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    colour: float = 0.0
    noise: float = 0.0

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return changed copies of images (B, 3, S, S) and targets (B, 1, S, S), both float32 in [0, 1].

        `generator` lives on the CPU, so the same seed draws the same changes on every device. One sampling grid moves image and target
        together; what comes in from outside is 0.
        """
        grid = self.sampling_grid(images.shape, generator).to(images.device)
        moved = F.grid_sample(torch.cat([images, targets], dim=1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        images, targets = moved[:, :3], moved[:, 3:]
        return self.change_intensity(images, generator), targets

    def sampling_grid(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Draw where each output pixel looks in the input: (B, S, S, 2) as (x, y) in [-1, 1], on the CPU."""
        batch, size = shape[0], shape[-1]
        angle = math.radians(self.rotation) * symmetric(batch, generator) + math.pi / 2 * chance(self.turn, batch, generator)
        zoom = (1 + self.scale) ** symmetric(batch, generator)
        mirror = 1 - 2 * torch.stack([chance(self.flip, batch, generator) for _ in range(2)], dim=1)  # (B, 2) of ±1
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1) * mirror[:, None]
        # The crop of a magnified image may slide as far as there is image to see, a shrunk image as far as it stays inside.
        shift = symmetric((batch, 2), generator) * (1 - 1 / zoom).abs()[:, None]
        grid = F.affine_grid(torch.cat([matrix, shift[..., None]], dim=2), [batch, 1, size, size], align_corners=False)
        if self.elastic:
            nodes = 2 * self.elastic * torch.randn(batch, 2, 8, 8, generator=generator)  # the grid spans 2 units
            grid = grid + F.interpolate(nodes, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return grid

    def change_intensity(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and apply gamma, contrast, colour, brightness, noise; images (B, 3, S, S) stay in [0, 1], padding black."""
        batch = len(images)
        exponent = (1 + self.gamma) ** symmetric((batch, 1, 1, 1), generator)
        contrast = 1 + self.contrast * symmetric((batch, 1, 1, 1), generator)
        colour = 1 + self.colour * symmetric((batch, 3, 1, 1), generator)
        offset = self.brightness * symmetric((batch, 1, 1, 1), generator)
        exponent, contrast, colour, offset = (draw.to(images.device) for draw in (exponent, contrast, colour, offset))
        bright = images**exponent
        mean = bright.mean(dim=(1, 2, 3), keepdim=True)
        changed = (mean + (bright - mean) * contrast) * colour + offset
        if self.noise:
            deviation = self.noise * torch.rand(batch, 1, 1, 1, generator=generator)
            changed = changed + (deviation * torch.randn(images.shape, generator=generator)).to(images.device)
        return (changed * (images > 1 / 512)).clamp(0, 1)  # half a grey level: interpolation leaves traces in the padding


def symmetric(size, generator: torch.Generator) -> Tensor:
    """Uniform draws in [-1, 1]."""
    return 2 * torch.rand(size, generator=generator) - 1


def chance(probability: float, size: int, generator: torch.Generator) -> Tensor:
    """1 with the probability given, else 0."""
    return (torch.rand(size, generator=generator) < probability).float()


@dataclass(frozen=True)
class TrainTransform:
    """What a batch of squares goes through in training: onto the device, to float, augmented."""

    augment: Augment
    device: torch.device | str = "cpu"

    def __call__(self, squares: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S) and targets (B, 1, S, S), float32 in [0, 1] on the device, from uint8 of the same shapes."""
        return self.augment(to_float(squares.to(self.device)), to_float(targets.to(self.device)), generator)
