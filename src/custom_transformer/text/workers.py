"""Tasks shared out to processes of this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from custom_transformer.errors import UserError, shown

WORKERS = "CUSTOM_TRANSFORMER_WORKERS"  # how many processes
PARENT_CHECKED_EVERY = 0.5  # seconds
FEEDER_PATIENCE = 5.0  # seconds

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def shared_out(run: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[_Result]:
    """`run` of each task, in the order in which they end, computed by as many processes as WORKERS says.

    By default there is one per processor. But if there are not more tasks than that, this process computes them, with
    as many threads as there are processors. Raises the error of the first task that fails, and UserError if a process
    is killed; then the others have been ended.
    """
    from joblib import cpu_count
    from joblib.externals.loky import as_completed, get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    count = min(_wanted() or (cpu_count() if len(tasks) > cpu_count() else 1), len(tasks))
    if count <= 1:
        yield from map(run, tasks)
        return
    pool, threads = get_reusable_executor(count), max(1, cpu_count() // count)
    try:
        for future in as_completed([pool.submit(_run, run, task, threads, os.getpid()) for task in tasks]):
            yield future.result()
    except TerminatedWorkerError:
        raise UserError(
            "a process that encoded text was killed, perhaps because memory ran out: run the same command again, "
            f"which keeps what is done, perhaps with {WORKERS} below {count}"
        ) from None
    finally:
        pool.shutdown(kill_workers=True)  # they would wait for more
        _join_feeders()


def _join_feeders() -> None:
    """joblib does not join the thread that feeds its queue. If the interpreter exits while that thread still holds the
    queue's semaphores, joblib warns of leaked semaphores. A thread that waits for room in the queue never ends."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(FEEDER_PATIENCE)


def _wanted() -> int:
    asked = os.environ.get(WORKERS, "")
    if not asked:
        return 0
    if not asked.isdecimal() or not 0 < int(asked) < 2**10:
        raise UserError(f"{WORKERS}: {shown(asked)} is not a number of processes; give one from 1 to 1023")
    return int(asked)


def _run(run: Callable[[_Task], _Result], task: _Task, threads: int, parent: int) -> _Result:
    _end_with(parent)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of the tokenizer
    return run(task)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started it is gone: joblib's processes would wait for more tasks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECKED_EVERY)
        os._exit(1)

    name = "watch-parent"
    if all(thread.name != name for thread in threading.enumerate()):
        threading.Thread(target=watch, name=name, daemon=True).start()
