"""DVC's queue of experiments, by its command line: what a study asks of it.

Other people's experiments may stand in the same queue. They are neither stopped nor removed; the workers are shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from custom_transformer.errors import UserError
from stages.dvc import run_dvc

SECONDS_BETWEEN = 20  # looks at the queue
_SECONDS_OF_DOUBT = 5  # between the looks that tell the dead from the busy
_LOOKS = 3


@dataclass(frozen=True)
class Status:
    """states: Queued, Running, Success or Failed, by experiment; active: the workers that have one in hand."""

    states: dict[str, str]
    active: int

    def those(self, state: str, names: Collection[str]) -> list[str]:
        return sorted(name for name in names if self.states.get(name) == state)


def settings(changes: Mapping[str, Any]) -> list[str]:
    """`changes` as dvc's options: text in quotes, all else as YAML has it."""
    return [part for key, value in changes.items() for part in ("-S", f"{key}={json.dumps(value)}")]


def experiments() -> set[str]:
    """The names of the finished experiments that begin at the present commit."""
    return set(run_dvc("exp", "list", "--name-only").stdout.split())


def queue_status() -> Status:
    said = run_dvc("queue", "status").stdout
    rows = [line.split() for line in said.splitlines()]
    states = {row[1]: row[-1] for row in rows if row and row[-1] in ("Queued", "Running", "Success", "Failed")}
    workers = re.search(r"^Worker status: (\d+) active", said, re.MULTILINE)
    if workers is None:
        raise UserError("dvc queue status: tells nothing of workers; install the DVC that constraints.txt names")
    return Status(states, int(workers[1]))


def enqueue(wanted: Mapping[str, Mapping[str, Any]], target: str) -> None:
    """Queues an experiment for each name and its changes to params.yaml, unless it waits or runs already.

    Whatever else goes by the name, failed or finished, is removed.
    """
    kill_dead(wanted)
    status, made = queue_status(), experiments()
    for name, changes in wanted.items():
        state = status.states.get(name)
        if state in ("Queued", "Running"):
            continue
        if state is not None:
            run_dvc("queue", "remove", name)
        if name in made:
            run_dvc("exp", "remove", name)
        run_dvc("exp", "run", "--queue", "--name", name, *settings(changes), target)
        print(f"queued {name}", flush=True)


def kill_dead(names: Collection[str]) -> None:
    """Makes failures of those of `names` that DVC calls running though their worker is no more.

    After a power cut they would be Running for good. A worker may also be between two experiments, or too busy to
    answer, so it takes several looks in which no worker is active. While others' workers are, nobody can tell.
    """
    dead = set(names)
    for look in range(_LOOKS):
        if look:
            time.sleep(_SECONDS_OF_DOUBT)
        status = queue_status()
        dead &= set(status.those("Running", names))
        if status.active or not dead:
            return
    _kill(dead)


def _kill(names: Collection[str]) -> None:
    with contextlib.suppress(UserError):  # of one that has ended meanwhile, after the others are killed
        run_dvc("queue", "kill", *sorted(names))


def start_workers(jobs: int) -> None:
    """Workers that share the processors and outlive this process. A pipe would stay open for as long as they live."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    run_dvc("queue", "start", "-j", str(jobs), output=subprocess.DEVNULL, **environment)


def wait_for(names: Collection[str], jobs: int) -> None:
    """Returns when all have succeeded; raises UserError when all have ended and some have failed."""
    said = ""
    while True:
        time.sleep(SECONDS_BETWEEN)  # first of all, since workers need a moment to begin
        status = queue_status()
        counts = Counter(state for name, state in status.states.items() if name in names)
        if (now := ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()))) != said:
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)
            said = now
        if not counts["Queued"] + counts["Running"]:
            break
        if not status.active:
            kill_dead(names)
            if counts["Queued"]:  # on a busy machine DVC's workers take each other for idle, and end
                start_workers(jobs)
    if failed := sorted(name for name in names if status.states.get(name) != "Success"):
        raise UserError(f"{len(failed)} experiments failed; dvc queue logs {failed[0]} says why; then run this again")


def stop(names: Collection[str]) -> None:
    """Takes those of `names` that wait out of the queue, and kills those that run."""
    for _ in range(2):  # where a worker takes one between the look and the removal, none is removed
        if queued := queue_status().those("Queued", names):
            with contextlib.suppress(UserError):
                run_dvc("queue", "remove", *queued)
    if running := queue_status().those("Running", names):
        _kill(running)
