"""One update by several processes of one thread, by one of as many threads, and by one of one thread:
python -m benchmarks.together

An update is of as many shards as there are processes, each of the workload's batch. The three take turns, each time in
new processes. `waited` is the part of a step in which a process does nothing but exchange: what the backward did not
hide. With --timeline FILE.png the last step of the several processes becomes a picture instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timeline import Recorder, Span, save_timeline
from benchmarks.workloads import Workload
from custom_transformer import CustomTransformer
from custom_transformer.errors import ArgumentParser, run_main
from custom_transformer.fast.choose import NATIVE
from custom_transformer.fast.memory import keep_freed_memory
from custom_transformer.maths.optim import AdamW, Optimizer
from custom_transformer.runs import processes
from custom_transformer.runs.distributed import Shares
from custom_transformer.runs.processes import Processes, joined, one_of_several
from custom_transformer.runs.step import shared_step

WARM_UP, WORKLOADS = 2, ("10m", "small-50k")


def training(
    workload: Workload, shards: int, together: Processes
) -> tuple[CustomTransformer, Optimizer, Shares, Callable[[], None]]:
    """What a step uses, and the step."""
    keep_freed_memory()
    model = CustomTransformer(workload.config, dtype=getattr(torch, workload.precision), engine=NATIVE)
    model.training = True
    shares = Shares(together, model.parameters, shards)
    optimizer = AdamW(shares.own(model.parameters), (0.9, 0.999), {}, rule=NATIVE.rules.adamw)
    batches = [workload.batch()] * len(shares.shards(shards))

    def step() -> None:
        shared_step(model, optimizer, batches, [workload.tokens] * shards, 1e-4, 1.0, shares)

    return model, optimizer, shares, step


def recorded(workload: Workload, shards: int, steps: int, together: Processes) -> list[Span]:
    """What this process did in the last of its steps."""
    model, optimizer, shares, step = training(workload, shards, together)
    recorder = Recorder(model, optimizer, shares)
    for _ in range(WARM_UP + steps):
        step()
        spans = recorder.taken()
    return spans


def measured(workload: Workload, shards: int, steps: int, together: Processes) -> dict[str, float]:
    """Of one process: medians of a step's seconds, in all and waiting for others, its CPU seconds, and its memory."""
    waited = [0.0]
    plain = processes.lost_others

    @contextlib.contextmanager
    def timed() -> Iterator[None]:
        begin = time.perf_counter()
        with plain():
            yield
        waited[-1] += time.perf_counter() - begin

    processes.lost_others = timed
    *_, step = training(workload, shards, together)
    seconds, busy = [], []
    for _ in range(WARM_UP + steps):
        waited.append(0.0)
        begin, cpu = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - begin)
        busy.append(time.process_time() - cpu)
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "waited": statistics.median(waited[-steps:]),
        "cpu": statistics.median(busy[WARM_UP:]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def run(arguments: argparse.Namespace, count: int, threads: int) -> list[Any]:
    """What each of `count` processes has measured or recorded."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    own = ["-m", "benchmarks.together", *sys.argv[1:], "--shards", str(arguments.processes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*torchrun, *own], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.together", description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, default=WORKLOADS[0])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeline", type=Path, metavar="FILE.png")
    parser.add_argument("--shards", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    workload = Workload(arguments.workload, arguments.precision, "adamw", tied=True)
    if one_of_several():
        with joined() as together:
            together.connect(torch.device("cpu"))
            watched = recorded if arguments.timeline else measured
            found = together.of_each(watched(workload, arguments.shards, arguments.steps, together))
            print(json.dumps(found), flush=True)
        return
    count = arguments.processes
    title = f"{workload.title}, {count} shards of {workload.tokens:,} tokens"
    if arguments.timeline:
        of_each = [[Span(*span) for span in spans] for spans in run(arguments, count, 1)]
        save_timeline(of_each, f"One step: {title}", arguments.timeline)
        return
    kinds: dict[tuple[int, int], list[list[dict[str, float]]]] = {(1, 1): [], (1, count): [], (count, 1): []}
    for _ in range(arguments.rounds):
        for kind, rounds in kinds.items():
            rounds.append(run(arguments, *kind))
    columns = "processes × threads", "ms per step", "of that waited", "CPU ms, all", "MB per process", "MB sent by each"
    table = Table(*columns, title=title)
    numbers = CustomTransformer(workload.config).count_parameters()
    for (of, threads), rounds in kinds.items():
        sent = 2 * 4 * numbers * (of - 1) / of
        row = (
            _median(rounds, lambda each: max(one["seconds"] for one in each)) * 1e3,
            _median(rounds, lambda each: max(one["waited"] for one in each)) * 1e3,
            _median(rounds, lambda each: sum(one["cpu"] for one in each)) * 1e3,
            _median(rounds, lambda each: max(one["memory"] for one in each)) / 1e6,
            sent / 1e6,
        )
        table.add_row(f"{of} × {threads}", *(f"{value:,.0f}" for value in row))
    Console().print(table)


def _median(rounds: list[list[dict[str, float]]], of_round: Any) -> float:
    return statistics.median(map(of_round, rounds))


if __name__ == "__main__":
    run_main(main)
