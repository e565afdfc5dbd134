"""How good a model is: loss, perplexity, bits per byte, accuracy, loss by position, held-out facts.

Measured text by text, each from its start, as lm-evaluation-harness does. Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from custom_transformer.maths import checks, exact, ops, portable
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.scoring import score
from custom_transformer.text.document_windows import document_windows
from custom_transformer.text.tokens import TokenSplit

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

    from custom_transformer.text.primer import Cloze

LOG_2 = exact.log(2)  # nats in a bit


def evaluate(
    model: CustomTransformer, split: TokenSplit, batch_size: int, max_batches: int | None = None
) -> tuple[dict[str, float | int], list[dict[str, float | int]]]:
    """The metrics of `split`, text by text, and the mean loss by position in a text.

    Each text is read from its start, behind an end token, in windows of max_seq_len tokens (`document_windows`), as
    lm-evaluation-harness reads it by loglikelihood_rolling. The metrics:

    - loss: the mean over all tokens of the texts, in nats. The end tokens are not among them;
    - perplexity: exp(loss);
    - bits_per_byte: the texts' whole cost, without their ends, divided by their UTF-8 bytes;
    - accuracy: the share of the texts' tokens that were the likeliest;
    - tokens: how many tokens the texts have, each predicted once;
    - texts: how many texts were read to their ends;
    - end_loss: the mean over the end tokens behind these texts, in nats; absent if there is none.

    If the split knows the probability of its texts, bits_per_byte_floor and loss_floor are what a model that knew the
    grammar itself would reach on them: none of its texts is the beginning of another, so its ends cost nothing. If the
    tokenizer loses text, the tokens are not the text: then there is no floor, the bits spread over bytes that they do
    not encode are lossy_bits_per_byte, and bytes_lost is the share of the text that is lost.

    by position: position (0 for a text's first token), loss (mean, nats) and tokens (how many); of tokens in the first
    window of their text, which see it from its start.

    max_batches: only the split's first batch_size · max_batches windows, which may end within a text.
    Raises ValueError if there is no token of a text to predict.
    """
    checks.check_count("batch_size", batch_size, 1)
    if max_batches is not None:
        checks.check_count("max_batches", max_batches, 1)
    length = model.config.max_seq_len
    total, correct_count, tokens, end_total, texts = 0.0, 0, 0, 0.0, 0
    position_losses, position_counts = np.zeros(length), np.zeros(length, np.int64)
    for input_ids, labels in document_windows(split, length, batch_size, max_batches):
        losses, correct = (part.numpy() for part in score(model, input_ids, labels))
        end = (labels == split.end_id).numpy()
        of_text = (labels != ops.IGNORE_INDEX).numpy() & ~end
        total += portable.total(losses[of_text]).item()
        correct_count += int(correct[of_text].sum())
        tokens += int(of_text.sum())
        end_total += portable.total(losses[end]).item()
        texts += int(end.sum())
        from_start = of_text & (input_ids[:, :1] == split.end_id).numpy()
        position_losses[: losses.shape[1]] += portable.total(losses * from_start)
        position_counts[: losses.shape[1]] += from_start.sum(0)
    if not tokens:
        raise ValueError("the split must have at least 1 token of text: there is nothing to predict")
    loss = total / tokens
    # With max_batches the bytes of what was scored are not known: the split's average stands for them.
    tokens_per_byte = split.n_text_tokens / split.meta["bytes"]
    lost = split.meta.get("lost")
    metrics: dict[str, float | int] = {
        "loss": loss,
        "perplexity": exact.exp(min(loss, 700.0)),
        "bits_per_byte" if lost is None else "lossy_bits_per_byte": loss / LOG_2 * tokens_per_byte,
        "accuracy": correct_count / tokens,
        "tokens": tokens,
        "texts": texts,
    }
    if texts:
        metrics["end_loss"] = end_total / texts
    if lost is not None:
        metrics["bytes_lost"] = lost
    elif "log2_prob" in split.meta:
        metrics["bits_per_byte_floor"] = floor = -split.meta["log2_prob"] / split.meta["bytes"]
        metrics["loss_floor"] = floor * LOG_2 / tokens_per_byte
    by_position: list[dict[str, float | int]] = [
        {"position": t, "loss": position_losses[t].item() / count, "tokens": count}
        for t, count in enumerate(position_counts.tolist())
        if count
    ]
    return metrics, by_position


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
    return int(portable.total(losses.numpy().T).argmin())


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device="cpu")
    labels = torch.tensor([[*row, *[ops.IGNORE_INDEX] * (longest - len(row))] for row in rows], device="cpu")
    return input_ids[:, :-1], labels[:, 1:]
