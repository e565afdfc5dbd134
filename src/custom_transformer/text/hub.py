"""Files of a repository on the Hugging Face Hub, at one commit, each checked against the digest the Hub declares."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any, Literal, TypeVar

from custom_transformer.errors import UserError, brief
from custom_transformer.files import StorageError, atomic_write, writing

ATTEMPTS = 4  # per request, with pauses of 1, 2 and 4 seconds between them
PATIENCE = 30.0  # seconds that failed attempts may take in all; the time in which data arrive does not count
SILENCE = 5.0  # seconds without an answer before a line says so
TIMEOUT = 10.0  # seconds without a byte that end one attempt
CHUNK = 2**15  # bytes that arrive between two signs of life
TRANSIENT = (403, 408, 425, 429)  # besides all from 500: 403 is what a link to a file's store answers when it is old

_Answer = TypeVar("_Answer")


class Unreachable(UserError):
    """The Hub did not answer, or not with what was asked for."""


class Repository:
    """A repository, and how long one still waits for the Hub on its behalf: all requests share one deadline.

    parameter: the key in params.yaml or the command that names it. remedy: what else to do where the Hub cannot be
    reached. Each method raises UserError for what the Hub does not have or does not give, and StorageError for a cache
    that is full or read-only.
    """

    def __init__(self, kind: Literal["dataset", "model"], name: str, revision: str | None, parameter: str, remedy: str):
        from huggingface_hub import constants
        from huggingface_hub.utils import disable_progress_bars, logging

        # The client tells of a file's progress by the chunk: by default ten megabytes, minutes on a slow line.
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        disable_progress_bars()
        logging.set_verbosity_error()  # the lines here say it
        self.kind, self.name, self.revision = kind, name, revision
        self._parameter, self._remedy = parameter, remedy
        self._left, self._heard = PATIENCE, monotonic()
        self._reason, self._said = "no answer", False

    @property
    def where(self) -> str:
        return f"{self._parameter} {self.name}"

    def listing(self) -> tuple[str, list[str]]:
        """The commit that the revision names, and the paths of all its files."""
        from huggingface_hub import HfApi

        def get() -> tuple[str | None, list[str]]:
            about = HfApi().dataset_info if self.kind == "dataset" else HfApi().model_info
            info = about(self.name, revision=self.revision, timeout=TIMEOUT)
            return info.sha, [file.rfilename for file in info.siblings or []]

        commit, names = self._ask("its list of files", get)
        if commit is None:
            raise UserError(f"{self.where}: the Hub names no commit; is HF_ENDPOINT the address of a Hub?")
        if outside := [name for name in names if PurePosixPath(name).is_absolute() or ".." in Path(name).parts]:
            raise UserError(f"{self.where}: holds {outside[0]}, a path outside of its folder; choose another")
        return commit, names

    def files(self, commit: str, names: Sequence[str], cache: Path | None = None) -> list[Path]:
        """The files of these paths, verified, in the folder `cache` or by default in the Hub's cache."""
        from huggingface_hub import HfApi

        def get() -> list[Any]:
            return list(HfApi().get_paths_info(self.name, list(names), repo_type=self.kind, revision=commit))

        declared = {entry.path: entry for entry in self._ask("its list of files", get)} if names else {}
        return [self._file(commit, name, declared.get(name), cache) for name in names]

    def _file(self, commit: str, name: str, declared: Any, cache: Path | None) -> Path:
        """One file, fetched once more if its bytes do not match the Hub's digest."""
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import tqdm

        repository = self

        class Heard(tqdm):
            def update(self, n: float | None = 1) -> bool | None:
                repository._heard = monotonic()
                return super().update(n)

        def get() -> Path:
            with writing(cache or constants.HF_HUB_CACHE):
                path = hf_hub_download(
                    self.name, name, repo_type=self.kind, revision=commit, cache_dir=cache, tqdm_class=Heard
                )
            return Path(path)

        for _ in range(2):
            path = self._ask(name, get)
            if declared is not None and _matches(path, declared):
                return path
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise UserError(f"{self.where}: {name} arrives altered (its digest is not the Hub's); try again")

    def remember(self, commit: str) -> None:
        """Makes `commit` what the cache has for the main branch, for runs without a network."""
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.file_download import repo_folder_name

        folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.kind)
        with atomic_write(folder / "refs/main", "w") as file:
            file.write(commit)

    def cached(self, revision: str | None, patterns: list[str] | None = None) -> Path | None:
        """The folder of a revision in the cache, without asking the Hub; None if it is not there."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE

        try:
            with writing(HF_HUB_CACHE):
                folder = snapshot_download(
                    self.name, repo_type=self.kind, revision=revision, allow_patterns=patterns, local_files_only=True
                )
        except StorageError:
            raise
        except Exception:  # the client has many errors for a missing file
            return None
        return Path(folder)

    def intact(self, path: Path) -> Path:
        """`path`, a file in the cache; raises UserError if its bytes no longer match its name, which is its digest."""
        name = path.resolve().name
        if name not in (_sha256(path), _git_hash(path)):
            raise UserError(f"{self.where}: {path.name} in the cache is damaged; go online to fetch it anew")
        return path

    # ------------------------------------------------------------------------------------------ requests

    def _ask(self, what: str, request: Callable[[], _Answer]) -> _Answer:
        """The answer to a request; transient errors are retried, others become a one-line error."""
        for attempt in range(ATTEMPTS):
            try:
                return self._answer(what, request)
            except (UserError, StorageError):
                raise
            except Exception as error:  # the client raises its HTTP library's errors as well as its own
                error = _cause(error)
                if (final := self._final(what, error)) is not None:
                    raise final from None
                self._reason = _reason(error)
                self._left -= monotonic() - self._heard + 2**attempt
                if attempt == ATTEMPTS - 1 or self._left <= 0 or offline():
                    raise self._unreachable(what) from None
                self._say(what)
                time.sleep(2**attempt)
        raise AssertionError("unreachable")

    def _answer(self, what: str, request: Callable[[], _Answer]) -> _Answer:
        """What `request` returns or raises. It runs in a thread, because the client's own retries have no deadline."""
        from huggingface_hub import get_session
        from huggingface_hub.constants import HF_HUB_CACHE

        ended: queue.SimpleQueue[tuple[_Answer | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                with writing(HF_HUB_CACHE):
                    get_session().timeout = TIMEOUT
                    ended.put((request(), None))
            except BaseException as error:
                ended.put((None, error))

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space")  # the error that follows says so
            self._heard = monotonic()
            threading.Thread(target=work, daemon=True).start()
            while (silent := monotonic() - self._heard) < self._left:
                if silent > SILENCE:
                    self._say(what)
                try:
                    answer, error = ended.get(timeout=min(1.0, self._left - silent))
                except queue.Empty:
                    continue
                if error is not None:
                    raise error
                return answer  # type: ignore[return-value]
        raise self._unreachable(what)

    def _say(self, what: str) -> None:
        """Once: that one waits, and for how long at most."""
        if not self._said:
            self._said = True
            print(f"{self.where}: waiting for the Hub, {self._left:.0f} s at most; {what}: {self._reason}", flush=True)

    def _unreachable(self, what: str) -> Unreachable:
        return Unreachable(f"{self.where}: the Hub cannot be reached ({what}: {self._reason}); {self._remedy}")

    def _final(self, what: str, error: Exception) -> UserError | None:
        """The error for the user if retrying cannot help, else None."""
        from huggingface_hub import errors as hub

        login = "run hf auth login, or set HF_TOKEN"
        status = _status(error)
        if isinstance(error, hub.GatedRepoError):
            return UserError(f"{self.where}: gated; accept its terms on its page on the Hub, then {login}")
        if isinstance(error, hub.DisabledRepoError):
            return UserError(f"{self.where}: disabled by the Hub; choose another")
        if isinstance(error, hub.RepositoryNotFoundError):
            return UserError(f"{self.where}: no such {self.kind} on the Hub; correct the name, or, if private, {login}")
        if isinstance(error, hub.RevisionNotFoundError):
            revision = f"{'data.' if self.kind == 'dataset' else '--'}revision {self.revision}"
            return UserError(f"{revision}: {self.name} has no such branch, tag or commit")
        if isinstance(error, hub.HFValidationError):
            return UserError(f"{self.where}: neither a file here nor a name that the Hub could know")
        if status == 401:
            return UserError(f"{self.where}: the Hub refuses the token; {login}")
        if status is not None and 400 <= status < 500 and status not in TRANSIENT:
            return UserError(f"{self.where}: the Hub answers {_phrase(status)} for {what}; try later or choose another")
        return None


def offline() -> bool:
    """Whether the environment tells the Hub's client to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _cause(error: Exception) -> Exception:
    """What kept a file from coming: the client says only that it is not in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _reason(error: Exception) -> str:
    return brief(error) if (status := _status(error)) is None else _phrase(status)


def _matches(path: Path, declared: Any) -> bool:
    if declared.lfs is not None:
        return bool(_sha256(path) == declared.lfs.sha256)
    return bool(_git_hash(path) == declared.blob_id)


def _sha256(path: Path) -> str:
    return _digest(path, "sha256")


def _git_hash(path: Path) -> str:
    return _digest(path, "sha1", b"blob %d\0" % path.stat().st_size)


def _digest(path: Path, algorithm: str, prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
