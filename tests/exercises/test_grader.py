"""The grader: it refuses planted mistakes of every kind, and takes every right answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from exercises.__main__ import SEED, grade
from exercises.all import EXERCISES
from exercises.cases import Case, Draw, Functions, Wrong
from exercises.verdict import check
from tests.exercises.mutations import mutated_arguments, mutated_results, mutated_sources
from tests.exercises.solutions import Solution, repaired, solution

LEAST = 20  # mistakes that have to be planted, and refused, in each exercise
SOURCES = 80  # most changed sources that are tried in each exercise


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def cases(name: str, seed: int = SEED) -> list[Case]:
    return EXERCISES[name].cases(Draw(seed))


@pytest.mark.parametrize("name", EXERCISES)
def test_a_template_is_refused_and_a_solution_taken(name: str, tmp_path: Path) -> None:
    exercise = EXERCISES[name]
    with pytest.raises(Wrong):
        grade(exercise, exercise.template)
    check(cases(name), solution(exercise).functions())
    if exercise.kind == "repair":
        path = tmp_path / "answer.py"
        path.write_text(repaired(exercise), "utf-8")
        grade(exercise, path)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_answer_is_checked_within_a_second(name: str) -> None:
    began = time.process_time()
    check(EXERCISES[name].cases(Draw(1)), solution(EXERCISES[name]).functions())
    assert time.process_time() - began < 1


# A repair has the answer and the cases of an exercise before it, unless it stands alone.
OPERATIONS = {exercise.cases: name for name, exercise in reversed(EXERCISES.items())}.values()


@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors of dimension other than 2")
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_planted_mistakes_are_refused(name: str) -> None:
    right = solution(EXERCISES[name])
    functions = right.functions()
    planted: list[str] = []
    accepted: list[str] = []
    for what, mutant in _mutants(right, functions):
        if _differs(name, mutant, functions):
            planted.append(what)
            try:
                check(cases(name), mutant)
            except Exception:  # Wrong, or what the mistake itself raises
                continue
            accepted.append(what)
    assert accepted == []
    assert len(planted) >= LEAST
    assert sum(not what.startswith(("result", "given")) for what in planted) >= 3


def _mutants(right: Solution, functions: Functions) -> Iterator[tuple[str, Functions]]:
    for what, source in mutated_sources(right.source, SOURCES):
        yield what, right.functions(source)
    for name, function in functions.items():
        for changed in (mutated_results, mutated_arguments):
            for what, mutant in changed(function):
                yield what, {**functions, name: mutant}


def _differs(name: str, mutant: Functions, functions: Functions) -> bool:
    """Whether the mutant is a mistake: gives other results than the solution, on other numbers than the grader's."""
    for case in cases(name, SEED + 1):
        right = case.run(functions)
        try:
            if any(not _equal(right[key], value) for key, value in case.run(mutant).items()):
                return True
        except Exception:
            return True
    return False


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a is b
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return bool((a - b).abs().max() <= 1e-9 * (a.abs().max().item() or 1.0))
