"""Parts of a split, which processes encode independently of each other: what one is, and its tokens.

What a part holds follows from the text alone, so the tokens do not depend on how many processes there are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from custom_transformer.errors import UserError, brief, shown
from custom_transformer.files import atomic_write, sha256_file, write_json, writing
from custom_transformer.text.documents import Piece, batches, read_pieces, runs_of_groups
from custom_transformer.text.round_trip import Losses, RoundTrip, share
from custom_transformer.text.streaming import Streamed

if TYPE_CHECKING:  # imported in the processes that encode
    from tokenizers import Tokenizer

PART_BYTES = 2**26  # of a parquet file's content in one part, at least
BATCH_PIECES, BATCH_BYTES = 1000, 2**21  # given to the encoder at once


@dataclass(frozen=True)
class Stored:
    """The documents in some row groups of a parquet file; None: in all of it."""

    path: Path
    groups: range | None

    def pieces(self, scratch: Path) -> Iterator[Piece]:
        """Their text, in order."""
        return read_pieces(self.path, self.groups)


@dataclass(frozen=True)
class Part:
    split: str
    number: int  # within the split, whose text is that of its parts in this order
    text: Stored | Streamed

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}"


@dataclass(frozen=True)
class Encoding:
    """What a process needs to know to encode: a tokenizer.json, its name in data.tokenizer, and its end token."""

    tokenizer: Path
    name: str
    end_token: str
    end_id: int
    dtype: str
    allow_lossy: bool


@dataclass(frozen=True)
class Encoded:
    """A part's documents, tokens and bytes of text; the digests of its file and of its text; what is lost of it."""

    documents: int
    tokens: int
    bytes: int
    sha256: str
    text_sha256: str
    losses: Losses


def parts_of(split: str, path: Path) -> list[Part]:
    """The parts of a split that is in one parquet file; raises UserError if it is missing or damaged."""
    runs = runs_of_groups(path, PART_BYTES)
    return [Part(split, number, Stored(path, groups)) for number, groups in enumerate(runs)]


def tokens_file(part: Part, folder: Path) -> Path:
    return folder / f"{part.name}.bin"


def encoded(part: Part, folder: Path) -> Encoded | None:
    """What `encode` has made of the part in `folder`; None if it has not, or the file has changed since."""
    try:
        facts: dict[str, Any] = json.loads((folder / f"{part.name}.json").read_text("utf-8"))
        done = Encoded(**facts | {"losses": Losses(*facts["losses"])})
        return done if sha256_file(tokens_file(part, folder)) == done.sha256 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def encode(part: Part, encoding: Encoding, folder: Path) -> Encoded:
    """Writes the part's tokens to `folder`, and then what `encoded` returns. The first part of a split begins with the
    end token, and each document is followed by it.

    Raises UserError for damaged text, and for text that the tokenizer cannot encode or, unless that is allowed, loses.
    """
    with FileLock(folder / f"{part.name}.lock"):  # another share, or the run that collects them, may have begun it
        return encoded(part, folder) or _encode_alone(part, encoding, folder)


def _encode_alone(part: Part, encoding: Encoding, folder: Path) -> Encoded:
    scratch = folder / f"{part.name}.tmp"  # of this name, so that the next process removes what a killed one left
    with writing(folder, scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    try:
        done = _encode(part, encoding, tokens_file(part, folder), scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(folder / f"{part.name}.json", asdict(done))
    return done


def _encode(part: Part, encoding: Encoding, target: Path, scratch: Path) -> Encoded:
    tokenizer = _loaded(encoding.tokenizer)
    dtype, round_trip = np.dtype(encoding.dtype), RoundTrip(tokenizer)
    end = np.array([encoding.end_id], dtype)
    documents = n_bytes = 0
    text = hashlib.sha256()
    with atomic_write(target) as file:
        if part.number == 0:
            file.write(end)
        for batch in batches(part.text.pieces(scratch), lambda piece: piece.n_bytes, BATCH_PIECES, BATCH_BYTES):
            for piece, ids in zip(batch, _ids(tokenizer, batch, encoding, round_trip), strict=True):
                file.write(ids)
                n_bytes += piece.n_bytes
                text.update(piece.text.encode())
                if piece.ends_document:
                    file.write(end)
                    text.update(b"\xff")  # a byte that UTF-8 never contains
                    documents += 1
            if not encoding.allow_lossy and (lost := round_trip.losses.of_all) is not None:
                raise UserError(
                    f"data.tokenizer {encoding.name}: {round_trip.example}, {share(lost)} of the bytes so far are "
                    "lost; choose another (bpe and gpt2 lose nothing), or set data.allow_lossy_tokenizer: true"
                )
        n_tokens = file.tell() // dtype.itemsize
    return Encoded(documents, n_tokens, n_bytes, sha256_file(target), text.hexdigest(), round_trip.losses)


@lru_cache(maxsize=1)
def _loaded(path: Path) -> Tokenizer:
    """A tokenizer that reads a special token which is spelt out in a text as text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # no part of the file
    return tokenizer


def _ids(tokenizer: Tokenizer, batch: list[Piece], encoding: Encoding, round_trip: RoundTrip) -> Iterator[np.ndarray]:
    """The ids of each piece, (n,) of the dtype; the end token is never among them."""
    texts = [piece.text for piece in batch]
    try:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        round_trip.add(texts, [encoding.ids for encoding in encodings])
    except Exception as error:  # the Rust library's bare Exception: text that this vocabulary cannot spell
        raise UserError(f"data.tokenizer: cannot encode the text ({brief(error)}); choose another") from None
    for of_piece in encodings:
        ids = np.array(of_piece.ids, encoding.dtype)
        if (ids == encoding.end_id).any():
            raise UserError(
                f"data.tokenizer: a text holds {shown(encoding.end_token)}, which this tokenizer cannot tell from the "
                "end of a text; choose another (bpe and gpt2 can)"
            )
        yield ids
