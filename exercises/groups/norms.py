"""Norms: each element also reaches the others of its row, through the mean and through the scale."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from custom_transformer.maths import ops
from exercises.cases import Case, Draw, backward_case
from exercises.catalogue import Exercise, Group

EPS = 1e-2  # large enough to matter for numbers of this size


def _centre(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "centre_backward",
            lambda x: (x - x.mean(-1, keepdim=True), ()),
            {"x": draw(*shape)},
            ("dx",),
            (),
            draw,
        )
        for title, shape in (("rows of four numbers", (4, 4)), ("x (B, T, D)", (2, 3, 5)))
    ]


def _rms_norm(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "rms_norm_backward",
            partial(ops.rms_norm_forward, eps=EPS),
            {"x": 2 * draw(*shape), "weight": 1 + draw(shape[-1])},
            ("dx", "dweight"),
            ("x", "weight", "r"),
            draw,
        )
        for title, shape in (("rows of one axis", (3, 4)), ("x (B, T, D)", (2, 2, 3)))
    ]


def _layer_norm(draw: Draw) -> list[Case]:
    def case(title: str, shape: tuple[int, ...], bias: Tensor | None) -> Case:
        inputs = {"x": 3 + 2 * draw(*shape), "weight": 1 + draw(shape[-1]), "bias": bias}
        gradients, saved = ("dx", "dweight", "dbias"), ("x", "weight", "bias", "mean", "rstd")
        forward = partial(ops.layer_norm_forward, eps=EPS)
        return backward_case(title, "layer_norm_backward", forward, inputs, gradients, saved, draw)

    return [
        case("rows of one axis, with a bias", (3, 4), draw(4)),
        case("x (B, T, D), with a bias", (2, 2, 5), draw(5)),
        case("x (B, T, D), without a bias", (2, 2, 5), None),
    ]


GROUP = Group(
    "Norms",
    (
        Exercise("centre", {"centre_backward": None}, _centre),
        Exercise("rms_norm", {"rms_norm_backward": ops.rms_norm_backward}, _rms_norm),
        Exercise("repair_rms_norm", {"rms_norm_backward": ops.rms_norm_backward}, _rms_norm),
        Exercise("layer_norm", {"layer_norm_backward": ops.layer_norm_backward}, _layer_norm),
        Exercise("repair_layer_norm", {"layer_norm_backward": ops.layer_norm_backward}, _layer_norm),
    ),
)
