"""Matrix products by whichever of PyTorch's libraries is faster for them on the processor at hand."""

from __future__ import annotations

import functools
import os
import threading
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


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b, for matrices or batches of them: of bfloat16 operands, in float32 where the processor has nothing faster."""
    product = torch.bmm if a.ndim == 3 else torch.mm
    if a.dtype == torch.bfloat16 and not a.is_cuda and _float_products_only():
        return product(a.float(), b.float()).to(a.dtype)
    return product(a, b)
