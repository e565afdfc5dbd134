"""Optimisers, gradient clipping and the learning-rate schedule, on dictionaries of raw tensors.

docs/book/optimisers.md goes through their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from custom_transformer.config import TrainingParams
from custom_transformer.maths import checks, exact
from custom_transformer.maths.muon import MatrixUpdate, muon_updates
from custom_transformer.maths.parameters import IN_PRODUCTS, Table, Tensors, decays


def sgd_update(parameter: Tensor, gradient: Tensor, scale: float, lr: float, weight_decay: float) -> None:
    """θ ← θ − η (s g + λ θ), in place        (Robbins & Monro 1951)"""
    parameter.mul_(1 - lr * weight_decay)
    parameter.sub_(gradient, alpha=lr * scale)


def bias_corrections(betas: tuple[float, float], t: int) -> tuple[float, float]:
    """1 − β₁ᵗ and √(1 − β₂ᵗ): how much of m and of √v there can be after t updates, since both began at 0

    Kingma & Ba 2015, section 3.
    """
    beta1, beta2 = betas
    return 1 - exact.power(beta1, t), math.sqrt(1 - exact.power(beta2, t))


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
    correction, root_correction = bias_corrections(betas, t)
    g = gradient * scale
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    parameter.mul_(1 - lr * weight_decay)
    denominator = v.sqrt().div_(root_correction).add_(eps)
    parameter.addcdiv_(m, denominator, value=-lr / correction)


BLOCK = 4096  # numbers of a gradient whose squares are added up apart


def sums_of_squares(gradient: Tensor) -> Tensor:
    """Σ g² of each BLOCK numbers of a gradient, in their order: (blocks,) float64

    A block's sum is taken by halves: its bits depend on no device, and not on the blocks that are summed beside it, so
    that processes may share out the blocks of one gradient.
    """
    flat = gradient.flatten().double()
    squares = torch.nn.functional.pad(flat * flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    while (half := squares.shape[1] // 2) > 0:
        squares = squares[:, :half] + squares[:, half:]
    return squares.flatten()


def total_of_blocks(sums: Tensor) -> float:
    """Σ g² of a gradient, from the sums of its blocks: one after the other."""
    return float(np.add.accumulate(sums.cpu().numpy())[-1])


def norm_of(totals: Iterable[float]) -> float:
    """√(Σ g²) over all gradients, from each one's Σ g²: their sum is exact but for one rounding."""
    try:
        return math.sqrt(math.fsum(totals))
    except OverflowError:  # of finite squares
        return math.inf


def global_norm(gradients: Mapping[str, Tensor], squares: Callable[[Tensor], Tensor] = sums_of_squares) -> float:
    """√(Σ g²) over all gradients. Summed in float64: of float32, it overflows only where a gradient itself has."""
    return norm_of(total_of_blocks(squares(gradient)) for gradient in gradients.values())


class Rules(NamedTuple):
    """The arithmetic of an update: these functions, or faster equals of them."""

    sums_of_squares: Callable[[Tensor], Tensor] = sums_of_squares
    sgd: Callable[..., None] = sgd_update
    adamw: Callable[..., None] = adamw_update
    muon: Callable[..., None] = muon_updates

    def global_norm(self, gradients: Mapping[str, Tensor]) -> float:
        return global_norm(gradients, self.sums_of_squares)


class Optimizer(Protocol):
    """Changes parameters in place, by `scale` times gradients of the same names and shapes; remembers what it must.

    weight_decay: λ of each parameter, by name; 0 for those not named.

    `update` raises ValueError, and changes nothing, for a gradient that is missing or does not fit its parameter, and
    for a learning rate that is negative or not finite.
    """

    state: dict[str, Tensors]

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None: ...


class SGD:
    """`sgd_update` of every parameter"""

    def __init__(self, weight_decay: Mapping[str, float], rule: Callable[..., None] = sgd_update):
        self.weight_decay, self.rule = weight_decay, rule
        self.state: dict[str, Tensors] = {}

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None:
        lr, scale = _checked(parameters, lr, scale, gradient=gradients)
        for name, parameter in parameters.items():
            self.rule(parameter, gradients[name], scale, lr, self.weight_decay.get(name, 0.0))


class AdamW:
    """`adamw_update` of every parameter. m, v: tensors like the parameters; t: updates done."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        betas: tuple[float, float],
        weight_decay: Mapping[str, float],
        eps: float = 1e-8,
        rule: Callable[..., None] = adamw_update,
    ):
        self.betas, self.weight_decay, self.eps, self.rule = betas, weight_decay, eps, rule
        with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode cannot be changed outside
            self.state: dict[str, Tensors] = {
                "m": {name: torch.zeros_like(p) for name, p in parameters.items()},
                "v": {name: torch.zeros_like(p) for name, p in parameters.items()},
                "t": {"t": torch.zeros((), dtype=torch.int64, device="cpu")},
            }

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None:
        lr, scale = _checked(parameters, lr, scale, gradient=gradients, m=self.state["m"], v=self.state["v"])
        t = int(self.state["t"]["t"].add_(1))
        for name, parameter in parameters.items():
            m, v = self.state["m"][name], self.state["v"][name]
            decay = self.weight_decay.get(name, 0.0)
            self.rule(parameter, gradients[name], m, v, t, scale, lr, self.betas, decay, self.eps)


class Muon:
    """`muon_update` of the matrices named in `widths`, `adamw_update` of all other parameters. (Jordan 2024.)

    widths: of each matrix by its name, how many of its columns are a matrix of their own in an update.
    lr_ratio: the matrices' learning rate, divided by that of the others.

    m, v, t: as AdamW's, of the others; momentum: tensors like the matrices.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        widths: Mapping[str, int],
        betas: tuple[float, float],
        weight_decay: Mapping[str, float],
        lr_ratio: float,
        beta: float,
        rules: Rules,
    ):
        self.widths, self.weight_decay = widths, weight_decay
        self.lr_ratio, self.beta, self.rule = lr_ratio, beta, rules.muon
        others = {name: p for name, p in parameters.items() if name not in widths}
        self.adamw = AdamW(others, betas, weight_decay, rule=rules.adamw)
        with torch.inference_mode(False), torch.no_grad():
            self.momentum = {name: torch.zeros_like(parameters[name]) for name in widths}

    @property
    def state(self) -> dict[str, Tensors]:
        return self.adamw.state | {"momentum": self.momentum}

    @state.setter
    def state(self, state: dict[str, Tensors]) -> None:
        self.momentum = state["momentum"]
        self.adamw.state = {kind: tensors for kind, tensors in state.items() if kind != "momentum"}

    def update(self, parameters: Tensors, gradients: Tensors, lr: float, scale: float = 1.0) -> None:
        matrices = {name: p for name, p in parameters.items() if name in self.widths}
        others = {name: p for name, p in parameters.items() if name not in self.widths}
        lr, scale = _checked(matrices, lr, scale, gradient=gradients, momentum=self.momentum)
        lr_of_matrices = checks.check_learning_rate(lr * self.lr_ratio)
        self.adamw.update(others, gradients, lr, scale)  # checks before it changes anything
        updates = []
        for name in matrices:
            parts = (tensors[name].split(self.widths[name], 1) for tensors in (matrices, gradients, self.momentum))
            for parameter, gradient, momentum in zip(*parts, strict=True):
                updates.append(MatrixUpdate(parameter, gradient, momentum, self.weight_decay.get(name, 0.0)))
        self.rule(updates, scale, lr_of_matrices, self.beta)


def _checked(parameters: Tensors, lr: float, scale: float, **tensors: Tensors) -> tuple[float, float]:
    """lr and scale as floats, where each of `tensors` has a tensor like each parameter."""
    lr, scale = checks.check_learning_rate(lr), checks.check_number("scale", scale, 0, checks.LARGEST)
    for name, p in parameters.items():
        for kind, by_name in tensors.items():
            t = by_name.get(name)
            if t is None or t.shape != p.shape or t.dtype != p.dtype or t.device != p.device:
                found = "missing" if t is None else f"{tuple(t.shape)} {t.dtype} on {t.device}"
                raise ValueError(
                    f"{name} is {tuple(p.shape)} {p.dtype} on {p.device}, its {kind} in this update is {found}"
                )
    return lr, scale


def updated_whole(params: TrainingParams, table: Table) -> list[str]:
    """The parameters whose update needs the whole matrix.

    Every other one is changed number by number, so that any slice of it can be updated alone, with the same slice of
    its gradient and of the optimiser's state.
    """
    return [name for name, (_, role) in table.items() if params.optimizer == "muon" and IN_PRODUCTS[role]]


def build_optimizer(
    params: TrainingParams, parameters: Mapping[str, Tensor], table: Table, head_size: int, rules: Rules
) -> Optimizer:
    """The optimiser that `params.optimizer` names, for these parameters or slices of them, of the roles in `table`."""
    weight_decay = decays(table, params.weight_decay)
    if params.optimizer == "sgd":
        return SGD(weight_decay, rules.sgd)
    if params.optimizer == "adamw":
        return AdamW(parameters, params.betas, weight_decay, rule=rules.adamw)
    matrices = {name: table[name] for name in updated_whole(params, table) if name in parameters}
    widths = {name: head_size if role == "into_heads" else shape[1] for name, (shape, role) in matrices.items()}
    lr_ratio = params.muon_learning_rate / params.learning_rate
    return Muon(parameters, widths, params.betas, weight_decay, lr_ratio, params.muon_momentum, rules)


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
        return low + (peak - low) * 0.5 * (1 + exact.cos(math.pi * progress))
    if params.lr_decay == "linear":
        return peak + (low - peak) * progress
    return peak
