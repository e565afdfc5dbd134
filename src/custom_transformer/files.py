"""Writing files so that a reader finds either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from custom_transformer.errors import UserError


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
