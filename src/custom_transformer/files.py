"""Writing files so that a reader finds either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path`; on success it is flushed to disk and renamed over `path`.

    On any error the temporary file is removed and what stood at `path` before is untouched.
    Text modes write UTF-8 with "\\n" line ends.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A second name for a file that nobody changes in place; a copy where the file system refuses.

    What stands at `target` already is left there.
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


def project_root() -> Path:
    """The repository's root, absolute: $DVC_ROOT in a DVC stage, else the nearest folder upwards that has dvc.yaml.

    In an experiment that DVC runs in a temporary copy, $DVC_ROOT is the repository it was started from, so what
    lies under it outlives the copy. Without either it is the current folder.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
