"""The step: from gradients to new parameters, by SGD, AdamW and orthogonalised momentum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from custom_transformer.maths import ops, optim
from exercises.cases import Case, Draw, backward_case, update_case, value_case
from exercises.catalogue import Exercise, Group

A, B, C = 3.4445, -4.7750, 2.0315  # of Newton and Schulz's iteration, as Jordan et al. 2024 chose them
STEPS = 5


def orthogonalised(g: Tensor, steps: int = STEPS) -> Tensor:
    """What the iteration gives, by another way: its polynomial on the singular values of g / ‖g‖."""
    u, s, vt = torch.linalg.svd(g / torch.linalg.vector_norm(g), full_matrices=False)
    for _ in range(steps):
        s = A * s + B * s**3 + C * s**5
    return (u * s) @ vt


def muon_by_singular_values(
    parameter: Tensor, gradient: Tensor, m: Tensor, lr: float, beta: float, weight_decay: float, _: object
) -> None:
    m.copy_(beta * m + (1 - beta) * gradient)
    direction = orthogonalised(beta * m + (1 - beta) * gradient)
    rows, columns = parameter.shape
    parameter.copy_((1 - lr * weight_decay) * parameter - lr * math.sqrt(max(1, rows / columns)) * direction)


def _sgd(draw: Draw) -> list[Case]:
    return [
        update_case(
            title,
            "sgd_update",
            {"parameter": draw(2, 3), "gradient": draw(2, 3), "scale": scale, "lr": 0.3, "weight_decay": decay},
            optim.sgd_update,
            ("parameter",),
        )
        for title, scale, decay in (("a plain step", 1.0, 0.0), ("clipped gradients and weight decay", 0.6, 0.1))
    ]


def _clip(draw: Draw) -> list[Case]:
    gradients = {"weight": draw(2, 3), "bias": draw(3)}
    norm = optim.global_norm(gradients)
    return [
        value_case("two tensors", "global_norm", {"gradients": gradients}, optim.global_norm, "the norm"),
        *(
            value_case(title, "clip_scale", {"norm": norm, "max_norm": max_norm}, optim.clip_scale, "the scale")
            for title, max_norm in (
                ("a norm above max_norm", norm / 3),
                ("a norm below max_norm", norm * 2),
                ("no clipping", None),
            )
        ),
    ]


def _adamw(draw: Draw) -> list[Case]:
    return [
        update_case(
            title,
            "adamw_update",
            {
                "parameter": draw(2, 3),
                "gradient": draw(2, 3),
                "m": 0.1 * draw(2, 3) * (t > 1),
                "v": 0.1 * draw(2, 3).square() * (t > 1),
                "t": t,
                "scale": scale,
                "lr": 0.2,
                "betas": (0.8, 0.9),
                "weight_decay": decay,
                "eps": 0.01,
            },
            optim.adamw_update,
            ("m", "v", "parameter"),
        )
        for title, t, scale, decay in (
            ("the first update, without decay", 1, 1.0, 0.0),
            ("the third update, with clipped gradients and weight decay", 3, 0.7, 0.1),
        )
    ]


def _newton_schulz(draw: Draw) -> list[Case]:
    return [
        value_case(title, "newton_schulz", {"g": 3 * draw(*shape), "steps": steps}, orthogonalised, "the result")
        for title, shape, steps in (
            ("no step", (2, 3), 0),
            ("one step", (2, 3), 1),
            ("five steps, a wide matrix", (2, 4), 5),
            ("five steps, a tall matrix", (4, 3), 5),
        )
    ]


def _muon(draw: Draw) -> list[Case]:
    return [
        update_case(
            title,
            "muon_update",
            {
                "parameter": draw(*shape),
                "gradient": draw(*shape),
                "m": draw(*shape),
                "lr": 0.2,
                "beta": 0.8,
                "weight_decay": decay,
                "orthogonalise": orthogonalised,
            },
            muon_by_singular_values,
            ("m", "parameter"),
        )
        for title, shape, decay in (("a wide matrix, no decay", (2, 4), 0.0), ("a tall matrix and decay", (4, 2), 0.1))
    ]


def newton_schulz_step_forward(x: Tensor) -> tuple[Tensor, ops.Saved]:
    a = x @ x.T
    return A * x + (B * a + C * a @ a) @ x, (x,)


def _newton_schulz_backward(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "newton_schulz_step_backward",
            newton_schulz_step_forward,
            {"x": 0.5 * draw(*shape)},
            ("dx",),
            ("x",),
            draw,
        )
        for title, shape in (("a square matrix", (3, 3)), ("a wide matrix", (2, 4)))
    ]


GROUP = Group(
    "The step",
    (
        Exercise("sgd", {"sgd_update": optim.sgd_update}, _sgd),
        Exercise("clip", {"global_norm": optim.global_norm, "clip_scale": optim.clip_scale}, _clip),
        Exercise("adamw", {"adamw_update": optim.adamw_update}, _adamw),
        Exercise("repair_adamw", {"adamw_update": optim.adamw_update}, _adamw),
        Exercise("newton_schulz", {"newton_schulz": None}, _newton_schulz),
        Exercise("muon", {"muon_update": None}, _muon),
        Exercise("newton_schulz_backward", {"newton_schulz_step_backward": None}, _newton_schulz_backward),
    ),
)
