"""The digests of the local files that the parameters name: so DVC learns of changes in files that it cannot watch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from custom_transformer.errors import NoFiles
from custom_transformer.files import check_regular, write_json
from custom_transformer.paths import initial_checkpoint
from custom_transformer.text.sources import dataset_files, digests_of
from custom_transformer.text.tokenizer_files import tokenizer_files

_Value = TypeVar("_Value", str, str | None)


def write_inputs(dataset: str, tokenizer: str, init_from: str | None, out: Path, streaming: bool = False) -> list[str]:
    """Writes dataset.json, tokenizer.json and init_from.json to `out`; returns a line for each whose files are not here
    any more.

    Each has the parameter's value and, in the order in which they are read, its files' names and SHA-256. Equal
    files give equal bytes, in whatever folder they lie. dataset.json also says if the text is streamed. There are
    no files for the primer, for what is on the Hub, and for no checkpoint. If none of the files that the last
    manifest names is here, as in a clone that has pulled the results of others, that manifest stays, and with it
    what was made of the files. Raises UserError if files are missing and there is no such manifest, or one cannot
    be read.
    """
    lines = (
        _write(
            out / "dataset.json", "data.dataset", dataset, dataset_files, **({"streaming": True} if streaming else {})
        ),
        _write(out / "tokenizer.json", "data.tokenizer", tokenizer, tokenizer_files),
        _write(out / "init_from.json", "training.init_from", init_from, _checkpoint_files),
    )
    return [line for line in lines if line]


def _checkpoint_files(name: str | None) -> list[Path]:
    if name is None:
        return []
    check_regular(path := initial_checkpoint(name))
    return [path]


def _write(
    manifest: Path, parameter: str, value: _Value, files: Callable[[_Value], list[Path]], **others: bool
) -> str | None:
    missing = None
    try:
        paths = files(value)
    except NoFiles as error:
        paths, missing = [], error
    if not paths:
        last = _last(manifest)
        if last.get(parameter) == value and last.get("files"):
            return f"{parameter} {value}: no longer here; what was made of it stays"
        if missing:
            raise missing
    digests = [{"name": name, "sha256": sha256} for name, sha256 in digests_of(paths).items()]
    write_json(manifest, {parameter: value, "files": digests, **others})
    return None


def _last(manifest: Path) -> dict[str, Any]:
    try:
        last = json.loads(manifest.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return last if isinstance(last, dict) else {}
