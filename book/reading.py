"""Reads a formula from what the browser is given, as a reader would, and independently of how it was drawn.

Two symbols without a sign between them are multiplied: as matrices, unless one of them is a single number or one number
per row. A sum's sign reaches to the next + or −.
"""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from book.expressions import FormulaError
from book.mathml import ACCENTS, GREEK, IsFactor

NAMES = {letter: name for name, letter in GREEK.items()} | {"σ": "sigmoid"}
MARKS = {mark: name for name, mark in ACCENTS.items()}
FUNCTION, TIMES = "\u2061", "\u2062"


class Sign(NamedTuple):
    text: str


class Word(NamedTuple):
    text: str


class Sum(NamedTuple):
    """A sum's sign with a word below it."""

    along: str


Token = Sign | Word | Sum | ast.expr


def sides_of(math: str, is_factor: IsFactor) -> list[ast.expr]:
    """The sides of the equation in a <math> element."""
    tokens = _tokens(ElementTree.fromstring(math), is_factor)
    sides: list[list[Token]] = [[]]
    for token in tokens:
        if token == Sign("="):
            sides.append([])
        else:
            sides[-1].append(token)
    return [_Reader(side, is_factor).whole() for side in sides]


def _tokens(element: ElementTree.Element, is_factor: IsFactor) -> list[Token]:
    """Signs, words, and parts that hold together."""
    tag = element.tag.rpartition("}")[2]
    children = list(element)

    def part(child: ElementTree.Element) -> ast.expr:
        return _Reader(_tokens(child, is_factor), is_factor).whole()

    match tag:
        case "mi":
            return [Word(element.text or "")]
        case "mn":
            return [ast.parse(element.text or "", mode="eval").body]
        case "mo":
            return [Sign(element.text or "")]
        case "mspace":
            return []
        case "msub":
            return [Word(f"{_name(part(children[0]))}_{''.join(children[1].itertext())}")]
        case "mover":
            return [Word(f"{_name(part(children[0]))}_{MARKS[children[1].text or '']}")]
        case "munder":
            return [Sum("".join(children[1].itertext()))]
        case "msqrt":
            return [ast.Call(ast.Name("sqrt"), [part(children[0])], [])]
        case "msup" if "".join(children[1].itertext()) == "⊤":
            return [ast.Attribute(part(children[0]), "T")]
        case "msup":
            return [ast.BinOp(part(children[0]), ast.Pow(), part(children[1]))]
        case "mfrac":
            above = "".join(children[0].itertext())
            if above == "∂":
                return [Sign("∂"), part(children[1])]
            if above.startswith("∂"):
                return [Sign("∂"), part(children[1]), part(children[0])]
            return [ast.BinOp(part(children[0]), ast.Div(), part(children[1]))]
    return [token for child in children for token in _tokens(child, is_factor)]


def _name(expression: ast.expr) -> str:
    if not isinstance(expression, ast.Name):
        raise FormulaError(f"{ast.unparse(expression)} is not a name")
    return expression.id


def _spelled(word: Word) -> str:
    """The name in the code: theta_new for θ with a subscript."""
    return "_".join(NAMES.get(part, part) for part in word.text.split("_"))


class _Reader:
    def __init__(self, tokens: list[Token], is_factor: IsFactor):
        self.tokens, self.at, self.is_factor = tokens, 0, is_factor

    def whole(self) -> ast.expr:
        expression = self.sum()
        if self.at != len(self.tokens):
            raise FormulaError(f"{self.tokens[self.at]} is not expected here")
        return expression

    def next(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *signs: str) -> str | None:
        """The next sign, if it is one of these."""
        token = self.next()
        if isinstance(token, Sign) and token.text in signs:
            self.at += 1
            return token.text
        return None

    def sum(self) -> ast.expr:
        if self.take("−"):
            left: ast.expr = ast.UnaryOp(ast.USub(), self.product())
        else:
            left = self.product()
        while sign := self.take("+", "−"):
            left = ast.BinOp(left, ast.Add() if sign == "+" else ast.Sub(), self.product())
        return left

    def product(self) -> ast.expr:
        left = self.atom()
        while sign := self.take("∘", "·", TIMES, "/"):
            right = self.atom()
            if sign == "/":
                left = ast.BinOp(left, ast.Div(), right)
                continue
            by_matrix = sign == TIMES and not (self.is_factor(left) or self.is_factor(right))
            left = ast.BinOp(left, ast.MatMult() if by_matrix else ast.Mult(), right)
        return left

    def atom(self) -> ast.expr:
        token = self.next()
        self.at += 1
        match token:
            case Sign("("):
                inside = self.sum()
                self.close(")")
                return self.indexed(inside)
            case Sum(along):
                return ast.Call(ast.Name("sum"), [self.product(), ast.Name(along)], [])
            case Sign("∑"):
                return ast.Call(ast.Name("total"), [self.product()], [])
            case Sign("∂"):
                variable = self.atom()
                self.take(FUNCTION)
                return ast.Call(ast.Name("D"), [self.atom(), variable], [])
            case Word("d" | "δ" | "∂" as prefix) if isinstance(word := self.next(), Word):
                self.at += 1
                name = _spelled(word)
                return ast.Name(name) if prefix == "∂" else self.indexed(ast.Name(prefix + name))
            case Word() as word:
                if self.take(FUNCTION):
                    return self.indexed(self.call(_spelled(word)))
                return self.indexed(ast.Name(_spelled(word)))
            case ast.expr():
                return token
        raise FormulaError(f"{token} is not expected here")

    def indexed(self, value: ast.expr) -> ast.expr:
        if not self.take("["):
            return value
        index = self.sum()
        self.close("]")
        return ast.Subscript(value, index)

    def call(self, name: str) -> ast.expr:
        if not self.take("("):
            raise FormulaError(f"{name} has no argument")
        arguments = [self.sum()]
        while self.take(","):
            arguments.append(self.sum())
        self.close(")")
        return ast.Call(ast.Name(name), arguments, [])

    def close(self, sign: str) -> None:
        if not self.take(sign):
            raise FormulaError(f"{sign} is missing")
