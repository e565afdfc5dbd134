"""Optimisers, gradient clipping and the learning-rate schedule, on dictionaries of raw tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from custom_transformer.config import TrainingParams

Tensors = dict[str, Tensor]


class UpdateRules(Protocol):
    """Where an optimiser finds its arithmetic: this module, or a faster equal of it."""

    @property
    def sgd_update(self) -> Callable[..., None]: ...

    @property
    def adamw_update(self) -> Callable[..., None]: ...


def sgd_update(parameter: Tensor, gradient: Tensor, scale: float, lr: float, weight_decay: float) -> None:
    """θ ← θ − η (s g + λ θ), in place        (Robbins & Monro 1951)"""
    parameter.mul_(1 - lr * weight_decay)
    parameter.sub_(gradient, alpha=lr * scale)


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    scale: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
) -> None:
    """m ← β₁ m + (1 − β₁) s g,    v ← β₂ v + (1 − β₂) (s g)²,    θ ← θ − η (m̂ / (√v̂ + ε) + λ θ), in place

    with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ); t counts the updates from 1. (Loshchilov & Hutter 2019, algorithm 2.)
    """
    beta1, beta2 = betas
    g = gradient * scale
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    parameter.mul_(1 - lr * weight_decay)
    denominator = v.sqrt().div_(math.sqrt(1 - beta2**t)).add_(eps)
    parameter.addcdiv_(m, denominator, value=-lr / (1 - beta1**t))


class Optimizer(Protocol):
    """Changes parameters in place, by `scale` times gradients of the same names and shapes; remembers what it must.

    Weight decay shrinks matrices towards 0; a norm's weight near 1 and a bias have no reason to shrink.
    """

    state: dict[str, Tensors]

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None: ...


class SGD:
    """`sgd_update` of every parameter, with λ = 0 for vectors (biases and norms)"""

    def __init__(self, weight_decay: float = 0.0, rule: Callable[..., None] = sgd_update):
        self.weight_decay, self.rule = weight_decay, rule
        self.state: dict[str, Tensors] = {}

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None:
        for name, parameter in parameters.items():
            self.rule(parameter, gradients[name], scale, lr, _decay_of(parameter, self.weight_decay))


class AdamW:
    """`adamw_update` of every parameter, with λ = 0 for vectors. m, v: tensors like the parameters; t: updates done."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        rule: Callable[..., None] = adamw_update,
    ):
        self.betas, self.weight_decay, self.eps, self.rule = betas, weight_decay, eps, rule
        self.state: dict[str, Tensors] = {
            "m": {name: torch.zeros_like(p) for name, p in parameters.items()},
            "v": {name: torch.zeros_like(p) for name, p in parameters.items()},
            "t": {"t": torch.zeros((), dtype=torch.int64)},
        }

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None:
        t = int(self.state["t"]["t"].add_(1))
        for name, parameter in parameters.items():
            m, v = self.state["m"][name], self.state["v"][name]
            decay = _decay_of(parameter, self.weight_decay)
            self.rule(parameter, gradients[name], m, v, t, scale, lr, self.betas, decay, self.eps)


def _decay_of(parameter: Tensor, weight_decay: float) -> float:
    return weight_decay if parameter.ndim >= 2 else 0.0


def build_optimizer(params: TrainingParams, parameters: Mapping[str, Tensor], rules: UpdateRules) -> Optimizer:
    """The optimiser that `params.optimizer` names."""
    if params.optimizer == "sgd":
        return SGD(params.weight_decay, rules.sgd_update)
    return AdamW(parameters, params.betas, params.weight_decay, rule=rules.adamw_update)


def global_norm(gradients: Mapping[str, Tensor]) -> float:
    """√(Σ g²) over all gradients. Summed in float64: it overflows only where a gradient itself has."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients.values()]
    return torch.linalg.vector_norm(torch.stack(norms)).item()


def clip_scale(norm: float, max_norm: float | None) -> float:
    """min(1, c / ‖g‖): what gradients of this global norm are multiplied with

    (Pascanu et al. 2013, algorithm 1; c is `max_norm`, None for no clipping.)
    """
    return 1.0 if max_norm is None or norm <= max_norm else max_norm / norm


def learning_rate_at(step: int, total_steps: int, params: TrainingParams) -> float:
    """The learning rate of update `step` (counted from 0) of `total_steps`.

    It rises linearly to `learning_rate` over the first `warmup_ratio` of the run, then falls to
    `min_learning_rate` at the last update along half a cosine (Loshchilov & Hutter 2017, eq. 5), along a line,
    or not at all.
    """
    peak, low = params.learning_rate, params.min_learning_rate
    warmup = round(params.warmup_ratio * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    if params.lr_decay == "cosine":
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if params.lr_decay == "linear":
        return peak + (low - peak) * progress
    return peak
