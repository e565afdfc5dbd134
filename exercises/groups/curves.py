"""Functions of single elements: nothing is mixed, so each backward is a derivative times dy."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from custom_transformer.maths import ops
from exercises.cases import Case, Draw, backward_case, pair_case
from exercises.catalogue import Exercise, Group


def _away_from_0(x: Tensor) -> Tensor:
    """At a kink no difference measures a derivative."""
    return torch.where(x.abs() < 0.1, x + 0.3, x)


def _relu(draw: Draw) -> list[Case]:
    return [
        pair_case("both signs", "relu", lambda x: x.clamp(min=0), {"x": _away_from_0(draw(*shape))}, ("dx",), draw)
        for shape in ((3, 4), (2, 3, 2))
    ]


def _sigmoid(draw: Draw) -> list[Case]:
    def forward(x: Tensor) -> tuple[Tensor, ops.Saved]:
        y = torch.sigmoid(x)
        return y, (y,)

    return [backward_case("both signs", "sigmoid_backward", forward, {"x": 2 * draw(3, 4)}, ("dx",), ("y",), draw)]


def _tanh(draw: Draw) -> list[Case]:
    def forward(x: Tensor) -> tuple[Tensor, ops.Saved]:
        y = torch.tanh(x)
        return y, (y,)

    return [backward_case("both signs", "tanh_backward", forward, {"x": draw(3, 4)}, ("dx",), ("y",), draw)]


def _gelu(draw: Draw) -> list[Case]:
    return [
        backward_case("both signs", "gelu_backward", ops.gelu_forward, {"x": 2 * draw(3, 4)}, ("dx",), ("x",), draw)
    ]


def _swiglu(draw: Draw) -> list[Case]:
    return [
        backward_case(title, "swiglu_backward", ops.swiglu_forward, {"x": draw(*shape)}, ("dx",), ("x",), draw)
        for title, shape in (("rows of one axis", (3, 6)), ("x (B, T, 2·F)", (2, 3, 4)))
    ]


def _dropout(draw: Draw) -> list[Case]:
    keep = draw.keep(3, 4)
    return [
        backward_case(
            title,
            "dropout_backward",
            partial(ops.dropout_forward, keep=keep, dropout=p),
            {"x": draw(3, 4)},
            ("dx",),
            ("keep", "dropout"),
            draw,
        )
        for title, keep, p in (("a share of 0.4 is dropped", keep, 0.4), ("nothing is dropped", None, 0.0))
    ]


GROUP = Group(
    "Curves",
    (
        Exercise("relu", {"relu_forward": None, "relu_backward": None}, _relu),
        Exercise("sigmoid", {"sigmoid_backward": None}, _sigmoid),
        Exercise("repair_tanh", {"tanh_backward": None}, _tanh),
        Exercise("gelu", {"gelu_backward": ops.gelu_backward}, _gelu),
        Exercise("repair_gelu", {"gelu_backward": ops.gelu_backward}, _gelu),
        Exercise("swiglu", {"swiglu_backward": ops.swiglu_backward}, _swiglu),
        Exercise("dropout", {"dropout_backward": ops.dropout_backward}, _dropout),
    ),
)
