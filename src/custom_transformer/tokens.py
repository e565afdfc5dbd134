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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from custom_transformer.errors import UserError

META = "meta.json"
REMEDY = "run dvc repro --force tokenize"
CHECKED_AT_ONCE = 2**22  # tokens


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The little-endian type that a vocabulary's ids are stored in: uint16 where they fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split's stream of tokens, memory-mapped.

    tokens: (n_tokens,) uint16 or uint32
    meta: the whole meta.json, and this split's own entries (documents, tokens, bytes, sha256 and, where the source
        knows it, log2_prob) beside it at the top level.
    """

    tokens: np.ndarray
    meta: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def n_windows(self, length: int) -> int:
        """How many whole windows of `length` inputs, each with a label, the stream holds side by side."""
        return (self.n_tokens - 1) // length

    def windows(self, indices: Sequence[int] | np.ndarray, length: int) -> tuple[Tensor, Tensor]:
        """input_ids and labels, each (B, T) int64: window i starts at token i·T, its labels one token later."""
        starts = np.asarray(indices, dtype=np.int64)[:, None] * length
        rows = torch.from_numpy(self.tokens[starts + np.arange(length + 1)].astype(np.int64))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def eval_windows(split: TokenSplit, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every token but the first as a label exactly once: input_ids and labels, each (B, T) int64.

    The windows overlap nothing. What does not fill a whole window comes last, as one shorter row.
    """
    n_windows = split.n_windows(length)
    for first in range(0, n_windows, batch_size):
        yield split.windows(np.arange(first, min(first + batch_size, n_windows)), length)
    rest = torch.from_numpy(split.tokens[n_windows * length :].astype(np.int64))[None]
    if rest.shape[1] > 1:
        yield rest[:, :-1], rest[:, 1:]


def epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """Every window once, (n_windows,) int64, in an order that (seed, epoch) decide.

    The windows are sorted by random keys. NumPy promises the raw stream of a bit generator for good, but not what
    `Generator.permutation` makes of it; and a stable sort has one result.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n_windows)
    return np.argsort(keys, kind="stable")


def load_tokens(folder: Path | str, split: str) -> TokenSplit:
    """The stream of "train" or "validation"; raises UserError where folder, meta.json and array do not agree."""
    folder = Path(folder)
    meta, vocab_size, n_tokens, dtype = _read_meta(folder / META, split)
    path = folder / f"{split}.bin"
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {REMEDY}") from None
    if size != n_tokens * dtype.itemsize:
        raise UserError(f"{path}: {size:,} bytes, where {META} says {n_tokens:,} tokens of {dtype.itemsize}; {REMEDY}")
    if n_tokens < 2:
        raise UserError(f"{path}: {n_tokens} tokens, nothing to predict; give the {split} split some text")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    _check_ids(tokens, vocab_size, path)
    return TokenSplit(tokens, meta | meta["splits"][split])


def _read_meta(path: Path, split: str) -> tuple[dict[str, Any], int, int, np.dtype[Any]]:
    """The content of meta.json, its vocabulary's size, and the length and type of the split's array."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        vocab_size, n_tokens = int(meta["tokenizer"]["vocab_size"]), int(meta["splits"][split]["tokens"])
        dtype = token_dtype(vocab_size)
        if meta["dtype"] != dtype.name:
            raise ValueError(f"{vocab_size} entries are not stored as {meta['dtype']}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run dvc repro tokenize") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {REMEDY}") from None
    return meta, vocab_size, n_tokens, dtype


def _check_ids(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    for start in range(0, len(tokens), CHECKED_AT_ONCE):
        chunk = tokens[start : start + CHECKED_AT_ONCE]
        if chunk.max() >= vocab_size:
            position = int(np.argmax(chunk >= vocab_size))
            raise UserError(
                f"{path}: token id {chunk[position]} at position {start + position} is outside the vocabulary of "
                f"{vocab_size} entries; {REMEDY}"
            )
