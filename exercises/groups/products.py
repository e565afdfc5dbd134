"""Products and sums: the rules from which every later gradient is made."""

from __future__ import annotations

from torch import Tensor

from custom_transformer.maths import ops
from exercises.cases import Case, Draw, backward_case
from exercises.catalogue import Exercise, Group

LINEAR_SAVED = ("x", "weight", "bias", "input_dtype")


def product_forward(x: Tensor, weight: Tensor) -> tuple[Tensor, ops.Saved]:
    return x @ weight, (x, weight)


def _product(draw: Draw) -> list[Case]:
    return [
        backward_case(
            f"{rows} row{'s'[: rows > 1]} of {width} numbers",
            "product_backward",
            product_forward,
            {"x": draw(rows, width), "weight": draw(width, 2)},
            ("dx", "dweight"),
            ("x", "weight"),
            draw,
        )
        for rows, width in ((3, 4), (1, 3), (2, 2))
    ]


def _linear(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "linear_backward",
            ops.linear_forward,
            {"x": draw(*shape), "weight": draw(4, 3), "bias": bias},
            ("dx", "dweight", "dbias"),
            LINEAR_SAVED,
            draw,
        )
        for title, shape, bias in (
            ("rows x of one axis, with a bias", (5, 4), draw(3)),
            ("x (B, T, D_in), with a bias", (2, 3, 4), draw(3)),
            ("x (B, T, D_in), without a bias", (2, 3, 4), None),
        )
    ]


def _multiply(draw: Draw) -> list[Case]:
    return [
        backward_case(
            "two matrices",
            "multiply_backward",
            lambda a, b: (a * b, (a, b)),
            {"a": draw(3, 3), "b": draw(3, 3)},
            ("da", "db"),
            ("a", "b"),
            draw,
        )
    ]


def _gain(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "gain_backward",
            lambda x, weight: (x * weight, (x, weight)),
            {"x": draw(*shape), "weight": draw(shape[-1])},
            ("dx", "dweight"),
            ("x", "weight"),
            draw,
        )
        for title, shape in (("rows of one axis", (3, 3)), ("x (B, T, D)", (2, 3, 4)))
    ]


def _mean(draw: Draw) -> list[Case]:
    return [
        backward_case(title, "mean_backward", lambda x: (x.mean(-1), (x,)), {"x": draw(*shape)}, ("dx",), ("x",), draw)
        for title, shape in (("rows of four numbers", (3, 4)), ("x (B, T, D)", (2, 3, 5)))
    ]


def _residual(draw: Draw) -> list[Case]:
    return [
        backward_case(
            "square W",
            "residual_backward",
            lambda x, weight: (x + x @ weight, (x, weight)),
            {"x": draw(3, 4), "weight": draw(4, 4)},
            ("dx", "dweight"),
            ("x", "weight"),
            draw,
        )
    ]


GROUP = Group(
    "Products and sums",
    (
        Exercise("product", {"product_backward": None}, _product),
        Exercise("multiply", {"multiply_backward": None}, _multiply),
        Exercise("gain", {"gain_backward": None}, _gain),
        Exercise("mean", {"mean_backward": None}, _mean),
        Exercise("linear", {"linear_backward": ops.linear_backward}, _linear),
        Exercise("repair_linear", {"linear_backward": ops.linear_backward}, _linear),
        Exercise("residual", {"residual_backward": None}, _residual),
    ),
)
