"""Trains the configured model on data/tokens; writes checkpoints/, metrics/train.json and the training curves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from custom_transformer.config import Params
from custom_transformer.errors import UserError, run_main
from custom_transformer.fast.choose import prepare
from custom_transformer.maths.engine import Engine
from custom_transformer.paths import CHECKPOINTS, CONSTRAINTS, METRICS, TOKENIZER, TOKENS, UNFINISHED, project_root
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.assembly import build_model, build_trainer, deciding, training_flops, write_metrics
from custom_transformer.runs.dvc_parent import orphaned
from custom_transformer.runs.fingerprint import fingerprint, other_versions, tags
from custom_transformer.runs.launch import launch, wanted_processes
from custom_transformer.runs.processes import Processes, joined
from custom_transformer.runs.record import Progress, StepMetrics
from custom_transformer.runs.training import Trainer
from custom_transformer.runs.work_folder import WorkFolder
from custom_transformer.text.tokens import load_tokens
from custom_transformer.tracking import DatasetVersion, Run, training_run
from stages.cli import parameters

ORPHANED = (
    "the dvc, stage or torchrun that started this training has ended; its state is saved: run the same command again"
)


def main() -> None:
    with joined() as processes:
        params = parameters("train the configured model")
        if count := wanted_processes(params.training.grad_accumulation):
            launch("stages.train", count)
        else:
            train(params, processes)


def train(params: Params, processes: Processes) -> None:
    train, validation = load_tokens(TOKENS, "train"), load_tokens(TOKENS, "validation")
    if different := other_versions(CONSTRAINTS):
        print(f"{CONSTRAINTS}: {'; '.join(different)}: the last digits may differ", file=sys.stderr)
    device, engine = prepare(params.training, training_flops(params, train))
    processes.connect(device)
    model, begun_from = build_model(params, train.meta["tokenizer"], engine, device)
    described = fingerprint_of(params, train.meta | begun_from, engine, device)
    processes.check_same(described)
    folder = WorkFolder(project_root() / UNFINISHED, described)

    def asks(step: int) -> tuple[bool, bool]:
        return folder.kept_states.asks_for(step), orphaned()

    trainer = build_trainer(
        params, model, begun_from, train, validation, folder.checkpoints, folder.keep, processes, asks
    )
    if processes.first:
        lead(trainer, folder, params, begun_from)
    else:
        follow(trainer)


def lead(trainer: Trainer, folder: WorkFolder, params: Params, begun_from: dict[str, str]) -> None:
    """The part of the first process, which alone writes and tracks."""
    with folder:
        trainer.processes.ready()
        if others := folder.others():
            print(f"{folder.path.parent}: {others} unfinished of other parameters, data or code; rm -r discards them")
        resume(trainer, folder)
        datasets = dataset_versions(params, trainer.train.meta)
        every_tag = tags(folder.fingerprint) | begun_from
        with training_run(params, datasets=datasets, work=folder.path, tags=every_tag) as run:
            run_to_end(trainer, folder, run)
            write_outputs(trainer, folder)
            log_outputs(run, trainer)
        folder.remove()


def follow(trainer: Trainer) -> None:
    """The part of every other process, which computes."""
    trainer.processes.ready()
    if trainer.processes.from_first(None):
        trainer.restore(None)
    for m in trainer.run():
        if m.save:
            trainer.state()
        if m.stop:  # of which the first process tells
            return


def fingerprint_of(params: Params, data: dict[str, Any], engine: Engine, device: torch.device) -> dict[str, str]:
    return fingerprint(deciding(params), data, Path(__file__), engine.name, device)


def resume(trainer: Trainer, folder: WorkFolder) -> None:
    """Goes on from the folder's newest state, if there is one."""
    state = folder.load()
    if trainer.processes.from_first(state is not None):
        trainer.restore(state)
        print(f"going on after step {trainer.progress.step:,}, where an unfinished run of these parameters stopped")


def dataset_versions(params: Params, meta: dict[str, Any]) -> dict[str, DatasetVersion]:
    """The token files by their digests, for MLflow's list of what the run read."""
    return {
        split: DatasetVersion(params.data.dataset, meta["splits"][split]["sha256"], params.data.dataset)
        for split in ("train", "validation")
    }


def run_to_end(trainer: Trainer, folder: WorkFolder, run: Run) -> None:
    with ProgressBar("train", trainer.total_steps, "steps") as progress:
        then, tokens = time.monotonic(), trainer.progress.tokens
        validation_loss = ""
        for m in trainer.run():
            now = time.monotonic()
            speed = (m.tokens - tokens) / (now - then)
            then, tokens = now, m.tokens
            run.log_metrics(step_metrics(m, speed, trainer.progress), step=m.step)
            if m.result.status != "ok":
                progress.note(f"step {m.step}: {m.result.status}, no parameter changed")
            if m.spike:
                progress.note(f"step {m.step}: the loss of {m.result.loss:.4g} stands out above those before it")
            if m.validation:
                validation_loss = f"  validation {m.validation.loss:.4g}"
            progress.update(m.step, f"loss {m.result.loss:.4g}{validation_loss}  {speed:,.0f} tokens/s")
            if m.save:
                run.flush()  # before the state, so that no step is missing from the run that goes on from it
                folder.save(m.step, trainer.state())
            if m.stop:
                raise UserError(ORPHANED)
    if orphaned():
        raise UserError(ORPHANED)


def step_metrics(m: StepMetrics, speed: float, progress: Progress) -> dict[str, float]:
    metrics = m.figures() | {"tokens_per_second": speed}
    if m.spike or m.result.status != "ok" or m.last:
        metrics |= {"loss_spikes": progress.loss_spikes, "nan_steps": progress.nan_steps}
    return metrics


def write_outputs(trainer: Trainer, folder: WorkFolder) -> None:
    folder.publish(CHECKPOINTS)
    write_metrics(trainer, METRICS)


def log_outputs(run: Run, trainer: Trainer) -> None:
    run.log_checkpoints(sorted(CHECKPOINTS.glob("*.pt")))
    run.log_artifact(TOKENIZER)
    for name in (*trainer.curves(), "train.json"):
        run.log_artifact(METRICS / name, "metrics")


if __name__ == "__main__":
    run_main(main)
