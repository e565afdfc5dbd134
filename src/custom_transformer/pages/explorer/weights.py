"""Parameters as text in the page: exactly, or rounded."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from custom_transformer.maths.parameters import Table

LEVELS = (7, 15, 31)  # on each side of 0, to which numbers are rounded


def exact(state: Mapping[str, Tensor], table: Table) -> str:
    """Every parameter's numbers one after another in the table's order, float32, little-endian, compressed.

    First the lowest byte of every number, then the next one, and so on: the highest bytes, of sign and exponent, are
    much alike, and compress well only side by side.
    """
    numbers = np.concatenate([_numbers(state[name]).ravel() for name in table]).astype("<f4")
    return _text(numbers.view(np.uint8).reshape(-1, 4).T.tobytes())


def rounded(state: Mapping[str, Tensor], table: Table, levels: int) -> str:
    """As `exact`, but each row of a matrix as a float32 step and whole numbers of such steps, `levels` of them at most.

    Vectors stay exact. With 31, 15 and 7 levels it takes 21%, 18% and 14% of `exact`, and the validation loss of the
    default run's model differs by 0.3%, 1.3% and 8%; after a tenth of the run by 0.5%, 1% and 4%, and before by less.
    """
    parts = []
    for name in table:
        numbers = _numbers(state[name])
        if numbers.ndim == 1:
            parts.append(numbers.astype("<f4").tobytes())
            continue
        step = (np.abs(numbers).max(1, keepdims=True) / levels).astype("<f4")
        whole = np.rint(numbers / np.where(step == 0, 1, step)).astype(np.int8)
        parts.append(step.tobytes() + whole.tobytes())
    return _text(b"".join(parts))


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.to(torch.float32).numpy()


def _text(content: bytes) -> str:
    """Compressed, five characters for four bytes, without "<", which HTML would have to escape."""
    compress = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return base64.b85encode(compress.compress(content) + compress.flush()).replace(b"<", b",").decode("ascii")
