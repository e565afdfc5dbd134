"""The kernels of the .cpp files here: compiled on first use, kept in the user's cache, called with tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
_SHARED = sorted(Path(__file__).parent.glob("*.h"))
# The compiler may neither reorder sums (-ffast-math) nor fuse a product with a sum: each rounding is as it is written.
_FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]

# The parameters' types there: T is the products' type and W the arithmetic's.
_DTYPE_OF = {"std::uint8_t*": torch.bool, "Index*": torch.int64, "double*": torch.float64}
_NUMBERS = {"Index": ctypes.c_int64, "double": ctypes.c_double, "float": ctypes.c_float}

MARCH = "CUSTOM_TRANSFORMER_MARCH"  # the processor to compile for, as g++'s -march takes it; else the one at hand


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


def has_fma() -> bool:
    """Whether the kernels' processor has the fused multiply-add that they are made of; else they compute it in
    software. Raises KernelsUnavailable."""
    return bool(ctypes.c_int.in_dll(library(), "has_fma").value)


def _build(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [Path(folder) / f"{source.stem}.o" for source in _SOURCES]
        commands = [
            [compiler, *_flags(), "-c", str(source), "-o", str(to)]
            for source, to in zip(_SOURCES, objects, strict=True)
        ]
        list(pool.map(_run, commands))
        built = Path(folder) / path.name
        _run([compiler, "-fopenmp", "-shared", *map(str, objects), "-o", str(built)])
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, errors="replace", check=False)
    if done.returncode != 0:
        # "failed" is the linker's word, on a full disk for one
        told = (line for line in done.stderr.splitlines() if "error" in line or "failed" in line)
        first_error = next(told, "no message")
        raise KernelsUnavailable(f"{command[0]} failed: {first_error.strip()}")


def _flags() -> list[str]:
    """The compiler's options. Whatever the processor, the bits are the same."""
    return [*_FLAGS, f"-march={os.environ.get(MARCH, 'native')}"]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "custom_transformer"


def _key(compiler: str) -> str:
    """What the compiled code depends on: the sources, the flags, the compiler, and the processor it is made for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, errors="replace", check=False).stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    sources = [path.read_text(encoding="utf-8") for path in (*_SHARED, *_SOURCES)]
    parts = [*sources, *_flags(), compiler, version, platform.machine(), *processor]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class _Parameter(NamedTuple):
    """Of a kernel, as its file declares it: `Index rows`, or a pointer such as `const T* h /* rows D? */`.

    sizes: whose product is the number of elements behind a pointer: numbers and names of other parameters.
    """

    kind: str
    name: str
    sizes: tuple[str, ...] = ()
    nullable: bool = False


@functools.cache
def _signatures() -> dict[str, list[_Parameter]]:
    """The parameters of each exported kernel."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in _SOURCES)
    exported = set(re.findall(r"EXPORT\w*\((\w+)\)", source))
    return {
        name: [_parameter(text) for text in parameters.split(",")]
        for name, parameters in re.findall(r"\bvoid (\w+)\(([^()]*)\) {", source)
        if name in exported
    }


def _parameter(text: str) -> _Parameter:
    found = re.fullmatch(
        r"(?:\[\[maybe_unused\]\] )?(?:const )?([\w:]+\*?) (\w+)(?: /\* ([\w ]+)(\??) \*/)?", text.strip()
    )
    assert found is not None, text
    kind, name, sizes, nullable = found.groups()
    return _Parameter(kind, name, tuple((sizes or "").split()), bool(nullable))


@functools.cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The kernel `name` for products in `dtype`; its arguments as in its file.

    Raises ValueError for a tensor of another dtype or size than the kernel's, not contiguous, or not on the CPU.
    """
    suffix = str(dtype).removeprefix("torch.")
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = _DTYPE_OF | {"T*": dtype, "W*": wide}
    numbers = _NUMBERS | {"W": _NUMBERS["double" if wide == torch.float64 else "float"]}
    parameters = _signatures()[name]
    address = ctypes.c_void_p.in_dll(library(), f"{name}_{suffix}").value
    assert address is not None
    types: list[Any] = [ctypes.c_void_p if p.kind in dtypes else numbers[p.kind] for p in parameters]
    function = ctypes.CFUNCTYPE(None, *types)(address)
    count, place_of = len(parameters), {p.name: place for place, p in enumerate(parameters)}
    # Of each pointer: its place among the arguments, its dtype, whether it may be null, and its sizes: the product of
    # the numbers, and the places of the others.
    pointers = [
        (
            place,
            dtypes[p.kind],
            p.nullable,
            math.prod(int(size) for size in p.sizes if size.isdigit()),
            [place_of[size] for size in p.sizes if not size.isdigit()],
        )
        for place, p in enumerate(parameters)
        if p.kind in dtypes
    ]

    def call(*arguments: Tensor | float | int | None) -> None:
        if len(arguments) != count:
            raise ValueError(f"{name} takes {count} arguments, not {len(arguments)}")
        plain: list[Any] = list(arguments)
        for place, needed, nullable, elements, others in pointers:
            tensor = plain[place]
            if tensor is None and nullable:
                continue
            for other in others:
                elements *= plain[other]
            if not (
                isinstance(tensor, Tensor)
                and tensor.dtype == needed
                and tensor.numel() == elements
                and tensor.is_cpu
                and tensor.is_contiguous()
            ):
                raise ValueError(f"{name}: {parameters[place].name}: {_refused(tensor, needed, elements)}")
            plain[place] = tensor.data_ptr()
        function(*plain)

    return call


def _refused(tensor: object, dtype: torch.dtype, elements: int) -> str:
    needed = f"a kernel needs a contiguous {dtype} tensor of {elements} elements on the CPU here"
    if not isinstance(tensor, Tensor):
        return f"{needed}, not {type(tensor).__name__}"
    return f"{needed}, not {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
