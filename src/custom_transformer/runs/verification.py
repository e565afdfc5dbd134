"""A run computed again and compared with what is recorded of it: digests, and states where some were kept.

The record is compared as the recomputation goes, and the first difference ends it. How closely it is named depends on
what the record holds: the step by the digits that digests.csv has of each step's loss and gradient norm, the tensor
by the digits that it has of each tensor, and the numbers of both sides where a state was kept of the step.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.runs.checkpoint import read_tensors, write_tensors
from custom_transformer.runs.digests import OF_A_STEP, OF_A_TENSOR, DigestRow, all_tensors, step_digests, tensor_digest
from custom_transformer.runs.kept_states import KEEP, digest_in_name
from custom_transformer.runs.record import Progress
from custom_transformer.runs.training import Trainer

SEGMENT = 30  # a segment is one part in so many of a run's steps

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by their bytes
_KINDS = {"parameters": "the parameters", "optimizer": "the optimiser's state", "curve": "the curves"}


@dataclass(frozen=True)
class Record:
    """What is known of a run that was.

    name: of the record, for messages. rows: of its digests.csv. states: files of its states by their steps.
    """

    name: str
    rows: list[DigestRow]
    states: Mapping[int, Path] = field(default_factory=dict)


class Difference(Exception):
    """The first thing in which a run and its recomputation are not equal: lines, the first of which says what."""

    def __init__(self, *lines: str):
        super().__init__("\n  ".join(line for line in lines if line))
        self.lines = lines

    def under(self, conditions: list[str]) -> Difference:
        """The same, with what is otherwise here than where the record was made."""
        where = f"here are other conditions: {'; '.join(conditions)}" if conditions else ""
        return Difference(*self.lines, where)


class Replay:
    """Goes through the steps of `record` with `trainer`, and raises Difference at the first that is another.

    scratch: an empty folder for the state to which it may have to go back. seen: is told how many steps are done.
    """

    def __init__(self, trainer: Trainer, record: Record, scratch: Path, seen: Callable[[int], None] = lambda _: None):
        self.trainer, self.record, self.seen = trainer, record, seen
        self._rows = {int(row["step"]): row for row in record.rows}
        self._steps = step_digests(record.rows)
        self._computed = 0
        self._equal = scratch / "equal.pt"  # the state after the last step at which all was equal

    def from_start(self) -> None:
        """From the first step to the last that is recorded; to the run's end where none is. Raises Difference, and
        UserError for a record that is longer than the run."""
        last = max([*self._rows, *self.record.states], default=self.trainer.total_steps)
        if last > self.trainer.total_steps:
            raise UserError(f"{self.record.name}: has {last:,} steps, this run {self.trainer.total_steps:,}")
        self._remember()
        self._go_on(last)

    def segments(self, count: int, choose: random.Random) -> list[tuple[int, int]]:
        """`count` segments, each from the beginning or a kept state; returns their first and last steps.

        Raises Difference, also for a kept state that is not the one of the record.
        """
        total = self.trainer.total_steps
        length = -(-total // SEGMENT)
        self._remember()
        begin = self._equal.rename(self._equal.with_name("begin.pt"))
        for step, path in self.record.states.items():
            self._check_state(step, path)
        starts = {0: begin} | {step: path for step, path in self.record.states.items() if step < total}
        chosen = sorted(choose.sample(sorted(starts), min(count, len(starts))))
        for start in chosen:
            self._restore(starts[start])
            self._remember()
            self._go_on(min(start + length, total))
        return [(start, min(start + length, total)) for start in chosen]

    def _go_on(self, until: int) -> None:
        progress = self.trainer.progress
        equal, first = progress.step, None
        digits: list[str] = []  # of each step since the last at which all was equal
        if progress.step == until:
            return
        for m in self.trainer.run():
            progress = self.trainer.progress
            digits.append(progress.chain[:OF_A_STEP])
            if first is None and self._steps.get(m.step, digits[-1]) != digits[-1]:
                first = m.step
            self._computed += 1
            self.seen(self._computed)
            compared = m.step in self._rows or m.step in self.record.states
            if compared and (lines := self._compare(m.step)):
                raise Difference(*lines, *self._where(equal, first, m.step), *self._once_more(equal, digits))
            if compared:
                equal, digits = m.step, []
                self._remember()
            if m.step == until:
                break
        if first is not None:
            head = f"step {first:,}: the loss or the gradient norm is not as in {self.record.name}"
            raise Difference(head, *self._where(equal, first, m.step), *self._once_more(equal, digits))

    def _compare(self, step: int) -> list[str]:
        """What differs after `step`, in lines: none, where all is equal."""
        trainer, lines = self.trainer, []
        recorded, state = self._rows.get(step), self.record.states.get(step)
        ours = all_tensors(trainer.model.parameters, trainer.optimizer.state)
        if recorded is not None:
            here = trainer.progress.digests[-1]
            if here["step"] != step:
                return [f"step {step:,}: {self.record.name} has digests of it, the recomputation has none"]
            lines += self._row_difference(f"step {step:,}", recorded, here, [*ours])
        if state is not None:
            _check_whole(state, lambda tensors: first_difference(tensors, ours))
            theirs = read_state(state, trainer)
            found = first_difference(all_tensors(theirs["state_dict"], theirs["optimizer"]), ours)
            if found and recorded is not None and not lines:
                raise Difference(f"{state}: has been changed; the recomputation is as in {self.record.name}", found)
            if found:
                lines += [] if lines else [f"step {step:,}: the tensors are not as in {state}"]
                lines.append(found)
        return lines

    def _row_difference(self, what: str, recorded: DigestRow, here: DigestRow, names: list[str]) -> list[str]:
        """Two rows of a step compared, in lines: none, where they are equal. names: of the tensors."""
        if different := [kind for kind in _KINDS if recorded[kind] != here[kind]]:
            kinds = ", ".join(_KINDS[kind] for kind in different)
            return [f"{what}: {kinds} not as in {self.record.name}", _different_tensors(recorded, here, names)]
        return [] if recorded == here else [f"{what}: the digits of tensors or steps not as in {self.record.name}"]

    def _where(self, equal: int, first: int | None, last: int) -> list[str]:
        """In which steps a difference arose that shows after step `last`."""
        if first is None:
            lines = [f"everything is equal up to step {equal:,}"]
            if equal + 1 < last:
                lines[0] += "; no loss or gradient norm shows it"
                lines.append(f"for the step, keep the other run's states of steps {equal + 1} to {last - 1} ({KEEP})")
            return lines
        lines = [f"step {first:,} is the first whose loss or gradient norm differs; up to step {equal:,} all is equal"]
        if not {first - 1, first} & self.record.states.keys():
            steps = f"{first - 1},{first}" if first > 1 else "1"
            lines.append(f"for the tensor in which it began, keep the other run's states of step {steps} ({KEEP})")
        return lines

    def _once_more(self, equal: int, digits: list[str]) -> list[str]:
        """The same steps a second time: does this machine compute the same twice?"""
        tensors = all_tensors(self.trainer.model.parameters, self.trainer.optimizer.state)
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        self._restore(self._equal)
        for m, digit in zip(self.trainer.run(), digits, strict=False):
            if self.trainer.progress.chain[:OF_A_STEP] != digit:
                return [f"this machine, from step {equal:,} once more, computes step {m.step:,} otherwise: its memory?"]
            if m.step == equal + len(digits):
                break
        after = all_tensors(self.trainer.model.parameters, self.trainer.optimizer.state)
        if any(not same_bits(before[name], tensor) for name, tensor in after.items()):
            return [f"this machine, from step {equal:,} once more, ends with other tensors: its memory?"]
        return [f"this machine computes the same twice from step {equal:,}"]

    def _remember(self) -> None:
        with self._equal.open("wb") as file:
            write_tensors(self.trainer.state(), file)

    def _restore(self, path: Path) -> None:
        self.trainer.restore(read_state(path, self.trainer) if path != self._equal else read_tensors(path))

    def _check_state(self, step: int, path: Path) -> None:
        """Raises Difference for a kept state that is damaged or not the one that the record has of its step."""
        row = self._rows.get(step)
        _check_whole(path, lambda tensors: _named_by_digits(row, tensors))
        state = read_state(path, self.trainer)
        progress = Progress(**state["progress"])
        here = progress.digests_now(state["state_dict"], state["optimizer"])
        names = [*all_tensors(state["state_dict"], state["optimizer"])]
        # The digits of steps are those since the row before: none, right after a row.
        if row is not None and (lines := self._row_difference(str(path), row | {"steps": here["steps"]}, here, names)):
            raise Difference(*lines)
        digits = progress.chain[:OF_A_STEP]
        if progress.step != step or self._steps.get(step, digits) != digits:
            raise Difference(f"{path}: its losses and gradient norms are not those of {self.record.name}")


def read_state(path: Path, trainer: Trainer) -> dict[str, Any]:
    """The state in a file. Raises UserError for a file that holds none, or one that does not fit `trainer`."""
    state = read_tensors(path)
    try:
        Progress(**state["progress"])
        theirs = all_tensors(state["state_dict"], state["optimizer"])
        ours = all_tensors(trainer.model.parameters, trainer.optimizer.state)
        fits = {n: (t.shape, t.dtype) for n, t in theirs.items()} == {n: (t.shape, t.dtype) for n, t in ours.items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a state of a training; name a folder of states") from None
    if not fits:
        raise UserError(f"{path}: a state of another model or optimiser; name the folder of this run's states")
    return dict(state)


def _check_whole(path: Path, named: Callable[[dict[str, Tensor]], str | None]) -> None:
    """Raises Difference for a state whose bytes have changed. named: says of its tensors which one is damaged."""
    if sha256_file(path)[:16] == digest_in_name(path):
        return
    damage = ""
    with contextlib.suppress(Exception):  # whatever the library makes of a damaged file
        state = torch.load(path, map_location="cpu", weights_only=True)  # it looks at no checksum
        damage = named(all_tensors(state["state_dict"], state["optimizer"])) or ""
    raise Difference(f"{path}: damaged, since its SHA-256 is not the one in its name", damage)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def first_difference(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not the same bit for bit, and its first number on both sides; None if all are equal.

    theirs and ours have the same names, shapes and dtypes.
    """
    different = [name for name, tensor in ours.items() if not same_bits(theirs[name], tensor)]
    if not different:
        return None
    name = different[0]
    a, b = theirs[name].cpu(), ours[name].cpu()
    places = torch.nonzero(_bits(a) != _bits(b)).flatten()
    place = int(places[0])
    index = [int(i) for i in torch.unravel_index(places[0], a.shape)] if a.dim() else []
    values = f"{_shown(a.flatten()[place])} there, {_shown(b.flatten()[place])} here"
    of = f"{len(places):,} of {a.numel():,} numbers, {len(different)} of {len(ours)} tensors"
    return f"{name}{index or ''}: {values} ({of})"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(_BITS[tensor.dtype.itemsize])


def _shown(number: Tensor) -> str:
    """Enough digits to tell it from any other of its type."""
    value = number.item()
    return str(value) if isinstance(value, int) else f"{value:.{17 if number.dtype == torch.float64 else 9}g}"


def _different_tensors(theirs: DigestRow, ours: DigestRow, names: list[str]) -> str:
    """The first tensor whose digits in two rows are not the same; empty, if all are."""
    a, b = (str(row["tensors"]) for row in (theirs, ours))
    if len(a) != len(b):
        return "the runs have not the same tensors"
    places = range(0, len(a), OF_A_TENSOR)
    pairs = zip(names, (a[i : i + OF_A_TENSOR] for i in places), (b[i : i + OF_A_TENSOR] for i in places), strict=True)
    if not (different := [pair for pair in pairs if pair[1] != pair[2]]):
        return ""
    name, x, y = different[0]
    return f"{name}: digest {x}… there, {y}… here ({len(different)} of {len(names)} tensors)"


def _named_by_digits(row: DigestRow | None, tensors: Mapping[str, Tensor]) -> str:
    digits = "".join(tensor_digest(name, tensor)[:OF_A_TENSOR] for name, tensor in tensors.items())
    return _different_tensors(row, {"tensors": digits}, [*tensors]) if row else ""
