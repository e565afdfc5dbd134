"""The training step side by side: python -m benchmarks [--workloads ...] [--precisions ...] (or make bench).

Each contestant is a separate process. They take their steps in turn, so that other load on the machine affects all
alike. The result is the ratio of the medians. If memory does not hold all contestants at once, they run in groups,
each with ours again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import ABLATIONS
from benchmarks.peers import ARCHITECTURES, FUSED_PEERS, PEERS
from benchmarks.plot import save_plot
from benchmarks.workloads import DEFAULT, SIZES, Workload
from custom_transformer.errors import ArgumentParser, run_main
from custom_transformer.files import write_json
from custom_transformer.runs.summary import memory_bytes

WARM_UP = 3
OURS = ("ours, fast", False)
FLOOR = ("floor", True)
OTHERS_OF_OURS = [("ours, not portable", False), ("ours, no compiler", False), ("ours, eager", False)]
WITH_AUTOGRAD = [*((name, tuned) for name in PEERS for tuned in (False, True)), *((name, True) for name in FUSED_PEERS)]


@dataclass(frozen=True)
class Result:
    """seconds: the median step time; against: that of ours, fast in the same group; peak: bytes of resident memory."""

    workload: str
    name: str
    tuned: bool
    seconds: float
    against: float
    peak: int


class Contestant:
    """A worker process."""

    def __init__(self, name: str, tuned: bool, workload: Workload):
        self.name, self.tuned = name, tuned
        self.seconds: list[float] = []
        command = [sys.executable, "-m", "benchmarks.worker", name, workload.as_json(), json.dumps(tuned)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> object:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the contestant {self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, request: str) -> object:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{request}\n")
        self.process.stdin.flush()
        return self.answer()

    def step(self) -> None:
        seconds, _loss = cast(list[float], self.ask("step"))
        self.seconds.append(seconds)


def compare(workload: Workload, contestants: Sequence[tuple[str, bool]], steps: int) -> list[Result]:
    """All of `contestants`, including ours, run at once and take turns."""
    running: list[Contestant] = []
    ours_first = float("nan")  # ours comes first
    try:
        for name, tuned in contestants:
            contestant = Contestant(name, tuned, workload)
            running.append(contestant)
            losses = [cast(list[float], contestant.ask("step"))[1] for _ in range(WARM_UP)]
            ours_first = losses[0] if (name, tuned) == OURS else ours_first
            if (name, tuned) != FLOOR and abs(losses[0] - ours_first) > 1e-2:
                raise SystemExit(f"error: {name} starts with a loss of {losses[0]}, ours with {ours_first}")
            contestant.ask("reset")
        for _ in range(steps):
            for contestant in running:
                contestant.step()
        peaks = [int(c.ask("peak")) for c in running]  # type: ignore[call-overload]
    finally:
        for contestant in running:
            contestant.process.kill()
            contestant.process.wait()
    medians = [statistics.median(c.seconds) for c in running]
    ours = next(m for c, m in zip(running, medians, strict=True) if (c.name, c.tuned) == OURS)
    return [
        Result(workload.title, c.name, c.tuned, median, ours, peak)
        for c, median, peak in zip(running, medians, peaks, strict=True)
    ]


def contestants_of(workload: Workload, ablate: bool) -> list[tuple[str, bool]]:
    """Who takes part: the peers where they have the architecture and the optimiser; with Muon, AdamW in its place."""
    if ablate:
        return [OURS, FLOOR, *((name, False) for name in ABLATIONS)]
    if workload.optimizer == "muon":
        return [OURS, FLOOR, ("ours, AdamW", False), *OTHERS_OF_OURS]
    return [OURS, FLOOR, *(WITH_AUTOGRAD if workload.config.architecture in ARCHITECTURES else []), *OTHERS_OF_OURS]


def groups(workload: Workload, contestants: Sequence[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """`contestants` in groups whose processes fit into memory together, ours in each."""
    dtype = getattr(torch, workload.precision)
    config, batch = workload.config, workload.batch_size
    model = sum(memory_bytes(config, batch, config.max_seq_len, dtype, workload.optimizer).values())
    each = 1.5e9 + model + 12 * workload.tokens * config.vocab_size  # PyTorch itself, the model, an autograd's logits
    size = max(2, int(psutil.virtual_memory().available / each))
    others = [c for c in contestants if c != OURS]
    return [[OURS, *others[i : i + size - 1]] for i in range(0, len(others), size - 1)]


def show(workload: Workload, results: Sequence[Result], console: Console) -> None:
    ours = [r for r in results if (r.name, r.tuned) == OURS]
    seconds = statistics.median(r.seconds for r in ours)
    floor = next((r.seconds / r.against for r in results if r.name == "floor"), None)
    table = Table(
        "contestant", "settings", "ms per step", "times ours", "of the floor", "peak MB", title=workload.title
    )
    rows = [ours[0], *(r for r in results if (r.name, r.tuned) != OURS)]
    for r in sorted(rows, key=lambda r: r.seconds / r.against):
        ratio = r.seconds / r.against
        table.add_row(
            r.name,
            "tuned" if r.tuned else "default",
            f"{1e3 * seconds * ratio:,.0f}",
            f"{ratio:.2f}",
            "" if floor is None else f"{floor / ratio:.0%}",
            f"{r.peak / 1e6:,.0f}",
        )
    console.print(table)


def arguments() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=SIZES, default=DEFAULT)
    parser.add_argument("--precisions", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--optimizers", nargs="+", choices=["sgd", "adamw", "muon"], default=["adamw"])
    parser.add_argument("--untied", action="store_true", help="a head of its own in place of the token table")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--ablate", action="store_true", help="ours with one technique left out, in place of the peers")
    names = [name for name, _ in [*WITH_AUTOGRAD, *OTHERS_OF_OURS]]
    who.add_argument("--beside", nargs="+", choices=dict.fromkeys(names), help="only these, ours and the floor")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each contestant (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of results.json and .png")
    return parser.parse_args()


def main() -> None:
    args, console = arguments(), Console(width=110)
    console.print(f"{os.cpu_count()} processors, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if "bfloat16" in args.precisions and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        console.print("bfloat16 left out: this processor has no instructions for its products")
        args.precisions = [p for p in args.precisions if p != "bfloat16"]
        if not args.precisions:
            raise SystemExit("error: nothing to compare; add --precisions float32")
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in args.workloads:
        for precision in args.precisions:
            for optimizer in args.optimizers:
                workload = Workload(name, precision, optimizer, tied=not args.untied)
                contestants = contestants_of(workload, args.ablate)
                if args.beside:
                    contestants = [c for c in contestants if c in (OURS, FLOOR) or c[0] in args.beside]
                found = [r for group in groups(workload, contestants) for r in compare(workload, group, args.steps)]
                show(workload, found, console)
                results += found
                write_json(args.out / "results.json", [asdict(r) for r in results])
    save_plot(results, args.out / "results.png")
    console.print(f"written: {args.out}/results.json, {args.out}/results.png")


if __name__ == "__main__":
    run_main(main)
