"""What a GGUF file says it holds: its keys, and where its tensors are.

The format is described in docs/gguf.md of github.com/ggml-org/ggml. The package gguf has a reader too, which takes
seconds for a real vocabulary, and never ends on a file that claims a longer list than it holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, dequantize

from custom_transformer.errors import shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. shape: as NumPy has it, which is the file's order reversed. start: its first byte."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int

    @property
    def n_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * size

    def read(self, file: IO[bytes]) -> np.ndarray:
        """Its numbers in float32. Raises ValueError for a kind that gguf cannot make numbers of."""
        file.seek(self.start)
        rows = np.frombuffer(file.read(self.n_bytes), np.uint8).reshape(math.prod(self.shape[:-1]), -1)
        try:
            return dequantize(rows, self.kind).reshape(self.shape)
        except NotImplementedError:
            raise ValueError(f"{shown(self.name)} is stored as {self.kind.name}, which is not read here") from None


def read_header(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The keys with their values (a list of numbers as an array) and the tensors by name.

    Nothing is allocated by what the header claims: memory grows with the bytes that are there. Raises ValueError for
    what is no GGUF, is cut short, or claims to hold more than the file.
    """
    header = _Header(file)
    if header.take(4) != MAGIC:
        raise ValueError("it does not begin as a GGUF file")
    if (version := header.number(GGUFValueType.UINT32)) not in _VERSIONS:
        raise ValueError(f"GGUF version {version}; {' and '.join(map(str, _VERSIONS))}, little-endian, are read here")
    n_tensors, n_keys = header.number(GGUFValueType.UINT64), header.number(GGUFValueType.UINT64)
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        key = header.text()
        if key in keys:
            raise ValueError(f"{shown(key)} stands there twice")
        keys[key] = header.value(header.number(GGUFValueType.UINT32))
    described = [header.tensor() for _ in range(n_tensors)]
    alignment = keys.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {shown(alignment)}, no power of two")
    data = -(-header.at // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in described:
        if name in tensors:
            raise ValueError(f"the tensor {shown(name)} stands there twice")
        tensor = tensors[name] = StoredTensor(name, shape, kind, data + offset)
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{shown(name)}: rows of {shape[-1]} numbers cannot be stored as {kind.name}")
        if tensor.start + tensor.n_bytes > header.size:
            raise ValueError(f"it is cut short: {shown(name)} ends after byte {header.size:,}, the file's last")
    if sum(tensor.n_bytes for tensor in tensors.values()) > header.size:
        raise ValueError("its tensors declare more bytes than the file holds")
    return keys, tensors


class _Header:
    """Reads one value after another, none of it beyond the end of the file."""

    def __init__(self, file: IO[bytes]):
        self.size = file.seek(0, 2)
        file.seek(0)
        self.file, self.at = file, 0

    def take(self, n: int) -> bytes:
        if n > self.size - self.at:
            raise ValueError("it is cut short: its header does not end")
        self.at += n
        return self.file.read(n)

    def number(self, kind: GGUFValueType) -> Any:
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: GGUFValueType, n: int) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(n * dtype.itemsize), dtype)

    def text(self) -> str:
        return self.take(self.number(GGUFValueType.UINT64)).decode()

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(GGUFValueType(kind))
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind == GGUFValueType.ARRAY:
            kind, n = self.number(GGUFValueType.UINT32), self.number(GGUFValueType.UINT64)
            if kind in _SCALARS:
                return self.numbers(GGUFValueType(kind), n)
            if kind == GGUFValueType.STRING:
                return [self.text() for _ in range(n)]
        raise ValueError(f"a value of type {kind}, which is not read here")

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, n = self.text(), self.number(GGUFValueType.UINT32)
        if not 1 <= n <= _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {shown(name)} has {n} dimensions, which is not from 1 to {_MAX_DIMENSIONS}")
        shape = tuple(self.numbers(GGUFValueType.UINT64, n).tolist()[::-1])
        kind, offset = self.number(GGUFValueType.UINT32), self.number(GGUFValueType.UINT64)
        if kind not in GGML_QUANT_SIZES:
            raise ValueError(f"the tensor {shown(name)} is stored as type {kind}, which is not read here")
        return name, shape, GGMLQuantizationType(kind), offset
