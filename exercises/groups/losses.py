"""Softmax and loss: probabilities that sum to 1, so that no logit moves alone."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from custom_transformer.maths import ops
from exercises.cases import Case, Draw, backward_case, pair_case
from exercises.catalogue import Exercise, Group

LABELS = torch.tensor([[4, -100, 0], [1, 4, -100]])


def _logsumexp(draw: Draw) -> list[Case]:
    def forward(x: Tensor) -> tuple[Tensor, ops.Saved]:
        lse = torch.logsumexp(x, -1, keepdim=True)
        return lse, (x, lse)

    return [
        backward_case(
            title, "logsumexp_backward", forward, {"x": draw(*shape)}, ("dx",), ("x", "lse"), draw, dy="d_lse"
        )
        for title, shape in (("rows of four numbers", (3, 4)), ("x (B, T, V)", (2, 2, 3)))
    ]


def _softmax(draw: Draw) -> list[Case]:
    shift = torch.tensor([[1000.0], [0.0], [-1000.0]], dtype=torch.float64)
    return [
        pair_case(title, "softmax", lambda x: torch.softmax(x, -1), {"x": x}, ("dx",), draw)
        for title, x in (
            ("rows of four numbers", draw(4, 4)),
            ("x (B, T, V)", draw(2, 3, 3)),
            ("rows around 1000, 0 and −1000: e^1000 is more than a float can hold", draw(3, 3) + shift),
        )
    ]


def _cross_entropy(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "cross_entropy_backward",
            partial(ops.cross_entropy_forward, labels=labels),
            {"logits": 2 * draw(2, 3, 5)},
            ("dlogits",),
            ("logits", "labels", "lse", "count"),
            draw,
            dy="dloss",
        )
        for title, labels in (
            ("every label counts", draw.ids(5, 2, 3)),
            ("two of six labels are −100 and do not count", LABELS),
        )
    ]


def _linear_cross_entropy(draw: Draw) -> list[Case]:
    return [
        backward_case(
            f"six rows in chunks of {rows}",
            "linear_cross_entropy_backward",
            partial(ops.linear_cross_entropy_forward, labels=LABELS, rows=rows),
            {"x": draw(2, 3, 4), "weight": draw(5, 4)},
            ("dx", "dweight"),
            ("x", "weight", "labels", "lse", "count", "rows", "input_shape", "input_dtype"),
            draw,
            dy="dloss",
        )
        for rows in (6, 4)
    ]


GROUP = Group(
    "Softmax and loss",
    (
        Exercise("logsumexp", {"logsumexp_backward": None}, _logsumexp),
        Exercise("softmax", {"softmax_forward": None, "softmax_backward": None}, _softmax),
        Exercise("cross_entropy", {"cross_entropy_backward": ops.cross_entropy_backward}, _cross_entropy),
        Exercise("repair_cross_entropy", {"cross_entropy_backward": ops.cross_entropy_backward}, _cross_entropy),
        Exercise(
            "linear_cross_entropy",
            {"linear_cross_entropy_backward": ops.linear_cross_entropy_backward},
            _linear_cross_entropy,
        ),
    ),
)
