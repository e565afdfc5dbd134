"""The loss of each label, and the validation loss that a training watches.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.maths import checks, ops, portable
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.text.tokens import TokenSplit, eval_windows


def score(model: CustomTransformer, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each label in nats (0 where it is IGNORE_INDEX), and whether it was the likeliest token.

    input_ids, labels (B, T) int64 -> losses (B, T) float64, correct (B, T) bool, both on the CPU. Raises ValueError for
    what the model does not take.
    """
    checks.check_ids("input_ids", input_ids)
    checks.check_ids("labels", labels)
    labels = labels.to(model.device)
    losses, predicted = model.scores(input_ids.to(model.device), labels)
    return losses.to("cpu", torch.float64), (predicted == labels).cpu()


def validation_loss(model: CustomTransformer, split: TokenSplit, length: int, batch_size: int) -> float:
    """The mean loss of every token of `split`, end tokens included, in nats, over non-overlapping windows of `length`.

    The windows cut documents from their beginnings, so it is above what `evaluate` finds of the same model.
    """
    checks.check_count("length", length, 1, model.config.max_seq_len + 1)
    checks.check_count("batch_size", batch_size, 1)
    if split.n_tokens < 2:
        raise ValueError(f"the split must have at least 2 tokens, not {split.n_tokens}: there is nothing to predict")
    total, count = 0.0, 0
    for input_ids, labels in eval_windows(split, length, batch_size):
        total += portable.total(score(model, input_ids, labels)[0].flatten().numpy()).item()
        count += int((labels != ops.IGNORE_INDEX).sum())
    return total / count
