"""Muon's arithmetic (Jordan 2024): momentum, of which each matrix is made orthogonal before it is a step.

docs/book/optimisers.md goes through its formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# a, b and c of each iteration of `orthogonalised`. Of all odd quintics its a s + b s³ + c s⁵ is nearest to 1, by the
# largest error, on the interval to which those before it bring [0.003, 1]. (Amsel et al. 2025, theorem 4.1.)
QUINTICS = (
    (8.38367, -24.76591, 18.35708),
    (4.04342, -3.01140, 0.56951),
    (3.50557, -2.62665, 0.52572),
    (2.49012, -1.83428, 0.43683),
)
TINY = 1e-30  # under a norm, so that a matrix of zeros stays one


def orthogonalised(x: Tensor) -> Tensor:
    """Nearly U Vᵀ of x = U Σ Vᵀ        x (M, N) -> (M, N)

    x ← x / (Σ σ⁸)^⅛, which is at least its largest singular value and at most M^⅛ times that; then, for each (a, b, c),

        x ← a x + b (x xᵀ) x + c (x xᵀ)² x

    which makes a σ + b σ³ + c σ⁵ of each singular value σ, and leaves U and V. (Bernstein & Newhouse 2024.)
    """
    if x.shape[0] > x.shape[1]:
        return orthogonalised(x.T).T
    x = x / x.norm().clamp(min=TINY)
    gram = x @ x.T
    x = x / (gram @ gram).norm().clamp(min=TINY).sqrt().sqrt()
    for a, b, c in QUINTICS:
        x = quintic(x, a, b, c)
    return x


def quintic(x: Tensor, a: float, b: float, c: float) -> Tensor:
    """a x + b (x xᵀ) x + c (x xᵀ)² x        x (M, N) -> (M, N)"""
    gram = x @ x.T
    return a * x + (b * gram + c * gram @ gram) @ x


def muon_update(
    parameter: Tensor, gradient: Tensor, momentum: Tensor, scale: float, lr: float, beta: float, weight_decay: float
) -> None:
    """m ← β m + (1 − β) s g,    θ ← (1 − η λ) θ − η √max(1, D_out / D_in) orthogonalised(β m + (1 − β) s g), in place

    with the new m, so that g counts at once (Nesterov). All (D_in, D_out). (Jordan 2024.)
    """
    g = gradient * scale
    momentum.lerp_(g, 1 - beta)
    direction = orthogonalised(g.lerp(momentum, beta))
    parameter.mul_(1 - lr * weight_decay)
    parameter.sub_(direction, alpha=lr * shape_factor(parameter))


def shape_factor(parameter: Tensor) -> float:
    """√max(1, D_out / D_in)        (Jordan 2024)"""
    d_in, d_out = parameter.shape
    return math.sqrt(max(1, d_out / d_in))


class MatrixUpdate(NamedTuple):
    """What `muon_update` is given of one matrix, all (D_in, D_out); they may be columns of larger matrices."""

    parameter: Tensor
    gradient: Tensor
    momentum: Tensor
    weight_decay: float


def muon_updates(updates: Sequence[MatrixUpdate], scale: float, lr: float, beta: float) -> None:
    """`muon_update` of each matrix"""
    for parameter, gradient, momentum, weight_decay in updates:
        muon_update(parameter, gradient, momentum, scale, lr, beta, weight_decay)
