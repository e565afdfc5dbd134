"""Text that is read where it is: a file of the source by itself, in place of a copy in data/raw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.text.documents import Piece, pieces_of
from custom_transformer.text.local_files import Reading, Row, read_rows
from custom_transformer.text.rows import digest, with_text

if TYPE_CHECKING:
    from custom_transformer.text.hub_dataset import HubFile


@dataclass(frozen=True)
class LocalFile:
    """sha256: of what was in it when the source was recorded; None if it was not in it."""

    path: Path
    sha256: str | None

    def rows(self, reading: Reading, scratch: Path) -> Iterator[Row]:
        """Its texts. Raises UserError if it has changed or cannot be read."""
        if sha256_file(self.path) != self.sha256:
            raise UserError(f"{self.path}: has changed since the stage download read it; run dvc repro")
        yield from read_rows(self.path, reading)


@dataclass(frozen=True)
class Streamed:
    """The training documents of a file: those whose digests are not `below` a border, as these are to validate on.

    column: which holds the text. alone: whether it is the only file.
    """

    file: LocalFile | HubFile
    column: str
    alone: bool
    below: int

    def pieces(self, scratch: Path) -> Iterator[Piece]:
        """Their text, in order. scratch: a folder for the file while it is read."""
        rows = with_text(self.file.rows(Reading(self.column, self.alone), scratch))
        for row in rows:
            if digest(row["text"]) >= self.below:
                yield from pieces_of(memoryview(row["text"].encode()))
