"""The language of the book's formulas: small Python expressions in the code's own symbols.

    dx = dy @ W.T        total(dy * δ(y)) = total((dy @ W.T) * δ(x))        D(tanh(u), u) = 1 - tanh(u)**2

A formula stands once, on its page. What the reader sees is made from its syntax tree (mathml.py), and the same tree is
computed: with float64 tensors (tensors.py) or with sympy's symbols (scalars.py).

`*` multiplies elements, `@` matrices, `.T` transposes. δ(e) is the differential of e, D(e, x) the derivative of a
scalar. `total(e)` sums all elements; `sum(e, rows)` and `sum(e, batch)` sum over the first axis; `sum(e, WORD)` sums
over the last axis and keeps it, and WORD says what lies along it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
}
FIRST_AXIS = ("rows", "batch")  # what `sum` sums over on the first axis


class FormulaError(ValueError):
    """A formula that cannot be read, or that does not hold."""


def sides(formula: str) -> list[ast.expr]:
    """The expressions between the equals signs, of which there are one or more."""
    texts = re.split(r"(?<![=<>!])=(?!=)", formula)
    try:
        return [ast.parse(text.strip().replace("\n", " "), mode="eval").body for text in texts]
    except SyntaxError as error:
        raise FormulaError(f"{formula!r} cannot be read: {error.msg}") from error


@dataclass(frozen=True)
class Meaning:
    """What an expression is made of.

    name, number: the value of a name, and of a number that is written out
    functions: by name, of values
    forms: by name, of the argument's expressions, for what is no function of values (δ, D)
    """

    name: Callable[[str], Any]
    number: Callable[[int | float], Any]
    functions: Mapping[str, Callable[..., Any]]
    forms: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


def evaluate(node: ast.expr, meaning: Meaning) -> Any:
    """The value of an expression. Raises FormulaError for what is not in the language."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return meaning.number(number)
        case ast.Name(id=name):
            return meaning.name(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand, meaning)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate(left, meaning), evaluate(right, meaning))
        case ast.Attribute(value=value, attr="T"):
            return evaluate(value, meaning).T
        case ast.Subscript(value=value, slice=index):
            return evaluate(value, meaning)[evaluate(index, meaning)]
        case ast.Call(func=ast.Name(id="sum"), args=[argument, ast.Name(id=along)], keywords=[]):
            return meaning.functions["sum"](evaluate(argument, meaning), along)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in meaning.forms:
            return meaning.forms[name](*arguments)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in meaning.functions:
            return meaning.functions[name](*(evaluate(argument, meaning) for argument in arguments))
    raise FormulaError(f"{ast.unparse(node)!r} is not in the language of formulas")
