"""The loss of each label, and the validation loss that a training watches.

Shapes: B batch, T time.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from custom_transformer.maths import checks, portable
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.text.tokens import TokenSplit, eval_windows

if TYPE_CHECKING:
    from custom_transformer.runs.processes import Processes


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


def validation_loss(
    model: CustomTransformer, split: TokenSplit, length: int, batch_size: int, processes: Processes | None = None
) -> float:
    """The mean loss of every token of `split`, end tokens included, in nats, over non-overlapping windows of `length`.

    The windows cut documents from their beginnings, so it is above what `evaluate` finds of the same model.
    processes: number r of P takes the batches r, r + P, r + 2 P, …; the sum is that of the batches in their order.
    """
    checks.check_count("length", length, 1, model.config.max_seq_len + 1)
    checks.check_count("batch_size", batch_size, 1)
    if split.n_tokens < 2:
        raise ValueError(f"the split must have at least 2 tokens, not {split.n_tokens}: there is nothing to predict")
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    n_batches = -(-split.n_windows(length) // batch_size) + 1  # there may be one fewer; its sum is 0
    totals = torch.zeros(n_batches, dtype=torch.float64, device=model.device)
    for i, (input_ids, labels) in islice(enumerate(eval_windows(split, length, batch_size)), rank, None, count):
        totals[i] = portable.total(score(model, input_ids, labels)[0].flatten().numpy()).item()
    total = 0.0
    for of_batch in (processes.combined(totals) if processes else totals).tolist():
        total += of_batch
    return total / (split.n_tokens - 1)
