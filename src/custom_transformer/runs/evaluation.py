"""How good a model is: loss, perplexity, bits per byte, accuracy, loss by position, held-out facts.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from custom_transformer.maths import checks, ops
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.text.tokens import TokenSplit, eval_windows

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

    from custom_transformer.text.primer import Cloze


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
    """The mean loss of every token of `split`, in nats, over non-overlapping windows of `length`."""
    _check_windows(model, split, length, batch_size)
    total, count = 0.0, 0
    for input_ids, labels in eval_windows(split, length, batch_size):
        total += score(model, input_ids, labels)[0].sum().item()
        count += int((labels != ops.IGNORE_INDEX).sum())
    return total / count


def evaluate(
    model: CustomTransformer, split: TokenSplit, length: int, batch_size: int, max_batches: int | None = None
) -> tuple[dict[str, float | int], list[dict[str, float | int]]]:
    """The metrics of `split` over non-overlapping windows of `length`, and the mean loss by position in them.

    loss is in nats per token; bits_per_byte spreads the text's whole cost, end tokens included, over its UTF-8
    bytes. If the split knows the probability of its texts, bits_per_byte_floor and loss_floor are what a model that
    knew the grammar itself would reach on them. If the tokenizer loses text, the tokens are not the text: then there is
    no floor, the bits spread over bytes that they do not encode are lossy_bits_per_byte, and bytes_lost is the share of
    the text that is lost.
    """
    _check_windows(model, split, length, batch_size)
    if max_batches is not None:
        checks.check_count("max_batches", max_batches, 1)
    loss_sums = torch.zeros(length, dtype=torch.float64, device="cpu")
    counts = torch.zeros(length, dtype=torch.int64, device="cpu")
    correct_count = 0
    for input_ids, labels in islice(eval_windows(split, length, batch_size), max_batches):
        losses, correct = score(model, input_ids, labels)
        time = losses.shape[1]
        loss_sums[:time] += losses.sum(0)
        counts[:time] += (labels != ops.IGNORE_INDEX).sum(0)
        correct_count += int(correct.sum())
    tokens = int(counts.sum())
    loss = loss_sums.sum().item() / tokens
    # With max_batches the bytes of what was scored are not known: the split's average stands for them.
    tokens_per_byte = (split.n_tokens - 1) / split.meta["bytes"]
    lost = split.meta.get("lost")
    metrics: dict[str, float | int] = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte" if lost is None else "lossy_bits_per_byte": loss / math.log(2) * tokens_per_byte,
        "accuracy": correct_count / tokens,
        "tokens": tokens,
    }
    if lost is not None:
        metrics["bytes_lost"] = lost
    elif "log2_prob" in split.meta:
        metrics["bits_per_byte_floor"] = floor = -split.meta["log2_prob"] / split.meta["bytes"]
        metrics["loss_floor"] = floor * math.log(2) / tokens_per_byte
    by_position: list[dict[str, float | int]] = [
        {"position": t, "loss": loss_sums[t].item() / int(counts[t])} for t in range(length) if counts[t]
    ]
    return metrics, by_position


def _check_windows(model: CustomTransformer, split: TokenSplit, length: int, batch_size: int) -> None:
    checks.check_count("length", length, 1, model.config.max_seq_len + 1)
    checks.check_count("batch_size", batch_size, 1)
    if split.n_tokens < 2:
        raise ValueError(f"the split must have at least 2 tokens, not {split.n_tokens}: there is nothing to predict")


def held_out_accuracy(
    model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Cloze]
) -> float:
    """The share of cloze questions whose true statement is likelier to the model than each false one."""
    if not questions:
        raise ValueError("questions must be at least one, not none")
    return sum(_answer(model, tokenizer, q) == q.answer for q in questions) / len(questions)


def _answer(model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, question: Cloze) -> int:
    statements = [question.prompt + choice for choice in question.choices]
    # The end token is what every text of the stream comes after.
    rows = [[tokenizer.eos_token_id, *tokenizer.encode(s, add_special_tokens=False)] for s in statements]
    input_ids, labels = _padded([row[-model.config.max_seq_len - 1 :] for row in rows])
    losses, _ = score(model, input_ids, labels)
    return int(losses.sum(1).argmin())


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device="cpu")
    labels = torch.tensor([[*row, *[ops.IGNORE_INDEX] * (longest - len(row))] for row in rows], device="cpu")
    return input_ids[:, :-1], labels[:, 1:]
