"""The files that a finished training leaves, compared with those that dvc.lock records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from custom_transformer.errors import shown
from custom_transformer.paths import LOCK
from custom_transformer.runs.locked import file_md5, folder_md5
from custom_transformer.runs.verification import Difference, first_difference


def compare_results(written: Mapping[Path, str], made: Path) -> None:
    """Raises Difference for the first recomputed result, or the first result here, that is not the recorded one.

    written: the recorded MD5 of each result by its path. made: the folder with the recomputed ones. A result that is
    not here is left out.
    """
    for path, recorded in written.items():
        here, ours = _md5(path), _md5(made / path)
        if ours != recorded:
            detail = _first_difference(path, made / path) if here == recorded else ""
            raise Difference(f"{path}: what is recomputed is not what {LOCK} records", detail)
        if here not in ("", recorded):
            detail = _first_difference(path, made / path)
            raise Difference(f"{path}: has been changed since; what is recomputed is what {LOCK} records", detail)


def _md5(path: Path) -> str:
    if not path.exists():
        return ""
    return folder_md5(path) if path.is_dir() else file_md5(path)


def _first_difference(theirs: Path, ours: Path) -> str:
    """The first place in which two files, or the files of two folders, are not the same."""
    if theirs.is_dir():
        names = sorted({path.relative_to(folder) for folder in (theirs, ours) for path in folder.rglob("*.*")})
        name = next(name for name in names if _md5(theirs / name) != _md5(ours / name))
        return f"{theirs / name}: {_first_difference(theirs / name, ours / name)}"
    if not theirs.exists() or not ours.exists():
        return f"is only {'here' if theirs.exists() else 'in the recomputation'}"
    if ours.suffix == ".pt":
        return _in_checkpoint(theirs, ours)
    lines = (path.read_text("utf-8", errors="replace").splitlines() for path in (theirs, ours))
    pairs = enumerate(zip(*lines, strict=False), 1)
    place, (a, b) = next(((i, pair) for i, pair in pairs if pair[0] != pair[1]), (0, ("", "")))
    return f"line {place}: {shown(a)} there, {shown(b)} here" if place else "one is the other's beginning"


def _in_checkpoint(theirs: Path, ours: Path) -> str:
    try:  # torch.load looks at no checksum, so that also a damaged file may be read
        a, b = (torch.load(path, map_location="cpu", weights_only=True) for path in (theirs, ours))
        return first_difference(a["state_dict"], b["state_dict"]) or "all tensors are equal, what is beside them is not"
    except Exception:  # whatever the library makes of a damaged file
        return "damaged, and cannot be read"
