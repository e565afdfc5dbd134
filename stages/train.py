"""Trains the configured model on data/tokens; writes checkpoints/, metrics/train.json and the training curves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from custom_transformer.checkpoint import DTYPES
from custom_transformer.config import CustomTransformerConfig, Params
from custom_transformer.errors import run_main
from custom_transformer.fast.engine import Engine, choose_engine
from custom_transformer.files import project_root, write_csv, write_json
from custom_transformer.model import CustomTransformer
from custom_transformer.progress import Progress
from custom_transformer.report import training_figure
from custom_transformer.resume import WorkFolder, run_key
from custom_transformer.summary import flops_per_token
from custom_transformer.tokens import load_tokens
from custom_transformer.tracking import DatasetVersion, Run, training_run
from custom_transformer.training import StepMetrics, Trainer
from stages.cli import parameters

TOKENS, CHECKPOINTS, METRICS = Path("data/tokens"), Path("checkpoints"), Path("metrics")


def main() -> None:
    params = parameters("train the configured model")
    train, validation = load_tokens(TOKENS, "train"), load_tokens(TOKENS, "validation")
    torch.use_deterministic_algorithms(True)
    engine = engine_for(params, train.meta, train.n_tokens)
    key = training_key(params, train.meta, engine)
    with WorkFolder(project_root() / "work", key) as folder:
        trainer = build_trainer(params, train, validation, folder.checkpoints, engine)
        state = folder.load()
        if state is not None:
            trainer.restore(state)
            print(f"going on after step {trainer.step:,}, where an unfinished run of these parameters stopped")
        datasets = dataset_versions(params, train.meta)
        with training_run(params, datasets=datasets, key=key, resumed=state is not None) as run:
            run_to_end(trainer, params, folder, run)
            write_outputs(trainer, folder)
            log_outputs(run, folder.path)
        folder.remove()


def training_key(params: Params, tokens: dict[str, Any], engine: Engine) -> str:
    """The name of all that decides the result of a training."""
    facts = params.model_dump(include={"seed": True, "data": {"max_length"}, "model": True, "training": True})
    return run_key(facts | {"tokens": tokens, "engine": engine.name})


def model_config(params: Params, meta: dict[str, Any]) -> CustomTransformerConfig:
    return CustomTransformerConfig(**params.model.model_dump(), vocab_size=meta["tokenizer"]["vocab_size"])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def engine_for(params: Params, meta: dict[str, Any], n_tokens: int) -> Engine:
    training, length = params.training, params.data.max_length
    step_tokens = training.batch_size * training.grad_accumulation * length
    tokens = min(n_tokens * training.num_epochs, step_tokens * (training.max_steps or sys.maxsize))
    return choose_engine(training.compile, device(), flops_per_token(model_config(params, meta), length) * tokens)


def build_trainer(params: Params, train: Any, validation: Any, checkpoints: Path, engine: Engine) -> Trainer:
    model = CustomTransformer(
        model_config(params, train.meta),
        device=device(),
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
        checkpoints=checkpoints,
    )


def dataset_versions(params: Params, meta: dict[str, Any]) -> dict[str, DatasetVersion]:
    """The token files by their digests, for MLflow's list of what the run read."""
    return {
        split: DatasetVersion(params.data.dataset, meta["splits"][split]["sha256"], params.data.dataset)
        for split in ("train", "validation")
    }


def run_to_end(trainer: Trainer, params: Params, folder: WorkFolder, run: Run) -> None:
    with Progress("train", trainer.total_steps, "steps") as progress:
        then, tokens = time.monotonic(), trainer.tokens
        validation_loss = ""
        for m in trainer.run():
            now = time.monotonic()
            speed = (m.tokens - tokens) / (now - then)
            then, tokens = now, m.tokens
            run.log_metrics(step_metrics(m, speed), step=m.step)
            if m.result.status != "ok":
                progress.note(f"step {m.step}: {m.result.status}, no parameter changed")
            if m.validation_loss is not None:
                validation_loss = f"  validation {m.validation_loss:.3f}"
            progress.update(m.step, f"loss {m.result.loss:.3f}{validation_loss}  {speed:,.0f} tokens/s")
            if m.step % params.training.save_every == 0 or m.step == trainer.total_steps:
                folder.save(m.step, trainer.state())


def step_metrics(m: StepMetrics, speed: float) -> dict[str, float]:
    metrics = {
        "train_loss": m.result.loss,
        "learning_rate": m.learning_rate,
        "grad_norm": m.result.grad_norm_before_clip,
        "epoch": float(m.epoch),
        "tokens_per_second": speed,
    }
    return metrics if m.validation_loss is None else metrics | {"validation_loss": m.validation_loss}


def write_outputs(trainer: Trainer, folder: WorkFolder) -> None:
    folder.publish(CHECKPOINTS)
    write_csv(METRICS / "training_curve.csv", trainer.curve)
    write_csv(METRICS / "validation_curve.csv", trainer.validation_curve)
    write_json(METRICS / "train.json", trainer.summary())


def log_outputs(run: Run, scratch: Path) -> None:
    for checkpoint in sorted(CHECKPOINTS.glob("*.pt")):
        run.log_checkpoint(checkpoint)
    run.log_artifact(Path("data/tokenizer"))
    for name in ("training_curve.csv", "validation_curve.csv", "train.json"):
        run.log_artifact(METRICS / name, "metrics")
    picture = scratch / "training_curve.png"
    training_figure(METRICS).savefig(picture, dpi=120)
    run.log_artifact(picture, "plots")


if __name__ == "__main__":
    run_main(main)
