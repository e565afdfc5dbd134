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
from custom_transformer.files import write_csv, write_json
from custom_transformer.maths.architecture import flops_per_token
from custom_transformer.maths.engine import Engine
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.paths import CHECKPOINTS, METRICS, TOKENIZER, TOKENS, UNFINISHED, project_root
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.checkpoint import DTYPES
from custom_transformer.runs.dvc_parent import orphaned
from custom_transformer.runs.fingerprint import fingerprint, tags
from custom_transformer.runs.record import Progress, StepMetrics
from custom_transformer.runs.training import Trainer
from custom_transformer.runs.work_folder import WorkFolder
from custom_transformer.text.tokens import TokenSplit, load_tokens
from custom_transformer.tracking import DatasetVersion, Run, training_run
from stages.cli import parameters


def main() -> None:
    params = parameters("train the configured model")
    train, validation = load_tokens(TOKENS, "train"), load_tokens(TOKENS, "validation")
    device, engine = prepare(params.training, flops(params, train))
    described = fingerprint_of(params, train.meta, engine, device)
    with WorkFolder(project_root() / UNFINISHED, described) as folder:
        trainer = build_trainer(params, train, validation, folder, engine, device)
        if others := folder.others():
            print(f"{folder.path.parent}: {others} unfinished of other parameters, data or code; rm -r discards them")
        if (state := folder.load()) is not None:
            trainer.restore(state)
            print(f"going on after step {trainer.progress.step:,}, where an unfinished run of these parameters stopped")
        datasets = dataset_versions(params, train.meta)
        with training_run(params, datasets=datasets, work=folder.path, tags=tags(folder.fingerprint)) as run:
            run_to_end(trainer, params, folder, run)
            write_outputs(trainer, folder)
            log_outputs(run, trainer)
        folder.remove()


def fingerprint_of(params: Params, tokens: dict[str, Any], engine: Engine, device: torch.device) -> dict[str, str]:
    deciding = params.model_dump(include={"seed": True, "data": {"max_length"}, "model": True, "training": True})
    return fingerprint(deciding, tokens, Path(__file__), engine.name, device)


def flops(params: Params, train: TokenSplit) -> float:
    """Floating-point operations of the whole training."""
    training, length = params.training, params.data.max_length
    step_tokens = training.batch_size * training.grad_accumulation * length
    tokens = min(train.n_tokens * training.num_epochs, step_tokens * (training.max_steps or sys.maxsize))
    return flops_per_token(params.model.with_vocabulary(train.meta["tokenizer"]["vocab_size"]), length) * tokens


def build_trainer(
    params: Params, train: TokenSplit, validation: TokenSplit, folder: WorkFolder, engine: Engine, device: torch.device
) -> Trainer:
    model = CustomTransformer(
        params.model.with_vocabulary(train.meta["tokenizer"]["vocab_size"]),
        device=device,
        dtype=DTYPES[params.training.precision],
        seed=params.seed,
        engine=engine,
    )
    return Trainer(
        model,
        params.training,
        train,
        validation,
        max_length=params.data.max_length,
        seed=params.seed,
        checkpoints=folder.checkpoints,
        keep_state=folder.keep,
    )


def dataset_versions(params: Params, meta: dict[str, Any]) -> dict[str, DatasetVersion]:
    """The token files by their digests, for MLflow's list of what the run read."""
    return {
        split: DatasetVersion(params.data.dataset, meta["splits"][split]["sha256"], params.data.dataset)
        for split in ("train", "validation")
    }


def run_to_end(trainer: Trainer, params: Params, folder: WorkFolder, run: Run) -> None:
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
            abandoned = orphaned()
            if m.step % params.training.save_every == 0 or m.last or abandoned:
                run.flush()  # before the state, so that no step is missing from the run that goes on from it
                folder.save(m.step, trainer.state())
            if abandoned:
                break
    if orphaned():
        raise UserError("the dvc that started this training has ended; its state is saved: run dvc repro again")


def step_metrics(m: StepMetrics, speed: float, progress: Progress) -> dict[str, float]:
    metrics = m.figures() | {"tokens_per_second": speed}
    if m.spike or m.result.status != "ok" or m.last:
        metrics |= {"loss_spikes": progress.loss_spikes, "nan_steps": progress.nan_steps}
    return metrics


def write_outputs(trainer: Trainer, folder: WorkFolder) -> None:
    folder.publish(CHECKPOINTS)
    for name, rows in trainer.curves().items():
        write_csv(METRICS / name, rows)
    write_json(METRICS / "train.json", trainer.summary())


def log_outputs(run: Run, trainer: Trainer) -> None:
    run.log_checkpoints(sorted(CHECKPOINTS.glob("*.pt")))
    run.log_artifact(TOKENIZER)
    for name in (*trainer.curves(), "train.json"):
        run.log_artifact(METRICS / name, "metrics")


if __name__ == "__main__":
    run_main(main)
