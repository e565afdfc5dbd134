"""Rows of text on their way from a source to a parquet file: those that have text, their digests, and the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.errors import UserError, shown
from custom_transformer.files import writing
from custom_transformer.progress import ProgressBar
from custom_transformer.text.documents import batches
from custom_transformer.text.local_files import MAX_LINE_BYTES, Row

TOKENIZER_BYTES = 2**30  # of text that a tokenizer is trained on, at most
ROWS_A_BATCH = 1000
MAX_BATCH = 64 << 20  # characters in one batch for the writer


def with_text(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that have text. Raises UserError for a text that is too long or no valid Unicode."""
    for row in rows:
        text = row["text"]
        if not text:
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"data.dataset: a text is not valid Unicode: {shown(text)}; mend it") from None
        if len(text) > MAX_LINE_BYTES:
            raise UserError(f"data.dataset: a text beyond {MAX_LINE_BYTES >> 20} MiB; break it up")
        yield row


def up_to(rows: Iterable[Row], n_bytes: int) -> Iterator[Row]:
    """The rows until their texts have this many bytes."""
    for row in rows:
        yield row
        n_bytes -= len(row["text"].encode())
        if n_bytes <= 0:
            return


def digest(text: str) -> int:
    """Of a document, below 2**64: it decides which split has it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def write_rows(path: Path, rows: Iterable[Row], progress: ProgressBar) -> int:
    """Streams rows into a parquet file, the same bytes for the same rows; returns how many there were."""
    count = 0
    writer = None
    try:
        for batch in batches(rows, lambda row: len(row["text"]), ROWS_A_BATCH, MAX_BATCH):
            table = pa.Table.from_pylist(batch)
            with writing(path):
                writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table)
            count += len(batch)
            progress.update(count)
    finally:
        if writer:
            with writing(path):
                writer.close()
    return count
