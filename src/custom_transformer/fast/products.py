"""Matrix products: by the kernel whose bits are the same everywhere, or by PyTorch's libraries, whose are not.

Of the libraries it is whichever is faster on the processor at hand.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel


@functools.cache
def onednn_computes_float32() -> bool:
    """Whether oneDNN keeps float32 precision even if it is allowed to round operands to bfloat16.

    It does where rounding would not be faster: the error is then about 2⁻²², otherwise 2⁻⁹.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, dtype=torch.float64, generator=generator, device="cpu") for _ in range(2))
    with _onednn():
        error = (a.float() @ b.float() - a @ b).norm() / (a @ b).norm()
    return error.item() < 1e-6


class _Switch:
    """PyTorch's setting for float32 products, which is the whole process's.

    The first thread to come in sets it and the last to go out puts back what the first one found: if each put back
    what it found itself, one that came in second and went out last would leave the setting changed for ever.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, ""

    def enter(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = _matmul_settings.fp32_precision
                _matmul_settings.fp32_precision = "bf16"
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                _matmul_settings.fp32_precision = self.before

    def after_fork(self) -> None:
        """The child of a fork has only the thread that forked, whatever the parent's others were doing."""
        if self.inside:
            _matmul_settings.fp32_precision = self.before
        self.lock, self.inside = threading.Lock(), 0


_matmul_settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
_switch = _Switch()
os.register_at_fork(after_in_child=_switch.after_fork)


@contextmanager
def _onednn() -> Iterator[None]:
    """float32 products by oneDNN in place of MKL (up to twice as fast on processors that are not Intel's)."""
    _switch.enter()
    try:
        yield
    finally:
        _switch.leave()


def fast_products() -> AbstractContextManager[None]:
    """A context in which float32 products are by the faster library that still computes them in float32.

    The switch is the process's: another thread's products meanwhile go the same way.
    """
    return _onednn() if onednn_computes_float32() else nullcontext()


def _float_products_only() -> bool:
    """Whether bfloat16 products would run in software here (a hundred times slower than float32's)."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable_products() -> Iterator[None]:
    """A context in which `matmul` computes on a CPU by the kernel of products.h, in this thread."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) b (K, N) -> (M, N) in their dtype"""
    return _product(a, b, a.dtype)


def weight_gradient(x: Tensor, dy: Tensor, out: Tensor | None = None) -> Tensor:
    """dW = xᵀ dy        x (N, D_in), dy (N, D_out) -> (D_in, D_out), float32 or wider; into `out` if that is given"""
    return _product(x.T, dy, torch.promote_types(x.dtype, torch.float32), out)


def by_kernel(a: Tensor) -> bool:
    """Whether products of `a` are computed by the kernel of products.h."""
    return not _by_torch(a) and _portable.get()


def _by_torch(a: Tensor) -> bool:
    """Whether PyTorch multiplies `a` in any case: on a GPU, or in a graph, which what a CPU needs to know would cut."""
    return a.is_cuda or torch.compiler.is_compiling()


def _product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    if by_kernel(a):
        return _by_kernel(a, b, dtype, out)
    if a.dtype == torch.bfloat16 and not _by_torch(a) and _float_products_only():
        a, b = a.float(), b.float()
    product = torch.mm(a, b)
    return product.to(dtype) if out is None else out.copy_(product)


def _by_kernel(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    (rows, depth), columns = a.shape, b.shape[1]
    c = torch.empty(rows, columns, dtype=dtype, device="cpu") if out is None else out
    if dtype == a.dtype:
        kernel("matrix_product", a.dtype)(*_operand(a), *_operand(b), rows, columns, depth, c)
    else:
        kernel("matrix_product_wide", a.dtype)(*_operand(a), *_operand(b), rows, columns, depth, c)
    return c


def _operand(matrix: Tensor) -> tuple[Tensor, int, int]:
    """A contiguous tensor of the matrix's numbers, and the distances of rows and of columns in it."""
    if matrix.T.is_contiguous():
        return matrix.T, 1, len(matrix)
    return matrix.contiguous(), matrix.shape[1], 1
