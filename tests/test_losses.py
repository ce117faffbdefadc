"""Losses on logits and soft targets."""

import math

import pytest
import torch

from ctseg.losses import DiceBCELoss, DiceLoss, weigh_borders
from ctseg.model import make_model

LOGIT = 20.0  # a probability of 1 - 2e-9


def as_logits(mask):
    return LOGIT * (2 * mask - 1)


def test_dice_loss_of_a_perfect_and_of_an_opposite_prediction():
    targets = torch.zeros(2, 1, 20, 20)
    targets[:, :, :10] = 1
    assert DiceLoss()(as_logits(targets), targets) < 1e-4
    assert DiceLoss()(as_logits(1 - targets), targets) > 0.99


def test_dice_loss_is_over_the_flattened_batch():
    targets = torch.zeros(2, 1, 10, 10)
    targets[0] = 1
    logits = as_logits(torch.ones(2, 1, 10, 10))
    assert DiceLoss(smooth=0)(logits, targets).item() == pytest.approx(1 - 2 * 100 / 300, abs=1e-5)


def test_an_empty_batch_has_a_loss_that_falls_with_the_prediction():
    targets = torch.zeros(1, 1, 50, 50)
    assert DiceLoss()(as_logits(targets), targets) < 1e-4
    assert DiceLoss()(torch.zeros_like(targets), targets) > 0.99


def test_both_terms_add_up_and_only_the_sum_carries_a_gradient():
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    loss, bce, dice_loss = DiceBCELoss(0.3)(logits, targets)
    assert loss.item() == pytest.approx(0.3 * bce.item() + 0.7 * dice_loss.item())
    assert bce.item() == pytest.approx(torch.nn.BCEWithLogitsLoss()(logits, targets).item())
    assert loss.requires_grad and not bce.requires_grad and not dice_loss.requires_grad


def test_weights_are_high_on_both_sides_of_a_border_and_1_on_average():
    row = [0.0] * 12 + [1.0] * 12
    targets = torch.tensor([row] * 24)[None, None]  # 24 pixels, so that a neighborhood has 3
    weights = weigh_borders(targets, 3.0)
    drawn = torch.tensor([1.0] * 11 + [2.0, 2.0] + [1.0] * 11).expand(24, 24)
    assert torch.allclose(weights[0, 0], drawn * 24 / 26)
    assert torch.equal(weigh_borders(targets.mT, 3.0), weights.mT)
    corner = torch.ones(1, 1, 24, 24)
    corner[..., 12:, 12:] = 0
    weights = weigh_borders(corner, 9.0)[0, 0]
    relative = weights / weights[0, 0]
    # 5 of the 9 neighbors differ at the corner, 3 along the border and, of the 6 at the image's edge, 2
    assert relative[12, 12].item() == pytest.approx(6) and relative[18, 12].item() == pytest.approx(4)
    assert relative[11, 11].item() == pytest.approx(2) and relative[23, 12].item() == pytest.approx(4)
    for same in (torch.zeros(2, 1, 24, 24), torch.ones(2, 1, 24, 24), torch.full((2, 1, 24, 24), 0.3)):
        assert torch.allclose(weigh_borders(same, 5.0), torch.ones(()))


def test_bce_counts_more_where_a_border_is_missed():
    targets = torch.zeros(1, 1, 24, 24)
    targets[..., 12:] = 1
    at_border, inside = as_logits(targets), as_logits(targets)
    at_border[..., 12], inside[..., 20] = -LOGIT, -LOGIT
    plain, weighted = DiceBCELoss(), DiceBCELoss(border_weight=3.0)
    assert plain(at_border, targets).bce.item() == pytest.approx(LOGIT / 24)
    assert weighted(at_border, targets).bce.item() == pytest.approx(LOGIT * 2 / 26)
    assert weighted(inside, targets).bce.item() == pytest.approx(LOGIT / 26)
    assert weighted(at_border, targets).dice_loss == plain(at_border, targets).dice_loss


def test_an_untrained_network_has_a_bce_near_ln_2():
    torch.manual_seed(0)
    targets = (torch.rand(2, 1, 64, 64) < 0.5).float()
    bce = DiceBCELoss()(make_model(width=8).eval()(torch.rand(2, 3, 64, 64)), targets).bce
    assert bce.item() == pytest.approx(math.log(2), abs=0.1)
