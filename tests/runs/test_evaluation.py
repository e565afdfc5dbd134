"""Evaluation: each text from its start, every token once, as lm-evaluation-harness counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.evaluation import evaluate
from custom_transformer.runs.scoring import validation_loss
from custom_transformer.text.document_windows import document_windows
from custom_transformer.text.tokens import TokenSplit
from tests.helpers import SIZES, random_model

END = 5
LENGTH = SIZES["max_seq_len"]
# Empty, of one token, shorter than the window, with and without room for the end, equal to it, longer, and multiples.
DOCUMENT_SIZES = [0, 1, 7, LENGTH - 1, LENGTH, LENGTH + 1, 2 * LENGTH, 0, 2 * LENGTH + 1, 3 * LENGTH - 1, 2, 40]


def split(sizes: list[int] = DOCUMENT_SIZES, seed: int = 0, **facts: Any) -> TokenSplit:
    """Documents of these numbers of random tokens, of three bytes each."""
    generator = np.random.default_rng(seed)
    ids = [i for i in range(SIZES["vocab_size"]) if i != END]
    stream = np.concatenate([[END], *([*generator.choice(ids, size), END] for size in sizes)])
    meta = {"tokenizer": {"end_token_id": END}, "bytes": 3 * max(1, sum(sizes))}
    return TokenSplit(stream.astype("<u2"), meta | facts)


def documents(data: TokenSplit) -> list[list[int]]:
    """The tokens of each document, found by looking at one token after another."""
    found: list[list[int]] = []
    for token in data.tokens.tolist()[1:]:
        found = found or [[]]
        if token == END:
            found.append([])
        else:
            found[-1].append(token)
    return found[:-1]


def rolling_windows(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets by lm_eval.utils.get_rolling_token_windows with context_len 1, then make_disjoint_window."""
    if not tokens:
        return []
    first = min(length, len(tokens))
    windows = [([prefix, *tokens[: first - 1]], tokens[:first])]
    predicted = first
    while predicted < len(tokens):
        count = min(len(tokens) - predicted, length)
        end = predicted + count
        windows.append((tokens[end - length - 1 : end - 1], tokens[end - count : end]))
        predicted += count
    return windows


def token_losses(model: CustomTransformer, inputs: list[int], targets: list[int]) -> list[float]:
    """The loss of each target, the last of them right behind the last input, by one window in one batch."""
    assert len(inputs) <= LENGTH
    logits = model.forward(torch.tensor([inputs]))[0, -len(targets) :]
    return F.cross_entropy(logits, torch.tensor(targets), reduction="none").tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_is_the_harness_s_count_one_window_at_a_time(batch_size: int) -> None:
    model, data = random_model(), split(log2_prob=-450.0)
    metrics, by_position = evaluate(model, data, batch_size)
    texts, ends, at = [], [], {t: [] for t in range(LENGTH)}
    for tokens in documents(data):
        windows = rolling_windows(tokens, END, LENGTH)
        for number, (inputs, targets) in enumerate(windows):
            losses = token_losses(model, inputs, targets)
            texts += losses
            for t, loss in enumerate(losses if number == 0 else []):
                at[t].append(loss)
        ends += token_losses(model, [END, *tokens][-LENGTH:], [END])
    n_tokens = sum(DOCUMENT_SIZES)
    assert (metrics["tokens"], metrics["texts"], len(texts)) == (n_tokens, len(DOCUMENT_SIZES), n_tokens)
    assert metrics["loss"] == pytest.approx(np.mean(texts), rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(np.exp(np.mean(texts)), rel=1e-12)
    assert metrics["bits_per_byte"] == pytest.approx(sum(texts) / math.log(2) / (3 * n_tokens), rel=1e-12)
    assert metrics["end_loss"] == pytest.approx(np.mean(ends), rel=1e-12)
    assert [row["position"] for row in by_position] == list(range(LENGTH))
    assert [row["tokens"] for row in by_position] == [len(at[t]) for t in range(LENGTH)]
    assert [row["loss"] for row in by_position] == pytest.approx([np.mean(at[t]) for t in range(LENGTH)], rel=1e-12)
    # The floor is to the loss as its bits are to the bits.
    assert metrics["bits_per_byte_floor"] == 450 / (3 * n_tokens)
    assert metrics["loss_floor"] == pytest.approx(450 * math.log(2) / n_tokens)


def test_accuracy_is_the_share_of_the_likeliest_tokens() -> None:
    """In texts of which the model itself has written every second token."""
    model, data = random_model(), split([9, 4, 11])
    right = 0
    for start, size in ((0, 9), (10, 4), (15, 11)):
        for t in range(start, start + size):
            before = torch.tensor([data.tokens[start : t + 1].tolist()])
            likeliest = int(model.forward(before)[0, -1].argmax())
            if t % 2 and likeliest != END:
                data.tokens[t + 1] = likeliest
            right += data.tokens[t + 1] == likeliest
    assert right >= 8
    assert evaluate(model, data, 2)[0]["accuracy"] == right / 24


def test_batches_hold_windows_of_similar_length_and_no_more_tokens_than_full_ones() -> None:
    batches = list(document_windows(split(), LENGTH, 4))
    assert all(input_ids.numel() <= 4 * LENGTH for input_ids, _ in batches)
    assert [ids.shape[1] for ids, _ in batches] == sorted((ids.shape[1] for ids, _ in batches), reverse=True)
    many = split([LENGTH - 1] * 30 + [2] * 300)
    padded = sum(input_ids.numel() for input_ids, _ in document_windows(many, LENGTH, 4))
    assert padded <= 1.1 * many.n_tokens


def test_a_part_of_the_split_is_its_first_windows() -> None:
    model, data = random_model(), split([5, 20, 3, 0, 9])
    part, _ = evaluate(model, data, 2, max_batches=2)  # 5 and its end; 13 and 7 of 20; its end
    first, _ = evaluate(model, split([5, 20]), 2)
    same = ("loss", "accuracy", "tokens", "texts", "end_loss")
    assert [part[name] for name in same] == pytest.approx([first[name] for name in same])
    assert "end_loss" not in evaluate(model, split([20, 3]), 1, max_batches=1)[0]
    assert evaluate(model, data, 2, max_batches=100) == evaluate(model, data, 2)


def test_only_a_split_that_knows_its_texts_has_a_floor() -> None:
    model, data = random_model(), split(log2_prob=-450.0)
    metrics, _ = evaluate(model, data, 4)
    lossy, _ = evaluate(model, split(log2_prob=-450.0, lost=0.25), 4)
    assert {"bits_per_byte", "bits_per_byte_floor", "loss_floor"}.isdisjoint(lossy)
    assert (lossy["lossy_bits_per_byte"], lossy["bytes_lost"]) == (metrics["bits_per_byte"], 0.25)
    assert {"loss_floor", "bits_per_byte_floor"}.isdisjoint(evaluate(model, split(), 4)[0])


def test_the_validation_loss_is_that_of_windows_of_the_stream() -> None:
    model, data = random_model(), split()
    tokens = data.tokens.tolist()
    starts = range(0, len(tokens) - 1, 9)
    losses = [
        x for i in starts for x in token_losses(model, tokens[i : i + 9][: len(tokens) - 1 - i], tokens[i + 1 :][:9])
    ]
    assert validation_loss(model, data, 9, 4) == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be"),
        ({"length": 14}, "length must be .* < 14"),
        ({"length": 2.5}, "length must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"split": TokenSplit(np.array([END], "<u2"), {})}, "at least 2 tokens"),
    ],
)
def test_a_validation_loss_of_nothing_or_beyond_the_model_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validation_loss(random_model(), **{"split": split(), "length": 9, "batch_size": 4} | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((split(), 0), "batch_size must be"),
        ((split(), 4, 0), "max_batches must be"),
        ((split([0, 0]), 4), "at least 1 token of text"),
        ((split([]), 4), "at least 1 token of text"),
    ],
)
def test_an_evaluation_of_nothing_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(random_model(), *arguments)
