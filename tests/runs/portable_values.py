"""Prints a digest of each kind of value that the pipeline computes without kernels, as JSON.

A program: test_portable_values.py runs it in processes with unlike settings, which a process can have only once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from custom_transformer.config import load_params
from custom_transformer.maths import exact, portable
from custom_transformer.maths.architecture import Units
from custom_transformer.maths.optim import bias_corrections, learning_rate_at
from custom_transformer.maths.parameters import Parameter, initial
from custom_transformer.maths.scope import Dropout
from custom_transformer.maths.turns import turns
from custom_transformer.runs import observe
from custom_transformer.runs.evaluation import evaluate
from custom_transformer.runs.generation import sample
from custom_transformer.runs.observe import BlockView, activation_statistics
from custom_transformer.runs.record import Progress, StepMetrics, StepResult
from custom_transformer.runs.scoring import validation_loss
from custom_transformer.text.primer import generate_lessons
from custom_transformer.text.tokens import TokenSplit, epoch_order
from tests.helpers import ROOT


def numbers(*shape: int) -> Tensor:
    """Plain float32 between 0 and 1, without a random generator."""
    count = int(np.prod(shape))
    return ((torch.arange(count) * 7919 + 13) % 10007).float().div(10007).view(shape)


class Scores:
    """In place of a model: only what evaluation asks it for."""

    config, device = SimpleNamespace(max_seq_len=64), torch.device("cpu")

    def scores(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses = 9 * numbers(*labels.shape)
        return torch.where(labels == -100, 0.0, losses), labels * (losses < 4)


def split() -> TokenSplit:
    tokens = np.arange(20_001) * 31 % 97 + 1
    tokens[::29] = 0
    tokens[-1] = 0
    meta = {"tokenizer": {"end_token_id": 0}, "bytes": 60_000, "log2_prob": -70_000.5}
    return TokenSplit(tokens.astype("<u2"), meta)


def statistics() -> list[dict[str, float | int]]:
    attention = numbers(2, 3, 65, 65).tril()
    view = BlockView(numbers(2, 65, 30) - 0.5, attention / 65, 8 * numbers(2, 65, 40) - 6)
    model: Any = SimpleNamespace(architecture=SimpleNamespace(units=Units("gelu", -3.0)))
    with patch.object(observe, "views", lambda *_: [view]):
        return activation_statistics(model, torch.zeros(2, 65, dtype=torch.int64))


def curve() -> list[Any]:
    progress = Progress()
    for step, loss in enumerate(numbers(50).tolist(), 1):
        result = StepResult(loss, "ok", loss, loss)
        progress.record(StepMetrics(step, 1, step, 0.1, result, False, None, None, None, step == 50), log_every=7)
    return progress.curve


def values() -> Iterator[tuple[str, Any]]:
    training = load_params(ROOT / "params.yaml").training
    x = numbers(5000).double().numpy()
    table = {"a": Parameter((333, 77), "table"), "b": Parameter((100, 50), "into_stream")}
    generator = torch.Generator().manual_seed(7)
    logits = 12 * numbers(40, 500)
    yield "scalars", [(exact.exp(v), exact.cos(9 * v), exact.log(v), exact.log2(v)) for v in (x[:200] + 1e-9).tolist()]
    yield "arrays", [portable.exp(-20 * x), portable.log(x + 1e-9), *portable.cos_sin(1000 * x), portable.total(x)]
    yield "parameters", [*initial(table, 3, seed=1337).values()]
    yield "masks", Dropout(0.1, torch.Generator().manual_seed(3)).draw((3, 5, 700))
    yield "order", epoch_order(1000, 1337, 2)
    yield "schedule", [learning_rate_at(step, 700, training) for step in range(700)]
    yield "corrections", [bias_corrections((0.9, 0.99), t) for t in range(1, 700)]
    yield "turns", [*turns(3, 200, 16, 10_000.0, torch.float32, torch.device("cpu"))]
    yield (
        "samples",
        [
            sample(part, t, k, p, generator)
            for part, t, k, p in [
                (logits, 1.0, None, None),
                (logits, 0.5, 30, 0.9),
                (logits.bfloat16(), 2.0, None, 0.95),
            ]
            for _ in range(20)
        ],
    )
    yield "evaluation", evaluate(Scores(), split(), 8)  # type: ignore[arg-type]
    yield "validation", validation_loss(Scores(), split(), 64, 8)  # type: ignore[arg-type]
    yield "statistics", statistics()
    yield "curve", curve()
    yield "lessons", [(lesson.text, lesson.log2_prob) for lesson in generate_lessons(1337, "train", 300)]


def plain(value: Any) -> Any:
    """With the bits of every number."""
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        return [value.dtype.str, value.tobytes().hex()]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value


if __name__ == "__main__":
    digests = {name: hashlib.sha256(json.dumps(plain(value)).encode()).hexdigest()[:16] for name, value in values()}
    print(json.dumps(digests))
