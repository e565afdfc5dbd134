"""What dvc.lock records of a training: its parameters, and the MD5 of each file that it read and wrote."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom_transformer.errors import UserError, one_line
from custom_transformer.paths import LOCK, PIPELINE
from custom_transformer.plain_yaml import load_yaml

STAGE = "train"


@dataclass(frozen=True)
class LockedTraining:
    """params: by their names, sections as mappings. read and written: the MD5 by path; a folder's ends with .dir."""

    params: Mapping[str, Any]
    read: Mapping[Path, str]
    written: Mapping[Path, str]


def locked_training() -> LockedTraining:
    """The training in dvc.lock of the current folder. Raises UserError where there is none."""
    try:
        stage = load_yaml(LOCK.read_text("utf-8"))["stages"][STAGE]
        params = next(iter(stage["params"].values()))
        read, written = ({Path(e["path"]): str(e["md5"]) for e in stage[kind]} for kind in ("deps", "outs"))
    except FileNotFoundError:
        raise UserError(f"{LOCK}: no such file; run from the repository's root, after dvc repro") from None
    except (LookupError, TypeError, AttributeError, StopIteration):
        raise UserError(f"{LOCK}: has no finished training; run dvc repro first") from None
    except ValueError as error:
        raise UserError(f"{LOCK}: damaged ({one_line(error)[:100]}); run python -m stages.recover") from None
    return LockedTraining(params, read, written)


class Files:
    """The repository's files by their MD5, as DVC computes it, but from their bytes: DVC believes a file's time."""

    def __init__(self) -> None:
        if not PIPELINE.exists():
            raise UserError(f"{PIPELINE}: no such file; run from the repository's root")
        from dvc.repo import Repo  # takes a second to import

        self._repo = Repo(".")

    def differing(self, recorded: Mapping[Path, str]) -> list[Path]:
        """The files that are not as recorded, or a whole folder where it cannot be said which file of it."""
        found: list[Path] = []
        for path, md5 in recorded.items():
            if path.is_dir():
                found += self._differing_in(path, md5)
            elif not path.exists() or _md5(path.read_bytes()) != md5:
                found.append(path)
        return found

    def sources_other_than(self, commit: str) -> list[Path]:
        """The code among the training's dependencies in dvc.yaml that is not as in a commit; none where git has not
        got the commit."""
        deps = load_yaml(PIPELINE.read_text("utf-8"))["stages"][STAGE]["deps"]
        sources = [dep for dep in deps if dep.startswith(("src/", "stages/"))]
        names = _git("ls-tree", "-r", "--name-only", "-z", commit, *sources).decode().split("\0")[:-1]
        found = [Path(name) for name in names if not self._repo.dvcignore.is_ignored_file(name)]
        return [path for path in found if not path.exists() or path.read_bytes() != _git("show", f"{commit}:./{path}")]

    def _differing_in(self, folder: Path, md5: str) -> list[Path]:
        here = self._listing(folder)
        if listing_md5(here) == md5:
            return []
        for there in (self._cached(md5), self._committed(folder)):
            if listing_md5(there) == md5:
                return [
                    folder / name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)
                ]
        return [folder]

    def _listing(self, folder: Path) -> dict[str, str]:
        """The MD5 of each file in a folder, by its path there; without those that .dvcignore names."""
        files = map(Path, self._repo.dvcignore.find(self._repo.fs, str(folder)))
        return {path.relative_to(folder).as_posix(): _md5(path.read_bytes()) for path in files}

    def _cached(self, md5: str) -> dict[str, str]:
        """The same of a folder that DVC's cache has."""
        path = Path(self._repo.cache.local.oid_to_path(md5))
        return {e["relpath"]: e["md5"] for e in json.loads(path.read_bytes())} if path.exists() else {}

    def _committed(self, folder: Path) -> dict[str, str]:
        """The same of the folder in the last commit."""
        names = _git("ls-tree", "-r", "--name-only", "-z", "HEAD", f"{folder}/").decode().split("\0")[:-1]
        names = [name for name in names if not self._repo.dvcignore.is_ignored_file(name)]
        return {Path(n).relative_to(folder).as_posix(): _md5(_git("show", f"HEAD:./{n}")) for n in names}


def folder_md5(folder: Path) -> str:
    """What DVC would record of a folder outside the repository."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return listing_md5({path.relative_to(folder).as_posix(): _md5(path.read_bytes()) for path in files})


def file_md5(path: Path) -> str:
    return _md5(path.read_bytes())


def listing_md5(listing: Mapping[str, str]) -> str:
    """DVC's MD5 of a folder: that of the JSON list of its files."""
    entries = [{"md5": listing[name], "relpath": name} for name in sorted(listing)]
    return _md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def _git(*arguments: str) -> bytes:
    """Git's answer about the current folder; empty where it has none."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
