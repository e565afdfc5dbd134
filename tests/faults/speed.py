"""python -m tests.faults.speed: the default model's training speed beside a tracking server in every state.

In each round the same training goes on for some seconds with each store in turn: none, the SQLite file, a server that
is well, down, frozen, slow (2 s an answer), refusing (500). Printed are medians over the rounds, of a step's time in
times the untracked one's, and of how long the run then took to end.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from custom_transformer.config import TrainingParams, load_params
from custom_transformer.fast.choose import prepare
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.record import StepMetrics
from custom_transformer.runs.training import Trainer
from custom_transformer.text.tokens import TokenSplit
from custom_transformer.tracking import training_run
from custom_transformer.tracking.spool import spool_root
from stages.train import flops, step_metrics
from tests.servers import MlflowServer, Way, free_port

ROUNDS, SECONDS = 5, 8.0


def main() -> None:
    params = load_params()
    meta = {"tokenizer": {"sha256": "0", "vocab_size": params.data.vocab_size}}
    tokens = np.random.default_rng(0).integers(params.data.vocab_size, size=2_000_000, dtype="<u2")
    split = TokenSplit(tokens, meta)
    endless = TrainingParams.model_validate(params.training.model_dump() | {"num_epochs": 1000, "eval_every": 10**9})
    device, engine = prepare(params.training, flops(params, split))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DVC_ROOT"] = name  # the spools and the store lie there
        model = CustomTransformer(
            params.model.with_vocabulary(params.data.vocab_size), device=device, seed=0, engine=engine
        )
        trainer = Trainer(
            model, endless, split, split,
            max_length=params.data.max_length, seed=0, checkpoints=folder, keep_state=lambda *_: folder,
        )  # fmt: skip
        measure(trainer.run(), trainer, folder, params)


def measure(steps: Iterator[StepMetrics], trainer: Trainer, folder: Path, params: Any) -> None:
    server = MlflowServer(folder / "server")
    slow, refusing = Way(server), Way(server)
    slow.delay, refusing.refusal = 2.0, 500
    stores = {
        "none": None,
        "SQLite": f"sqlite:///{folder}/mlflow.db",
        "server, well": server.uri,
        "server, down": f"http://127.0.0.1:{free_port()}",
        "server, slow": slow.uri,
        "server, refusing": refusing.uri,
        "server, frozen": server.uri,
    }
    times, endings = defaultdict(list), defaultdict(list)
    for _ in range(20):  # warm
        next(steps)
    try:
        for i in range(ROUNDS):
            for name, uri in stores.items():
                if name == "server, frozen":
                    server.freeze()
                seconds, ending = trained(steps, trainer, params, uri, folder / f"work/train/{i}-{name}")
                times[name].append(seconds)
                endings[name].append(ending)
                if name == "server, frozen":
                    server.thaw()
                    time.sleep(10)  # in which it comes to itself, at the cost of a core
    finally:
        server.kill()
    table = Table("store", "a step", "its end, s")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["none"], strict=True))
        table.add_row(name, f"{ratio:.3f}", f"{statistics.median(endings[name]):.1f}")
    Console().print(table)
    print(f"untracked: {1000 * statistics.median(times['none']):.1f} ms a step; {ROUNDS} rounds of {SECONDS:.0f} s")


def trained(
    steps: Iterator[StepMetrics], trainer: Trainer, params: Any, uri: str | None, work: Path
) -> tuple[float, float]:
    """Seconds a step, and seconds from the last step to the end of the run."""

    def train(log: Any) -> tuple[float, float]:
        started, count = time.monotonic(), 0
        while time.monotonic() - started < SECONDS:
            log(next(steps))
            count += 1
        ended = time.monotonic()
        return (ended - started) / count, ended

    if uri is None:
        return train(lambda m: step_metrics(m, 1.0, trainer.progress))[0], 0.0
    work.mkdir(parents=True)
    shutil.rmtree(spool_root(), ignore_errors=True)  # what the last round could not deliver
    tracked = params.model_copy(update={"tracking": params.tracking.model_copy(update={"uri": uri})})
    with training_run(tracked, datasets={}, work=work, tags={}) as run:
        seconds, ended = train(lambda m: run.log_metrics(step_metrics(m, 1.0, trainer.progress), m.step))
    return seconds, time.monotonic() - ended


if __name__ == "__main__":
    main()
