"""The turns of rotary positions: a table of cosines and sines with the same bits on every machine."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from custom_transformer.maths import portable
from custom_transformer.maths.exact import power


@torch.compiler.disable  # it would look into the cache, and into NumPy
@functools.lru_cache(maxsize=8)
def turns(
    start: int, time: int, half: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The cosines and sines of t · base^(−i / half), t from `start` on and i from 0        -> (T, half) each

    Computed in float64. Do not write into them: the next call gives the same tensors.
    """
    rates = np.array([power(base, -i, half) for i in range(half)])
    angles = np.arange(start, start + time, dtype=np.float64)[:, None] * rates
    with torch.inference_mode(False):  # they outlive the caller's
        cos, sin = (torch.from_numpy(part).to(device, dtype) for part in portable.cos_sin(angles))
    return cos, sin
