"""What the primer can say: its tables of words and the sentences of its lessons.

This file is nearly all data. A table is a list of `Word`s, whose columns are attributes, so a sentence may say
`{country.capital}`. A `Kind` of lesson names the facts that one lesson is about and gives its sentences in order;
the lines of a paragraph below are alternative wordings of one passage, of which a lesson uses one.

Two rules keep the grammar unambiguous (`tests/test_primer.py` checks both by going through every passage):
- a fact is first mentioned in one passage, the same for all wordings, and so fully that the reader knows it there;
- none of the strings that a passage can become, given the facts already known, is the beginning of another.
A reader can therefore tell passage by passage which choices were made, and no two ways of choosing give one text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product


class Word(str):
    """An entry of a table: it prints as itself, and its columns are attributes that are Words too."""

    def __new__(cls, text: str, **columns: str) -> Word:
        word = super().__new__(cls, text)
        word.__dict__.update((k, v if isinstance(v, Word) else Word(v)) for k, v in columns.items())
        return word

    def __getattr__(self, column: str) -> Word:  # reached only for what is not there
        raise AttributeError(f"{str(self)!r} has no column {column!r}")

    @property
    def cap(self) -> str:
        """As a sentence begins: 'ice' -> 'Ice'."""
        return self[0].upper() + self[1:]

    @property
    def a(self) -> str:
        """With its article: 'a dog', 'an owl'."""
        return f"{'an' if self[0] in 'aeio' else 'a'} {self}"

    @property
    def A(self) -> str:  # noqa: N802
        """With its article, as a sentence begins: 'A dog', 'An owl'."""
        return self.a.capitalize()


Table = Sequence[Word]


@dataclass(frozen=True)
class Given:
    """A fact whose table depends on an earlier fact: `choices` has a table for each value of `fact`."""

    fact: str
    choices: Mapping[Word, Table]


@dataclass(frozen=True)
class Kind:
    """A kind of lesson: the facts that it draws, in order, and the alternative wordings of each passage."""

    name: str
    facts: Mapping[str, Table | Given]
    passages: tuple[tuple[str, ...], ...]


def table(columns: str, rows: str, **links: Table) -> Table:
    """The Words of comma-separated `rows`, one a line; a column in `links` holds Words of that other table."""
    names = columns.split(", ")[1:]
    words = []
    for row in rows.strip().splitlines():
        first, *cells = (cell.strip() for cell in row.split(","))
        linked = {n: next(w for w in links[n] if w == c) if n in links else c for n, c in zip(names, cells, strict=True)}
        words.append(Word(first, **linked))
    return words


def given(fact: str, base: Table, choices: Table, fits: Callable[[Word, Word], bool]) -> Given:
    """For each value of `fact` (a Word of `base`) the `choices` that fit it."""
    return Given(fact, {value: [c for c in choices if fits(value, c)] for value in base})


def other(fact: str, base: Table) -> Given:
    """Any Word of `base` but the one that `fact` holds."""
    return given(fact, base, base, lambda value, choice: value != choice)


def kind(name: str, facts: Mapping[str, Table | Given], text: str) -> Kind:
    """A Kind from its text: passages are separated by empty lines, alternative wordings stand on lines of their own."""
    passages = (tuple(" ".join(line.split()) for line in p.strip().splitlines()) for p in text.split("\n\n"))
    return Kind(name, facts, tuple(passages))


# ---- numbers, and what is never said about them -------------------------------------------------------------------

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four"
).split()


def is_held_out(x: int, y: int) -> bool:
    """The fixed rule by which about a tenth of the sums x + y and of the comparisons of x and y are never stated."""
    return (x * x + 3 * y) % 11 == 3


def sum_is_held_out(a: int, b: int) -> bool:
    """Whether no lesson says what a + b is, in that order. Sums with one are all said, since counting implies them."""
    return a > 1 and b > 1 and is_held_out(a, b)


def _sums(least: int) -> Table:
    operands = range(least, 13)
    return [_sum(a, b) for a, b in product(operands, operands) if not sum_is_held_out(a, b)]


def _sum(a: int, b: int) -> Word:
    first, second, total = NUMBERS[a], NUMBERS[b], NUMBERS[a + b]
    return Word(f"{first} plus {second}", first=first, second=second, total=total, turned=f"{second} plus {first}")


def _differences(least: int) -> Table:
    return [
        Word(f"{NUMBERS[a]} minus {NUMBERS[b]}", first=NUMBERS[a], second=NUMBERS[b], rest=NUMBERS[a - b])
        for a, b in product(range(2, 13), range(least, 13))
        if a - b >= least and not sum_is_held_out(a - b, b)
    ]


def _number_pairs(least: int) -> Table:
    pairs = [(x, y) for x, y in combinations(range(least, 21), 2) if not is_held_out(x, y)]
    return [_compared(NUMBERS[x], NUMBERS[y]) for x, y in pairs]


def _compared(small: str, big: str) -> Word:
    return Word(f"{small} {big}", small=small, big=big)


HELD_OUT_SUMS = [(a, b) for a, b in product(range(1, 13), repeat=2) if sum_is_held_out(a, b)]
HELD_OUT_NUMBER_PAIRS = [(x, y) for x, y in combinations(range(1, 21), 2) if is_held_out(x, y)]
SUMS = _sums(1)
SUMS_OF_SEVERAL = _sums(2)  # for stories: "one shells" is no English
TURNED_SUMS = [_sum(a, b) for a, b in permutations(range(1, 13), 2)
               if not sum_is_held_out(a, b) and not sum_is_held_out(b, a)]
DIFFERENCES = _differences(1)
DIFFERENCES_OF_SEVERAL = _differences(2)
NUMBER_PAIRS = _number_pairs(1)
NUMBER_PAIRS_OF_SEVERAL = _number_pairs(2)
COUNTS = [Word(NUMBERS[n], before=NUMBERS[n - 1], second=NUMBERS[n + 1], third=NUMBERS[n + 2], fourth=NUMBERS[n + 3])
          for n in range(2, 18)]

BY_SIZE = [Word(name) for name in "ant bee mouse rabbit dog sheep lion horse elephant whale".split()]
SIZE_PAIRS = [_compared(small, big) for (x, small), (y, big) in combinations(enumerate(BY_SIZE, 1), 2)
              if not is_held_out(x, y)]
HELD_OUT_SIZE_PAIRS = [pair for pair in combinations(BY_SIZE, 2) if _compared(*pair) not in SIZE_PAIRS]
# The animals that are smaller than both of a pair, where both comparisons may be said.
SMALLER = {
    pair: smaller for pair in SIZE_PAIRS
    if (smaller := [w for w in BY_SIZE if {_compared(w, pair.small), _compared(w, pair.big)} <= set(SIZE_PAIRS)])
}

# ---- words ----------------------------------------------------------------------------------------------------------
