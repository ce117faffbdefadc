"""Random changes of whole batches, on whatever device trains: image and target moved by one draw."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctseg.config import AUGMENTATIONS
from ctseg.transforms import to_float


class Augment:
    """Random changes of a batch, by one sampling grid and one map of intensities.

    Each image draws its own; ranges are symmetric about no change. A new change is a field of `Config` and a
    line here.

    Args:
        strengths: by name, with units and ranges as `Config` declares them; a change that is not named is not
            made.
    """

    def __init__(self, **strengths: float):
        if unknown := strengths.keys() - AUGMENTATIONS.keys():
            raise TypeError(
                f"unknown augmentation {min(unknown)!r}; expected names of {', '.join(AUGMENTATIONS)}"
            )
        vars(self).update(dict.fromkeys(AUGMENTATIONS, 0.0) | strengths)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return changed copies of images (B, 3, S, S) and targets (B, 1, S, S), both float32 in [0, 1].

        `generator` lives on the CPU, so that the same seed draws the same changes on every device. Areas that
        come into view from outside an image are 0.
        """
        grid = self._draw_grid(len(images), images.shape[-1], generator).to(images.device)
        both = torch.cat([images, targets], dim=1)
        moved = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        images, targets = moved[:, :3], moved[:, 3:]
        return self._change_intensity(images, generator), targets

    def _draw_grid(self, batch: int, size: int, generator: torch.Generator) -> Tensor:
        """Draw where each output pixel looks in the input: (B, S, S, 2) as (x, y) in [-1, 1], on the CPU."""
        rotation = math.radians(self.rotation) * _symmetric(batch, generator)
        rot90 = math.pi / 2 * _chance(self.rot90, batch, generator)
        scale = (1 + self.scale) ** _symmetric(batch, generator)
        flip = 1 - 2 * torch.stack([_chance(self.flip, batch, generator) for _ in "xy"], dim=1)  # (B, 2)

        angle = rotation + rot90
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)
        matrix = torch.stack(rows, dim=1) * flip[:, None]  # (B, 2, 2)
        # The crop of a magnified image may slide as far as the image reaches, a shrunk image as far as it
        # stays inside.
        shift = _symmetric((batch, 2), generator) * (1 - 1 / scale).abs()[:, None]
        affine = torch.cat([matrix, shift[..., None]], dim=2)  # (B, 2, 3)
        grid = F.affine_grid(affine, [batch, 1, size, size], align_corners=False)
        if self.elastic:
            # A coarse grid of displacements, in units of which the image spans two.
            nodes = 2 * self.elastic * torch.randn(batch, 2, 8, 8, generator=generator)
            field = F.interpolate(nodes, (size, size), mode="bicubic", align_corners=True)
            grid = grid + field.permute(0, 2, 3, 1)
        return grid

    def _change_intensity(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and apply the changes of intensity; images (B, 3, S, S) stay in [0, 1], padding black."""
        one, three = (len(images), 1, 1, 1), (len(images), 3, 1, 1)
        gamma = ((1 + self.gamma) ** _symmetric(one, generator)).to(images.device)
        contrast = (1 + self.contrast * _symmetric(one, generator)).to(images.device)
        color = (1 + self.color * _symmetric(three, generator)).to(images.device)
        brightness = (self.brightness * _symmetric(one, generator)).to(images.device)

        curved = images**gamma
        mean = curved.mean(dim=(1, 2, 3), keepdim=True)
        changed = (mean + (curved - mean) * contrast) * color + brightness
        if self.noise:
            deviation = self.noise * torch.rand(one, generator=generator)
            changed = changed + (deviation * torch.randn(images.shape, generator=generator)).to(images.device)
        is_padding = images <= 1 / 512  # half a gray level: interpolation leaves traces there
        return changed.masked_fill(is_padding, 0).clamp(0, 1)


def _symmetric(size, generator: torch.Generator) -> Tensor:
    """Uniform draws in [-1, 1]."""
    return 2 * torch.rand(size, generator=generator) - 1


def _chance(probability: float, size: int, generator: torch.Generator) -> Tensor:
    """1 with the given probability, else 0."""
    return (torch.rand(size, generator=generator) < probability).float()


@dataclass(frozen=True)
class TrainTransform:
    """What a training batch goes through: onto the device, to float, augmented."""

    augment: Augment
    device: torch.device | str = "cpu"

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """From uint8 to float32 in [0, 1] on the device: images (B, 3, S, S) and targets (B, 1, S, S)."""
        return self.augment(to_float(images.to(self.device)), to_float(targets.to(self.device)), generator)
