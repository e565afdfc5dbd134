"""The solution of every exercise: the project's functions, or those that the teacher's guide works out."""

from __future__ import annotations
import __future__

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from custom_transformer.maths import ops
from exercises.catalogue import Exercise
from exercises.groups.updates import A, B, C
from tests.helpers import ROOT

GUIDE = (ROOT / "docs/teaching.md").read_text("utf-8")

# What an answer calls that is its own operation's arithmetic too, so that mistakes are planted there as well.
HELPERS = {
    "cross_entropy_backward": [ops._token_losses_backward],
    "linear_cross_entropy_backward": [ops._token_losses_backward],
}


@dataclass(frozen=True)
class Solution:
    """Source text of functions, and the names that it uses."""

    source: str
    namespace: dict[str, Any]
    names: tuple[str, ...]

    def functions(self, source: str | None = None) -> dict[str, Any]:
        """The functions, of a changed source where one is given."""
        namespace = dict(self.namespace)
        exec(compile(source or self.source, "solution", "exec", flags=__future__.annotations.compiler_flag), namespace)
        return {name: namespace[name] for name in self.names}


def solution(exercise: Exercise) -> Solution:
    answers = exercise.answers
    if None not in answers.values():
        module = next(iter(answers.values())).__globals__
        parts = [inspect.getsource(f) for name, f in answers.items() for f in (*HELPERS.get(name, []), f)]
        source = "\n\n".join(parts)
        if exercise.name == "split_heads":
            source = source.replace("def merge_heads(*heads: Tensor)", "def split_heads_backward(*heads: Tensor)")
        return Solution(source, dict(module), tuple(answers))
    if exercise.kind == "repair":
        return Solution(repaired(exercise), {}, tuple(answers))
    names = {"torch": torch, "math": math, "rotate": ops.rotate, "A": A, "B": B, "C": C}
    return Solution(block(exercise.name, "python"), names, tuple(answers))


def block(name: str, language: str) -> str:
    """The code in the guide's section of an exercise."""
    section = re.search(rf"^### {name}\n(.*?)(?=^### |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/teaching.md has no section {name}"
    code = re.search(rf"```{language}\n(.*?)```", section[1], re.DOTALL)
    assert code, f"docs/teaching.md has no {language} of {name}"
    return code[1]


def repaired(exercise: Exercise) -> str:
    """The template with the guide's changes."""
    text = exercise.template.read_text("utf-8")
    lines = block(exercise.name, "diff").splitlines()
    assert [line[0] for line in lines] == ["-", "+"] * (len(lines) // 2)
    for wrong, right in zip(lines[::2], lines[1::2], strict=True):
        assert text.count(f"{wrong[1:]}\n") == 1
        text = text.replace(f"{wrong[1:]}\n", f"{right[1:]}\n")
    return text
