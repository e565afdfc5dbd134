"""The documents of a parquet file with a column `text`, read in pieces: memory use does not grow with file or text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.errors import UserError, one_line

READ_BYTES, READ_ROWS = 2**22, 1000  # decoded at once, roughly
PIECE_BYTES = 2**18
REMEDY = "run dvc repro --force download"

Item = TypeVar("Item")


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    n_bytes: int  # in UTF-8
    ends_document: bool


def document_count(path: Path) -> int:
    """How many documents the file has; raises UserError if it is missing or damaged."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def log2_prob_sum(path: Path) -> float:
    """The sum of the primer's column log2_prob, correctly rounded; raises UserError if the file is damaged."""
    with _open(path) as file, _readable(path):
        if "log2_prob" not in file.schema_arrow.names:
            raise UserError(f"{path}: no column log2_prob; {REMEDY}")
        columns = (batch.column(0) for batch in file.iter_batches(columns=["log2_prob"]))
        total = math.fsum(x for column in columns for x in column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if not math.isfinite(total):
        raise UserError(f"{path}: log2_prob is not a finite number everywhere; {REMEDY}")
    return total


def runs_of_groups(path: Path, n_bytes: int) -> list[range]:
    """The file's row groups in runs of about `n_bytes` of content, at least one run; the last may have less.

    Raises UserError if the file is missing or damaged.
    """
    with _open(path) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    runs = batches(range(len(sizes)), sizes.__getitem__, len(sizes), n_bytes)
    return [range(run[0], run[-1] + 1) for run in runs] or [range(0)]


def read_pieces(path: Path, groups: range | None = None) -> Iterator[Piece]:
    """All text in the file, or in these row groups of it, in order, in pieces of at most PIECE_BYTES.

    A longer document is cut before white space. GPT-2's pattern splits words there anyway, so the tokens stay those of
    the whole. A longer run without white space is cut between two characters. Raises UserError if the file is missing
    or damaged, or a row has no text.
    """
    for number, buffer in _texts(path, groups):
        try:
            yield from pieces_of(memoryview(buffer))
        except UnicodeDecodeError:
            raise UserError(f"{path}: document {number} is not UTF-8 text; mend the source, then dvc repro") from None


def pieces_of(document: memoryview) -> Iterator[Piece]:
    """The pieces of a document's UTF-8 bytes."""
    start = 0
    while len(document) - start > PIECE_BYTES:
        chunk = bytes(document[start : start + PIECE_BYTES])
        cut = _cut(chunk)
        yield Piece(chunk[:cut].decode(), cut, False)
        start += cut
    yield Piece(str(document[start:], "utf-8"), len(document) - start, True)


def read_documents(path: Path) -> Iterator[str]:
    """The text of each document, whole. Raises UserError as `read_pieces`."""
    parts = []
    for piece in read_pieces(path):
        parts.append(piece.text)
        if piece.ends_document:
            yield "".join(parts)
            parts = []


def batches(items: Iterable[Item], size: Callable[[Item], int], most_items: int, enough: int) -> Iterator[list[Item]]:
    """`items` in lists that end at `most_items`, or before that as soon as their sizes add up to `enough`."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == most_items or total >= enough:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _cut(chunk: bytes) -> int:
    """Before the last run of white space after a word, else before the last character, which may be incomplete."""
    space = max(chunk.rfind(b" "), chunk.rfind(b"\n"))
    if word_end := len(chunk[: space + 1].rstrip()):
        return word_end
    cut = len(chunk) - 1
    while chunk[cut] >> 6 == 0b10 and cut > len(chunk) - 4:  # a character's bytes after its first begin with bits 10
        cut -= 1
    return cut


def _texts(path: Path, groups: range | None) -> Iterator[tuple[int, pa.Buffer]]:
    """Each document's number in the file, and its text's UTF-8 bytes in the memory that parquet decoded them to."""
    with _open(path) as file, _readable(path):
        names = file.schema_arrow.names
        if "text" not in names or file.schema_arrow.field("text").type not in (pa.string(), pa.large_string()):
            raise UserError(f"{path}: no column 'text' of strings, but {', '.join(names)}; {REMEDY}")
        groups = range(file.num_row_groups) if groups is None else groups
        number = sum(file.metadata.row_group(i).num_rows for i in range(groups.start))
        for batch in file.iter_batches(rows_at_once(file), row_groups=groups, columns=["text"]):
            if batch.column(0).null_count:
                raise UserError(f"{path}: a document without text (null); {REMEDY}")
            yield from ((number + i, value.as_buffer()) for i, value in enumerate(batch.column(0)))
            number += len(batch)


def rows_at_once(file: pq.ParquetFile) -> int:
    """How many rows hold about READ_BYTES; at most READ_ROWS."""
    stored = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    return int(max(1, min(READ_BYTES * file.metadata.num_rows // max(1, stored), READ_ROWS)))


def _open(path: Path) -> pq.ParquetFile:
    if not path.exists():
        raise UserError(f"{path}: no such file; run dvc repro download")
    with _readable(path):
        return pq.ParquetFile(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)[:160]}); {REMEDY}") from None
