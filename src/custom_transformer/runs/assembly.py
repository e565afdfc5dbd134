"""A training put together from its parameters and its data, and its results as files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from custom_transformer.config import Params
from custom_transformer.files import sha256_file, write_csv, write_json
from custom_transformer.maths.architecture import flops_per_token
from custom_transformer.maths.engine import Engine
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.paths import initial_checkpoint
from custom_transformer.runs.checkpoint import DTYPES
from custom_transformer.runs.initial import load_initial
from custom_transformer.runs.processes import ALONE, Processes
from custom_transformer.runs.training import Asks, Trainer, nothing
from custom_transformer.text.tokens import TokenSplit


def deciding(params: Params) -> dict[str, Any]:
    """The parameters that decide a training's result, as plain values."""
    return params.model_dump(include={"seed": True, "data": {"max_length"}, "model": True, "training": True})


def training_flops(params: Params, train: TokenSplit) -> float:
    """Floating-point operations of the whole training."""
    training, length = params.training, params.data.max_length
    step_tokens = training.batch_size * training.grad_accumulation * length
    tokens = min(train.n_tokens * training.num_epochs, step_tokens * (training.max_steps or sys.maxsize))
    return flops_per_token(params.model.with_vocabulary(train.meta["tokenizer"]["vocab_size"]), length) * tokens


def build_model(
    params: Params, tokenizer: dict[str, Any], engine: Engine, device: torch.device
) -> tuple[CustomTransformer, dict[str, str]]:
    """The model as it begins, and what it begins from: the digest of training.init_from's file, if that names one."""
    training, initial, begun_from = params.training, None, {}
    vocab_size = tokenizer["vocab_size"]
    if training.init_from is not None:
        path = initial_checkpoint(training.init_from)
        initial = load_initial(path, params.model, tokenizer)
        begun_from["init_from"] = sha256_file(path)
        vocab_size = initial.config.vocab_size
    model = CustomTransformer(
        params.model.with_vocabulary(vocab_size),
        device=device,
        dtype=DTYPES[training.precision],
        seed=params.seed,
        engine=engine,
        recompute=training.recompute,
    )
    if initial is not None:
        model.load_state_dict(initial.state_dict)
    return model, begun_from


def build_trainer(
    params: Params,
    model: CustomTransformer,
    begun_from: dict[str, str],
    train: TokenSplit,
    validation: TokenSplit,
    checkpoints: Path,
    keep_state: Callable[[int, dict[str, Any]], Path],
    processes: Processes = ALONE,
    asks: Asks = nothing,
) -> Trainer:
    return Trainer(
        model,
        params.training,
        train,
        validation,
        max_length=params.data.max_length,
        seed=params.seed,
        checkpoints=checkpoints,
        keep_state=keep_state,
        origin=begun_from,
        processes=processes,
        asks=asks,
    )


def write_metrics(trainer: Trainer, folder: Path) -> None:
    """The curves, the digests and train.json of a finished run."""
    for name, rows in trainer.curves().items():
        write_csv(folder / name, rows)
    write_json(folder / "train.json", trainer.summary())
