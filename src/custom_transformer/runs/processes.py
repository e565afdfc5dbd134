"""The processes that train one model together, and what they tell each other: by torch.distributed.

torchrun or a stage starts them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from custom_transformer.errors import UserError

PROCESSES = "CUSTOM_TRANSFORMER_PROCESSES"  # how many processes the stage starts for one training
STARTED_BY = "CUSTOM_TRANSFORMER_STARTED_BY"  # is set for these: that stage's process id
AGAIN = "run the same command again, which goes on from the last saved state"
PATIENCE = timedelta(minutes=10)  # a process that does not answer for so long is taken for hung
LOST = 3  # the exit status of a process that ends because another one has
ASKING = 10.0  # seconds for which a process that has failed asks whether another one did before
LAST_WORD = 1.0  # seconds for which it waits, so that the other one's exit or last word can be seen

_RANK, _READY, _FAILED = (
    "RANK",
    "ready",
    "failed",
)  # a variable of each process started by torchrun or a stage, and two names in their store


class Lost(UserError):
    """Another process has ended, or is taken for hung."""


class Processes:
    """`count` processes, of which this one is number `rank`.

    device: what they exchange tensors of

    Methods are called by all processes, in the same order. They raise Lost if another one ends.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None):
        self.rank, self.count, self._store = rank, count, store
        self.device = "cpu"

    def connect(self, device: torch.device) -> None:
        """Before all else, with the kind of device on which they train."""
        if self.count == 1:
            return
        self.device = device.type
        if device.type == "cuda":
            local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= gpus:
                raise UserError(f"process {local} of this host finds {gpus} GPUs: start at most as many processes")
            torch.cuda.set_device(local)  # which "cuda" means from here on
        with lost_others():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.count, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes, tracks and prints."""
        return self.rank == 0

    def combined(self, numbers: Tensor) -> Tensor:
        """Numbers of which each is known to one process, and is 0 in all others: the same in all.

        float64, overwritten -> float64 on the CPU. The sum over the processes is exact in any order, since all of its
        terms but one are 0.
        """
        if self.count > 1:
            with lost_others():
                dist.all_reduce(numbers)
        return numbers.cpu()

    def from_first(self, value: Any) -> Any:
        """The first process's plain value, in all."""
        if self.count == 1:
            return value
        values = [value]
        with lost_others():
            dist.broadcast_object_list(values, 0)
        return values[0]

    def tensors_from_first(self, tensors: Mapping[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        """The first process's tensors by name, one after the other, in all; the others give None."""
        if self.count == 1:
            yield from (tensors or {}).items()
            return
        for name, shape, dtype in self.from_first([(name, t.shape, t.dtype) for name, t in (tensors or {}).items()]):
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
            if tensors is not None:
                tensor.copy_(tensors[name])
            with lost_others():
                dist.broadcast(tensor, 0)
            yield name, tensor

    def of_each(self, value: Any) -> list[Any]:
        """A plain value of each process, in their order."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        with lost_others():
            dist.all_gather_object(values, value)
        return values

    def exchange(self, sent: Tensor, sent_sizes: list[int], sizes: list[int]) -> Callable[[], Tensor]:
        """The parts of `sent` go to the processes in order; returns a function that waits for what they send here.

        sent: (Σ sent_sizes,); sizes: of the parts that come from each process.
        """
        received = torch.empty(sum(sizes), dtype=sent.dtype, device=sent.device)
        with lost_others():
            work = dist.all_to_all_single(received, sent, sizes, sent_sizes, async_op=True)

        def wait() -> Tensor:
            with lost_others():
                work.wait()
            return received

        return wait

    def check_same(self, facts: dict[str, str]) -> None:
        """Raises UserError, naming one that differs, unless these facts are the same in all processes."""
        for rank, theirs in enumerate(self.of_each(facts)):
            if different := [name for name in facts if theirs.get(name) != facts[name]]:
                raise UserError(
                    f"process {rank} has another {different[0]} than process {self.rank}: all hosts need the same "
                    "parameters, data, code and versions"
                )

    def ready(self) -> None:
        """The first process says that it is; the others wait for that, which may take hours in a queue."""
        if self._store is not None and self.first:
            self._store.set(_READY, "")
        elif self._store is not None:
            with lost_others():
                self._store.wait([_READY], timedelta(days=365))

    def may_speak(self) -> bool:
        """Whether this is the first process that has failed, whose word is the one to print, as far as can be known."""
        store, answers = self._store, queue.SimpleQueue[bool]()
        if store is None:
            return True

        def ask() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone, too
                answers.put(store.add(_FAILED, 1) == 1)

        # If the store's host is silent, this call would wait as long as TCP does, a quarter of an hour.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ASKING)
        return answers.empty() or answers.get()


ALONE = Processes()


@contextlib.contextmanager
def lost_others() -> Iterator[None]:
    """Around a collective or its wait: raises Lost if another process does not take part."""
    try:
        yield
    except RuntimeError as error:
        how = f"has not answered for {PATIENCE.seconds} seconds" if "imed out" in str(error) else "has ended"
        raise Lost(f"another process of this training {how}: {AGAIN}") from error


def one_of_several() -> bool:
    """Whether torchrun or a stage has started this process, as one of those that train together."""
    return _RANK in os.environ


def started_by_stage() -> bool:
    """Whether a stage has started this process and waits for it; PROCESSES alone may be set for another command."""
    return os.environ.get(STARTED_BY) == str(os.getppid())


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes started by torchrun or a stage, of which only the first one prints; otherwise this one alone.

    Of errors in several processes one is raised; the others exit.
    """
    if not one_of_several():
        yield ALONE
        return
    try:
        with lost_others():
            store, rank, count = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    except ValueError as error:
        raise UserError(f"{_RANK} is set, but not as torchrun does ({error}): start by torchrun, or unset it") from None
    processes = Processes(rank, count, store)
    try:
        if not started_by_stage():
            signal.signal(signal.SIGTERM, _told_to_end)
        with contextlib.nullcontext() if processes.first else _silent():
            yield processes
        if dist.is_initialized():
            dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so that nothing cuts off the last word
        lost, interrupted = isinstance(error, Lost), isinstance(error, KeyboardInterrupt)
        # A stage that has started the processes knows which one ended first, and says so.
        if (lost or interrupted) and started_by_stage():
            speaks = False
        else:
            speaks = processes.first if interrupted else processes.may_speak()
        if speaks:
            raise
        if lost:
            time.sleep(LAST_WORD)
        sys.exit(130 if interrupted else LOST if lost else 1)


def _told_to_end(number: int, frame: Any) -> None:
    raise Lost(f"ended by SIGTERM, which schedulers send, and torchrun once another process has ended: {AGAIN}")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        yield
