"""Where text comes from: the embedded primer, the Hugging Face Hub, local files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from custom_transformer.config import DataParams
from custom_transformer.errors import UserError
from custom_transformer.files import staged_folders, write_json
from custom_transformer.progress import ProgressBar
from custom_transformer.text.local_files import Reading, Row, read_parquet, read_rows
from custom_transformer.text.rows import TOKENIZER_BYTES, digest, up_to, with_text, write_rows
from custom_transformer.text.sources import dataset_files, digests_of, hub_files, hub_id, names_in_folder, reading_of

if TYPE_CHECKING:
    from custom_transformer.text.hub_dataset import HubFiles

PRIMER_TEXTS = {"train": 20_000, "validation": 1_000}


@dataclass
class Source:
    """Rows of each split, streamed, and what is recorded about their origin. files: those that are here."""

    train: Iterable[Row]
    validation: Iterable[Row] | None  # None: a part of the training rows
    reading: Reading
    facts: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def download(data: DataParams, seed: int, out: Path) -> dict[str, Any]:
    """Writes train.parquet, validation.parquet (column `text`, and the primer's others) and source.json to `out`.

    If a source has no validation split, about `val_fraction` of its documents become one: those whose digests are the
    smallest, whatever the sizes of the subsets. Empty documents are always left out. With `data.streaming`,
    train.parquet has only the first documents, enough to train a tokenizer, and source.json names the files with all
    of them. Prints what parts the documents of text files, and which columns are left out. Returns source.json's
    content. Raises UserError if a split cannot be complete, OSError for a full disk; then `out` is unchanged.
    """
    with staged_folders(out) as (folder,):
        scratch = folder / "scratch"
        source = open_source(data, seed, scratch)
        train, validation = folder / "train.parquet", folder / "validation.parquet"
        facts = {"dataset": data.dataset, **source.facts}
        if source.validation is None:
            facts |= _write_divided(source, data, train, validation)
        else:
            with ProgressBar("download", None, "documents") as progress:
                facts["train_rows"] = write_rows(train, _wanted(with_text(source.train), data), progress)
                facts["validation_rows"] = write_rows(
                    validation, islice(with_text(source.validation), data.val_subset_size), progress
                )
        for split in ("train", "validation"):
            if not facts[f"{split}_rows"]:
                raise UserError(f"data.dataset {data.dataset}: no text for the {split} split; is the source empty?")
        shutil.rmtree(scratch, ignore_errors=True)
        facts["files"] = digests_of(source.files)
        write_json(folder / "source.json", facts)
    for note in source.reading.notes():
        print(note)
    return facts


def open_source(data: DataParams, seed: int, scratch: Path) -> Source:
    """The source that `data.dataset` names. scratch: a folder for files that are here only while they are read."""
    if data.dataset == "primer":
        return _primer(data, seed)
    if paths := dataset_files(data.dataset):
        reading = reading_of(data, len(paths))
        rows = (row for path in paths for row in read_rows(path, reading))
        streamed = {"streamed": names_in_folder(paths)} if data.streaming else {}
        return Source(rows, None, reading, {"kind": "files", **streamed}, paths)
    return _streamed_from_hub(data, scratch) if data.streaming else _from_hub(data)


# ----------------------------------------------------------------------------------------------- sources


def _primer(data: DataParams, seed: int) -> Source:
    if data.streaming:
        raise UserError("data.streaming: the primer has no files to read; set it to false, or choose another dataset")
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


def _streamed_from_hub(data: DataParams, scratch: Path) -> Source:
    reading = reading_of(data)
    train, validation = hub_files(data, data.train_split), None
    if data.val_split is not None:
        files = hub_files(data.model_copy(update={"revision": train[0].commit}), data.val_split)
        validation = (row for file in files for row in file.rows(reading, scratch))
    facts = {"kind": "hub", "id": hub_id(data), "revision": data.revision, "commit": train[0].commit}
    rows = (row for file in train for row in file.rows(reading, scratch))
    return Source(rows, validation, reading, facts | {"streamed": [file.name for file in train]})


def _from_hub(data: DataParams) -> Source:
    from custom_transformer.text.hub_dataset import fetch

    dataset, reading = hub_id(data), reading_of(data)
    train = fetch(dataset, data.revision, data.train_split)
    facts = {"kind": "hub", "id": dataset, "revision": data.revision, "commit": train.commit}
    files, validation = list(train.paths), None
    if data.val_split is not None:
        fetched = fetch(dataset, train.commit, data.val_split)
        files += fetched.paths
        validation = _rows(fetched, data.val_split, reading)
    return Source(_rows(train, data.train_split, reading), validation, reading, facts, files)


def _rows(files: HubFiles, split: str, reading: Reading) -> Iterator[Row]:
    from custom_transformer.text.hub_dataset import rows_of

    return (row for path in files.paths for row in rows_of(path, files.format, split, reading))


# ----------------------------------------------------------------------------------------------- writing


def _write_divided(source: Source, data: DataParams, train: Path, validation: Path) -> dict[str, Any]:
    """Divides the documents of a source without a validation split: each one's own digest decides which split has it.

    So a document stays in its split whatever is added to the source and whatever the sizes of the subsets, and equal
    documents share a split. The share of `val_fraction` is kept on average, and neither split is left empty.
    """
    everything = train.with_name("all.parquet")
    with ProgressBar("download", None, "documents") as progress:
        division = _Division(data)
        total = write_rows(everything, division.needed(with_text(source.train)), progress)
    if division.lowest == division.highest or not total:
        raise UserError(
            f"data.dataset {data.dataset}: {total} document(s), {min(total, 1)} of them different, cannot be divided "
            f"into two splits; {source.reading.explanation()}"
        )
    facts: dict[str, Any] = {"validation_below": division.border} if data.streaming else {}
    for split, path in (("train", train), ("validation", validation)):
        rows = (row for row in read_parquet(everything) if division.split(row["text"]) == split)
        wanted = _wanted(rows, data) if split == "train" else islice(rows, data.val_subset_size)
        with ProgressBar(f"divide: {split}", None, "documents") as progress:
            facts[f"{split}_rows"] = write_rows(path, wanted, progress)
    everything.unlink()
    return facts


def _wanted(rows: Iterable[Row], data: DataParams) -> Iterable[Row]:
    """Of the training rows, those for train.parquet."""
    return up_to(rows, TOKENIZER_BYTES) if data.streaming else islice(rows, data.subset_size)


class _Division:
    """Which split has a document: validation those whose digest, a number below 2**64, is small."""

    def __init__(self, data: DataParams):
        self.border = round(data.val_fraction * 2**64)
        # Documents, or with `streaming` bytes to train a tokenizer on. None: all there are.
        wanted = TOKENIZER_BYTES if data.streaming else data.subset_size
        self._missing = {"train": wanted, "validation": data.val_subset_size}
        self._bytes_count = data.streaming
        self.lowest, self.highest = 2**64, -1  # digests so far

    def needed(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows up to the last that one of the splits needs; then the border lies so that each split has one."""
        for row in rows:
            number = digest(row["text"])
            self.lowest, self.highest = min(self.lowest, number), max(self.highest, number)
            yield row
            split = "validation" if number < self.border else "train"
            if (missing := self._missing[split]) is not None:
                in_bytes = split == "train" and self._bytes_count
                self._missing[split] = missing - (len(row["text"].encode()) if in_bytes else 1)
            if all(missing is not None and missing <= 0 for missing in self._missing.values()):
                return
        self.border = min(max(self.border, self.lowest + 1), self.highest)

    def split(self, text: str) -> str:
        return "validation" if digest(text) < self.border else "train"
