"""The flat token arrays in data/tokens: reading them, windows of them, and the order of windows in an epoch.

One stream holds a whole split: the end token, then each document followed by the end token. So every token of every
document, and every document's end, is a label exactly once, and the first document has a context like the others.

Shapes: B batch, T time (the length of a window).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from custom_transformer.config import Count, Section, validated
from custom_transformer.errors import UserError, one_line
from custom_transformer.files import check_regular, read_text, sha256_file

META = "meta.json"
REMEDY = "run dvc repro --force tokenize"
CHECKED_AT_ONCE = 2**22  # tokens
MAX_META_BYTES = 8 << 20  # it lists the files of a source, perhaps many thousands

Amount = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _TokenizerFacts(Section):
    name: str
    sha256: Digest
    vocab_size: Count
    requested_vocab_size: Count | None
    end_token: str
    end_token_id: Amount


class _SplitFacts(Section):
    documents: Amount
    tokens: Amount
    bytes: Annotated[int, Field(ge=1, lt=2**63)]
    sha256: Digest
    text_sha256: Digest
    log2_prob: float = 0.0  # may be absent, but not null


class _Splits(Section):
    train: _SplitFacts
    validation: _SplitFacts


class _Meta(Section):
    """What `tokenize` writes to meta.json."""

    tokenizer: _TokenizerFacts
    dtype: Literal["uint16", "uint32"]
    splits: _Splits
    lost: Annotated[float, Field(ge=0, le=1)] = 0.0  # absent where every text comes back from its tokens
    source: dict[str, Any]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The little-endian type that a vocabulary's ids are stored in: uint16 if they fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split's stream of tokens, memory-mapped.

    tokens: (n_tokens,) uint16 or uint32
    meta: the whole meta.json, with this split's own entries (documents, tokens, bytes, sha256, text_sha256 and, if the
        source knows it, log2_prob) added at the top level.
    """

    tokens: np.ndarray
    meta: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_text_tokens(self) -> int:
        """How many tokens the documents have, without the end tokens around them."""
        return self.n_tokens - len(self.ends())

    @property
    def end_id(self) -> int:
        """The end token, which is in front of each document and behind it, and never in one."""
        return int(self.meta["tokenizer"]["end_token_id"])

    def ends(self) -> np.ndarray:
        """Where the end tokens are in the stream, (documents + 1,) int64: document i is between ends i and i + 1."""
        chunks = range(0, self.n_tokens, CHECKED_AT_ONCE)
        return np.concatenate([np.flatnonzero(self.tokens[i : i + CHECKED_AT_ONCE] == self.end_id) + i for i in chunks])

    def n_windows(self, length: int) -> int:
        """How many non-overlapping windows of `length` inputs, each with a label, the stream holds."""
        return (self.n_tokens - 1) // length

    def windows(self, indices: Sequence[int] | np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels, each (B, T) int64: window i starts at token i·T, its labels one token later."""
        starts = np.asarray(indices, dtype=np.int64)[:, None] * length
        rows = torch.from_numpy(self.tokens[starts + np.arange(length + 1)].astype(np.int64))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def eval_windows(split: TokenSplit, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every token but the first as a label exactly once: input_ids and labels, each (B, T) int64.

    The windows do not overlap. The rest that does not fill a window comes last, as one shorter row.
    """
    n_windows = split.n_windows(length)
    for first in range(0, n_windows, batch_size):
        yield split.windows(np.arange(first, min(first + batch_size, n_windows)), length)
    rest = torch.from_numpy(split.tokens[n_windows * length :].astype(np.int64))[None]
    if rest.shape[1] > 1:
        yield rest[:, :-1], rest[:, 1:]


def epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """Every window once, (n_windows,) int64, in an order determined by (seed, epoch).

    The windows are sorted by random keys. NumPy guarantees the raw stream of a bit generator, but not the results of
    `Generator.permutation`; a stable sort has one result.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n_windows)
    return np.argsort(keys, kind="stable")


def load_tokens(folder: Path | str, split: str) -> TokenSplit:
    """The stream of "train" or "validation"; raises UserError if folder, meta.json and array do not agree."""
    folder = Path(folder)
    meta, vocab_size, n_tokens, dtype = _read_meta(folder / META, split)
    path = folder / f"{split}.bin"
    try:
        check_regular(path)
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {REMEDY}") from None
    if size != n_tokens * dtype.itemsize:
        raise UserError(f"{path}: {size:,} bytes, where {META} says {n_tokens:,} tokens of {dtype.itemsize}; {REMEDY}")
    if n_tokens < 2:
        raise UserError(f"{path}: {n_tokens} tokens, nothing to predict; give the {split} split some text")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    _check_ids(tokens, vocab_size, path)
    end_id = meta["tokenizer"]["end_token_id"]
    if tokens[0] != end_id or tokens[-1] != end_id:
        raise UserError(f"{path}: does not begin and end with the end token, {end_id}; {REMEDY}")
    if sha256_file(path) != meta["splits"][split]["sha256"]:
        raise UserError(f"{path}: changed since it was made (its SHA-256 is not {META}'s); {REMEDY}")
    return TokenSplit(tokens, meta | meta["splits"][split])


def _read_meta(path: Path, split: str) -> tuple[dict[str, Any], int, int, np.dtype[Any]]:
    """The content of meta.json, its vocabulary's size, and the length and type of the split's array."""
    try:
        meta = json.loads(read_text(path, MAX_META_BYTES))
        if not isinstance(meta, dict):
            raise ValueError("no JSON object")
        facts = validated(_Meta, meta, f"{path}: damaged, {REMEDY}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run dvc repro tokenize") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)[:100]}); {REMEDY}") from None
    vocab_size, dtype = facts.tokenizer.vocab_size, token_dtype(facts.tokenizer.vocab_size)
    if facts.dtype != dtype.name:
        raise UserError(f"{path}: damaged ({vocab_size} entries are not stored as {facts.dtype}); {REMEDY}")
    return meta, vocab_size, getattr(facts.splits, split).tokens, dtype


def _check_ids(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    for start in range(0, len(tokens), CHECKED_AT_ONCE):
        chunk = tokens[start : start + CHECKED_AT_ONCE]
        if chunk.max() >= vocab_size:
            position = int(np.argmax(chunk >= vocab_size))
            raise UserError(
                f"{path}: token id {chunk[position]} at position {start + position} is outside the vocabulary of "
                f"{vocab_size} entries; {REMEDY}"
            )
