"""Losses on logits and soft targets."""

import math

import pytest
import torch

from ctseg.losses import DiceBCELoss, DiceLoss
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


def test_an_untrained_network_has_a_bce_near_ln_2():
    torch.manual_seed(0)
    targets = (torch.rand(2, 1, 64, 64) < 0.5).float()
    bce = DiceBCELoss()(make_model(width=8).eval()(torch.rand(2, 3, 64, 64)), targets).bce
    assert bce.item() == pytest.approx(math.log(2), abs=0.1)
