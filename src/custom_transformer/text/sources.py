"""Which files of text `data.dataset` names, here or on the Hugging Face Hub, and how they are read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from custom_transformer.config import DataParams
from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.text.local_files import Reading, local_files
from custom_transformer.text.streaming import LocalFile

if TYPE_CHECKING:
    from custom_transformer.text.hub_dataset import HubFile


@dataclass(frozen=True)
class HubDataset:
    """A dataset known by a short name: its Hub id and the column that holds the text."""

    id: str
    text_column: str = "text"


REGISTERED = {
    "tiny-textbooks": HubDataset("nampdn-ai/tiny-textbooks", "textbook"),
    "tiny-strange-textbooks": HubDataset("nampdn-ai/tiny-strange-textbooks"),
    "tinystories": HubDataset("roneneldan/TinyStories"),
    "tiny-codes": HubDataset("nampdn-ai/tiny-codes", "response"),
}


class Recorded(BaseModel, frozen=True, strict=True):
    """Of source.json what `data.streaming` needs: the names of the training text's files, the digests of those that are
    local, the commit of those on the Hub, and below which digest a document is to validate on."""

    streamed: list[str]
    files: dict[str, str]
    commit: str = ""
    validation_below: int = 0


def dataset_files(dataset: str) -> list[Path]:
    """The local files that `data.dataset` names, in the order in which they are read; none for the primer and the Hub.

    Raises UserError if there should be some.
    """
    return [] if dataset == "primer" or dataset in REGISTERED else local_files(dataset)


def reading_of(data: DataParams, files: int = 0) -> Reading:
    """How the files that `data.dataset` names are read; files: how many of them are local."""
    known = REGISTERED.get(data.dataset)
    column = data.text_column or (known.text_column if known else "text")
    return Reading(column, alone=files == 1)


def streamed_files(data: DataParams, source: Recorded) -> list[LocalFile | HubFile]:
    """The files of the training text that source.json lists, as `data.streaming` reads them.

    Raises UserError if they are not the ones that the parameters name now.
    """
    files: list[LocalFile | HubFile]
    if paths := dataset_files(data.dataset):
        names = names_in_folder(paths)
        files = [LocalFile(path, source.files.get(name)) for path, name in zip(paths, names, strict=True)]
    else:
        listed = hub_files(data.model_copy(update={"revision": source.commit}), data.train_split)
        files, names = list(listed), [file.name for file in listed]
    if names != source.streamed:
        raise UserError(f"data.dataset {data.dataset}: has other files than the stage download found; run dvc repro")
    return files


def hub_id(data: DataParams) -> str:
    """The Hub's name of the dataset. Raises UserError if it can be none."""
    if data.dataset in REGISTERED:
        return REGISTERED[data.dataset].id
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.dataset) or ".." in data.dataset:
        raise UserError(f"data.dataset {data.dataset}: no such file, and no name that the Hub could know")
    return data.dataset


def hub_files(data: DataParams, split: str) -> list[HubFile]:
    """The files of a split of the dataset on the Hub, none of them fetched yet."""
    from custom_transformer.text.hub_dataset import listed

    return listed(hub_id(data), data.revision, split)


def digests_of(paths: list[Path]) -> dict[str, str]:
    """The SHA-256 of each file, by its path within the folder that holds them all: names alone may be equal."""
    return {name: sha256_file(path) for name, path in zip(names_in_folder(paths), paths, strict=True)}


def names_in_folder(paths: list[Path]) -> list[str]:
    """The path of each file within the folder that holds them all."""
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (a link keeps its name)
    folder = os.path.commonpath([path.parent for path in absolute]) if paths else ""
    return [path.relative_to(folder).as_posix() for path in absolute]
