"""The kernels of kernels.cpp: compiled on first use, kept in the user's cache, called with tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("kernels.cpp")
# The compiler may not reorder sums on its own (-ffast-math): a NaN stays one, and equal runs give equal bits.
_FLAGS = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]

# What each kernel is called with: T a tensor of the products' dtype, W one of the arithmetic's, b of bools, l of int64
# (each may be None); w a number of the arithmetic's type, i an integer.
_ARGUMENTS = {
    "add_norm_forward": "WTWbwWWwiiWTWW",
    "norm_again": "WWWWWiiT",
    "add_norm_backward": "TWWWWWbwiiWTWWW",
    "gelu_forward": "TWiiT",
    "gelu_backward": "TTWiiW",
    "split_heads": "TWiiiiT",
    "merge_heads": "TiiiiiiiiTW",
    "softmax_forward": "TwbwiiiiiT",
    "softmax_backward": "TTwbwiiiii",
    "loss_tile": "TliiiWWWWW",
    "rescale_add": "WWTii",
    "scale_rows": "TWiiT",
    "few_rows_product": "TTiiiT",
    "few_rows_logits": "TTiiiT",
    "attend_cached": "TWTTiiiiiwT",
    "sum_of_squares": "Wi",
    "sgd_update": "WWwwi",
    "adamw_update": "WWWWwwwwwwwwi",
}


class KernelsUnavailable(Exception):
    """The kernels cannot be compiled or loaded here; the message says why, in one line."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels. Takes some seconds the first time on a machine. Raises KernelsUnavailable."""
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])), None)
    if compiler is None:
        raise KernelsUnavailable("no C++ compiler was found")
    try:
        path = _cache_folder() / f"kernels-{_key(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # a compiler or cache that cannot be used, a home that is not known
        raise KernelsUnavailable(str(error)) from error


def kernels_name() -> str:
    """The compiled kernels' name, which follows from all that they are made of and for. Raises KernelsUnavailable."""
    return Path(library()._name).stem


def _build(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        done = subprocess.run(
            [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            # "failed" is the linker's word, on a full disk for one
            told = (line for line in done.stderr.splitlines() if "error" in line or "failed" in line)
            first_error = next(told, "no message")
            raise KernelsUnavailable(f"{compiler} failed: {first_error.strip()}")
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(path)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "custom_transformer"


def _key(compiler: str) -> str:
    """What the compiled code depends on: the source, the flags, the compiler, and the processor it is made for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    parts = [_SOURCE.read_text(encoding="utf-8"), *_FLAGS, compiler, version, platform.machine(), *processor]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., float | None]:
    """The kernel `name` for products in `dtype`; its arguments as in kernels.cpp.

    Raises ValueError for a tensor of another dtype than the kernel's, not contiguous, or not on the CPU.
    """
    suffix = str(dtype).removeprefix("torch.")
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = {"T": dtype, "W": wide, "b": torch.bool, "l": torch.int64}
    numbers = {"w": ctypes.c_double if wide == torch.float64 else ctypes.c_float, "i": ctypes.c_int64}
    kinds = _ARGUMENTS[name]
    address = ctypes.c_void_p.in_dll(library(), f"{name}_{suffix}").value
    assert address is not None
    returns = ctypes.c_double if name == "sum_of_squares" else None
    function = ctypes.CFUNCTYPE(returns, *(numbers.get(kind, ctypes.c_void_p) for kind in kinds))(address)
    expected = [dtypes.get(kind) for kind in kinds]

    def call(*arguments: Tensor | float | int | None) -> float | None:
        return function(*(_plain(a, dtype) for a, dtype in zip(arguments, expected, strict=True)))

    return call


def _plain(argument: Tensor | float | int | None, dtype: torch.dtype | None) -> float | int | None:
    if not isinstance(argument, Tensor):
        return argument
    if argument.dtype != dtype or not argument.is_contiguous() or argument.device.type != "cpu":
        raise ValueError(
            f"a kernel needs a contiguous {dtype} tensor on the CPU here, not {argument.dtype} "
            f"{tuple(argument.shape)} with strides {argument.stride()} on {argument.device}"
        )
    return argument.data_ptr()
