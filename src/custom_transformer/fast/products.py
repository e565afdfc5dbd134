"""Matrix products by whichever of PyTorch's libraries is faster for them on the processor at hand."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


@functools.cache
def onednn_computes_float32() -> bool:
    """Whether oneDNN keeps float32 precision even if it is allowed to round operands to bfloat16.

    It does where rounding would not be faster: the error is then about 2⁻²², otherwise 2⁻⁹.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, dtype=torch.float64, generator=generator) for _ in range(2))
    with _onednn():
        error = (a.float() @ b.float() - a @ b).norm() / (a @ b).norm()
    return error.item() < 1e-6


@contextmanager
def _onednn() -> Iterator[None]:
    """float32 products by oneDNN in place of MKL (up to twice as fast on processors that are not Intel's)."""
    matmul_settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul_settings.fp32_precision
    matmul_settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul_settings.fp32_precision = before


def fast_products() -> AbstractContextManager[None]:
    """A context in which float32 products are by the faster library that still computes them in float32.

    The switch is the process's: another thread's products meanwhile go the same way.
    """
    return _onednn() if onednn_computes_float32() else nullcontext()


def _float_products_only() -> bool:
    """Whether bfloat16 products would run in software here (a hundred times slower than float32's)."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b, for matrices or batches of them: of bfloat16 operands, in float32 where the processor has nothing faster."""
    product = torch.bmm if a.ndim == 3 else torch.mm
    if a.dtype == torch.bfloat16 and not a.is_cuda and _float_products_only():
        return product(a.float(), b.float()).to(a.dtype)
    return product(a, b)
