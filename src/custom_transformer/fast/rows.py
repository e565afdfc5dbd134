"""Sums over rows, in kernels.

Shapes: N rows, D columns, V rows of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel


def column_sums(x: Tensor) -> Tensor:
    """Σ_rows x        x (N, D) -> (D,), float32 or wider"""
    y = torch.empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    kernel("column_sums", x.dtype)(x.contiguous(), *x.shape, y)
    return y


def add_rows(x: Tensor, index: Tensor, scale: Tensor | None, table: Tensor) -> None:
    """table[index[n]] += scale[n] · x[n], in place, n after n        x (N, D), index (N,), scale (N,), table (V, D)"""
    kernel("add_rows", x.dtype)(x.contiguous(), index, scale, len(x), *table.shape, table)
