"""The draws of the rounds: a stream for each purpose, so that none has the numbers of another."""

import numpy as np

TAKING_PART, FREEZING, DOWN, UP = range(4)  # purposes


def drawing(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """Begin a stream.

    Args:
        seed: the run's.
        purpose: one of those above.
        numbers: tell apart the streams of a purpose, such as a round's number.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *numbers)))
