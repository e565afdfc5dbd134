"""Time to a loss: python -m benchmarks.race [--text FILE] [--vocabulary bytes|bpe] (or make race).

Each contestant trains on the same windows in the same order from the same seed, by itself, one after another, and is
validated on the same tokens. What counts is the time from the start of its process to a validation loss. On a text:
the one with which nanoGPT's configuration ends as it is shipped, and the one with which it ends with a tuned learning
rate. On the primer, without --text: 0.02 bits per byte above what a model reaches that knows the primer's grammar.

The contestants called nanoGPT are this project's own writing of GPT-2 in autograd with the published settings
(config/train_shakespeare_char.py of github.com/karpathy/nanoGPT, with its README's arguments for a CPU). With other
tokens than bytes, only the optimiser's settings are those. Their tuned learning rate is the best of four. Those of
ours, modern, its momentum and its betas were chosen by hand on tinyshakespeare, with one seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.racer import Contestant, Task
from benchmarks.tasks import SIZES, task_of_primer, task_of_text
from benchmarks.variants import PAIRS, VARIANTS
from custom_transformer.config import load_params
from custom_transformer.errors import ArgumentParser, UserError, run_main
from custom_transformer.files import write_json

_NANOGPT = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "lr_decay": "cosine",
    "warmup_ratio": 0.05,
    "weight_decay": 0.1,
    "betas": [0.9, 0.99],
    "max_grad_norm": 1.0,
}
EMA_DECAY = 0.98
GRID = (1e-3, 2.5e-3, 5e-3, 1e-2)  # of tuned learning rates; the lowest loss at the end wins
_MODERN = {
    "optimizer": "muon",
    "learning_rate": 0.02,
    "muon_learning_rate": 0.015,
    "muon_momentum": 0.9,
    "min_learning_rate": 0.0,
    "lr_decay": "linear",
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "betas": [0.8, 0.95],
    "max_grad_norm": 1.0,
}
# Steps of nanoGPT, of ours and of ours for longer. On the primer, nanoGPT reaches the goal after some 7,000.
STEPS = {"bytes": (2000, 250, 500), "bpe": (800, 100, 200), "primer": (8000, 1200, 2000)}


def contestants(kind: str, tuned: float) -> list[Contestant]:
    """kind: of the task, a key of STEPS."""
    (steps, few, more), plain = STEPS[kind], {"bias": False}
    with_rate = _NANOGPT | {"learning_rate": tuned, "min_learning_rate": tuned / 10}
    modern = {"architecture": "modern", "rope_base": 1000.0, "tie_embeddings": False}
    as_shipped = [
        Contestant("nanoGPT, eager", "eager", steps, plain, _NANOGPT),
        Contestant("nanoGPT, compiled", "compiled", steps, plain, _NANOGPT),
    ]
    of_params = Contestant("ours, GPT-2, Muon", "ours", 2 * more)  # the training of params.yaml, but for muon_ keys
    return [
        *([] if kind == "primer" else as_shipped),
        Contestant("nanoGPT, compiled, tuned", "compiled", steps, plain, with_rate),
        Contestant("ours, GPT-2, tuned", "ours", steps, plain, with_rate),
        *([of_params] if kind == "primer" else []),
        Contestant("ours, modern", "ours", few, modern, _MODERN),
        Contestant("ours, modern, longer", "ours", more, modern, _MODERN),
    ]


def ablations(kind: str) -> list[Contestant]:
    """ours, modern; and the same with one part left out, replaced or added. Weights are averaged twice, also while the
    learning rate stays, since an average does the work of its decay."""
    (whole,) = (c for c in contestants(kind, GRID[0]) if c.name == "ours, modern")
    constant = {"lr_decay": "constant"}
    training: dict[str, dict[str, Any]] = {
        "AdamW in place of Muon, rate 0.005": {"optimizer": "adamw", "learning_rate": 0.005, "betas": [0.9, 0.95]},
        "AdamW in place of Muon, rate 0.01": {"optimizer": "adamw", "learning_rate": 0.01, "betas": [0.9, 0.95]},
        "rate falls along a cosine": {"lr_decay": "cosine"},
        "rate stays": constant,
        "Nesterov's momentum 0.95": {"muon_momentum": 0.95},
    }
    return [
        whole,
        *(replace(whole, name=name, training=_without_muon({**whole.training, **t})) for name, t in training.items()),
        replace(whole, name="tied head", model={**whole.model, "tie_embeddings": True}),
        replace(whole, name="weights averaged", ema_decay=EMA_DECAY),
        replace(
            whole, name="rate stays, weights averaged", ema_decay=EMA_DECAY, training={**whole.training, **constant}
        ),
        *(replace(whole, name=name, variant=name) for name in VARIANTS if name != PAIRS or kind == "bytes"),
    ]


def _without_muon(training: dict[str, Any]) -> dict[str, Any]:
    """Muon's keys are refused beside another optimiser."""
    return {k: v for k, v in training.items() if training["optimizer"] == "muon" or not k.startswith("muon_")}


@dataclass(frozen=True)
class Run:
    """One contestant's training with one seed: a row of step, seconds and loss per validation."""

    contestant: str
    seed: int
    rows: tuple[tuple[int, float, float], ...]

    @property
    def end(self) -> float:
        return self.rows[-1][2]

    def reaches(self, loss: float) -> tuple[int, float] | None:
        """The step and the seconds of the first validation that is not above `loss`."""
        return next(((step, seconds) for step, seconds, found in self.rows if found <= loss), None)


def train(contestant: Contestant, task: Task, seed: int) -> Run:
    command = [sys.executable, "-m", "benchmarks.racer", contestant.as_json(), task.as_json()]
    result = subprocess.run([*command, str(seed), str(time.time())], stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise UserError(f"the contestant {contestant.name} ended with {result.returncode}; its words are above")
    return Run(contestant.name, seed, tuple(tuple(json.loads(line)) for line in result.stdout.splitlines()))


def tuned_rate(task: Task, kind: str, console: Console) -> float:
    """The learning rate of GRID with which GPT-2 ends lowest, by our engine, whose result is autograd's."""
    ends = {}
    for rate in GRID:
        (gpt2,) = (c for c in contestants(kind, rate) if c.name == "ours, GPT-2, tuned")
        ends[rate] = train(gpt2, task, seed=0).end
    console.print(f"learning rates and the loss they end with: {', '.join(f'{r:g}: {e:.3f}' for r, e in ends.items())}")
    return min(ends, key=ends.__getitem__)


# --------------------------------------------------------------------------------------------------- the result


def targets(task: Task, runs: Sequence[Run]) -> dict[str, float]:
    """The task's goals; without any, the highest of the losses with which nanoGPT's runs end, so that each of them gets
    there, rounded up."""
    if task.goals:
        return dict(task.goals)

    def end(name: str) -> float:
        return math.ceil(1000 * max(run.end for run in runs if run.contestant == name)) / 1000

    return {
        "the loss of nanoGPT as shipped": end("nanoGPT, compiled"),
        "the loss of nanoGPT with a tuned learning rate": end("nanoGPT, compiled, tuned"),
    }


def table_rows(runs: Sequence[Run], loss: float) -> Iterator[tuple[str, str, str, str, float]]:
    """Contestant, losses at the end, steps and seconds to the loss in words; and the median seconds, inf if not all
    reach it."""
    for name in dict.fromkeys(run.contestant for run in runs):
        own = [run for run in runs if run.contestant == name]
        ends = statistics.median(run.end for run in own)
        reached = [found for run in own if (found := run.reaches(loss)) is not None]
        if len(reached) < len(own):
            yield name, f"{ends:.3f}", f"{len(reached)} of {len(own)} reach it", "", float("inf")
            continue
        steps, seconds = zip(*reached, strict=True)
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f})"
        yield name, f"{ends:.3f}", f"{statistics.median(steps):,.0f}", spread, statistics.median(seconds)


def show(runs: Sequence[Run], task: Task, console: Console) -> None:
    for target, loss in targets(task, runs).items():
        table = Table("contestant", "loss at its end", "steps", "seconds", "times the fastest")
        table.title = f"to {loss:.3f} nats per token, {target}"
        rows = sorted(table_rows(runs, loss), key=lambda row: row[-1])
        for *words, seconds in rows:
            table.add_row(*words, f"{seconds / rows[0][-1]:.1f}" if seconds < float("inf") else "")
        console.print(table)


def show_ablations(runs: Sequence[Run], console: Console) -> None:
    """The loss at the end, and by how much it is higher than the whole recipe's with the same seed."""
    table = Table("the recipe, and what is changed in it", "loss at its end", "higher by: median (lowest–highest)")
    whole = {run.seed: run.end for run in runs if run.contestant == runs[0].contestant}
    for name in dict.fromkeys(run.contestant for run in runs):
        own = [run for run in runs if run.contestant == name]
        higher = [run.end - whole[run.seed] for run in own]
        spread = f"{statistics.median(higher):+.3f} ({min(higher):+.3f}–{max(higher):+.3f})"
        end = f"{statistics.median(run.end for run in own):.3f}"
        table.add_row(name, end, "" if name == runs[0].contestant else spread)
    console.print(table)


def save_curves(runs: Sequence[Run], task: Task, path: Path) -> None:
    """Loss over seconds: a line per contestant, the median of its seeds, in the band from the lowest to the highest."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(run.contestant for run in runs):
        own = [run for run in runs if run.contestant == name]
        losses = np.array([[row[2] for row in run.rows] for run in own])
        seconds = np.median([[row[1] for row in run.rows] for run in own], 0)
        (line,) = axes.plot(
            seconds, np.median(losses, 0), label=name, linestyle="-" if name.startswith("ours") else "--"
        )
        axes.fill_between(seconds, losses.min(0), losses.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    for target, loss in targets(task, runs).items():
        axes.axhline(loss, color="black", linewidth=0.6, linestyle=":")
        axes.text(0.005, loss, target, fontsize=8, va="bottom", transform=axes.get_yaxis_transform())
    lowest = min(run.end for run in runs)
    above = min(1.2, 0.6 * lowest)  # the curves' first parts are of no interest
    axes.set(xscale="log", ylim=(lowest - above / 24, lowest + above), title=f"{task.name}, loss over time")
    axes.set(xlabel="seconds since the process began, validations left out", ylabel="validation loss, nats per token")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m benchmarks.race", description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a file of text, such as tinyshakespeare (default: the primer)")
    parser.add_argument("--vocabulary", choices=SIZES, help="what tokens of the text are (default: bytes)")
    parser.add_argument(
        "--seeds", type=int, choices=range(1, 10), default=3, help="runs of each contestant (default: %(default)s)"
    )
    parser.add_argument("--ablate", action="store_true", help="ours with one part changed, in place of the others")
    parser.add_argument("--rate", type=float, help="the tuned learning rate; by default found anew over a grid")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    return parser.parse_args()


def main() -> None:
    args, console = arguments(), Console(width=110)
    if args.rate is not None and not 0 < args.rate < 1:
        raise UserError(f"--rate: {args.rate} is no learning rate; give one between 0 and 1")
    if args.ablate and args.rate is not None:
        raise UserError("--rate: no part of --ablate, whose contestants have rates of their own; leave it out")
    if args.text is None and args.vocabulary:
        raise UserError("--vocabulary: the primer has its own; leave it out, or name a text with --text")
    if args.text is not None and not args.text.is_file():
        raise UserError(f"{args.text}: no such file; name a text with --text")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.text is None:
            kind, task = "primer", task_of_primer(load_params(), Path(folder))
        else:
            kind = args.vocabulary or "bytes"
            task = task_of_text(args.text, kind, Path(folder))
        if args.ablate:
            taking_part = ablations(kind)
        else:
            taking_part = contestants(kind, args.rate or tuned_rate(task, kind, console))
        runs: list[Run] = []
        results = args.out / ("ablations.json" if args.ablate else "race.json")
        for seed in range(args.seeds):
            for contestant in taking_part:
                runs.append(train(contestant, task, seed))
                console.print(f"seed {seed}, {contestant.name}: {runs[-1].end:.3f} in {runs[-1].rows[-1][1]:.1f} s")
                # Each time, since an error of a later run would lose hours.
                write_json(results, [{"contestant": r.contestant, "seed": r.seed, "rows": r.rows} for r in runs])
    if args.ablate:
        show_ablations(runs, console)
    else:
        show(runs, task, console)
        save_curves(runs, task, args.out / "race.png")
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    run_main(main)
