"""Parameters as text in the page: exactly, or in 8 bits a number."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from custom_transformer.maths.parameters import Table


def exact(state: Mapping[str, Tensor], table: Table) -> str:
    """Base64 of every parameter's numbers one after another, float32, little-endian, in the table's order."""
    return _text(b"".join(_numbers(state[name]).astype("<f4").tobytes() for name in table))


def coarse(state: Mapping[str, Tensor], table: Table) -> str:
    """As `exact`, but matrices as 8-bit whole numbers: for each row a float32 step, and then the row in such steps.

    The step is a 127th of the row's largest number, so that each is off by at most 1/254 of that.
    """
    parts = []
    for name in table:
        numbers = _numbers(state[name])
        if numbers.ndim == 1:
            parts.append(numbers.astype("<f4").tobytes())
            continue
        step = (np.abs(numbers).max(1, keepdims=True) / 127).astype("<f4")
        rounded = np.rint(numbers / np.where(step == 0, 1, step)).astype(np.int8)
        parts.append(step.tobytes() + rounded.tobytes())
    return _text(b"".join(parts))


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.to(torch.float32).numpy()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
