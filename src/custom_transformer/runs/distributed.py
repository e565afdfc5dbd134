"""An update shared by several processes, with the bytes of one: who adds up, updates and keeps what.

Each process computes the gradients of its shards and adds them up: a node of the tree of shards.py. For the rest every
parameter is cut, and each process owns its slices (ZeRO, stage 1: Rajbhandari et al. 2020, section 5):

1. As soon as a process has the sums of a bucket of gradients, it sends each process that one's slices of them, while
   the backward goes on. Whoever owns a slice adds up what it gets in the order of the tree.
2. The global norm is made of the squares of blocks of a fixed size, whoever owns them.
3. Each process updates its slices, for which alone it keeps the optimiser's state, and sends them to all.

A process so sends and gets about twice the bytes of the parameters per update, however many processes there are. The
rules of the update work element by element; slices begin at whole blocks, so that vectorised loops begin there, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from custom_transformer.maths.optim import BLOCK, Rules, total_of_blocks
from custom_transformer.maths.parameters import Tensors
from custom_transformer.runs.processes import Processes, lost_others
from custom_transformer.runs.shards import Sums, add_term, run_length

BUCKET = 2**19  # numbers, at least, that are sent at once


class Shares:
    """Which shards of an update each process computes, and which numbers of the parameters it owns.

    It has a run of shards, and of each bucket about as many numbers as the others, in whole blocks.

    shards: of an update, at most. buckets: names of parameters, in the order in which a backward makes their gradients.
    Raises UserError if the shards cannot be dealt to so many processes.
    """

    def __init__(self, processes: Processes, parameters: Mapping[str, Tensor], shards: int):
        self.processes, self._run = processes, run_length(shards, processes.count)
        self._device = next(iter(parameters.values())).device
        self._sizes = {name: p.numel() for name, p in parameters.items()}
        self._slices: list[dict[str, slice]] = [{} for _ in range(processes.count)]
        self.buckets: list[list[str]] = [[]]
        for name in reversed([*parameters]):
            if sum(self._sizes[other] for other in self.buckets[-1]) >= BUCKET:
                self.buckets.append([])
            self.buckets[-1].append(name)
        for bucket in self.buckets:
            self._deal(bucket)

    def _deal(self, bucket: list[str]) -> None:
        size, count, before = sum(self._sizes[name] for name in bucket), self.processes.count, 0
        for name in bucket:
            blocks = range(0, self._sizes[name], BLOCK) if count > 1 else (0,)
            for begin in blocks:
                end = min(begin + BLOCK, self._sizes[name]) if count > 1 else self._sizes[name]
                middle = before + (begin + end) // 2
                own = self._slices[middle * count // size]
                own[name] = slice(own[name].start if name in own else begin, end)
            before += self._sizes[name]

    def shards(self, count: int) -> range:
        """Which of `count` shards this process computes: of an epoch's last step there may be fewer than of others."""
        first = self.processes.rank * self._run
        return range(min(first, count), min(first + self._run, count))

    def busy(self, count: int) -> int:
        """How many processes have one of `count` shards: the first ones."""
        return -(-count // self._run)

    def own(self, tensors: Tensors) -> Tensors:
        """This process's slices of tensors like the parameters, flat; the tensors themselves, if it is alone."""
        if self.processes.count == 1:
            return tensors
        own = self._slices[self.processes.rank]
        return {name: tensors[name].view(-1)[part] for name, part in own.items() if name in tensors}

    def kept(self, tensors: Tensors) -> Tensors:
        """What this process keeps of the optimiser's state: its slices of tensors like the parameters, counts whole."""
        if self.processes.count == 1 or not tensors.keys() <= self._sizes.keys():
            return tensors
        return {name: part.clone() for name, part in self.own(tensors).items()}

    def sums(self, shards: int, like: Tensor) -> Sums | Exchange:
        """What takes this process's gradients of an update of so many shards; `like` has their dtype and device."""
        return Sums(shards) if self.processes.count == 1 else Exchange(self, shards, like)

    def sizes(self, names: Sequence[str]) -> list[int]:
        """How many numbers of these parameters each process owns."""
        return [sum(own[name].stop - own[name].start for name in names if name in own) for own in self._slices]

    def apart(self, names: Sequence[str], flat: Tensor) -> Tensors:
        """This process's slices of these parameters, from one flat tensor of them all."""
        own = {name: part for name in names if (part := self._slices[self.processes.rank].get(name))}
        return dict(zip(own, flat.split([part.stop - part.start for part in own.values()]), strict=True))

    def places(self, names: Sequence[str]) -> dict[str, slice]:
        """Where each of these parameters stands in one flat tensor of them all."""
        places, before = {}, 0
        for name in names:
            places[name] = slice(before, before := before + self._sizes[name])
        return places

    def squares(
        self, gradients: Mapping[str, Tensor], rules: Rules, others: list[float]
    ) -> tuple[list[float], dict[str, float]]:
        """Σ g² of each gradient, of which this process has its slices; all processes get them, by name.

        others: numbers as `Processes.combined` takes them, which go with the squares and are returned first.
        """
        blocks, before = {}, len(others)
        for name, size in self._sizes.items():
            blocks[name] = slice(before, before := before - (-size // BLOCK))
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
        """Every process's slices go to all."""
        if self.processes.count > 1:
            for name, flat in self._gathered(self.buckets, self.own(parameters), parameters, everywhere=True):
                parameters[name].view(-1).copy_(flat)

    def whole(self, state: dict[str, Tensors], parameters: Tensors) -> dict[str, Tensors]:
        """The optimiser's state of all processes, in the first one; all call it. The others have no tensors in it."""
        processes = self.processes
        if processes.count == 1:
            return state
        whole = {}
        for kind, tensors in state.items():
            known = {name for names in processes.of_each(list(tensors)) for name in names}
            if not known <= self._sizes.keys():  # a count
                whole[kind] = tensors
                continue
            buckets = [[name for name in bucket if name in known] for bucket in self.buckets]
            found = dict(self._gathered(buckets, tensors, parameters, everywhere=False))
            whole[kind] = {name: found[name].view_as(p).clone() for name, p in parameters.items() if name in found}
        return whole

    def _gathered(
        self, buckets: list[list[str]], own: Tensors, parameters: Tensors, everywhere: bool
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors like the parameters from all processes' slices of them, flat, in all processes or in the first."""
        processes, coming = self.processes, []
        for names in filter(None, buckets):
            mine = [own[name] for name in names if name in own]
            flat = torch.cat(mine) if mine else parameters[names[0]].new_empty(0)
            gets = [everywhere or rank == 0 for rank in range(processes.count)]
            sizes = self.sizes(names) if gets[processes.rank] else [0] * processes.count
            coming.append((names, processes.exchange(flat.repeat(sum(gets)), [len(flat) * get for get in gets], sizes)))
        for names, (received, work) in coming:
            with lost_others():
                work.wait()
            if len(received):
                yield from ((name, received[place]) for name, place in self.places(names).items())


class Exchange(Sums):
    """The sums of this process's shards, which go to their owners bucket by bucket, as soon as each is complete.

    All processes send the same buckets in the same order. One that has no shards, or whose loss is not finite, sends
    what nobody uses.
    """

    def __init__(self, shares: Shares, shards: int, like: Tensor):
        super().__init__(len(shares.shards(shards)))
        self._shares, self._busy, self._like = shares, shares.busy(shards), like
        self._places = [shares.places(bucket) for bucket in shares.buckets]
        self._sent: dict[int, Tensor] = {}
        self._missing = [set(bucket) for bucket in shares.buckets]
        self._coming: list[tuple[Tensor, Any]] = []

    def arrived(self, name: str, total: Tensor) -> None:
        i = next(i for i, places in enumerate(self._places) if name in places)
        self._buffer(i)[self._places[i][name]] = total.flatten()
        self._missing[i].discard(name)
        while len(self._coming) < len(self._missing) and not self._missing[len(self._coming)]:
            self._send()

    def _buffer(self, i: int) -> Tensor:
        if i not in self._sent:
            self._sent[i] = self._like.new_empty(sum(self._shares.sizes(self._shares.buckets[i])))
        return self._sent[i]

    def _send(self) -> None:
        i, processes = len(self._coming), self._shares.processes
        sizes = self._shares.sizes(self._shares.buckets[i])
        self._coming.append(processes.exchange(self._buffer(i), sizes, [sizes[processes.rank]] * processes.count))

    def finish(self) -> Tensors:
        """This process's slices of the sums over all shards, flat, by name."""
        while len(self._coming) < len(self._places):
            self._send()
        gradients = {}
        for i, (bucket, (received, work)) in enumerate(zip(self._shares.buckets, self._coming, strict=True)):
            with lost_others():
                work.wait()
            del self._sent[i]
            terms = received.chunk(self._shares.processes.count) if len(received) else ()
            partial: list[Tensor] = []
            for j, term in enumerate(terms[: self._busy]):
                add_term(partial, term, j, last=j == self._busy - 1)
            gradients.update(self._shares.apart(bucket, partial[0]) if partial else {})
        return gradients
