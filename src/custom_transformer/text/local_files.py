"""Local files: those that a path or glob names, and their texts, streamed in bounded memory.

Of a table, only the column of the text is read. A type guessed for another column cannot make the text unreadable.
"""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.errors import UserError, one_line
from custom_transformer.paths import project_root
from custom_transformer.text.documents import rows_at_once

LOCAL_SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
MAX_LINE_BYTES = 64 << 20  # a longer line is taken for a mistake that would fill the memory

MAX_NAMES = 100  # of columns left out that are remembered
MAX_NAME = 60  # characters of a column's name in a message

Row = dict[str, Any]


@dataclass
class Reading:
    """Which column holds the text, and what the user should know about the files when they have been read."""

    column: str = "text"
    left_out: dict[str, None] = field(default_factory=dict)  # the other columns' names, in order

    def row(self, values: Row, where: str) -> Row:
        """The column's value, as `text`. Raises UserError if there is no such column, or no text or null in it."""
        if self.column not in values:
            raise UserError(
                f"data.text_column {self.column}: {where} has no such column; there are {_listed(values) or 'none'}"
            )
        self.leave_out(values)
        text = values[self.column]
        if text is not None and not isinstance(text, str):
            raise UserError(f"data.text_column {self.column}: {where} holds {type(text).__name__}, not text")
        return {"text": text}

    def leave_out(self, names: Iterable[str]) -> None:
        """Remembers the names of columns that are not the text's."""
        if len(self.left_out) < MAX_NAMES:
            self.left_out |= dict.fromkeys(islice((name for name in names if name != self.column), MAX_NAMES))

    def notes(self) -> Iterator[str]:
        """What to tell the user, line by line."""
        if self.left_out:
            yield f"only the column {self.column} is kept; left out: {_listed(self.left_out)}"


def _listed(names: Iterable[str]) -> str:
    shown = (name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in map(str, islice(names, MAX_NAMES)))
    return one_line(", ".join(shown))[:300]


def local_files(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted, looked for here and then under the repository's root.

    A path that exists is taken as it is written, whatever brackets, stars and question marks are in it. Raises
    UserError if one of the files has an unknown suffix.
    """
    try:
        expanded = Path(pattern).expanduser()
    except RuntimeError:
        raise UserError(f"data.dataset {pattern}: there is no such user's folder; correct the path") from None
    for root in (Path(), project_root()):
        paths = sorted(path for path in _matches(root, expanded) if path.is_file())
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


def _matches(root: Path, pattern: Path) -> list[Path]:
    """What `pattern` names under `root`; as much of it as exists under its very name is no pattern."""
    literal, parts = root, list(pattern.parts)
    while parts and os.path.lexists(literal / parts[0]):
        literal /= parts.pop(0)
    if not parts:
        return [literal]
    return _glob(literal, Path(*parts)) or _glob(root, pattern)


def _glob(folder: Path, pattern: Path) -> list[Path]:
    # Path.glob takes no absolute pattern.
    return [folder / name for name in glob.glob(str(pattern), root_dir=folder, recursive=True)]  # noqa: PTH207


def read_rows(path: Path, reading: Reading, suffix: str | None = None) -> Iterator[Row]:
    """The texts of one file, streamed, each as a row {"text": str or None}.

    suffix: of what kind the file is; by default its own. Raises UserError naming the file, the line and what is wrong.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": read_parquet}
    suffix = suffix or path.suffix
    if suffix not in readers:
        raise UserError(f"{path}: cannot be read as text; give {', '.join(readers)}")
    try:
        yield from readers[suffix](path, reading)
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


def _read_txt(path: Path, reading: Reading) -> Iterator[Row]:
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


def _read_jsonl(path: Path, reading: Reading) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_int=float)  # which has no limit on digits
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON: {one_line(error)[:100]}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is {type(row).__name__}, not an object with a text column")
        yield reading.row(row, f"{path}, line {number},")


def _read_csv(path: Path, reading: Reading) -> Iterator[Row]:
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
        if (names := list(reader.fieldnames or ())).count(reading.column) > 1:
            raise UserError(
                f"{path}: names the column {reading.column} {names.count(reading.column)} times; rename one"
            )
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.line_num} has more or fewer fields than the header")
            yield reading.row(row, f"{path}, line {reader.line_num},")
            size = 0
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {one_line(error)}") from None


def read_parquet(path: Path, reading: Reading | None = None) -> Iterator[Row]:
    """The texts of a parquet file, few of them in memory at a time; by default those of its column `text`."""
    reading = reading or Reading()
    column = reading.column
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
        if (count := schema.names.count(column)) != 1:
            reading.row(dict.fromkeys(schema.names), f"{path}")
            raise UserError(f"{path}: names the column {column} {count} times; rename one")
        reading.leave_out(schema.names)
        # A value that many rows repeat is kept once.
        repeated = [column] if pa.types.is_string(schema.field(column).type) else []
        with pq.ParquetFile(path, read_dictionary=repeated) as file:
            for batch in file.iter_batches(batch_size=rows_at_once(file), columns=[column]):
                for text in batch.column(column):
                    yield reading.row({column: text.as_py()}, f"{path}")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged or not a parquet file ({one_line(error)[:100]})") from None
