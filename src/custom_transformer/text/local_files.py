"""Local files: those that a path, a folder or a glob names, and their texts, streamed in bounded memory.

Of a table, only the column of the text is read. A type guessed for another column cannot make the text unreadable.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.errors import NoFiles, UserError, one_line
from custom_transformer.paths import project_root
from custom_transformer.text.documents import rows_at_once
from custom_transformer.text.json_values import decoded, json_values
from custom_transformer.text.plain_text import (
    BLANK_LINES,
    COMPRESSIONS,
    END_TOKENS,
    LINES,
    MAX_DOCUMENT,
    documents,
    lines,
    what_parts,
)

MAX_LINE_BYTES = 64 << 20  # a longer line is taken for a mistake that would fill the memory

PARTED = {
    END_TOKENS: "<|endoftext|> parts the documents",
    BLANK_LINES: "blank lines and the ends of files part the documents; to make each line one, run sed G FILE > NEW",
    LINES: "each line is a document, as there are no blank lines; to make longer ones, put blank lines between them",
}
MAX_NAMES = 100  # of columns left out that are remembered
MAX_NAME = 60  # characters of a column's name in a message

Row = dict[str, Any]


@dataclass
class Reading:
    """Which column holds the text, and what the user should know about the files when they have been read."""

    column: str = "text"
    alone: bool = False  # whether it is of one file only
    left_out: dict[str, None] = field(default_factory=dict)  # the other columns' names, in order
    parted: dict[re.Pattern[str], list[str]] = field(default_factory=dict)  # text files by what parts their documents
    cut: int = 0  # how often a long document was cut

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
        for separator, names in self.parted.items():
            others = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
            yield f"{_listed(names[:1])}{others}: {PARTED[separator]}"
        if self.cut:
            yield f"documents of more than {MAX_DOCUMENT:,} characters are cut into several, {self.cut:,} times in all"

    def explanation(self) -> str:
        """What makes the documents what they are, for an error about them."""
        return "; ".join(self.notes()) or "give more text"


def _listed(names: Iterable[str]) -> str:
    shown = (name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…" for name in map(str, islice(names, MAX_NAMES)))
    return one_line(", ".join(shown))[:300]


def local_files(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob names, sorted, looked for here and then under the repository's root.

    A path that exists is taken as it is written, whatever brackets, stars and question marks are in it. Of a folder,
    and those in it, all files are taken that can be read as text and are not hidden; others are named in a line.
    Raises UserError if a file that is named otherwise cannot be read as text.
    """
    try:
        expanded = Path(pattern).expanduser()
    except RuntimeError:
        raise UserError(f"data.dataset {pattern}: there is no such user's folder; correct the path") from None
    folder: Path | None = None
    for root in (Path(), project_root()):
        found = _matches(root, expanded)
        if len(found) == 1 and found[0].is_dir():
            folder = found[0]
            files = _files_in(folder)
            paths = [path for path in files if kind_of(path)]
        else:
            files = paths = sorted(path for path in found if path.is_file())
        if paths:
            break
    else:
        if folder is not None:
            raise UserError(f"data.dataset {pattern}: no file in this folder can be read as text; give {KINDS}")
        if kind_of(Path(pattern)) or any(c in pattern for c in "*?["):
            raise NoFiles(f"data.dataset {pattern}: no such file")
        return []
    for path in paths:
        if kind_of(path) is None:
            raise UserError(f"{path}: cannot be read as text; give {KINDS}")
    if others := [path.name for path in files if kind_of(path) is None]:
        print(f"data.dataset {pattern}: not read, as they are of other kinds: {_listed(others)}")
    return paths


def _files_in(folder: Path) -> list[Path]:
    if any(root.resolve().is_relative_to(folder.resolve()) for root in (Path(), project_root())):
        raise UserError(
            f"data.dataset {folder}: holds the repository, so it cannot be read as text; name another folder"
        )
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


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


def kind_of(path: Path) -> str | None:
    """The suffix, among READERS, that says how the file is read; None if it cannot be read as text."""
    name = path.name.lower()
    inner = name.removesuffix(path.suffix.lower()) if path.suffix.lower() in COMPRESSIONS else name
    suffix = Path(inner).suffix
    return None if suffix not in READERS or (suffix == ".parquet" and inner != name) else suffix


def read_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """The texts of one file, streamed, each as a row {"text": str or None}.

    Raises UserError naming the file, the line and what is wrong there.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path}: cannot be read as text; give {KINDS}")
    yield from READERS[kind](path, reading)


def _read_text(path: Path, reading: Reading) -> Iterator[Row]:
    separator = what_parts(path, reading.alone)
    reading.parted.setdefault(separator, []).append(path.name)
    for text, cut in documents(path, separator):
        reading.cut += cut
        yield {"text": text}


def _read_jsonl(path: Path, reading: Reading) -> Iterator[Row]:
    for number, line in lines(path, MAX_LINE_BYTES):
        if not line.strip():
            continue
        try:
            value = decoded(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON: {one_line(error)[:100]}") from None
        yield _row(value, path, number, reading)


def _read_json(path: Path, reading: Reading) -> Iterator[Row]:
    for number, value in json_values(path, MAX_LINE_BYTES):
        yield {"text": value} if isinstance(value, str) else _row(value, path, number, reading)


def _row(value: Any, path: Path, number: int, reading: Reading) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{path}: line {number} is {type(value).__name__}, not an object with a text column")
    return reading.row(value, f"{path}, line {number},")


def _read_csv(path: Path, reading: Reading, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    first = last = 0  # lines of the record that is being read
    size = 0  # of that record: an unclosed quote could make it as long as the file

    def counted() -> Iterator[str]:
        nonlocal first, last, size
        for number, line in lines(path, MAX_LINE_BYTES, newline=""):
            first, last = first or number, number
            size += len(line)
            if size > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: the record at line {first} is longer than {MAX_LINE_BYTES >> 20} MiB; is a quote open?"
                )
            yield line

    def place() -> str:
        return f"line {first}" if first == last else f"lines {first} to {last}"

    header: list[str] | None = None
    try:
        for record in csv.reader(counted(), strict=True, delimiter=delimiter):
            if header is None and record:
                header = record
                if (count := header.count(reading.column)) > 1:
                    raise UserError(f"{path}: names the column {reading.column} {count} times; rename one")
            elif record and header:
                if len(record) != len(header):
                    fields = "1 field" if len(record) == 1 else f"{len(record):,} fields"
                    have = "has" if first == last else "have"
                    raise UserError(f"{path}: {place()} {have} {fields} where the header has {len(header):,}; mend it")
                yield reading.row(dict(zip(header, record, strict=True)), f"{path}, {place()},")
            first = size = 0
    except csv.Error as error:
        hint = "; is a quote open?" if "unexpected end" in str(error) else "; mend it"
        raise UserError(f"{path}: {place()}: {one_line(error)}{hint}") from None


def _read_tsv(path: Path, reading: Reading) -> Iterator[Row]:
    return _read_csv(path, reading, "\t")


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


READERS: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": read_parquet,
}
KINDS = f"{', '.join(READERS)}, also {', '.join(COMPRESSIONS)} of any but .parquet"
