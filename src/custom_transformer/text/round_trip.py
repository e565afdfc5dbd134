"""Whether a tokenizer gives text back, and what share of its bytes is lost where it does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from custom_transformer.errors import escaped

if TYPE_CHECKING:  # transformers takes seconds to import
    from tokenizers import Tokenizer

SLICE = 1000  # characters compared at once
SAMPLE_BYTES = 2**18  # of the text that comes back changed: more of it would cost minutes and tell the same


class Losses(NamedTuple):
    """Bytes of all texts, of those that come back changed, of the sample of these, and those of it that are lost."""

    all: int
    changed: int
    sampled: int
    lost: int

    @property
    def of_all(self) -> float | None:
        """The share of all bytes that do not come back, 0 where something is only added; None if nothing changes."""
        return self.lost / max(1, self.sampled) * self.changed / self.all if self.changed else None


class RoundTrip:
    """Compares each text with what its tokens are decoded to.

    One space at the beginning does not count: some tokenizers put one there, and take one for theirs. Every text is
    compared; how much is lost of those that come back changed is measured on the first SAMPLE_BYTES of them.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._bytes = self._changed_bytes = self._sampled_bytes = self._lost_bytes = 0
        self.example = ""  # of a text that comes back changed

    def add(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Raises what the tokenizer raises for tokens that it cannot decode."""
        for text, back in zip(texts, self._tokenizer.decode_batch(ids, skip_special_tokens=False), strict=True):
            size = len(text.encode())
            self._bytes += size
            if text.removeprefix(" ") != back.removeprefix(" "):
                self._changed_bytes += size
                self.example = self.example or _difference(text, back)
                self._measure(text)

    @property
    def losses(self) -> Losses:
        return Losses(self._bytes, self._changed_bytes, self._sampled_bytes, self._lost_bytes)

    def _measure(self, text: str) -> None:
        for start in range(0, len(text), SLICE):
            if self._sampled_bytes >= SAMPLE_BYTES:
                return
            part = text[start : start + SLICE]
            ids = self._tokenizer.encode(part, add_special_tokens=False).ids
            back = self._tokenizer.decode(ids, skip_special_tokens=False)
            self._sampled_bytes += len(part.encode())
            self._lost_bytes += len(part.encode()) - in_common(part.encode(), back.encode())


def added(losses: Iterable[Losses]) -> Losses:
    """Of several sets of texts together."""
    return Losses(*map(sum, zip(*losses, strict=True)))


def in_common(a: bytes, b: bytes) -> int:
    """The length of the longest sequence of bytes that both hold in this order, not necessarily side by side.

    The table of the textbook method, a row at a time, in the bits of one integer: a 0 for each place where the length
    grows by one.
    """
    places: defaultdict[int, int] = defaultdict(int)
    for i, byte in enumerate(a):
        places[byte] |= 1 << i
    row = every = (1 << len(a)) - 1
    for byte in b:
        matches = row & places[byte]
        row = (row + matches | row - matches) & every
    return len(a) - row.bit_count()


def share(part: float) -> str:
    """As percent, with its first digits however small it is, so that a small loss is not shown as none."""
    return f"{100 * part:.3g}%"


def _difference(text: str, back: str) -> str:
    """The place where the two part, for a message."""
    first = next(i for i, (a, b) in enumerate(zip_longest(text, back)) if a != b)
    start = max(0, first - 10)
    # Not on one line as other messages are: that would hide a difference of white space.
    return f"{escaped(repr(text[start : start + 30]))} comes back as {escaped(repr(back[start : start + 30]))}"
