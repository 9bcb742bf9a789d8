"""One seed, and streams of it for what draws."""

import numpy as np
import torch

# What is drawn: an epoch e of training draws from stream e + 1. A further sample d of CMD's, from 1
# on, has stream d: what it draws, a choice of weights, has nothing to do with an epoch's images.
INITIAL_WEIGHTS = 0


def stream_seed(seed: int, stream: int) -> int:
    """A 63-bit seed for one stream, independent of those of other streams and seeds."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)


def epoch_generator(seed: int, epoch: int, device: torch.device, rank: int = 0) -> torch.Generator:
    """The generator of an epoch's order and augmentation, alike on all ranks.

    torch's global generator, which dropout draws from, is seeded too: an epoch depends on the
    seed, its number and the weights it starts from, not on what ran before it in the process. It
    is seeded for each rank by itself, which would else drop the same units of its own images.
    """
    own = stream_seed(seed, epoch + 1)
    torch.manual_seed(own if rank == 0 else stream_seed(own, rank))
    return torch.Generator(device).manual_seed(own)
