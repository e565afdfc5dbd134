"""Where text comes from: the embedded primer, the Hugging Face Hub, local files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.config import DataParams
from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.files import sha256_file, staged_folders, write_json, writing
from custom_transformer.progress import Progress
from custom_transformer.text.documents import batches
from custom_transformer.text.local_files import MAX_LINE_BYTES, Row, local_files, read_parquet, read_rows

ROWS_A_BATCH = 1000
PRIMER_TEXTS = {"train": 20_000, "validation": 1_000}
MAX_BATCH = 64 << 20  # characters in one batch for the writer; other columns count by their repr
MAX_COLUMNS = 1000
MAX_NESTING = 32  # a parquet file of columns that nest much deeper cannot be read again


@dataclass(frozen=True)
class HubDataset:
    """A dataset known by a short name: its Hub id and the column that holds the text."""

    id: str
    text_column: str = "text"


REGISTERED = {
    "tiny-textbooks": HubDataset("nampdn-ai/tiny-textbooks", "textbook"),
    "tiny-strange-textbooks": HubDataset("nampdn-ai/tiny-strange-textbooks"),
    "tinystories": HubDataset("roneneldan/TinyStories"),
    "tiny-codes": HubDataset("nampdn-ai/tiny-codes", "response"),
}


@dataclass
class Source:
    """Rows of each split, streamed, and what is recorded about their origin."""

    train: Iterable[Row]
    validation: Iterable[Row] | None  # None: a part of the training rows
    text_column: str
    facts: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def download(data: DataParams, seed: int, out: Path) -> dict[str, Any]:
    """Writes train.parquet, validation.parquet (column `text`, and the source's others) and source.json to `out`.

    If a source has no validation split, the last `val_fraction` of its documents becomes one, and training texts that
    equal one of those are left out. Empty documents are always left out. Returns source.json's content. Raises
    UserError if a split cannot be complete, OSError for a full disk; then `out` is unchanged.
    """
    source = open_source(data, seed)
    with staged_folders(out) as (folder,):
        train, validation = folder / "train.parquet", folder / "validation.parquet"
        facts = {"dataset": data.dataset, **source.facts}
        if source.validation is None:
            facts |= _write_divided(source, data, train, validation)
        else:
            with Progress("download", None, "documents") as progress:
                facts["train_rows"] = write_rows(
                    train, islice(_documents(source.train, source.text_column), data.subset_size), progress
                )
                facts["validation_rows"] = write_rows(
                    validation,
                    islice(_documents(source.validation, source.text_column), data.val_subset_size),
                    progress,
                )
        for split in ("train", "validation"):
            if not facts[f"{split}_rows"]:
                raise UserError(f"data.dataset {data.dataset}: no text for the {split} split; is the source empty?")
        facts["files"] = {path.name: sha256_file(path) for path in source.files}
        write_json(folder / "source.json", facts)
    return facts


def open_source(data: DataParams, seed: int) -> Source:
    """The source that `data.dataset` names."""
    if data.dataset == "primer":
        return _primer(data, seed)
    if data.dataset in REGISTERED:
        known = REGISTERED[data.dataset]
        return _hub(known.id, data.text_column or known.text_column, data)
    if paths := local_files(data.dataset):
        column = data.text_column or "text"
        rows = (row for path in paths for row in read_rows(path))
        return Source(rows, None, column, {"kind": "files"}, paths)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.dataset) or ".." in data.dataset:
        raise UserError(f"data.dataset {data.dataset}: no such file, and no name that the Hub could know")
    return _hub(data.dataset, data.text_column or "text", data)


# ----------------------------------------------------------------------------------------------- sources


def _primer(data: DataParams, seed: int) -> Source:
    from custom_transformer.text.primer import generate_lessons

    def rows(split: str, count: int | None) -> Iterator[Row]:
        for lesson in generate_lessons(seed, split, count or PRIMER_TEXTS[split]):
            yield {"text": lesson.text, "log2_prob": lesson.log2_prob, "kind": lesson.kind}

    return Source(
        rows("train", data.subset_size),
        rows("validation", data.val_subset_size),
        "text",
        {"kind": "primer", "seed": seed},
    )


def _hub(dataset: str, text_column: str, data: DataParams) -> Source:
    from custom_transformer.text.hub_dataset import fetch

    train = fetch(dataset, data.revision, data.train_split)
    facts = {"kind": "hub", "id": dataset, "revision": data.revision, "commit": train.commit}
    files, validation = list(train.paths), None
    if data.val_split is not None:
        fetched = fetch(dataset, train.commit, data.val_split)
        files += fetched.paths
        validation = fetched.rows()
    return Source(train.rows(), validation, text_column, facts, files)


def _documents(rows: Iterable[Row], text_column: str) -> Iterator[Row]:
    """The rows that have text, in the column `text`; another column of that name becomes `source_text`."""
    for row in rows:
        if len(row) > MAX_COLUMNS:
            raise UserError(f"data.dataset: a document of {len(row):,} columns; {MAX_COLUMNS:,} are the most")
        if text_column not in row:
            raise UserError(
                f"data.text_column {text_column}: no such column; there are {', '.join(map(str, row))[:300]}"
            )
        text = row[text_column]
        if text is None or text == "":
            continue
        if not isinstance(text, str):
            raise UserError(f"data.text_column {text_column}: holds {type(text).__name__}, not text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"data.text_column {text_column}: {shown(text)} is not valid Unicode text") from None
        if len(text) > MAX_LINE_BYTES:
            raise UserError(f"data.text_column {text_column}: a text beyond {MAX_LINE_BYTES >> 20} MiB; break it up")
        others = {("source_text" if name == "text" else name): v for name, v in row.items() if name != text_column}
        yield {"text": text} | others


# ----------------------------------------------------------------------------------------------- writing


def _write_divided(source: Source, data: DataParams, train: Path, validation: Path) -> dict[str, Any]:
    """Divides the rows of a source without a validation split: the last `val_fraction` becomes that split."""
    wanted = None
    if data.subset_size is not None:
        wanted = math.ceil(data.subset_size / (1 - data.val_fraction))
    everything = train.with_name("all.parquet")
    with Progress("download", None, "documents") as progress:
        total = write_rows(everything, islice(_documents(source.train, source.text_column), wanted), progress)
    if total < 2:
        raise UserError(f"data.dataset {data.dataset}: {total} document(s) cannot be divided into two splits")
    kept = total - max(1, round(total * data.val_fraction))
    with Progress("divide", total, "documents") as progress:
        held = {_fingerprint(row["text"]) for row in islice(read_parquet(everything), kept, None)}
        distinct = (row for row in islice(read_parquet(everything), kept) if _fingerprint(row["text"]) not in held)
        train_rows = write_rows(train, islice(distinct, data.subset_size), progress)
        last = islice(read_parquet(everything), kept, None)
        validation_rows = write_rows(validation, islice(last, data.val_subset_size), progress)
    everything.unlink()
    return {"train_rows": train_rows, "validation_rows": validation_rows, "left_out_of_training": kept - train_rows}


def _fingerprint(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def write_rows(path: Path, rows: Iterable[Row], progress: Progress) -> int:
    """Streams rows into a parquet file, the same bytes for the same rows; returns how many there were."""
    count = 0
    writer = None
    try:
        for batch in batches(rows, _size, ROWS_A_BATCH, MAX_BATCH):
            where = f"documents {count + 1:,} to {count + len(batch):,}"
            try:
                table = pa.Table.from_pylist(batch, schema=writer.schema if writer else None)
                if any(_nesting(column.type) > MAX_NESTING for column in table.schema):
                    raise UserError(f"{where}: a column nests more than {MAX_NESTING} levels deep; leave it out")
                with writing(path):
                    writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
                    writer.write_table(table)
            except UnicodeEncodeError:
                raise UserError(f"{where}: a column's name or value is not valid Unicode text; leave it out") from None
            except RecursionError:
                raise UserError(f"{where}: a column nests more than {MAX_NESTING} levels deep; leave it out") from None
            except (pa.ArrowException, TypeError, OverflowError) as error:
                raise UserError(
                    f"{where}: a column's values cannot be stored as one type ({one_line(error)[:100]}); keep only the "
                    "text column, or make them alike"
                ) from None
            count += len(batch)
            progress.update(count)
    finally:
        if writer:
            with writing(path):
                writer.close()
    return count


def _size(row: Row) -> int:
    try:
        return sum(len(value if isinstance(value, str) else repr(value)) for value in row.values())
    except RecursionError:
        raise UserError(f"a column nests more than {MAX_NESTING} levels deep; leave it out") from None


def _nesting(kind: pa.DataType) -> int:
    return 1 + max((_nesting(kind.field(i).type) for i in range(kind.num_fields)), default=0)
