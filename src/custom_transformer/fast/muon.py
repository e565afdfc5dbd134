"""Muon in kernels: all matrices in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths.muon import QUINTICS, MatrixUpdate, shape_factor


def muon_updates(updates: Sequence[MatrixUpdate], scale: float, lr: float, beta: float) -> None:
    """As muon.muon_updates"""
    if not updates:
        return
    dtype = updates[0].parameter.dtype
    # The largest first, so that no thread begins one when the others are done.
    updates = sorted(updates, key=lambda u: -u.parameter.numel() * min(u.parameter.shape))
    # A gradient that does not lie row by row is copied; the copy lives until the kernel is done.
    updates = [u if _by_rows(u.gradient) else u._replace(gradient=_copy(u.gradient)) for u in updates]
    addresses, sizes, constants = [], [], []
    for parameter, gradient, momentum, weight_decay in updates:
        tensors = parameter, gradient, momentum
        if not all(t.dtype == dtype and t.is_cpu and _by_rows(t) for t in tensors):
            raise ValueError("the kernel needs matrices of one dtype on the CPU, the numbers of each row side by side")
        addresses.append([t.data_ptr() for t in tensors])
        sizes.append([*parameter.shape, *(t.stride(0) for t in tensors)])
        constants.append([1 - lr * weight_decay, lr * shape_factor(parameter)])
    kernel("muon_updates", dtype)(
        torch.tensor(addresses, device="cpu"),
        torch.tensor(sizes, device="cpu"),
        torch.tensor(constants, dtype=dtype, device="cpu"),
        torch.tensor(QUINTICS, dtype=dtype, device="cpu"),
        len(QUINTICS),
        scale,
        beta,
        1 - beta,
        len(updates),
    )


def _by_rows(matrix: Tensor) -> bool:
    """Whether the numbers of each row lie side by side, and rows behind each other"""
    rows, columns = matrix.shape
    return (columns == 1 or matrix.stride(1) == 1) and (rows == 1 or matrix.stride(0) >= columns)


def _copy(matrix: Tensor) -> Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)
