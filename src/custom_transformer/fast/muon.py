"""Muon in kernels: all matrices in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.maths.muon import QUINTICS, shape_factor


def muon_updates(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    scale: float,
    lr: float,
    beta: float,
    weight_decays: Sequence[float],
) -> None:
    """As muon.muon_updates"""
    if not parameters:
        return
    dtype = parameters[0].dtype
    # The largest first, so that no thread begins one when the others are done.
    order = sorted(range(len(parameters)), key=lambda i: -parameters[i].numel() * min(parameters[i].shape))
    gradients = [_by_rows(g) for g in gradients]  # copies that live until the kernel is done
    addresses, sizes, constants = [], [], []
    for i in order:
        matrices = parameters[i], gradients[i], momenta[i]
        if not all(t.dtype == dtype and t.is_cpu and t.stride(1) == 1 for t in matrices):
            raise ValueError("the kernel needs matrices of one dtype on the CPU, the numbers of each row side by side")
        addresses.append([t.data_ptr() for t in matrices])
        sizes.append([*parameters[i].shape, *(t.stride(0) for t in matrices)])
        constants.append([1 - lr * weight_decays[i], lr * shape_factor(parameters[i])])
    kernel("muon_updates", dtype)(
        torch.tensor(addresses, device="cpu"),
        torch.tensor(sizes, device="cpu"),
        torch.tensor(constants, dtype=dtype, device="cpu"),
        torch.tensor(QUINTICS, dtype=dtype, device="cpu"),
        len(QUINTICS),
        scale,
        beta,
        1 - beta,
        len(order),
    )


def _by_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
