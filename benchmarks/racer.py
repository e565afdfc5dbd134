"""One contestant of the race in a process of its own: python -m benchmarks.racer CONTESTANT TASK SEED BEGAN, the first
two as JSON, the last as time.time(). It trains, and prints a line of JSON per validation: the step, the seconds, and
the loss in nats per token.

The seconds run from BEGAN, when the process was started, so that imports and compilation count. Validations do not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import Twin
from benchmarks.variants import VARIANTS
from benchmarks.workloads import training_params
from custom_transformer import CustomTransformer, CustomTransformerConfig
from custom_transformer.config import TrainingParams
from custom_transformer.errors import run_main
from custom_transformer.fast.choose import choose_engine
from custom_transformer.fast.memory import keep_freed_memory
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.maths.optim import build_optimizer, learning_rate_at
from custom_transformer.runs.step import training_step

Batch = tuple[Tensor, Tensor]
VALIDATIONS = 20  # of a run
TOKENS_AT_ONCE = 4096  # of a validation, at most


@dataclass(frozen=True)
class Contestant:
    """kind: "ours"; or the twin in autograd, "eager" or "compiled". model, training: keys of params.yaml. variant: of
    the architecture modern, a key of VARIANTS. ema_decay: decay per step of the exponential moving average of ours'
    parameters that is validated; 0: the parameters are."""

    name: str
    kind: str
    steps: int
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    ema_decay: float = 0.0

    def as_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Task:
    """tokens: file of the arrays `train` (n,), and `input_ids` and `labels` (N, T) to validate on, labels that do not
    count being -100; model: sizes; batch: windows per step; goals: losses in nats per token to reach, by name."""

    name: str
    tokens: str
    model: Mapping[str, Any]
    batch: int
    goals: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def array(self, name: str) -> Tensor:
        return torch.from_numpy(np.load(self.tokens)[name].astype(np.int64))


class Batches:
    """Random windows of the training tokens, the same for every contestant with this seed."""

    def __init__(self, task: Task, seed: int):
        self.tokens, self.length, self.size = task.array("train"), task.model["max_seq_len"], task.batch
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Batch:
        starts = torch.randint(len(self.tokens) - self.length, (self.size,), generator=self.generator)
        windows = self.tokens[starts[:, None] + torch.arange(self.length + 1)]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def params_of(contestant: Contestant, task: Task) -> TrainingParams:
    return training_params(batch_size=task.batch, max_steps=contestant.steps, **contestant.training)


def ours(contestant: Contestant, task: Task, seed: int) -> tuple[Callable[[Batch, float], float], Callable[..., Any]]:
    """A step by a batch and a learning rate, and the mean loss of the labels that count."""
    params, engine = params_of(contestant, task), choose_engine(True, torch.device("cpu"), 0)
    config = CustomTransformerConfig(**dict(task.model) | dict(contestant.model))
    architecture = None
    if contestant.variant:
        architecture, engine = VARIANTS[contestant.variant]
    model = CustomTransformer(config, seed=seed, engine=engine, architecture=architecture)
    optimizer = build_optimizer(params, model.parameters, model.table, config.head_size, engine.rules)

    validated = model
    if contestant.ema_decay:
        validated = CustomTransformer(config, seed=seed, engine=engine, architecture=architecture)

    def step(batch: Batch, learning_rate: float) -> float:
        loss = training_step(model, optimizer, [batch], learning_rate, params.max_grad_norm).loss
        if contestant.ema_decay:
            for average, parameter in zip(validated.parameters.values(), model.parameters.values(), strict=True):
                average.lerp_(parameter, 1 - contestant.ema_decay)
        return loss

    def mean_loss(input_ids: Tensor, labels: Tensor) -> Tensor:
        return validated.scores(input_ids, labels)[0].sum() / (labels != IGNORE_INDEX).sum()

    return step, mean_loss


def twin(contestant: Contestant, task: Task, seed: int) -> tuple[Callable[[Batch, float], float], Callable[..., Any]]:
    params = params_of(contestant, task)
    keep_freed_memory()
    plain = Twin(CustomTransformerConfig(**dict(task.model) | dict(contestant.model)), seed)
    model: Any = torch.compile(plain) if contestant.kind == "compiled" else plain
    matrices = [p for p in plain.parameters() if p.ndim >= 2]
    others = [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": params.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=params.betas)

    def step(batch: Batch, learning_rate: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        loss = model(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), params.max_grad_norm or float("inf"))
        optimizer.step()
        return float(loss.detach())

    return step, torch.no_grad()(plain)


def validation_loss(mean_loss: Callable[..., Any], input_ids: Tensor, labels: Tensor) -> float:
    """The mean over all labels that count."""
    rows = max(1, TOKENS_AT_ONCE // input_ids.shape[1])
    total, counted = 0.0, int((labels != IGNORE_INDEX).sum())
    for x, y in zip(input_ids.split(rows), labels.split(rows), strict=True):
        if count := int((y != IGNORE_INDEX).sum()):
            total += float(mean_loss(x, y)) * count
    return total / counted


def main() -> None:
    given, of_task, seed, began = sys.argv[1:]
    contestant, task = Contestant(**json.loads(given)), Task(**json.loads(of_task))
    build = ours if contestant.kind == "ours" else twin
    step, mean_loss = build(contestant, task, int(seed))
    params, batches = params_of(contestant, task), Batches(task, int(seed))
    validate = partial(validation_loss, mean_loss, task.array("input_ids"), task.array("labels"))
    every = max(1, contestant.steps // VALIDATIONS)
    not_counted = float(began)
    for number in range(contestant.steps):
        step(batches(), learning_rate_at(number, contestant.steps, params))
        if (number + 1) % every == 0 or number + 1 == contestant.steps:
            now = time.time()
            loss = validate()
            print(json.dumps([number + 1, now - not_counted, loss]), flush=True)
            not_counted += time.time() - now


if __name__ == "__main__":
    run_main(main)
