"""Attention: heads, scores, softmax, values, turns and shared keys, apart and together."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from custom_transformer.maths import ops
from exercises.cases import Case, Draw, backward_case
from exercises.catalogue import Exercise, Group

BASE = 10.0  # of the turns: with so few numbers a head, 10000 would hardly turn the second pair


def _split_heads(draw: Draw) -> list[Case]:
    def forward(qkv: Tensor, n_heads: int) -> tuple[tuple[Tensor, ...], ops.Saved]:
        return ops.split_heads(qkv, n_heads), ()

    return [
        backward_case(
            f"{heads} heads of {size} numbers; of the last axis the first third is queries, then keys, then values",
            "split_heads_backward",
            partial(forward, n_heads=heads),
            {"qkv": draw(2, 3, 3 * heads * size)},
            ("dqkv",),
            (),
            draw,
            dy="dq dk dv",
            order=lambda dys, saved: dys,
        )
        for heads, size in ((2, 3), (3, 2))
    ]


def _scores(draw: Draw) -> list[Case]:
    return [
        backward_case(
            f"{queries} queries and {keys} keys of {size} numbers",
            "scores_backward",
            lambda q, k: (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), (q, k)),
            {"q": draw(1, 2, queries, size), "k": draw(1, 2, keys, size)},
            ("dq", "dk"),
            ("q", "k"),
            draw,
            dy="d_scores",
        )
        for queries, keys, size in ((2, 3, 4), (3, 3, 3))
    ]


def _values(draw: Draw) -> list[Case]:
    def probabilities(*shape: int) -> Tensor:
        return torch.softmax(draw(*shape), -1)

    return [
        backward_case(
            f"{keys} values of {size} numbers",
            "values_backward",
            lambda p, v: (p @ v, (p, v)),
            {"p": probabilities(1, 2, 3, keys), "v": draw(1, 2, keys, size)},
            ("dp", "dv"),
            ("p", "v"),
            draw,
        )
        for keys, size in ((4, 2), (3, 3))
    ]


def _causal_attention(draw: Draw) -> list[Case]:
    return [
        backward_case(
            f"{title}; of the last axis 0–3 are queries, 4–7 keys and 8–11 values",
            "causal_attention_backward",
            partial(ops.causal_attention_forward, n_heads=2, keep=keep, dropout=p),
            {"qkv": draw(2, 3, 3 * 2 * 2)},
            ("dqkv",),
            ("qkv", "lse", "n_heads", "keep", "dropout"),
            draw,
        )
        for title, keep, p in (
            ("nothing is dropped", None, 0.0),
            ("a share of 0.4 of the probabilities is dropped", draw.keep(2, 2, 3, 3), 0.4),
        )
    ]


def _rotate(draw: Draw) -> list[Case]:
    def forward(x: Tensor, start: int) -> tuple[Tensor, ops.Saved]:
        return ops.rotate(x, start, BASE), (start, BASE)

    return [
        backward_case(
            f"positions from {start} on",
            "rotate_backward",
            partial(forward, start=start),
            {"x": draw(1, 2, 3, 4)},
            ("dx",),
            ("start", "base"),
            draw,
        )
        for start in (0, 3)
    ]


def _shared_keys(draw: Draw) -> list[Case]:
    def forward(k: Tensor, heads: int, groups: int) -> tuple[Tensor, ops.Saved]:
        return k.repeat_interleave(heads // groups, 1), (heads, groups)

    return [
        backward_case(
            f"{heads} queries' heads share {groups}",
            "shared_keys_backward",
            partial(forward, heads=heads, groups=groups),
            {"k": draw(2, groups, 2, 3)},
            ("dk",),
            ("n_heads", "n_kv_heads"),
            draw,
        )
        for heads, groups in ((6, 2), (4, 1))
    ]


def _rotary_attention(draw: Draw) -> list[Case]:
    return [
        backward_case(
            f"{title}; of the last axis 0–3 are queries, 4–5 keys and 6–7 values",
            "rotary_attention_backward",
            partial(ops.rotary_attention_forward, n_heads=2, n_kv_heads=1, base=BASE, keep=keep, dropout=p),
            {"qkv": draw(2, 3, (2 + 2 * 1) * 2)},
            ("dqkv",),
            ("qkv", "lse", "n_heads", "n_kv_heads", "base", "keep", "dropout"),
            draw,
        )
        for title, keep, p in (
            ("nothing is dropped", None, 0.0),
            ("a share of 0.4 of the probabilities is dropped", draw.keep(2, 2, 3, 3), 0.4),
        )
    ]


GROUP = Group(
    "Attention",
    (
        Exercise("split_heads", {"split_heads_backward": ops.merge_heads}, _split_heads),
        Exercise("scores", {"scores_backward": None}, _scores),
        Exercise("values", {"values_backward": None}, _values),
        Exercise("causal_attention", {"causal_attention_backward": ops.causal_attention_backward}, _causal_attention),
        Exercise("repair_attention", {"causal_attention_backward": ops.causal_attention_backward}, _causal_attention),
        Exercise("rotate", {"rotate_backward": None}, _rotate),
        Exercise("shared_keys", {"shared_keys_backward": None}, _shared_keys),
        Exercise(
            "repair_rotary_attention", {"rotary_attention_backward": ops.rotary_attention_backward}, _rotary_attention
        ),
    ),
)
