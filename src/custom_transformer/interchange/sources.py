"""Where a model that is taken over comes from: a folder, a GGUF file, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from custom_transformer.errors import UserError
from custom_transformer.interchange import check_target
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER, import_huggingface
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.text.hub import Repository, Unreachable, offline
from custom_transformer.text.tokenizer_files import TOKENIZER_FILES

_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def import_model(source: str, folder: Path, revision: str | None = None) -> CustomTransformer:
    """Writes the model and the tokenizer of `source` as `folder`/model.pt and `folder`/tokenizer/.

    source: a folder in the format of Hugging Face, a GGUF file, or else a model's name on the Hub, of which `revision`
    names a branch, tag or commit. Raises UserError, naming what is wrong, for what is missing, damaged or unusual,
    StorageError for what cannot be written.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UserError(f"--revision {revision}: {source} is here, not on the Hub; leave the revision out")
        if path.is_dir():
            return import_huggingface(path, folder)
        from custom_transformer.interchange.gguf_files import import_gguf

        return import_gguf(path, folder)
    if not _ID.fullmatch(source) or path.suffix == ".gguf":
        raise UserError(f"{source}: no such file or folder")
    check_target(folder, (CHECKPOINT, TOKENIZER))
    fetched, commit = _fetched(source, revision)
    return import_huggingface(fetched, folder, f"{source}@{commit}")


def _fetched(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder in the Hub's cache with a model's files, verified, and their commit; those of an earlier run where
    the Hub cannot be reached."""
    repository = Repository("model", name, revision, "import", "try again, or give a folder or a GGUF file")
    try:
        commit, names = repository.listing()
        wanted = _wanted(names)
        if "config.json" not in wanted:
            files = next((file for file in names if file.endswith(".gguf")), None)
            instead = f"; download {files} and give its path" if files else "; choose another"
            raise UserError(f"{repository.where}: has no config.json on the Hub{instead}")
        paths = repository.files(commit, wanted)
    except Unreachable:
        if (folder := repository.cached(revision)) is None:
            raise
        for file in _wanted([path.name for path in folder.iterdir()]):
            repository.intact(folder / file)
        if not offline():
            print(f"{repository.where}: the Hub cannot be reached; its files in the cache are used")
        return folder, folder.name
    if revision is None:
        repository.remember(commit)
    return paths[0].parent, commit


def _wanted(names: Sequence[str]) -> list[str]:
    """The configuration, the tokenizer, and the weights in one form of those that are there."""
    here = [name for name in names if "/" not in name]
    weights = [name for name in here if _is_one_of(name, _SAFETENSORS)]
    weights = weights or [name for name in here if _is_one_of(name, _PICKLES)]
    return [name for name in here if _is_one_of(name, TOKENIZER_FILES)] + weights


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
