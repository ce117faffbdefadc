"""Random changes of whole batches on the device that trains; one draw moves image and target together."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ctseg.config import AUGMENTATIONS
from ctseg.transforms import to_float


class Augment:
    """Random changes of a batch, by one sampling grid and one map of intensities.

    Each image has its own draw, and every range is symmetric about "unchanged". To add a change, add a field
    to `Config` and a line here.

    Args:
        strengths: by name, with units and ranges as in `Config`; a change that is not named stays off.

    Raises:
        TypeError: an unknown name.
    """

    def __init__(self, **strengths: float):
        if unknown := sorted(strengths.keys() - AUGMENTATIONS.keys()):
            raise TypeError(
                f"unknown augmentation {unknown[0]!r}; expected names of {', '.join(AUGMENTATIONS)}"
            )
        self.strength = SimpleNamespace(**dict.fromkeys(AUGMENTATIONS, 0.0) | strengths)

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
        rotation = math.radians(self.strength.rotation) * _symmetric(batch, generator)
        rot90 = math.pi / 2 * _chance(self.strength.rot90, batch, generator)
        scale = (1 + self.strength.scale) ** _symmetric(batch, generator)
        mirrored = torch.stack([_chance(self.strength.flip, batch, generator) for _ in "xy"], dim=1)

        angle = rotation + rot90
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)
        matrix = torch.stack(rows, dim=1) * (1 - 2 * mirrored)[:, None]  # (B, 2, 2)
        # A magnified image may shift until its edge shows, a shrunken one until it touches the border.
        shift = _symmetric((batch, 2), generator) * (1 - 1 / scale).abs()[:, None]
        affine = torch.cat([matrix, shift[..., None]], dim=2)  # (B, 2, 3)
        grid = F.affine_grid(affine, [batch, 1, size, size], align_corners=False)
        if self.strength.elastic:
            # Displacements at the nodes of a coarse grid; the image spans 2 units.
            nodes = 2 * self.strength.elastic * torch.randn(batch, 2, 8, 8, generator=generator)
            field = F.interpolate(nodes, (size, size), mode="bicubic", align_corners=True)
            grid = grid + field.permute(0, 2, 3, 1)
        return grid

    def _change_intensity(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and apply the changes of intensity; images (B, 3, S, S) stay in [0, 1], padding black."""
        one, three = (len(images), 1, 1, 1), (len(images), 3, 1, 1)
        gamma = ((1 + self.strength.gamma) ** _symmetric(one, generator)).to(images.device)
        contrast = (1 + self.strength.contrast * _symmetric(one, generator)).to(images.device)
        color = (1 + self.strength.color * _symmetric(three, generator)).to(images.device)
        brightness = (self.strength.brightness * _symmetric(one, generator)).to(images.device)

        curved = images**gamma
        mean = curved.mean(dim=(1, 2, 3), keepdim=True)
        changed = (mean + (curved - mean) * contrast) * color + brightness
        if self.strength.noise:
            deviation = self.strength.noise * torch.rand(one, generator=generator)
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
    """Prepare a training batch: move it to the device, convert it to float, augment it."""

    augment: Augment
    device: torch.device | str = "cpu"

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """From uint8 to float32 in [0, 1] on the device: images (B, 3, S, S) and targets (B, 1, S, S)."""
        return self.augment(to_float(images.to(self.device)), to_float(targets.to(self.device)), generator)
