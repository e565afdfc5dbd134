"""Local files: those that a path or glob names, and their rows, streamed in bounded memory."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.errors import UserError, one_line
from custom_transformer.paths import project_root
from custom_transformer.text.documents import rows_at_once

LOCAL_SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
MAX_LINE_BYTES = 64 << 20  # a longer line is taken for a mistake that would fill the memory

Row = dict[str, Any]


def local_files(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted, looked for here and then under the repository's root.

    Raises UserError if one of them has an unknown suffix.
    """
    try:
        expanded = str(Path(pattern).expanduser())
    except RuntimeError:
        raise UserError(f"data.dataset {pattern}: there is no such user's folder; correct the path") from None
    for root in (Path(), project_root()):
        names = glob.glob(str(root / expanded), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        paths = sorted(path for path in map(Path, names) if path.is_file())
        if paths:
            break
    else:
        if Path(pattern).suffix in LOCAL_SUFFIXES or any(c in pattern for c in "*?["):
            raise UserError(f"data.dataset {pattern}: no such file")
        return []
    for path in paths:
        if path.suffix not in LOCAL_SUFFIXES:
            raise UserError(f"{path}: cannot be read as text; give {', '.join(LOCAL_SUFFIXES)}")
    return paths


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, streamed. Raises UserError naming the file, the line and what is wrong there."""
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot be read as text; give {', '.join(readers)}")
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); convert it first") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{path}: line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; break it up")
            if b"\0" in line:
                raise UserError(f"{path}: line {number} holds a zero byte; is it a binary file?")
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")


def _read_txt(path: Path) -> Iterator[Row]:
    """Documents are separated by blank lines."""
    document: list[str] = []
    size = 0
    for number, line in _lines(path):
        line = line.rstrip("\r\n")
        if line.strip():
            document.append(line)
            size += len(line)
            if size > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: the document that ends after line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; "
                    "put blank lines between documents"
                )
        elif document:
            yield {"text": "\n".join(document)}
            document, size = [], 0
    if document:
        yield {"text": "\n".join(document)}


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON: {one_line(error)[:100]}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is {type(row).__name__}, not an object with a text column")
        yield row


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    size = 0  # of the record so far: an unclosed quote could make it as long as the file

    def lines() -> Iterator[str]:
        nonlocal size
        for number, line in _lines(path):
            size += len(line)
            if size > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: the record at line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; is a quote open?"
                )
            yield line

    reader = csv.DictReader(lines(), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.line_num} has more or fewer fields than the header")
            yield dict(row)
            size = 0
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {one_line(error)}") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a parquet file, few of them in memory at a time."""
    try:
        with pq.ParquetFile(path) as file:
            texts = [column.name for column in file.schema_arrow if pa.types.is_string(column.type)]
        # A value that many rows repeat is kept once.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=rows_at_once(file)):
                columns = list(zip(batch.schema.names, batch.columns, strict=True))
                for i in range(batch.num_rows):
                    yield {name: column[i].as_py() for name, column in columns}
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise UserError(f"{path}: damaged or not a parquet file ({one_line(error)[:100]})") from None
