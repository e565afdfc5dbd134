"""The shards of an update: its forward passes of `batch_size` windows, the same whoever computes them.

The gradients of the shards are added up in a binary tree, as a binary counter carries: shard 0 with 1, 2 with 3, then
these two sums, and so on. What is left at the end is added from the right. Of six shards:

    ((g₀ + g₁) + (g₂ + g₃)) + (g₄ + g₅)

So each run of 2ᵏ shards that begins at a multiple of 2ᵏ is a node of the tree, and so is the shorter run at the end: a
sum that one process can make alone.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from custom_transformer.errors import UserError


def run_length(shards: int, processes: int) -> int:
    """How many shards each process has, if the runs of the tree can be dealt to so many: the last may have fewer.

    Raises UserError, which lists the numbers of processes that would do.
    """
    lengths = [2**k for k in range(shards.bit_length() + 1)]
    possible = {-(-shards // length): length for length in reversed(lengths)}
    if processes not in possible:
        *some, last = map(str, sorted(possible))
        which = f"{', '.join(some)} or {last} processes" if some else "1 process"
        raise UserError(
            f"{processes} processes cannot share an update of training.grad_accumulation = {shards} forward passes in "
            f"equal runs of 1, 2, 4, …: take {which}, or another grad_accumulation"
        )
    return possible[processes]


def add_term(partial: list[Tensor], term: Tensor, i: int, last: bool) -> None:
    """Adds term i of a sum, counted from 0, in the order of the tree.

    partial: the sums of the runs before it, the longest first; they are changed in place. After the last term it is
    one, the sum of all.
    """
    carries = len(partial) if last else (i ^ (i + 1)).bit_length() - 1
    for _ in range(carries):
        term = partial.pop().add_(term)
    partial.append(term)


class Sums(dict[str, Tensor]):
    """Gradients of several shards, each added as it arrives: it holds at most log₂(shards) + 1 of each name at once.

    shards: how many there will be; `shard` counts them. Only sums of all are to be found in it by their names.
    """

    def __init__(self, shards: int):
        super().__init__()
        self.shards, self.shard = shards, 0
        self._partial: defaultdict[str, list[Tensor]] = defaultdict(list)

    def __setitem__(self, name: str, gradient: Tensor) -> None:
        last = self.shard == self.shards - 1
        add_term(self._partial[name], gradient, self.shard, last)
        if last:
            self.arrived(name, self._partial.pop(name)[0])

    def arrived(self, name: str, total: Tensor) -> None:
        """Is given the sum of a name's gradients, as soon as it is complete."""
        super().__setitem__(name, total)

    def finish(self) -> dict[str, Tensor]:
        """The gradients to update with, once all shards are done; none, if they are not."""
        return self
