"""An update shared by several processes, with the bytes of one: who adds up, updates and keeps what.

Each process computes the gradients of its shards and adds them up: a node of the tree of shards.py. For the rest every
parameter is cut, and each process owns its slices (ZeRO, stage 1: Rajbhandari et al. 2020, section 5):

1. As soon as a process has the sums of a bucket of gradients, it sends each process that one's slices of them, while
   the backward goes on. Whoever owns a slice adds up what it gets in the order of the tree.
2. The global norm is made of the squares of blocks of a fixed size, whoever owns them.
3. Each process updates its slices, for which alone it keeps the optimiser's state, and sends them to all.

So each process sends and receives about twice the bytes of the parameters per update, however many processes there are.
The rules of the update work element by element. Slices begin at whole blocks, so that vectorised loops begin there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from custom_transformer.maths.optim import BLOCK, Rules, total_of_blocks
from custom_transformer.maths.parameters import Tensors
from custom_transformer.runs.processes import Processes
from custom_transformer.runs.shards import Sums, add_term, run_length

BUCKET = 2**19  # numbers, at least, that are sent at once by up to 32 processes; more processes send more


class Shares:
    """Which shards of an update each process computes, and which numbers of the parameters it owns.

    Each process has a run of shards, and about as many numbers as the others: a slice of each bucket, in whole blocks,
    and some of the parameters that are not to be cut.

    shards: of an update, at most. whole: names of the parameters that are not cut.
    buckets: names of parameters, in the order in which a backward makes their gradients.
    Raises UserError if the shards cannot be dealt to so many processes.
    """

    def __init__(
        self, processes: Processes, parameters: Mapping[str, Tensor], shards: int, whole: Collection[str] = ()
    ):
        self.processes, self._run = processes, run_length(shards, processes.count)
        self._device = next(iter(parameters.values())).device
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._whole = self._shapes.keys() if processes.count == 1 else frozenset(whole)
        self._slices: list[dict[str, slice]] = [{} for _ in range(processes.count)]
        self.buckets: list[list[str]] = [[]]
        at_once = BUCKET * max(1, processes.count / 32)  # so that each process has blocks of each bucket
        for name in reversed([*parameters]):
            if sum(self._shapes[other].numel() for other in self.buckets[-1]) >= at_once:
                self.buckets.append([])
            self.buckets[-1].append(name)
        loads = [0] * processes.count  # by whole parameters
        for bucket in self.buckets:
            for name in filter(self._whole.__contains__, bucket):
                rank = loads.index(min(loads))
                loads[rank] += (size := self._shapes[name].numel())
                self._slices[rank][name] = slice(0, size)
            self._cut([name for name in bucket if name not in self._whole])

    def _cut(self, names: list[str]) -> None:
        """Deals these parameters, one after the other, to the processes in their order."""
        total, before = sum(self._shapes[name].numel() for name in names), 0
        for name in names:
            size = self._shapes[name].numel()
            for begin in range(0, size, BLOCK):
                end = min(begin + BLOCK, size)
                own = self._slices[(before + (begin + end) // 2) * self.processes.count // total]
                own[name] = slice(own[name].start if name in own else begin, end)
            before += size

    def shards(self, count: int) -> range:
        """Which of `count` shards this process computes: of an epoch's last step there may be fewer than of others."""
        first = self.processes.rank * self._run
        return range(min(first, count), min(first + self._run, count))

    def busy(self, count: int) -> int:
        """How many processes have one of `count` shards: the first ones."""
        return -(-count // self._run)

    def own(self, tensors: Tensors) -> Tensors:
        """What this process owns of tensors like the parameters: whole ones, and flat slices of others."""
        own = self._slices[self.processes.rank]
        return {name: self._part(name, tensor.view(-1)[own[name]]) for name, tensor in tensors.items() if name in own}

    def _part(self, name: str, flat: Tensor) -> Tensor:
        return flat.view(self._shapes[name]) if name in self._whole else flat

    def kept(self, tensors: Tensors) -> Tensors:
        """What this process keeps of the optimiser's state: of tensors like the parameters what it owns, and counts."""
        if self.processes.count == 1 or not tensors.keys() <= self._shapes.keys():
            return tensors
        return {name: part.clone() for name, part in self.own(tensors).items()}

    def sums(self, shards: int, like: Tensor) -> Sums | Exchange:
        """What takes this process's gradients of an update of so many shards; `like` has their dtype and device."""
        return Sums(shards) if self.processes.count == 1 else Exchange(self, shards, like)

    def dealt(self, names: Sequence[str]) -> tuple[list[int], list[tuple[str, slice, slice]]]:
        """How many numbers of these parameters each process owns, and all slices: the parameter's name, which part of
        it, and where that stands in one flat tensor of all parts, those of the first process first."""
        sizes, slices, before = [], [], 0
        for own in self._slices:
            begin = before
            for name in filter(own.__contains__, names):
                place = slice(before, before := before + own[name].stop - own[name].start)
                slices.append((name, own[name], place))
            sizes.append(before - begin)
        return sizes, slices

    def apart(self, names: Sequence[str], flat: Tensor) -> Tensors:
        """What this process owns of these parameters, from one flat tensor of it."""
        own = self._slices[self.processes.rank]
        names = [name for name in names if name in own]
        parts = flat.split([own[name].stop - own[name].start for name in names])
        return {name: self._part(name, part) for name, part in zip(names, parts, strict=True)}

    def squares(
        self, gradients: Mapping[str, Tensor], rules: Rules, others: list[float]
    ) -> tuple[list[float], dict[str, float]]:
        """Σ g² of each gradient, of which this process has what it owns; all processes get them, by name.

        others: numbers as `Processes.combined` takes them, which go with the squares and are returned first.
        """
        blocks, before = {}, len(others)
        for name, shape in self._shapes.items():
            blocks[name] = slice(before, before := before - (-shape.numel() // BLOCK))
        numbers = torch.zeros(before, dtype=torch.float64, device=self._device)
        numbers[: len(others)] = torch.tensor(others, dtype=torch.float64, device=self._device)
        for name, part in self._slices[self.processes.rank].items():
            if name in gradients:
                sums = rules.sums_of_squares(gradients[name])
                first = blocks[name].start + part.start // BLOCK
                numbers[first : first + len(sums)] = sums
        numbers = self.processes.combined(numbers)
        totals = {name: total_of_blocks(numbers[part]) for name, part in blocks.items()}
        return numbers[: len(others)].tolist(), totals

    def send_parameters(self, parameters: Tensors) -> None:
        """What each process owns goes to all."""
        if self.processes.count > 1:
            self._gather(self.buckets, self.own(parameters), parameters, everywhere=True)

    def whole(self, state: dict[str, Tensors], parameters: Tensors) -> dict[str, Tensors]:
        """The optimiser's state of all processes, in the first one; all call it. The others have no tensors in it."""
        processes = self.processes
        if processes.count == 1:
            return state
        whole = {}
        for kind, tensors in state.items():
            known = {name for names in processes.of_each(list(tensors)) for name in names}
            if not known <= self._shapes.keys():  # a count
                whole[kind] = tensors
                continue
            kinds = {name: p for name, p in parameters.items() if name in known}
            whole[kind] = {name: torch.empty_like(p) for name, p in kinds.items()} if processes.first else {}
            buckets = [[name for name in bucket if name in known] for bucket in self.buckets]
            self._gather(buckets, tensors, whole[kind] or kinds, everywhere=False)
        return whole

    def _gather(self, buckets: list[list[str]], own: Tensors, into: Tensors, everywhere: bool) -> None:
        """Fills tensors like the parameters with what each process owns of them, in all processes or in the first."""
        processes, coming = self.processes, []
        gets = [everywhere or rank == 0 for rank in range(processes.count)]
        for names in filter(None, buckets):
            sizes, slices = self.dealt(names)
            mine = [own[name].flatten() for name in names if name in own]
            flat = torch.cat(mine) if mine else into[names[0]].new_empty(0)
            if not gets[processes.rank]:
                sizes, slices = [0] * processes.count, []
            sent = [len(flat) * get for get in gets]
            coming.append((slices, processes.exchange(flat.repeat(sum(gets)), sent, sizes)))
        for slices, wait in coming:
            received = wait()
            for name, part, place in slices:
                into[name].view(-1)[part] = received[place]


class Exchange(Sums):
    """The sums of this process's shards, which go to their owners bucket by bucket, as soon as each is complete.

    All processes send the same buckets in the same order. One that has no shards, or whose loss is not finite, sends
    what nobody uses.
    """

    def __init__(self, shares: Shares, shards: int, like: Tensor):
        super().__init__(len(shares.shards(shards)))
        self._shares, self._busy = shares, shares.busy(shards)
        self._missing = [set(bucket) for bucket in shares.buckets]
        self._dealt = [shares.dealt(bucket) for bucket in shares.buckets]
        self._sent = [like.new_empty(sum(sizes)) for sizes, _ in self._dealt]
        self._coming: list[Callable[[], Tensor]] = []

    def arrived(self, name: str, total: Tensor) -> None:
        i = next(i for i, names in enumerate(self._missing) if name in names)
        for of_name, part, place in self._dealt[i][1]:
            if of_name == name:
                self._sent[i][place] = total.reshape(-1)[part]
        self._missing[i].remove(name)
        self._send(complete=True)

    def _send(self, complete: bool) -> None:
        """Sends the buckets that are left, in their order, or only those before one that is not complete."""
        processes = self._shares.processes
        while (i := len(self._coming)) < len(self._sent) and not (complete and self._missing[i]):
            sizes, _ = self._dealt[i]
            self._coming.append(processes.exchange(self._sent[i], sizes, [sizes[processes.rank]] * processes.count))

    def finish(self) -> Tensors:
        """What this process owns of the sums over all shards, by name."""
        self._send(complete=False)
        gradients: Tensors = {}
        for bucket, wait in zip(self._shares.buckets, self._coming, strict=True):
            received = wait()
            self._sent.pop(0)
            terms = received.chunk(self._shares.processes.count) if len(received) else ()
            partial: list[Tensor] = []
            for i, term in enumerate(terms[: self._busy]):
                add_term(partial, term, i, last=i == self._busy - 1)
            gradients.update(self._shares.apart(bucket, partial[0]) if partial else {})
        return gradients
