"""The turns of rotary positions: a table of cosines and sines with the same bits on every machine."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from custom_transformer.maths import portable
from custom_transformer.maths.exact import power


def angles(start: int, time: int, half: int, base: float) -> portable.Array:
    """t · base^(−i / half), t from `start` on and i from 0        -> (T, half) float64"""
    rates = np.array([power(base, -i, half) for i in range(half)])
    return np.arange(start, start + time, dtype=np.float64)[:, None] * rates


@functools.lru_cache(maxsize=8)
def turns(
    start: int, time: int, half: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The cosines and sines of `angles`, which are computed in float64        -> (T, half) each

    Do not write into them: the next call gives the same tensors.
    """
    table = portable.cos_sin(angles(start, time, half, base))
    with torch.inference_mode(False):  # they outlive the caller's
        cos, sin = (torch.from_numpy(part).to(device, dtype) for part in table)
    return cos, sin
