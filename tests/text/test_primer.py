"""The grammar: its probabilities are exact, its texts are distinct, and what it holds out is never said."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise, product

import pytest

from custom_transformer.text.primer import Draw, generate_lessons, held_out_questions, write_lesson
from custom_transformer.text.primer_lessons import KINDS, Given, Kind, Table

LESSONS = list(generate_lessons(1, "train", 20_000))


def test_the_same_seed_gives_the_same_texts_and_a_longer_draw_begins_with_a_shorter_one() -> None:
    assert list(generate_lessons(1, "train", 100)) == LESSONS[:100]
    assert [x.text for x in generate_lessons(2, "train", 100)] != [x.text for x in LESSONS[:100]]
    assert [x.text for x in generate_lessons(1, "validation", 100)] != [x.text for x in LESSONS[:100]]


def test_there_are_a_dozen_kinds_and_more_and_each_is_drawn_alike_often() -> None:
    counts = Counter(lesson.kind for lesson in LESSONS)
    assert len(counts) == len(KINDS) >= 12
    expected = len(LESSONS) / len(KINDS)
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < 2 * len(KINDS)


def test_texts_are_two_to_eight_sentences_of_plain_english() -> None:
    for lesson in LESSONS:
        assert lesson.text.isascii()
        assert 2 <= len(re.findall(r"[.?!](?: |$)", lesson.text)) <= 8, lesson.text
        assert re.fullmatch(r"[A-Z][A-Za-z ,.:?!'-]*[.?!]", lesson.text), lesson.text
        assert not re.search(r"\ba [aeio]|\ban (?!s\b)[^aeio]|  | [.,:?]", lesson.text), lesson.text


def enumerate_kind(kind: Kind) -> Iterator[tuple[str, int]]:
    """Every text in the order of its choices, each with the product of its numbers of options."""
    choices: list[int] = []
    while True:
        sizes: list[int] = []
        text, ways = follow(kind, choices, sizes)
        yield text, ways
        choices = (choices + [0] * len(sizes))[: len(sizes)]
        while choices and choices[-1] + 1 == sizes[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


def follow(kind: Kind, choices: list[int], sizes: list[int]) -> tuple[str, int]:
    """The text of these choices, then of first options; notes in `sizes` how many options there were each time."""

    def decide(n: int) -> int:
        sizes.append(n)
        return choices[len(sizes) - 1] if len(sizes) <= len(choices) else 0

    draw = Draw(decide)
    return write_lesson(kind, draw), draw.ways


def sizes_of(source: Table | Given) -> set[int]:
    return {len(choices) for choices in source.choices.values()} if isinstance(source, Given) else {len(source)}


def test_the_probability_is_the_product_of_the_choices() -> None:
    """For the kinds whose tables have the same size whatever was drawn before, so that every text is as likely."""
    bits = {}
    for kind in KINDS:
        sizes = [sizes_of(source) for source in kind.facts.values()]
        if all(len(size) == 1 for size in sizes):
            wordings = math.prod(len(passage) for passage in kind.passages)
            bits[kind.name] = math.log2(len(KINDS) * wordings * math.prod(size.pop() for size in sizes))
    assert len(bits) >= 10
    for lesson in LESSONS:
        assert lesson.kind not in bits or lesson.log2_prob == pytest.approx(-bits[lesson.kind])


def test_the_probabilities_of_all_texts_of_a_kind_add_up_to_one() -> None:
    """Exactly, for a kind small enough to list: a table given by another fact included."""
    big = next(k for k in KINDS if k.name == "colours")
    few = dict(islice(big.facts.items(), 2))  # a thing, and one of another colour
    small = Kind("small", few, big.passages[:2])
    texts = list(enumerate_kind(small))
    assert sum(Fraction(1, ways) for _, ways in texts) == 1
    assert len({text for text, _ in texts}) == len(texts)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_no_passage_begins_another(kind: Kind) -> None:
    """So a reader knows after each passage which choices were made, and no two ways of choosing give one text.

    Every wording is filled in with every value of the facts that it names, the facts before it held fixed.
    """
    known: dict[str, object] = {}
    facts = list(kind.facts)
    for passage in kind.passages:
        named = [f for f in facts if any(re.search(rf"{{{f}[.}}]", w) for w in passage)]
        new = [f for f in named if f not in known]
        for wording in passage:  # a wording that left a new fact out would let the reader guess
            assert all(re.search(rf"{{{f}[.}}]", wording) for f in new), (kind.name, wording)
        strings = sorted(
            wording.format_map(known | values) for wording in passage for values in values_of(kind, new, known)
        )
        assert all(not b.startswith(a) for a, b in pairwise(strings)), kind.name
        known |= next(iter(values_of(kind, new, known)))


def test_no_text_begins_another() -> None:
    """Neither within a kind, by the test above, nor between kinds: a reader knows the kind by the first passage. So the
    end of a text follows from the text, and the whole of -log2 p is the text's own cost."""
    strings = []
    for kind in KINDS:
        named = [f for f in kind.facts if any(re.search(rf"{{{f}[.}}]", w) for w in kind.passages[0])]
        values = values_of(kind, named, {})
        strings += [wording.format_map(row) for wording in kind.passages[0] for row in values]
    assert all(not b.startswith(a) for a, b in pairwise(sorted(strings)))


def values_of(kind: Kind, new: list[str], known: dict[str, object]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{}]
    for fact in new:
        source = kind.facts[fact]
        rows = [
            row | {fact: word}
            for row in rows
            for word in (source.choices[(known | row)[source.fact]] if isinstance(source, Given) else source)  # type: ignore[index]
        ]
    return rows


def test_what_is_held_out_is_never_said() -> None:
    questions = held_out_questions()
    true = [q.prompt + q.choices[q.answer] for q in questions]
    assert len(set(true)) == len(true) >= 20
    said = "\n".join(lesson.text for lesson in LESSONS).lower()
    for statement in true:
        assert statement.lower().rstrip(".") not in said, statement


def test_the_words_of_each_question_are_known_from_the_lessons() -> None:
    said = {w.lower() for lesson in LESSONS for w in re.findall(r"[A-Za-z-]+", lesson.text)}
    for q, i in product(held_out_questions(), range(2)):
        assert {w.lower() for w in re.findall(r"[A-Za-z-]+", q.prompt + q.choices[i])} <= said


def test_every_answer_stands_at_every_place() -> None:
    places = Counter((q.kind, q.answer) for q in held_out_questions())
    assert {place for kind, place in places if kind == "comparisons"} == {0, 1}
    assert len({place for kind, place in places if kind == "sums"}) == 4
