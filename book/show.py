"""Tensors as matrices on the page."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from book.mathml import symbol


def matrices(tensors: Mapping[str, Tensor | float]) -> str:
    """Each as "name = matrix"; of a tensor with more than two axes its last two, one matrix beside another."""
    return "".join(_equation(name, torch.as_tensor(tensor)) for name, tensor in tensors.items())


def _equation(name: str, tensor: Tensor) -> str:
    if tensor.ndim == 0:
        value = _number(tensor)
    else:
        rows = tensor if tensor.ndim > 1 else tensor[None]
        value = '<mspace width="0.4em"/>'.join(_matrix(matrix) for matrix in rows.reshape(-1, *rows.shape[-2:]))
    drawn = f"<mrow>{symbol(name)}<mo>=</mo>{value}</mrow>"
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{drawn}</math>'


def _matrix(matrix: Tensor) -> str:
    rows = "".join(f"<mtr>{''.join(f'<mtd>{_number(x)}</mtd>' for x in row)}</mtr>" for row in matrix)
    return f'<mrow><mo>[</mo><mtable class="matrix">{rows}</mtable><mo>]</mo></mrow>'


def _number(x: Tensor) -> str:
    if x.dtype == torch.bool:
        return f"<mn>{int(x)}</mn>"
    value = x.item()
    if value == 0 or abs(value) < 5e-13:
        return "<mn>0</mn>"
    if abs(value) == float("inf"):
        return ("<mo>−</mo>" if value < 0 else "") + "<mi>∞</mi>"
    text = f"{abs(value):.4f}" if 1e-3 <= abs(value) < 1e5 else f"{abs(value):.2e}"
    if "e" not in text and "." in text:
        text = text.rstrip("0").rstrip(".")
    return ("<mo>−</mo>" if value < 0 else "") + f"<mn>{text}</mn>"
