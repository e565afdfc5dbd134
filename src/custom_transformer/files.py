"""Writing files so that a reader finds either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
from filelock import FileLock, Timeout

from custom_transformer.errors import UserError

# The system's errors about a folder or disk that cannot be written, and a remedy for each.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it accessible",
    errno.EPERM: "make it writable",
    errno.EIO: "check the disk",
    errno.ENOTDIR: "move away the file that stands where a folder should be",
    errno.EEXIST: "move it away",
    errno.EISDIR: "move the folder away",
}


class StorageError(OSError):
    """A file that cannot be written: `filename` says which, `strerror` why and what to do."""


@contextlib.contextmanager
def writing(path: Path | str, temporary: Path | None = None) -> Iterator[None]:
    """Turns a system error raised in the block into a StorageError that names the file and a remedy.

    An error about `temporary`, or about no file, is reported as one about `path`. Other errors pass unchanged.
    """
    try:
        yield
    except (StorageError, UserError):
        raise
    except Exception as error:
        name = getattr(error, "filename", None)
        number = _error_number(error)
        if number not in _REMEDIES:
            raise
        words = f"{os.strerror(number)}; {_REMEDIES[number]} and run the same command again"
        raise StorageError(number, words, str(path) if name in (None, str(temporary)) else str(name)) from error


def _error_number(error: Exception) -> int | None:
    """The system's number for an error; libraries in Rust give it in their text only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path`; on success it is flushed to disk and renamed over `path`.

    On any error the temporary file is removed and an older file at `path` is unchanged. Temporary files that killed
    processes left for the same `path` are removed too. Text modes write UTF-8 with "\\n" line ends.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error counts
                temporary.unlink()
            raise
        _sync(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary files of `path` whose processes have ended."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flushes a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do this for folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staged_folders(*folders: Path) -> Iterator[list[Path]]:
    """Empty folders next to `folders`, which replace them when the block has succeeded.

    All old folders are removed before the first new one is put in place, so that the folders present always belong
    together; on any error the old ones stay. The temporary names are fixed, so the next process removes what a killed
    one left. Raises UserError while another process writes the same folders, StorageError if they cannot be written.
    """
    stagings = [folder.with_name(f".{folder.name}.tmp") for folder in folders]
    olds = [folder.with_name(f".{folder.name}.old") for folder in folders]
    with _locked(folders[0]):
        try:
            for folder, staging, old in zip(folders, stagings, olds, strict=True):
                with writing(folder, staging):
                    shutil.rmtree(old, ignore_errors=True)
                    shutil.rmtree(staging, ignore_errors=True)
                    staging.mkdir(parents=True)
            yield stagings
            for file in (path for staging in stagings for path in [*staging.rglob("*"), staging]):
                _sync(file)
            with contextlib.ExitStack() as restore:
                for folder, old in zip(folders, olds, strict=True):
                    if folder.exists():
                        folder.replace(old)
                        restore.callback(old.replace, folder)
                for folder, staging in zip(folders, stagings, strict=True):
                    staging.replace(folder)
                    restore.callback(folder.replace, staging)
                restore.pop_all()
            _sync(folders[0].parent)
        except StorageError as error:  # people know the folder, not its staging
            for folder, staging in zip(folders, stagings, strict=True):
                error.filename = error.filename.replace(str(staging), str(folder))
            raise
        finally:
            for folder in (*stagings, *olds):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder.with_name(f".{folder.name}.lock")
    with writing(folder, lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # if this is not allowed, FileLock would report another holder
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is writing it; wait for its end, then run this again") from None
    try:
        yield
    finally:
        held.release()


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A hard link to a file that nobody changes in place; a copy if the file system has no hard links.

    An existing `target` is kept.
    """
    source, target = Path(source).resolve(), Path(target)  # a link to a symbolic link would break with it
    if target.exists():
        return
    try:
        target.hardlink_to(source)
    except OSError:
        with source.open("rb") as content, atomic_write(target) as copy:
            shutil.copyfileobj(content, copy, 1 << 20)


def write_json(path: Path | str, content: Any) -> None:
    """Writes `content` as indented JSON, atomically. Refuses NaN and infinity, which JSON does not have."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of the same keys as a CSV with a header, atomically."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_regular(path: Path | str) -> None:
    """Raises UserError for a folder, a pipe or a device, which would not open or never end."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise UserError(f"{path}: not a regular file; name another")


def read_text(path: Path | str, max_bytes: int) -> str:
    """A small file's UTF-8 text; raises UserError for one of more than `max_bytes`, which stays unread."""
    check_regular(path)
    with Path(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: larger than {max_bytes >> 10:,} KiB; is it the right file?")
    return content.decode("utf-8")


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
