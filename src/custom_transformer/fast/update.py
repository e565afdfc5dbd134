"""The optimisers' arithmetic in kernels, each tensor in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths.optim import BLOCK, bias_corrections


def sums_of_squares(gradient: Tensor) -> Tensor:
    """As optim.sums_of_squares, but that a block is summed by 16 lanes"""
    sums = torch.empty(-(-gradient.numel() // BLOCK), dtype=torch.float64, device="cpu")
    kernel("sums_of_squares", gradient.dtype)(gradient.contiguous(), gradient.numel(), sums, len(sums))
    return sums


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
