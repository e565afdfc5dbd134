"""The training step: one update from one or more batches, by one process or by several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from custom_transformer.maths import checks
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.maths.optim import Optimizer, clip_scale, norm_of
from custom_transformer.runs.distributed import Shares
from custom_transformer.runs.processes import ALONE
from custom_transformer.runs.record import StepResult

Batch = tuple[Tensor, Tensor]  # input_ids and labels, each (B, T) int64


def training_step(
    model: CustomTransformer,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    max_grad_norm: float | None,
) -> StepResult:
    """One update from one or more batches, the same as from all their rows in one batch.

    Each batch's mean loss is weighed by its share of the labels that count. A loss or gradient that is NaN or
    infinite leaves parameters and optimiser as they were. Raises ValueError, and changes no parameter, for batches that
    the model does not take, a learning rate that is negative or not finite, and a max_grad_norm that is not above 0.
    """
    learning_rate, max_grad_norm = checks.check_learning_rate(learning_rate), checks.check_max_grad_norm(max_grad_norm)
    if not batches:
        raise ValueError("batches must be at least one pair of input_ids and labels, not none")
    for input_ids, labels in batches:
        # Their values are looked at one batch after another: on a GPU that waits for it.
        checks.check_ids("input_ids", input_ids, model.parameter_device)
        checks.check_ids("labels", labels, model.parameter_device)
        checks.check_same_shape("labels", labels, "input_ids", input_ids)
    counts = [int((labels != IGNORE_INDEX).sum()) for _, labels in batches]
    shares = Shares(ALONE, model.parameters, len(batches))
    return shared_step(model, optimizer, batches, counts, learning_rate, max_grad_norm, shares).result


class Step(NamedTuple):
    """What an update did, and what the processes told each other on the way.

    norms: of each parameter's gradient, unless the step was skipped; asked: what at least one process asked for
    """

    result: StepResult
    norms: dict[str, float]
    asked: tuple[bool, ...]


def shared_step(
    model: CustomTransformer,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    counts: Sequence[int],
    learning_rate: float,
    max_grad_norm: float | None,
    shares: Shares,
    asks: Sequence[bool] = (),
) -> Step:
    """`training_step` by all processes of `shares`, all of which call it; the result is the same in all.

    batches: this process's own shards, made as they are needed. counts: of each shard the labels that count.
    optimizer: of this process's own slices. asks: what this process wants all to know.
    """
    total, losses = max(1, sum(counts)), [0.0] * len(counts)
    model.gradients = {}  # frees the last step's, so that this step reuses their memory
    with model.computing():
        sums = shares.sums(len(counts), next(iter(model.parameters.values())))
        for shard, (input_ids, labels) in zip(shares.shards(len(counts)), batches, strict=True):
            losses[shard] = model.loss(input_ids, labels).item()
            if not math.isfinite(losses[shard]):
                break
            model.loss_backward(counts[shard] / total, sums)
            sums.shard += 1
        gradients = sums.finish()
        known, squares = shares.squares(gradients, model.engine.rules, [*losses, *map(float, asks)])
        losses, asked = known[: len(counts)], tuple(number > 0 for number in known[len(counts) :])
        if bad := [loss for loss in losses if not math.isfinite(loss)]:
            return Step(StepResult(bad[0], "nan_detected", 0.0, 0.0), {}, asked)
        loss = 0.0
        for count, of_shard in zip(counts, losses, strict=True):
            loss += count / total * of_shard
        norm = norm_of(squares.values())
        if not math.isfinite(norm):
            return Step(StepResult(loss, "nan_gradient", norm, norm), {}, asked)
        scale = clip_scale(norm, max_grad_norm)
        optimizer.update(shares.own(model.parameters), gradients, learning_rate, scale)
        shares.send_parameters(model.parameters)
    result = StepResult(loss, "ok", norm if max_grad_norm is None else min(norm, max_grad_norm), norm)
    return Step(result, {name: norm_of([square]) for name, square in squares.items()}, asked)
