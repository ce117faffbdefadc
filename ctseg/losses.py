"""Losses on logits and soft targets."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class DiceLoss(nn.Module):
    """Soft Dice loss: 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth).

    The sums go over the flattened batch, as in the reference. Logits and targets are (B, 1, H, W), targets in
    [0, 1]. `smooth` keeps a batch without foreground finite: where nothing is predicted either, its loss
    tends to 0.
    """

    def __init__(self, smooth: float = 1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        probability = logits.float().sigmoid()  # sums over a batch overflow in half precision
        overlap, total = (probability * targets).sum(), (probability + targets).sum()
        return 1 - (2 * overlap + self.smooth) / (total + self.smooth)


class Losses(NamedTuple):
    """The combined loss, which is the one to differentiate, and its two terms; scalars."""

    loss: Tensor
    bce: Tensor
    dice_loss: Tensor


class DiceBCELoss(nn.Module):
    """bce_weight * BCE + (1 - bce_weight) * soft Dice loss; the reference weighs both with one half.

    Logits and targets are (B, 1, H, W), targets in [0, 1].
    """

    def __init__(self, bce_weight: float = 0.5):
        super().__init__()
        self.bce_weight = bce_weight
        self.dice_loss = DiceLoss()

    def forward(self, logits: Tensor, targets: Tensor) -> Losses:
        bce = F.binary_cross_entropy_with_logits(logits.float(), targets)
        dice_loss = self.dice_loss(logits, targets)
        loss = self.bce_weight * bce + (1 - self.bce_weight) * dice_loss
        return Losses(loss, bce.detach(), dice_loss.detach())
