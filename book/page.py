"""A page of the book as a list of blocks, which carry_out.py checks and runs.

A page is Markdown with fenced blocks, of which these are ours:

    {symbols}          begins a derivation: a line per symbol, `name | shape or value | name in the code | meaning`
    {definition} NAME  a formula that says what its left side is
    {identity} NAME    a formula of tensors that follows; all its sides are computed and compared
    {scalar} NAME      a formula of scalars, proved by sympy
    {agreement}        calls of the project's code on the derivation's numbers, whose results must be the derivation's
    {mistake} FUNCTION a changed line of that function, and what finite differences say of each gradient
    {model_mistake} FUNCTION  the same of a block, planted into a whole model, and what the gradient check says of it
    {run}              an example: the code is shown, and what it prints or passes to `show`
    {source} FUNCTION  the function's source

and in the text {m}`expression`, drawn as a formula, and {value}`expression`, computed after the examples above it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from book.expressions import FormulaError, sides
from book.tensors import Tensors, output_of, random_normal

FOLDER = Path(__file__).parents[1] / "docs" / "book"
# All different where it matters, so that no wrong transpose fits.
SIZES = {"B": 2, "T": 4, "N": 4, "D": 6, "D_in": 3, "D_out": 5, "K": 6, "K/2": 3, "F": 5, "V": 8, "M": 7, "N/2": 2}
ANGLE_BASE = 100.0
KINDS = ("symbols", "definition", "identity", "scalar", "agreement", "mistake", "model_mistake", "run", "source")
FORMULAS = ("definition", "identity", "scalar")
FENCE = re.compile(
    r"^(?P<ticks>```+)\{(?P<kind>\w+)\} *(?P<name>.*?)\n(?P<text>.*?)^(?P=ticks)$", re.MULTILINE | re.DOTALL
)
ROLES = {"value": re.compile(r"\{value\}`([^`]+)`"), "m": re.compile(r"\{m\}`([^`]+)`")}


@dataclass(frozen=True)
class Symbol:
    """A line of {symbols}."""

    name: str
    shape: str
    in_code: str
    meaning: str

    @property
    def shape_words(self) -> list[str]:
        return [word.strip() for word in self.shape.split(",")]

    def value(self) -> Tensor:
        """A number that is given; random numbers of a shape; or of a shape with a word behind it:

        "ids of V", "from 2" (2, 3, 4, …), "kept or not", "causal" (0, and −∞ in the future), "angles" (of rotary
        positions), "positive"
        """
        *words, last = self.shape_words
        shape = tuple(SIZES[word] for word in words)
        generator = torch.Generator().manual_seed(1)
        match last.split():
            case [number] if not words and number not in SIZES:
                return torch.tensor(float(number), dtype=torch.float64)
            case ["size", name]:
                return torch.tensor(SIZES[name], dtype=torch.float64)
            case ["ids", "of", name]:
                return torch.randint(SIZES[name] - 1, shape, generator=generator)
            case ["from", start]:
                return torch.arange(int(start), int(start) + shape[0])
            case ["kept", "or", "not"]:
                return torch.rand(shape, generator=generator) < 0.6
            case ["causal"]:
                return torch.full(shape, -torch.inf, dtype=torch.float64).triu(1)
            case ["angles"]:
                rates = ANGLE_BASE ** (-torch.arange(shape[1], dtype=torch.float64) / shape[1])
                return torch.outer(torch.arange(shape[0], dtype=torch.float64), rates)
            case ["positive"]:
                return random_normal(self.name, shape).square()
        return random_normal(self.name, (*shape, SIZES[last]))


@dataclass
class Derivation:
    """What follows one {symbols} block. agreement: the text of its {agreement}."""

    symbols: list[Symbol] = field(default_factory=list)
    definitions: dict[str, ast.expr] = field(default_factory=dict)
    agreement: str = ""

    @cached_property
    def tensors(self) -> Tensors:
        inputs: dict[str, Tensor] = {}
        constants: dict[str, Tensor] = {}
        seeds: dict[str, Tensor] = {}
        for symbol in self.symbols:
            is_seed = symbol.name.startswith("d") and output_of(symbol.name) in self.definitions
            kind = seeds if is_seed else inputs if symbol.shape_words[-1] in SIZES else constants
            kind[symbol.name] = symbol.value()
        return Tensors(inputs, constants, self.definitions, seeds)

    def is_factor(self, expression: ast.expr) -> bool:
        """Whether it is one number, or one per row."""
        if not self.symbols:
            return True
        try:
            value = self.tensors.evaluate(expression)
        except FormulaError:  # of a scalar formula's own symbols
            return True
        return value.ndim == 0 or value.shape[-1] == 1


@dataclass
class Block:
    """A fenced block of the page, or a role in its text, and what carrying it out gave."""

    kind: str
    name: str
    text: str
    line: int
    derivation: Derivation
    sides: list[ast.expr] = field(default_factory=list)
    output: list[Any] = field(default_factory=list)
    error: str | None = None


def blocks_of(text: str) -> list[Block]:
    """The blocks of a page, not yet carried out. Raises FormulaError for one that cannot be read."""
    blocks, derivation = [], Derivation()
    for kind, name, content, line in _pieces(text):
        if kind == "symbols":
            derivation = Derivation([Symbol(*_cells(row)) for row in content.strip().splitlines()])
        block = Block(kind, name, content, line, derivation)
        if kind in (*FORMULAS, "m"):
            block.sides = sides(content)
        if kind == "definition":
            match block.sides:
                case [ast.Name(id=defined), expression]:
                    derivation.definitions[defined] = expression
                case _:
                    raise FormulaError(f"line {line}: a definition is NAME = expression, not {content.strip()!r}")
        if kind == "agreement":
            derivation.agreement = content
        blocks.append(block)
    return blocks


def _pieces(text: str) -> Iterator[tuple[str, str, str, int]]:
    """Kind, name, text and line of our blocks and roles, in the page's order."""
    found = [(match.start(), match["kind"], match["name"], match["text"]) for match in FENCE.finditer(text)]
    found = [piece for piece in found if piece[1] in KINDS]
    fences = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
    outside = fences.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for kind, pattern in ROLES.items():
        found += [(match.start(), kind, "", match[1]) for match in pattern.finditer(outside)]
    for start, kind, name, content in sorted(found):
        yield kind, name, content, text.count("\n", 0, start) + 1


def _cells(row: str) -> list[str]:
    cells = [cell.strip() for cell in row.split("|")]
    if len(cells) != 4:
        raise FormulaError(f"{row!r} must be: name | shape or value | name in the code | meaning")
    return cells


def chapters() -> list[Path]:
    return sorted(FOLDER.glob("*.md"))
