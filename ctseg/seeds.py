"""Randomness keyed by purpose: every random draw has a stream of its own, whatever was drawn before it.

A file of its own, because training, folds and notebook 02 draw from it, and notebook 02 knows no training.
"""

import numpy as np
import torch


def make_seed(*key: int) -> int:
    """A seed for one purpose; different keys give independent streams (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def make_generator(*key: int) -> torch.Generator:
    """A generator seeded by `make_seed`; it lives on the CPU, so that every device sees the same draws."""
    return torch.Generator().manual_seed(make_seed(*key))
