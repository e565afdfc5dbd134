"""A dataset on the Hugging Face Hub: which of its files make up a split, in which format, and their rows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom_transformer.errors import UserError, brief, one_line
from custom_transformer.files import StorageError, writing
from custom_transformer.text.hub import Repository, Unreachable, offline
from custom_transformer.text.local_files import Reading, Row, kind_of, read_rows

COMMIT = re.compile(r"[0-9a-f]{40}")
KINDS = {"parquet": (".parquet",), "json": (".json", ".jsonl", ".ndjson"), "csv": (".csv", ".tsv")}  # read here
FORMATS = ("parquet", "json", "csv", "text", "arrow")  # formats of `datasets` that hold text
CARDS = ("README.md", ".huggingface.yaml")  # what may map files to splits


@dataclass(frozen=True)
class HubFiles:
    """A split's data files, on disk and verified, in the dataset's own order."""

    commit: str
    paths: list[Path]
    format: str  # the name by which `datasets` knows how to read them


@dataclass(frozen=True)
class HubFile:
    """One of a split's data files, which is on disk only while it is read. format: as of HubFiles."""

    dataset: str
    commit: str
    name: str
    format: str
    split: str

    def rows(self, reading: Reading, scratch: Path) -> Iterator[Row]:
        """Its texts, fetched into the folder `scratch` for the time being and verified.

        Raises UserError if it cannot be had complete and unaltered, StorageError for a full disk.
        """
        repository = Repository("dataset", self.dataset, self.commit, "data.dataset", "run the same command again")
        (path,) = repository.files(self.commit, [self.name], scratch)
        try:
            yield from rows_of(path, self.format, self.split, reading)
        finally:
            path.resolve().unlink(missing_ok=True)  # the folder may be gone, if not all rows were wanted


def rows_of(path: Path, file_format: str, split: str, reading: Reading) -> Iterator[Row]:
    """The texts of a file, streamed. Raises UserError if it is not of the format that its name says."""
    if kind_of(path) in KINDS.get(file_format, ()):
        yield from read_rows(path, reading)
        return
    for row in _rows(path, file_format, split):
        yield reading.row(row, f"split {split}")


def _rows(path: Path, file_format: str, split: str) -> Iterator[Row]:
    """As `datasets` reads what it alone knows; of other files it would guess the types of all columns."""
    import datasets

    try:
        yield from datasets.load_dataset(file_format, data_files={split: str(path)}, split=split, streaming=True)
    except Exception as error:  # the readers' own, which share no base class
        raise UserError(f"{path.name}: cannot be read as {file_format} ({brief(error)})") from None


def listed(dataset: str, revision: str | None, split: str) -> list[HubFile]:
    """The files of one split of `dataset` at `revision`, none of them fetched yet.

    Raises UserError if the Hub cannot be reached, or has no such dataset, revision or split.
    """
    repository = Repository("dataset", dataset, revision, "data.dataset", "try again")
    commit, file_format, names = _listed(repository, split)
    return [HubFile(dataset, commit, name, file_format, split) for name in names]


def fetch(dataset: str, revision: str | None, split: str) -> HubFiles:
    """Fetches the files of one split of `dataset` at `revision` (branch, tag or commit) into the cache.

    Without a network, a full commit hash is served from the cache. Raises UserError if the files cannot be had complete
    and unaltered, StorageError if the cache is full or read-only.
    """
    remedy = "try again, or set data.revision to a commit that is in the cache"
    repository = Repository("dataset", dataset, revision, "data.dataset", remedy)
    pinned = revision is not None and COMMIT.fullmatch(revision) is not None
    if pinned and offline():
        return _cached(repository, split)
    try:
        return _fetched(repository, split)
    except Unreachable:
        if pinned:
            return _cached(repository, split)
        raise


def _fetched(repository: Repository, split: str) -> HubFiles:
    commit, file_format, wanted = _listed(repository, split)
    return HubFiles(commit, repository.files(commit, wanted), file_format)


def _listed(repository: Repository, split: str) -> tuple[str, str, list[str]]:
    """The commit, and the format and paths of the split's files."""
    import datasets

    datasets.disable_progress_bars()
    commit, names = repository.listing()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve() / "dataset"
        cards = repository.files(commit, [name for name in CARDS if name in names])
        _imitate(folder, names, cards)
        file_format, found = _split_files(repository, commit, folder, split)
        return commit, file_format, [path.relative_to(folder).as_posix() for path in found]


def _imitate(folder: Path, names: list[str], cards: list[Path]) -> None:
    """A folder with all of a dataset's files, empty except for its cards: enough to tell which belong to a split.

    `datasets` could ask the Hub itself, but does so with more requests, for minutes, and takes a Hub that does not
    answer for a dataset without files.
    """
    for name in names:
        if Path(name).suffix != ".py" and Path(name).name != "dataset_infos.json":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    for card in cards:
        (folder / card.name).write_bytes(card.read_bytes())


def _split_files(repository: Repository, commit: str, folder: Path, split: str) -> tuple[str, list[Path]]:
    """The format and the paths of the files in `folder` that the dataset's card or layout gives to `split`."""
    import datasets

    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
    except Exception as error:  # the library has no base class for what it finds wrong
        if type(error).__name__ in ("EmptyDatasetError", "DataFilesNotFoundError"):
            problem = f"has no data files at {commit}"
        elif type(error) is ValueError:  # such as a dataset of several configurations, with none named
            problem = one_line(str(error).partition("\nExample")[0]).replace(str(folder), "it")[:160]
        else:
            problem = f"its card or the layout of its files cannot be understood ({brief(error)})"
        raise UserError(f"{repository.where}: {problem}; choose another dataset") from None
    files = builder.config.data_files or {}
    if split not in files:
        raise UserError(f"{repository.where}: no split {split}; it has {', '.join(map(str, files)) or 'none'}")
    return _format(builder, repository), [Path(str(path)) for path in files[split]]


def _format(builder: Any, repository: Repository) -> str:
    """The last word of `datasets.packaged_modules.FORMAT.FORMAT`, in which the builder's class is defined."""
    name = type(builder).__module__.rpartition(".")[2]
    if name not in FORMATS:
        raise UserError(f"{repository.where}: its files are {name}; only {', '.join(FORMATS)} are read")
    return name


def _cached(repository: Repository, split: str) -> HubFiles:
    """As `fetch`, from the cache alone; its files are named by their digests, so they can still be checked."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    commit = str(repository.revision)
    missing = UserError(
        f"{repository.where}: not in the cache at {commit}, and the Hub cannot be reached; go online once"
    )
    folder = repository.cached(commit)
    try:
        with writing(HF_HUB_CACHE):  # even to read from its cache, `datasets` locks it
            builder = datasets.load_dataset_builder(str(folder)) if folder else None
    except StorageError:
        raise
    except Exception:  # the client has many errors for a missing file
        raise missing from None
    files = builder.config.data_files or {} if builder else {}
    if split not in files:
        raise missing
    paths = [repository.intact(Path(str(path))) for path in files[split]]
    return HubFiles(commit, paths, _format(builder, repository))
