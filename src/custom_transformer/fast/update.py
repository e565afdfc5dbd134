"""The optimisers' arithmetic in kernels, each tensor in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths.optim import bias_corrections


def global_norm(gradients: Mapping[str, Tensor]) -> float:
    """As optim.global_norm"""
    squares = [kernel("sum_of_squares", g.dtype)(g, g.numel()) for g in map(Tensor.contiguous, gradients.values())]
    try:
        return math.sqrt(math.fsum(squares))  # type: ignore[arg-type]
    except OverflowError:  # of finite squares
        return math.inf


def sgd_update(parameter: Tensor, gradient: Tensor, scale: float, lr: float, weight_decay: float) -> None:
    """As optim.sgd_update"""
    kernel("sgd_update", parameter.dtype)(
        parameter, gradient.contiguous(), 1 - lr * weight_decay, lr * scale, parameter.numel()
    )


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
    """As optim.adamw_update"""
    beta1, beta2 = betas
    first, second = bias_corrections(betas, t)
    shrink, rate, correction = 1 - lr * weight_decay, lr / first, second
    constants = (scale, 1 - beta1, beta2, 1 - beta2, eps, shrink, rate, correction)
    kernel("adamw_update", parameter.dtype)(parameter, gradient.contiguous(), m, v, *constants, parameter.numel())
