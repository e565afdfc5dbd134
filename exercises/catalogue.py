"""All exercises in their order, and what belongs to each."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom_transformer.errors import one_line
from exercises.cases import Case, Draw

FOLDER = Path(__file__).parent
TEMPLATES = FOLDER / "templates"
HINTS = FOLDER / "hints.md"
ROOT = FOLDER.parent
GUIDE = "docs/teaching.md"


@dataclass(frozen=True)
class Exercise:
    """One exercise; the text of its task is at the top of its template.

    answers: the functions that the learner writes or repairs, each with the project's function that is the answer;
        None where the project has none, and the guide works the solution out
    cases: what the answer is checked on
    """

    name: str
    answers: Mapping[str, Callable[..., Any] | None]
    cases: Callable[[Draw], list[Case]]

    @property
    def kind(self) -> str:
        return "repair" if self.name.startswith("repair_") else "write"

    @property
    def template(self) -> Path:
        return TEMPLATES / f"{self.name}.py"

    @property
    def task(self) -> str:
        return (ast.get_docstring(ast.parse(self.template.read_text("utf-8")), clean=False) or "").strip()

    @property
    def title(self) -> str:
        return self.task.splitlines()[0].rstrip(".")

    @property
    def hints(self) -> list[str]:
        """From a direction to nearly the whole."""
        section = re.search(rf"^## {self.name}\n(.*?)(?=^## |\Z)", HINTS.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        hints = re.split(r"^\d\. ", section[1], flags=re.MULTILINE)[1:] if section else []
        return [one_line(hint) for hint in hints]

    @property
    def answer_is_at(self) -> str:
        """Where the solution stands: file, line and function, or the guide's section."""
        found = [answer for answer in self.answers.values() if answer is not None]
        if not found:
            return f"{GUIDE}#{self.name}"
        places = []
        for answer in found:
            path = Path(inspect.getsourcefile(answer) or "").relative_to(ROOT)
            places.append(f"{answer.__name__} in {path}, line {inspect.getsourcelines(answer)[1]}")
        return "; ".join(places)


@dataclass(frozen=True)
class Group:
    title: str
    exercises: tuple[Exercise, ...]
