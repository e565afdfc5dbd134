"""The flat token arrays in data/tokens: reading them, windows of them, and the order of windows in an epoch.

One stream holds a whole split: the end token, then each document followed by the end token. So every token of every
document, and every document's end, is a label exactly once, and the first document has a context like the others.

Shapes: B batch, T time (the length of a window).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from custom_transformer.errors import UserError
from custom_transformer.files import check_regular, sha256_file
from custom_transformer.text.manifest import META, REMEDY, Manifest, ShardFacts, read_manifest, token_dtype

CHECKED_AT_ONCE = 2**22  # tokens
OTHER_FILES = 1024  # besides the shards, that a process may have open


class Joined:
    """Arrays one behind the other, (n,) of one dtype, read as if they were one; they are not copied into one."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """A copy of a slice, or of the numbers at these places, in their shape; IndexError for one that is outside."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"places from {places.min()} to {places.max()}, of {len(self)}")
        found = np.empty(places.shape, self._arrays[0].dtype)
        of_array = np.searchsorted(self._ends, places, side="right")
        for i in np.unique(of_array):
            here = of_array == i
            found[here] = self._arrays[i][places[here] - (self._ends[i] - len(self._arrays[i]))]
        return found


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split's stream of tokens, memory-mapped.

    tokens: (n_tokens,) uint16 or uint32
    meta: the whole meta.json, with this split's own entries (documents, tokens, bytes, sha256, text_sha256, shards and,
        if the source knows it, log2_prob) added at the top level.
    """

    tokens: np.ndarray | Joined
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
    """The stream of "train" or "validation"; raises UserError if folder, meta.json and arrays do not agree."""
    folder = Path(folder)
    meta, facts = read_manifest(folder / META)
    shards = getattr(facts.splits, split).shards
    _allow_open_files(len(shards))
    arrays = [_array(folder / shard.name, shard, facts) for shard in shards]
    tokens = arrays[0] if len(arrays) == 1 else Joined(arrays)
    if len(tokens) < 2:
        raise UserError(f"{folder}: {len(tokens)} tokens, nothing to predict; give the {split} split some text")
    end_id = facts.tokenizer.end_token_id
    for array, place, shard in ((arrays[0], 0, shards[0]), (arrays[-1], -1, shards[-1])):
        if array[place] != end_id:
            where = f"{folder / shard.name}: the {split} split"
            raise UserError(f"{where} does not begin and end with the end token, {end_id}; {REMEDY}")
    for shard in shards:
        if sha256_file(folder / shard.name) != shard.sha256:
            raise UserError(f"{folder / shard.name}: changed since it was made (its SHA-256 is not {META}'s); {REMEDY}")
    return TokenSplit(tokens, meta | meta["splits"][split])


def _allow_open_files(count: int) -> None:
    """Raises this process's limit as far as it may: each memory map holds its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, possible), hard))


def _array(path: Path, shard: ShardFacts, facts: Manifest) -> np.ndarray:
    vocab_size, dtype = facts.tokenizer.vocab_size, token_dtype(facts.tokenizer.vocab_size)
    try:
        check_regular(path)
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {REMEDY}") from None
    if size != shard.tokens * dtype.itemsize:
        raise UserError(
            f"{path}: {size:,} bytes, where {META} says {shard.tokens:,} tokens of {dtype.itemsize}; {REMEDY}"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    _check_ids(tokens, vocab_size, path)
    return tokens


def _check_ids(tokens: np.ndarray, vocab_size: int, path: Path) -> None:
    for start in range(0, len(tokens), CHECKED_AT_ONCE):
        chunk = tokens[start : start + CHECKED_AT_ONCE]
        if chunk.max() >= vocab_size:
            position = int(np.argmax(chunk >= vocab_size))
            raise UserError(
                f"{path}: token id {chunk[position]} at position {start + position} is outside the vocabulary of "
                f"{vocab_size} entries; {REMEDY}"
            )
