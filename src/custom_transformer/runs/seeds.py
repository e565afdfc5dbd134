"""Seeds of what a run draws at each of its places, so that none depends on what was drawn before."""

from __future__ import annotations

import numpy as np


def seed_of(seed: int, *place: int) -> int:
    """The seed for a place in a run of this seed: a step and a forward pass in it, or a sample.

    Its bits are mixed, because a generator on the CPU reads the lowest 32 of them only. NumPy guarantees its seed
    sequences. Places of one kind have as many numbers as each other: a sequence is the same with zeros behind it.
    """
    return int(np.random.SeedSequence([seed % 2**64, *place]).generate_state(1, np.uint64)[0])
