"""python -m tests.faults.soak [--kills 200] [--seed 0] [--together]: random kills over the pipeline's training,
survived / total.

A campaign begins with nothing trained and runs `dvc repro` until it ends by itself; until then each attempt is killed
after a random time: the trainer, dvc, or both, the last at times with the newest saved state cut short or spoilt, as a
power cut may leave it. The kills of a campaign are survived if checkpoints, metrics and dvc.lock are then those of an
undisturbed run, byte for byte, and every training in MLflow is finished, the last with each step once.

With --together each attempt is of one, two or four processes, by chance, and the kill may be of one of them alone. The
undisturbed run is of one process.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from custom_transformer.runs.processes import PROCESSES
from tests.faults.killing import TRAINING, Pipeline, kill

KILLS_A_CAMPAIGN = 10  # at most
SHARDS = {"batch_size": 2, "grad_accumulation": 4}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    random.seed(arguments.seed)  # which of several processes is killed
    with tempfile.TemporaryDirectory() as folder:
        training = TRAINING | (SHARDS if arguments.together else {})
        pipeline = Pipeline(Path(folder) / "repository", target="generate", steps=400, training=training)
        total = survived = campaigns = 0
        kinds: Counter[str] = Counter()
        while total < arguments.kills:
            kills = campaign(pipeline, min(KILLS_A_CAMPAIGN, arguments.kills - total), chance, arguments.together)
            kinds.update(re.sub(r" at [0-9.]+ s", "", kill) for kill in kills)
            campaigns += 1
            total += len(kills)
            wrong = pipeline.differences() + tracking_faults(pipeline)
            survived += 0 if wrong else len(kills)
            print(f"campaign {campaigns}: {', '.join(kills)}: {wrong or 'survived'}; {survived} / {total}", flush=True)
            if wrong:
                print(pipeline.log())
                sys.exit(1)
    print(f"{dict(kinds)}\n{survived} / {total} kills survived")
    sys.exit(survived != total)


def campaign(pipeline: Pipeline, most: int, chance: random.Random, together: bool) -> list[str]:
    """Trains once, killed at most `most` times; returns what each kill was."""
    pipeline.start_over()
    (pipeline.folder / "log").unlink(missing_ok=True)
    kills: list[str] = []
    while len(kills) < most:
        started = time.monotonic()
        pipeline.environment["SHELL"] = chance.choice(["/bin/sh", "/bin/bash"])
        count = chance.choice((1, 2, 4)) if together else 1
        pipeline.environment[PROCESSES] = str(count)
        process = pipeline.start()
        try:
            # Mostly while it trains, at times in any later stage.
            seconds = chance.uniform(0.5, 9.0) if chance.random() < 0.9 else chance.uniform(9.0, 30.0)
            process.wait(seconds * (1 + count) / 2)  # several take longer to start
        except subprocess.TimeoutExpired:
            kills.append(f"{count} × " * together + strike(pipeline, process, chance, together))
            kills[-1] += f" at {time.monotonic() - started:.1f} s"
        else:
            if process.returncode == 0 and kills:
                return kills
            if process.returncode != 0:
                recover(pipeline, kills, process.returncode)
            else:
                pipeline.start_over()  # it was over before its first kill
    while status := pipeline.start().wait(300):
        recover(pipeline, kills, status)
    return kills


def recover(pipeline: Pipeline, kills: list[str], status: int) -> None:
    """What README says to do where a kill has cut off one of DVC's own files; nothing else may have failed."""
    done = subprocess.run(
        [sys.executable, "-m", "stages.recover"],
        cwd=pipeline.folder, env=pipeline.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cut off while dvc wrote it" in done.stdout, f"dvc ended with {status}\n{pipeline.log()}"
    kills[-1] += ", which cut off a file of DVC's"


def strike(pipeline: Pipeline, process: subprocess.Popen[str], chance: random.Random, together: bool) -> str:
    victim = chance.choice(("trainer", "dvc", "both", "one", "one")[: 5 if together else 3])
    kill(process, victim)
    states = pipeline.states()
    if victim != "both" or not states or chance.random() < 0.5:
        return victim
    content = bytearray(states[-1].read_bytes())
    if chance.random() < 0.5:
        states[-1].write_bytes(content[: chance.randrange(len(content))])
        return "both, state cut short"
    content[chance.randrange(len(content))] ^= 0xFF
    states[-1].write_bytes(content)
    return "both, state spoilt"


def tracking_faults(pipeline: Pipeline) -> list[str]:
    """What is wrong with the newest training in MLflow, and with those before it."""
    client = MlflowClient(f"sqlite:///{pipeline.folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.stage = 'train'", order_by=["attributes.start_time DESC"])
    steps = sorted(metric.step for metric in client.get_metric_history(runs[0].info.run_id, "train_loss"))
    faults = [f"a training is {run.info.status} in MLflow" for run in runs if run.info.status != "FINISHED"]
    if steps != list(range(1, pipeline.steps + 1)):
        faults.append(f"MLflow has {len(steps)} points, {len(set(steps))} distinct, of {pipeline.steps} steps")
    return faults


if __name__ == "__main__":
    main()
