"""Losses on logits and soft targets."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

_BORDER_SHARE = 12  # of the side that the neighborhood has which makes a border; 31 of 352 pixels in F3Net


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

    With a `border_weight`, BCE counts more near the border of a region; see `weigh_borders`. Logits and
    targets are (B, 1, S, S), targets in [0, 1].
    """

    def __init__(self, bce_weight: float = 0.5, border_weight: float = 0.0):
        super().__init__()
        self.bce_weight, self.border_weight = bce_weight, border_weight
        self.dice_loss = DiceLoss()

    def forward(self, logits: Tensor, targets: Tensor) -> Losses:
        weights = weigh_borders(targets, self.border_weight) if self.border_weight else None
        bce = F.binary_cross_entropy_with_logits(logits.float(), targets, weights)
        dice_loss = self.dice_loss(logits, targets)
        loss = self.bce_weight * bce + (1 - self.bce_weight) * dice_loss
        return Losses(loss, bce.detach(), dice_loss.detach())


def weigh_borders(targets: Tensor, border_weight: float) -> Tensor:
    """Weights of each pixel of targets (B, 1, S, S), of the same shape and with a mean of 1 over the batch.

    They rise with how far a pixel is from the mean of its neighborhood, a square whose side is 1/12 of the
    image's: up to 1 + border_weight / 2 times as high at a straight border as inside, and higher in a narrow
    corner. Where no image has a border, as with empty masks, all are 1; an empty mask next to others has
    weights below 1, as the inside of a region has. After F3Net (Wei et al., AAAI 2020), which has a weight of
    5 too, divides by each image's own sum, and weighs its second term, IoU, in the same way; here soft Dice
    stays as it is.
    """
    side = targets.shape[-1] // _BORDER_SHARE // 2 * 2 + 1
    # Along one axis and then the other, which is faster and the same: at the edge too, each mean is over as
    # many pixels as there are.
    mean = F.avg_pool2d(targets, (side, 1), 1, (side // 2, 0), count_include_pad=False)
    mean = F.avg_pool2d(mean, (1, side), 1, (0, side // 2), count_include_pad=False)
    weights = 1 + border_weight * (targets - mean).abs()
    return weights / weights.mean()
