"""Where text comes from: the embedded primer, the Hugging Face Hub, local files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.config import DataParams
from custom_transformer.errors import UserError, shown
from custom_transformer.files import sha256_file, staged_folders, write_json, writing
from custom_transformer.progress import ProgressBar
from custom_transformer.text.documents import batches
from custom_transformer.text.local_files import (
    MAX_LINE_BYTES,
    Reading,
    Row,
    kind_of,
    local_files,
    read_parquet,
    read_rows,
)

if TYPE_CHECKING:
    from custom_transformer.text.hub_dataset import HubFiles

ROWS_A_BATCH = 1000
PRIMER_TEXTS = {"train": 20_000, "validation": 1_000}
HUB_KINDS = {"parquet": (".parquet",), "json": (".json", ".jsonl", ".ndjson"), "csv": (".csv", ".tsv")}
MAX_BATCH = 64 << 20  # characters in one batch for the writer


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
    reading: Reading
    facts: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def download(data: DataParams, seed: int, out: Path) -> dict[str, Any]:
    """Writes train.parquet, validation.parquet (column `text`, and the primer's others) and source.json to `out`.

    If a source has no validation split, about `val_fraction` of its documents become one: those whose digests are the
    smallest, whatever the sizes of the subsets. Empty documents are always left out. Prints what parts the documents of
    text files, and which columns are left out. Returns source.json's content. Raises UserError if a split cannot be
    complete, OSError for a full disk; then `out` is unchanged.
    """
    source = open_source(data, seed)
    with staged_folders(out) as (folder,):
        train, validation = folder / "train.parquet", folder / "validation.parquet"
        facts = {"dataset": data.dataset, **source.facts}
        if source.validation is None:
            facts |= _write_divided(source, data, train, validation)
        else:
            with ProgressBar("download", None, "documents") as progress:
                facts["train_rows"] = write_rows(train, islice(_documents(source.train), data.subset_size), progress)
                facts["validation_rows"] = write_rows(
                    validation, islice(_documents(source.validation), data.val_subset_size), progress
                )
        for split in ("train", "validation"):
            if not facts[f"{split}_rows"]:
                raise UserError(f"data.dataset {data.dataset}: no text for the {split} split; is the source empty?")
        facts["files"] = digests_of(source.files)
        write_json(folder / "source.json", facts)
    for note in source.reading.notes():
        print(note)
    return facts


def digests_of(paths: list[Path]) -> dict[str, str]:
    """The SHA-256 of each file, by its path within the folder that holds them all: names alone may be equal."""
    if not paths:
        return {}
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (a link keeps its name)
    folder = os.path.commonpath([path.parent for path in absolute])
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in absolute}


def open_source(data: DataParams, seed: int) -> Source:
    """The source that `data.dataset` names."""
    if data.dataset == "primer":
        return _primer(data, seed)
    if data.dataset in REGISTERED:
        known = REGISTERED[data.dataset]
        return _hub(known.id, data.text_column or known.text_column, data)
    if paths := dataset_files(data.dataset):
        reading = Reading(data.text_column or "text", alone=len(paths) == 1)
        rows = (row for path in paths for row in read_rows(path, reading))
        return Source(rows, None, reading, {"kind": "files"}, paths)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.dataset) or ".." in data.dataset:
        raise UserError(f"data.dataset {data.dataset}: no such file, and no name that the Hub could know")
    return _hub(data.dataset, data.text_column or "text", data)


def dataset_files(dataset: str) -> list[Path]:
    """The local files that `data.dataset` names, in the order in which they are read; none for the primer and the Hub.

    Raises UserError if there should be some.
    """
    return [] if dataset == "primer" or dataset in REGISTERED else local_files(dataset)


# ----------------------------------------------------------------------------------------------- sources


def _primer(data: DataParams, seed: int) -> Source:
    from custom_transformer.text.primer import generate_lessons

    def rows(split: str, count: int | None) -> Iterator[Row]:
        for lesson in generate_lessons(seed, split, count or PRIMER_TEXTS[split]):
            yield {"text": lesson.text, "log2_prob": lesson.log2_prob, "kind": lesson.kind}

    return Source(
        rows("train", data.subset_size),
        rows("validation", data.val_subset_size),
        Reading(),
        {"kind": "primer", "seed": seed},
    )


def _hub(dataset: str, text_column: str, data: DataParams) -> Source:
    from custom_transformer.text.hub_dataset import fetch

    reading = Reading(text_column)
    train = fetch(dataset, data.revision, data.train_split)
    facts = {"kind": "hub", "id": dataset, "revision": data.revision, "commit": train.commit}
    files, validation = list(train.paths), None
    if data.val_split is not None:
        fetched = fetch(dataset, train.commit, data.val_split)
        files += fetched.paths
        validation = _hub_rows(fetched, reading)
    return Source(_hub_rows(train, reading), validation, reading, facts, files)


def _hub_rows(files: HubFiles, reading: Reading) -> Iterator[Row]:
    """The texts of the files. `datasets` reads those that it alone knows, but would guess the types of all columns."""
    if all(kind_of(path) in HUB_KINDS.get(files.format, ()) for path in files.paths):
        for path in files.paths:
            yield from read_rows(path, reading)
    else:
        for row in files.rows():
            yield reading.row(row, f"split {files.split}")


def _documents(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that have text."""
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


# ----------------------------------------------------------------------------------------------- writing


def _write_divided(source: Source, data: DataParams, train: Path, validation: Path) -> dict[str, Any]:
    """Divides the documents of a source without a validation split: each one's own digest decides which split has it.

    So a document stays in its split whatever is added to the source and whatever the sizes of the subsets, and equal
    documents share a split. The share of `val_fraction` is kept on average, and neither split is left empty.
    """
    everything = train.with_name("all.parquet")
    with ProgressBar("download", None, "documents") as progress:
        division = _Division(data)
        total = write_rows(everything, division.needed(_documents(source.train)), progress)
    if division.lowest == division.highest or not total:
        raise UserError(
            f"data.dataset {data.dataset}: {total} document(s), {min(total, 1)} of them different, cannot be divided "
            f"into two splits; {source.reading.explanation()}"
        )
    facts = {}
    for split, path, wanted in (("train", train, data.subset_size), ("validation", validation, data.val_subset_size)):
        rows = (row for row in read_parquet(everything) if division.split(row["text"]) == split)
        with ProgressBar(f"divide: {split}", None, "documents") as progress:
            facts[f"{split}_rows"] = write_rows(path, islice(rows, wanted), progress)
    everything.unlink()
    return facts


class _Division:
    """Which split has a document: validation those whose digest, a number below 2**64, is small."""

    def __init__(self, data: DataParams):
        self._border = round(data.val_fraction * 2**64)
        self._missing = {"train": data.subset_size, "validation": data.val_subset_size}  # None: all there are
        self.lowest, self.highest = 2**64, -1  # digests so far

    def needed(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows up to the last that one of the splits needs; then the border lies so that each split has one."""
        for row in rows:
            digest = _digest(row["text"])
            self.lowest, self.highest = min(self.lowest, digest), max(self.highest, digest)
            yield row
            split = "validation" if digest < self._border else "train"
            if (missing := self._missing[split]) is not None:
                self._missing[split] = missing - 1
            if all(missing is not None and missing <= 0 for missing in self._missing.values()):
                return
        self._border = min(max(self._border, self.lowest + 1), self.highest)

    def split(self, text: str) -> str:
        return "validation" if _digest(text) < self._border else "train"


def _digest(text: str) -> int:
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
