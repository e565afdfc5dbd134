"""Which steps of a run are kept beside its epochs: its beginning, where a model changes fastest, for the explorer."""

from __future__ import annotations

MAX_PARAMETERS = 4_000_000  # that the explorer shows, in a page of 14 MB; of a larger model nothing is kept for it
SHARES = (0.01, 0.03, 0.1, 0.3)  # of the run's steps
FEWEST_STEPS = 100  # a shorter run is too short for a beginning of its own


def snapshot_steps(total_steps: int, parameters: int) -> frozenset[int]:
    """The updates after which a checkpoint is kept for the explorer's slider; none for a large model or a short run."""
    if parameters > MAX_PARAMETERS or total_steps < FEWEST_STEPS:
        return frozenset()
    return frozenset(round(share * total_steps) for share in SHARES)
