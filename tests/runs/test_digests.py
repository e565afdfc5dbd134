"""Digests of tensors and of a run: what they are over, and what a file of them must be."""

from __future__ import annotations

import csv
import hashlib
import struct
from pathlib import Path

import pytest
import torch

from custom_transformer.errors import UserError
from custom_transformer.files import write_csv
from custom_transformer.runs.digests import COLUMNS, chained, digest_row, read_digests, step_digests, tensor_digest


def test_a_digest_is_over_name_dtype_shape_and_little_endian_numbers() -> None:
    numbers = struct.pack("<6f", *range(6))
    expected = hashlib.sha256(b"blocks.0.up.weight float32 (2, 3)\n" + numbers).hexdigest()
    matrix = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert tensor_digest("blocks.0.up.weight", matrix) == expected
    assert tensor_digest("blocks.0.up.weight", matrix.T.contiguous().T) == expected
    scalar = hashlib.sha256(b"t int64 ()\n" + struct.pack("<q", 7)).hexdigest()
    assert tensor_digest("t", torch.tensor(7)) == scalar


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_any_other_bit_name_shape_or_dtype_is_another_digest(dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, 3, dtype=dtype)
    digests = {tensor_digest("x", zeros), tensor_digest("y", zeros), tensor_digest("x", zeros.T.contiguous())}
    digests.add(tensor_digest("x", zeros.to(torch.float32 if dtype == torch.float64 else torch.float64)))
    bits = zeros.view(torch.uint8)
    for bit in range(8):
        for byte in range(bits.shape[1]):
            bits[1, byte] ^= 1 << bit  # a sign alone among them: -0.0
            digests.add(tensor_digest("x", zeros))
            bits[1, byte] ^= 1 << bit
    assert len(digests) == 4 + 8 * bits.shape[1]


def rows() -> list[dict[str, int | str]]:
    tensors = {"a": torch.zeros(2), "b": torch.ones(3)}
    chains = [chained("", 1.5, 2.0)]
    for loss in (1.25, 1.0, 0.5):
        chains.append(chained(chains[-1], loss, 2.0))
    digits = [chain[:4] for chain in chains]
    return [
        digest_row(step, tensors, {"m": tensors}, [[{"step": step, "loss": 0.1}]], digits[first:step])
        for first, step in ((0, 3), (3, 4))
    ]


def test_a_file_of_digests_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_csv(tmp_path / "digests.csv", rows())
    read = read_digests(tmp_path / "digests.csv")
    assert read == rows()
    assert tuple(read[0]) == COLUMNS
    of_steps = step_digests(read)
    assert list(of_steps) == [1, 2, 3, 4]
    assert of_steps[1] == chained("", 1.5, 2.0)[:4]


@pytest.mark.parametrize(
    ("column", "value"),
    [("step", "9"), ("step", "three"), ("parameters", "no digits"), ("steps", ""), ("tensors", None)],
)
def test_a_damaged_line_is_named(tmp_path: Path, column: str, value: str | None) -> None:
    path = tmp_path / "digests.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        first, second = rows()
        writer.writerows([first, second | {column: value}])
    if value is None:  # a line that was cut off
        path.write_text("\n".join([*path.read_text().splitlines()[:2], "4,ab"]) + "\n")
    with pytest.raises(UserError, match=r"digests\.csv: line 3 is damaged"):
        read_digests(path)


@pytest.mark.parametrize("content", [b"", b"step,loss\n1,2\n", b"\xff\xfe\x00", ",".join(COLUMNS).encode() + b"\n"])
def test_what_is_no_file_of_digests_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "digests.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"digests\.csv: ") as refusal:
        read_digests(path)
    assert "\n" not in str(refusal.value)
