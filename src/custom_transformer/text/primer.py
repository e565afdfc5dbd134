"""The embedded corpus: lessons of a small textbook, drawn from a grammar whose probabilities are known exactly.

How well can a language model do at best? For natural text nobody knows: a loss of 1.2 may be close to perfect or far
from it. For text that we draw ourselves the answer is exact. Every lesson here is written by a chain of choices (which
kind of lesson, which numbers, which child, which wording), each uniform among n options. A choice among n costs log2 n
bits, and the costs of a chain of choices add up:

    log2 p(text) = - Σ log2 n_i

This is the probability of the *text*, and not just of one way of writing it, because no two chains of choices give the
same text (see `primer_lessons`). Nor is a text the beginning of another, so where it ends follows from the text, and a
text costs the same bits with its end and without. Whatever the model, a text drawn with probability p takes at least
-log2 p bits to encode on average: that is the meaning of entropy. So the mean of -log2 p over the texts of an
evaluation, divided by their bytes, is the floor under every model's bits per byte there, except for sampling noise.
Bits above the floor show what a model has not learnt yet: spelling, grammar, facts, or looking back to see which child
had the red ball.

A model near the floor need not have understood: it may have memorised all sums. Therefore some facts are never stated
in any lesson (`held_out_questions`): about a tenth of the sums, of the comparisons of numbers, and of the comparisons
of animals by size, picked by a fixed rule. No lesson to copy from answers them:
- if 8 + 9 is held out, no lesson says it in any wording or story, nor inverts it by taking nine from seventeen. But
  9 + 8 is said, and other lessons say that a sum may be turned around, so a model that has learnt this can answer;
- if two numbers or animals are held out, they are compared in neither direction. But both are compared with many
  others, so a model that has put them in order can answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from custom_transformer.errors import UserError
from custom_transformer.maths import exact
from custom_transformer.text.primer_lessons import (
    HELD_OUT_NUMBER_PAIRS,
    HELD_OUT_SIZE_PAIRS,
    HELD_OUT_SUMS,
    KINDS,
    NUMBERS,
    Given,
    Kind,
    Word,
)

SPLITS = ("train", "validation")

Option = TypeVar("Option")


@dataclass(frozen=True)
class Lesson:
    """A text and what is known about it."""

    text: str  # ASCII, one line
    log2_prob: float  # of the whole text, its end included; never above 0
    kind: str


@dataclass(frozen=True)
class Cloze:
    """A statement to complete: `prompt + choices[i]` is a full sentence, true for `i == answer` alone."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    kind: str


class Draw:
    """Makes the choices of one text and counts them; nothing else in the grammar is random.

    `decide(n)` returns which of n options to take, and is trusted to take each with probability 1/n.
    """

    def __init__(self, decide: Callable[[int], int]) -> None:
        self._decide = decide
        self.ways = 1  # the probability of the choices made so far is exactly 1 / ways

    def pick(self, options: Sequence[Option]) -> Option:
        self.ways *= len(options)
        return options[self._decide(len(options))]

    @property
    def log2_prob(self) -> float:
        return -exact.log2(self.ways)


def write_lesson(kind: Kind, draw: Draw) -> str:
    """A text of this kind: first its facts are drawn, then a wording for each passage."""
    facts: dict[str, Word] = {}
    for name, source in kind.facts.items():
        table = source.choices[facts[source.fact]] if isinstance(source, Given) else source
        facts[name] = draw.pick(table)
    return " ".join(draw.pick(wordings).format_map(facts) for wordings in kind.passages)


def generate_lessons(seed: int, split: str, count: int) -> Iterator[Lesson]:
    """The first `count` lessons of an endless stream that `seed` and `split` ("train" or "validation") decide.

    The splits are independent draws from one grammar. Raises UserError if `split` or `count` is not one.
    """
    if split not in SPLITS:
        raise UserError(f"primer: no split named {split!r}; choose one of {', '.join(SPLITS)}")
    if count < 0:
        raise UserError(f"primer: {count} lessons cannot be drawn; ask for 0 or more")
    return islice(_endless_lessons(seed, split), count)


def _endless_lessons(seed: int, split: str) -> Iterator[Lesson]:
    digest = hashlib.sha256(f"primer {split} {seed}".encode()).digest()
    # The same on every machine and Python version; the product below is rounded once, in one way.
    uniform = random.Random(int.from_bytes(digest, "big")).random
    while True:
        draw = Draw(lambda n: int(uniform() * n))
        kind = draw.pick(KINDS)
        text = write_lesson(kind, draw)
        yield Lesson(text, draw.log2_prob, kind.name)


def held_out_questions() -> tuple[Cloze, ...]:
    """The facts that no lesson states, each asked in a sentence with which lessons begin.

    A sum has four totals to choose from. Two numbers or animals are asked about from both sides, so that a model
    that always prefers the same word is right half of the time.
    """
    sums = (_sum_question(i, a, b) for i, (a, b) in enumerate(HELD_OUT_SUMS))
    numbers = ((NUMBERS[small], NUMBERS[big]) for small, big in HELD_OUT_NUMBER_PAIRS)
    sizes = ((small.a, big.a) for small, big in HELD_OUT_SIZE_PAIRS)
    return (
        *sums,
        *(q for small, big in numbers for q in _order_questions("comparisons", small, "less", "greater", big)),
        *(q for small, big in sizes for q in _order_questions("sizes", small, "smaller", "bigger", big)),
    )


def _sum_question(index: int, a: int, b: int) -> Cloze:
    # The right total is equally often the first, second, third or fourth of the choices, as far as NUMBERS goes.
    least = min(a + b - index % 4, len(NUMBERS) - 4)
    answer = a + b - least
    totals = range(least, least + 4)
    prompt = Word(f"{NUMBERS[a]} plus {NUMBERS[b]} is").cap
    return Cloze(prompt, tuple(f" {NUMBERS[total]}." for total in totals), answer, "sums")


def _order_questions(kind: str, small: str, less: str, greater: str, big: str) -> Iterator[Cloze]:
    for answer, one, another in ((0, small, big), (1, big, small)):
        choices = tuple(f" {word} than {another}." for word in (less, greater))
        yield Cloze(f"{Word(one).cap} is", choices, answer, kind)
