"""Files of a dataset on the Hugging Face Hub, at one commit, each checked against the digest the Hub declares."""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from custom_transformer.errors import UserError, one_line
from custom_transformer.files import StorageError, writing

ATTEMPTS = 4  # per request, with pauses of 1, 2 and 4 seconds between them
COMMIT = re.compile(r"[0-9a-f]{40}")
FORMATS = ("parquet", "json", "csv", "text", "arrow")  # formats of `datasets` that hold text

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class HubFiles:
    """One split's data files, on disk and verified, in the dataset's own order."""

    commit: str
    paths: list[Path]
    format: str  # the name by which `datasets` knows how to read them
    split: str

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, streamed. Raises UserError if a file is not of the format that its name says."""
        import datasets

        files = {self.split: [str(path) for path in self.paths]}
        try:
            yield from datasets.load_dataset(self.format, data_files=files, split=self.split, streaming=True)
        except Exception as error:  # the readers' own, which share no base class
            names = ", ".join(path.name for path in self.paths)
            raise UserError(f"{names}: cannot be read as {self.format} ({one_line(error)[:100]})") from None


def fetch(dataset: str, revision: str | None, split: str) -> HubFiles:
    """Fetches the files of one split of `dataset` at `revision` (branch, tag or commit) into the cache.

    Without a network, a full commit hash is served from the cache. Raises UserError if the files cannot be had complete
    and unaltered, StorageError if the cache is full or read-only.
    """
    import datasets
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub import errors as hub_errors

    datasets.disable_progress_bars()
    if offline() and revision and COMMIT.fullmatch(revision):
        return _cached(dataset, revision, split)
    try:
        info = _patiently(dataset, revision, lambda: HfApi().dataset_info(dataset, revision=revision, timeout=10))
    except _Unreachable as error:
        if revision and COMMIT.fullmatch(revision):
            return _cached(dataset, revision, split)
        raise UserError(str(error)) from None
    commit = info.sha
    assert commit is not None
    file_format, names = _patiently(
        dataset, commit, lambda: _split_files(datasets.load_dataset_builder(dataset, revision=commit), dataset, split)
    )
    declared = {
        file.path: file
        for file in _patiently(
            dataset, commit, lambda: HfApi().get_paths_info(dataset, names, repo_type="dataset", revision=commit)
        )
    }
    paths = []
    for name in ["README.md", *names]:  # the card maps files to splits, for runs without a network
        optional = name == "README.md"

        def get(name: str = name) -> Path:
            return Path(hf_hub_download(dataset, name, repo_type="dataset", revision=commit))

        try:
            path = _patiently(dataset, commit, get)
        except (UserError, hub_errors.EntryNotFoundError):
            if optional:
                continue
            raise
        if not optional:
            paths.append(_verified(dataset, path, declared[name], get))
    return HubFiles(commit, paths, file_format, split)


def offline() -> bool:
    """Whether the environment tells the Hub's client to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


class _Unreachable(UserError):
    """The Hub did not answer."""


def _patiently(dataset: str, revision: str | None, ask: Callable[[], _Answer]) -> _Answer:
    """The answer to a request; transient errors are retried, others become a one-line error."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for attempt in range(ATTEMPTS):
        try:
            with warnings.catch_warnings(), writing(HF_HUB_CACHE):
                warnings.filterwarnings("ignore", "Not enough free disk space")  # the error that follows says so
                return ask()
        except (UserError, StorageError):
            raise
        except Exception as error:  # the client raises its HTTP library's errors as well as its own
            final = _final(dataset, revision, error)
            if final is not None:
                raise final from None
            if attempt == ATTEMPTS - 1 or offline():
                raise _Unreachable(
                    f"data.dataset {dataset}: the Hub cannot be reached ({type(error).__name__}: "
                    f"{one_line(error)[:100]}); try again, or set data.revision to a commit that is in the cache"
                ) from None
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def _final(dataset: str, revision: str | None, error: Exception) -> UserError | None:
    """The error for the user if retrying cannot help, else None."""
    from huggingface_hub import errors as hub

    login = "run hf auth login, or set HF_TOKEN"
    where = f"data.dataset {dataset}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, hub.GatedRepoError) or "gated dataset" in text:
        return UserError(f"{where}: gated; accept its terms on its page on the Hub, then {login}")
    if isinstance(error, hub.DisabledRepoError):
        return UserError(f"{where}: disabled by the Hub; choose another dataset")
    if isinstance(error, hub.RevisionNotFoundError) or ("revision" in text and "not found" in text):
        return UserError(f"data.revision {revision}: {dataset} has no such branch, tag or commit")
    if isinstance(error, hub.RepositoryNotFoundError):
        return UserError(f"{where}: no such dataset on the Hub; correct the name, or, where it is private, {login}")
    if isinstance(error, hub.HFValidationError):
        return UserError(f"{where}: neither a file here nor a name that the Hub could know")
    if status == 401:
        return UserError(f"{where}: the Hub refuses the token; {login}")
    if type(error).__name__ in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return UserError(f"{where}: has no data files at {revision}")
    if type(error) is ValueError:  # such as a dataset of several configurations, with none named
        return UserError(f"{where}: {one_line(error)[:160]}; choose another dataset")
    return None


def _split_files(builder: Any, dataset: str, split: str) -> tuple[str, list[str]]:
    """The format, and the paths inside the repository, of the files that the dataset's own card or layout gives
    to `split`."""
    files = builder.config.data_files or {}
    if split not in files:
        raise UserError(f"data.dataset {dataset}: no split {split}; it has {', '.join(map(str, files)) or 'none'}")
    # hf://datasets/OWNER/NAME@COMMIT/PATH
    return _format(builder, dataset), [str(url).split("@", 1)[1].split("/", 1)[1] for url in files[split]]


def _format(builder: Any, dataset: str) -> str:
    """The last word of `datasets.packaged_modules.FORMAT.FORMAT`, in which the builder's class is defined."""
    name = type(builder).__module__.rpartition(".")[2]
    if name not in FORMATS:
        raise UserError(f"data.dataset {dataset}: its files are {name}; only {', '.join(FORMATS)} are read")
    return name


def _cached(dataset: str, commit: str, split: str) -> HubFiles:
    """As `fetch`, from the cache alone; its files are named by their digests, so they can still be checked."""
    import datasets
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    missing = UserError(
        f"data.dataset {dataset}: not in the cache at {commit}, and the Hub cannot be reached; go online once"
    )
    try:
        with writing(HF_HUB_CACHE):  # even to read from its cache, `datasets` locks it
            folder = snapshot_download(dataset, repo_type="dataset", revision=commit, local_files_only=True)
            builder = datasets.load_dataset_builder(folder)
        files = builder.config.data_files or {}
    except StorageError:
        raise
    except Exception:  # the client has many errors for a missing file
        raise missing from None
    if split not in files:
        raise missing
    paths = [Path(str(path)) for path in files[split]]
    for path in paths:
        if not _is_named_by_content(path):
            raise UserError(f"data.dataset {dataset}: {path.name} in the cache is damaged; go online to fetch it anew")
    return HubFiles(commit, paths, _format(builder, dataset), split)


def _verified(dataset: str, path: Path, declared: object, get: Callable[[], Path]) -> Path:
    """`path`, if its bytes match the Hub's digest; else it is deleted and fetched once more."""
    for _ in range(2):
        if _matches(path, declared):
            return path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path = get()
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise UserError(f"data.dataset {dataset}: {path.name} arrives altered (its SHA-256 is not the Hub's); try again")


def _matches(path: Path, declared: object) -> bool:
    lfs = getattr(declared, "lfs", None)
    if lfs is not None:
        return _digest(path, "sha256") == lfs.sha256
    return _digest(path, "sha1", b"blob %d\0" % path.stat().st_size) == getattr(declared, "blob_id", None)


def _is_named_by_content(path: Path) -> bool:
    """Whether a cached file still matches the name of its blob, its SHA-256 or git hash."""
    name = path.resolve().name
    if len(name) == 64:
        return _digest(path, "sha256") == name
    return _digest(path, "sha1", b"blob %d\0" % path.stat().st_size) == name


def _digest(path: Path, algorithm: str, prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
