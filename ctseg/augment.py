"""Random changes of whole batches on the device that trains; one draw moves image and target together."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctseg.config import AUGMENTATIONS
from ctseg.device import send
from ctseg.transforms import to_float


class Augment:
    """Random changes of a batch, by one sampling grid and one map of intensities.

    Each image has its own draw, and every range is symmetric about "unchanged". To add a change, add a field
    to `Config`, its draw and its column in `draw`, the same in `Draws.split`, and its use in `__call__`.

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

    def draw(self, batch_size: int, generator: torch.Generator) -> "Draws":
        """Draw the changes of a batch of images; the same generator draws the same ones for every device."""
        rotation = math.radians(self.strength.rotation) * _symmetric(batch_size, generator)
        rot90 = math.pi / 2 * _chance(self.strength.rot90, batch_size, generator)
        scale = (1 + self.strength.scale) ** _symmetric(batch_size, generator)
        mirrored = torch.stack([_chance(self.strength.flip, batch_size, generator) for _ in "xy"], dim=1)

        angle = rotation + rot90
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)
        matrix = torch.stack(rows, dim=1) * (1 - 2 * mirrored)[:, None]  # (B, 2, 2)
        # A magnified image may shift until its edge shows, a shrunken one until it touches the border.
        shift = _symmetric((batch_size, 2), generator) * (1 - 1 / scale).abs()[:, None]
        affine = torch.cat([matrix, shift[..., None]], dim=2)  # (B, 2, 3)
        nodes = torch.empty(batch_size, 0)
        if self.strength.elastic:
            # Displacements at the nodes of a coarse grid; the image spans 2 units.
            nodes = 2 * self.strength.elastic * torch.randn(batch_size, 2, 8, 8, generator=generator)

        gamma = (1 + self.strength.gamma) ** _symmetric((batch_size, 1), generator)
        contrast = 1 + self.strength.contrast * _symmetric((batch_size, 1), generator)
        color = 1 + self.strength.color * _symmetric((batch_size, 3), generator)
        brightness = self.strength.brightness * _symmetric((batch_size, 1), generator)
        deviation = self.strength.noise * torch.rand((batch_size, 1), generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        columns = affine.flatten(1), gamma, contrast, color, brightness, deviation, nodes.flatten(1)
        return Draws(torch.cat(columns, dim=1), seed)

    def __call__(self, pixels: Tensor, draws: "Draws") -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S) and targets (B, 1, S, S) in [0, 1], changed as was drawn.

        `pixels` are both, float32 (B, 4, S, S) in [0, 1], on the device of `draws`. Areas that come into view
        from outside an image are 0.
        """
        affine, gamma, contrast, color, brightness, deviation, nodes = draws.split()
        grid = _make_grid(affine, nodes, pixels.shape[-1])
        moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        images, targets = moved[:, :3], moved[:, 3:]

        curved = images**gamma
        mean = curved.mean(dim=(1, 2, 3), keepdim=True)
        changed = (mean + (curved - mean) * contrast) * color + brightness
        if self.strength.noise:
            noise = torch.Generator(images.device).manual_seed(draws.noise_seed)
            changed = changed + deviation * torch.randn(images.shape, generator=noise, device=images.device)
        is_padding = images <= 1 / 512  # half a gray level: interpolation leaves traces there
        return changed.masked_fill(is_padding, 0).clamp(0, 1), targets


class Draws(NamedTuple):
    """What is drawn for a batch: small, so that one copy brings it to the device, where it is spread out.

    Attributes:
        values: float32 (B, 13), and 128 more for elastic changes, the columns that `split` names.
        noise_seed: of the noise, whose values are the device's own.
    """

    values: Tensor
    noise_seed: int

    def split(self) -> tuple[Tensor, ...]:
        """Return affine (B, 2, 3); gamma, contrast, color, brightness, deviation (B, 1 or 3, 1, 1); nodes.

        The nodes of the elastic change are (B, 2, 8, 8), or (B, 0) without one.
        """
        affine, *factors, nodes = self.values.split([6, 1, 1, 3, 1, 1, self.values.shape[1] - 13], dim=1)
        spread = [factor[..., None, None] for factor in factors]
        return affine.unflatten(1, (2, 3)), *spread, nodes.unflatten(1, (2, 8, 8)) if nodes.numel() else nodes


def _make_grid(affine: Tensor, nodes: Tensor, size: int) -> Tensor:
    """Where each output pixel looks in the input: (B, S, S, 2) as (x, y) in [-1, 1]."""
    grid = F.affine_grid(affine, [len(affine), 1, size, size], align_corners=False)
    if nodes.numel():
        field = F.interpolate(nodes, (size, size), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    return grid


def _symmetric(size, generator: torch.Generator) -> Tensor:
    """Uniform draws in [-1, 1]."""
    return 2 * torch.rand(size, generator=generator) - 1


def _chance(probability: float, size: int, generator: torch.Generator) -> Tensor:
    """1 with the given probability, else 0."""
    return (torch.rand(size, generator=generator) < probability).float()


@dataclass(frozen=True)
class TrainTransform:
    """Prepare a training batch: bring it to the device, convert it to float, augment it."""

    augment: Augment
    device: torch.device | str = "cpu"

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """From uint8 (B, 4, S, S), image and target, to images (B, 3, S, S) and targets (B, 1, S, S).

        They are float32 in [0, 1], on the device. `generator` lives on the CPU.
        """
        draws = self.augment.draw(len(pixels), generator)
        draws = draws._replace(values=send(draws.values, self.device))
        return self.augment(to_float(send(pixels, self.device)), draws)
