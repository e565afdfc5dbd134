"""Optimisers, gradient clipping and the learning-rate schedule, on dictionaries of raw tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from custom_transformer.config import TrainingParams

Tensors = dict[str, Tensor]


class Optimizer(Protocol):
    """Changes parameters in place, by gradients of the same names and shapes, and remembers what it must."""

    state: dict[str, Tensors]

    def update(self, parameters: Tensors, gradients: Tensors, learning_rate: float) -> None: ...


class SGD:
    """θ ← θ − η (g + λ θ), with λ = 0 for vectors (biases and norms)        (Robbins & Monro 1951)"""

    def __init__(self, weight_decay: float = 0.0):
        self.weight_decay = weight_decay
        self.state: dict[str, Tensors] = {}

    def update(self, parameters: Tensors, gradients: Tensors, learning_rate: float) -> None:
        for name, parameter in parameters.items():
            parameter.mul_(1 - learning_rate * _decay_of(parameter, self.weight_decay))
            parameter.sub_(gradients[name], alpha=learning_rate)


class AdamW:
    """m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²,    θ ← θ − η (m̂ / (√v̂ + ε) + λ θ)

    with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), and λ = 0 for vectors (biases and norms).
    (Loshchilov & Hutter 2019, algorithm 2.) m, v: tensors like the parameters; t: the number of updates.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        self.betas, self.weight_decay, self.eps = betas, weight_decay, eps
        self.state: dict[str, Tensors] = {
            "m": {name: torch.zeros_like(p) for name, p in parameters.items()},
            "v": {name: torch.zeros_like(p) for name, p in parameters.items()},
            "t": {"t": torch.zeros((), dtype=torch.int64)},
        }

    def update(self, parameters: Tensors, gradients: Tensors, learning_rate: float) -> None:
        beta1, beta2 = self.betas
        t = self.state["t"]["t"].add_(1).item()
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        for name, parameter in parameters.items():
            gradient, m, v = gradients[name], self.state["m"][name], self.state["v"][name]
            m.lerp_(gradient, 1 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            parameter.mul_(1 - learning_rate * _decay_of(parameter, self.weight_decay))
            denominator = v.sqrt().div_(math.sqrt(correction2)).add_(self.eps)
            parameter.addcdiv_(m, denominator, value=-learning_rate / correction1)


def _decay_of(parameter: Tensor, weight_decay: float) -> float:
    """Decay shrinks matrices towards 0; a norm's weight near 1 and a bias have no reason to shrink."""
    return weight_decay if parameter.ndim >= 2 else 0.0


def build_optimizer(params: TrainingParams, parameters: Mapping[str, Tensor]) -> Optimizer:
    """The optimiser that `params.optimizer` names."""
    if params.optimizer == "sgd":
        return SGD(params.weight_decay)
    return AdamW(parameters, params.betas, params.weight_decay)


def global_norm(gradients: Mapping[str, Tensor]) -> float:
    """√(Σ g²) over all gradients. Summed in float64: it overflows only where a gradient itself has."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients.values()]
    return torch.linalg.vector_norm(torch.stack(norms)).item()


def clip_by_global_norm(gradients: Tensors, norm: float, max_norm: float | None) -> tuple[Tensors, float]:
    """g ← g · min(1, c / ‖g‖), and the norm that results        (Pascanu et al. 2013, algorithm 1)"""
    if max_norm is None or norm <= max_norm:
        return gradients, norm
    return {name: gradient * (max_norm / norm) for name, gradient in gradients.items()}, max_norm


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
