"""Digests of a run as it goes: by them two runs are compared without either's tensors.

metrics/digests.csv has a row every `training.save_every` steps and at the last:

    step        updates done
    parameters  SHA-256 over the digests of all parameters
    optimizer   SHA-256 over the digests of all tensors of the optimiser's state
    curve       SHA-256 of the curves so far
    tensors     of each tensor's digest, the parameters first, the first 8 hexadecimal digits
    steps       of each step since the row before, 4 hexadecimal digits of the chain over loss and gradient norm

The digest of a tensor is the SHA-256 of the line "NAME DTYPE SHAPE" and its numbers, little-endian and in C order. The
chain is the SHA-256 of itself and a step's loss and gradient norm: once it differs it stays so.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from custom_transformer.errors import UserError, shown
from custom_transformer.files import read_text

DigestRow = dict[str, int | str]

COLUMNS = ("step", "parameters", "optimizer", "curve", "tensors", "steps")
OF_A_TENSOR, OF_A_STEP = 8, 4  # hexadecimal digits
MAX_BYTES = 256 << 20  # of digests.csv

_HEXADECIMAL = re.compile(r"[0-9a-f]*")


def tensor_digest(name: str, tensor: Tensor) -> str:
    """The SHA-256 of a tensor of any device, in hexadecimal: of its name, dtype, shape and numbers, bit by bit."""
    numbers = tensor.detach().cpu().numpy()
    little = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{name} {numbers.dtype.name} {tuple(tensor.shape)}\n".encode())
    digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def parameters_digest(parameters: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a model's parameters, in hexadecimal, as in the column `parameters`."""
    return _digest_of(tensor_digest(name, tensor) for name, tensor in parameters.items())


def all_tensors(parameters: Mapping[str, Tensor], optimizer: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A run's tensors by name, in the order of the column `tensors`: the optimiser's as optimizer.KIND.NAME."""
    own = {f"optimizer.{kind}.{name}": t for kind, tensors in optimizer.items() for name, t in tensors.items()}
    return dict(parameters) | own


def digest_row(
    step: int,
    parameters: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    curves: Any,
    steps: Iterable[str],
) -> DigestRow:
    """A row of digests.csv. curves: plain values; steps: the digits of each step since the row before."""
    digests = [tensor_digest(name, tensor) for name, tensor in all_tensors(parameters, optimizer).items()]
    return {
        "step": step,
        "parameters": _digest_of(digests[: len(parameters)]),
        "optimizer": _digest_of(digests[len(parameters) :]),
        "curve": hashlib.sha256(json.dumps(curves).encode()).hexdigest(),
        "tensors": "".join(digest[:OF_A_TENSOR] for digest in digests),
        "steps": "".join(steps),
    }


def chained(before: str, loss: float, gradient_norm: float) -> str:
    """The chain after a step of this loss and gradient norm, in hexadecimal; before the first step it is empty."""
    return hashlib.sha256(f"{before} {loss.hex()} {gradient_norm.hex()}".encode()).hexdigest()


def read_digests(path: Path) -> list[DigestRow]:
    """The rows of a digests.csv. Raises UserError, naming file and line, for a file that is none."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, MAX_BYTES)))
        csv.field_size_limit(MAX_BYTES)  # a column of all tensors or steps is longer than the module expects
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: its columns are not {', '.join(COLUMNS)}; is it a digests.csv?")
        rows: list[DigestRow] = []
        for fields in reader:
            steps = len(fields.get("steps") or "") // OF_A_STEP
            last = int(rows[-1]["step"]) if rows else 0
            if not _sound(fields, last + steps):
                raise UserError(f"{path}: line {reader.line_num} is damaged; restore the file")
            rows.append({**fields, "step": int(fields["step"])})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train first (dvc repro train)") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a digests.csv ({shown(str(error))})") from None
    if not rows:
        raise UserError(f"{path}: has no row; train first (dvc repro train)")
    return rows


def step_digests(rows: Iterable[DigestRow]) -> dict[int, str]:
    """The digits of each step, by its number."""
    digits = "".join(str(row["steps"]) for row in rows)
    return {i // OF_A_STEP + 1: digits[i : i + OF_A_STEP] for i in range(0, len(digits), OF_A_STEP)}


def _sound(fields: Mapping[Any, Any], step: int) -> bool:
    """Whether a line has every column, of hexadecimal digits, and is the row after `step` steps."""
    if set(fields) != set(COLUMNS) or not all(isinstance(value, str) for value in fields.values()):
        return False
    return str(step) == fields["step"] and all(_HEXADECIMAL.fullmatch(fields[column]) for column in COLUMNS[1:])


def _digest_of(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
