"""The kernels of kernels.cpp: compiled on first use, kept in the user's cache, called with tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("kernels.cpp")
# The compiler may not reorder sums on its own (-ffast-math): a NaN stays one, and equal runs give equal bits.
_FLAGS = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]

# The parameters' types in kernels.cpp: T is the products' type and W the arithmetic's. A pointer may be null.
_DTYPE_OF = {"std::uint8_t*": torch.bool, "Index*": torch.int64}
_NUMBERS = {"Index": ctypes.c_int64, "double": ctypes.c_double, "float": ctypes.c_float, "void": None}


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
            [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)], capture_output=True, errors="replace", check=False
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
    version = subprocess.run([compiler, "--version"], capture_output=True, errors="replace", check=False).stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    parts = [_SOURCE.read_text(encoding="utf-8"), *_FLAGS, compiler, version, platform.machine(), *processor]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _signatures() -> dict[str, tuple[str, list[str]]]:
    """Of each exported kernel the type of its result and those of its parameters, as kernels.cpp writes them."""
    source = _SOURCE.read_text(encoding="utf-8")
    exported = set(re.findall(r"(?<!define )EXPORT\w*\((\w+)\)", source))
    return {
        name: (result, [re.sub(r"const |\s*\w+$", "", parameter.strip()) for parameter in parameters.split(",")])
        for result, name, parameters in re.findall(r"\b(void|double) (\w+)\(([^()]*)\) {", source)
        if name in exported
    }


@functools.cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., float | None]:
    """The kernel `name` for products in `dtype`; its arguments as in kernels.cpp.

    Raises ValueError for a tensor of another dtype than the kernel's, not contiguous, or not on the CPU.
    """
    suffix = str(dtype).removeprefix("torch.")
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = _DTYPE_OF | {"T*": dtype, "W*": wide}
    numbers = _NUMBERS | {"W": _NUMBERS["double" if wide == torch.float64 else "float"]}
    result, kinds = _signatures()[name]
    address = ctypes.c_void_p.in_dll(library(), f"{name}_{suffix}").value
    assert address is not None
    types: list[Any] = [ctypes.c_void_p if kind in dtypes else numbers[kind] for kind in kinds]
    function = ctypes.CFUNCTYPE(numbers[result], *types)(address)
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
