"""Random streams, one per purpose."""

import torch

from ctseg.seeds import make_generator, make_seed


def test_random_streams_of_folds_epochs_and_batches_differ():
    keys = [
        (seed, fold, epoch, use, batch)
        for seed in (0, 1)
        for fold in (0, 1)
        for epoch in (0, 1)
        for use in (0, 2)
        for batch in (0, 1)
    ]
    assert len({torch.rand(1, generator=make_generator(*key)).item() for key in keys}) == len(keys)


def test_the_same_key_gives_the_same_stream():
    first, again = (torch.rand(5, generator=make_generator(7, 0, 3)) for _ in range(2))
    assert torch.equal(first, again)
    assert make_generator(7, 0).initial_seed() == make_seed(7, 0) != make_seed(0, 7)
