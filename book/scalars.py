"""Formulas of scalars, proved by sympy."""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import sympy

from book.expressions import FormulaError, Meaning, evaluate

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": sympy.sqrt,
    "exp": sympy.exp,
    "log": sympy.log,
    "tanh": sympy.tanh,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "sigmoid": lambda x: 1 / (1 + sympy.exp(-x)),
}
# Irrational, and different for each symbol, so that no formula holds at these points alone.
PLACES = [sympy.sqrt(prime) / 5 for prime in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)]


class Scalars:
    """Names are real symbols, except those that a definition explains."""

    def __init__(self, definitions: Mapping[str, ast.expr]):
        self.definitions = definitions

    def evaluate(self, expression: ast.expr, free: frozenset[str] = frozenset()) -> sympy.Expr:
        """free: defined names that are symbols here all the same."""

        def name(name: str) -> sympy.Expr:
            if name == "pi":
                return sympy.pi
            if name in self.definitions and name not in free:
                with contextlib.suppress(FormulaError, TypeError):  # a definition with matrices: a symbol, too
                    return self.evaluate(self.definitions[name], free)
            return sympy.Symbol(name, real=True)

        def derivative(expression: ast.expr, variable: ast.expr) -> sympy.Expr:
            assert isinstance(variable, ast.Name)
            symbol = sympy.Symbol(variable.id, real=True)
            slope = sympy.diff(self.evaluate(expression, free | {variable.id}), symbol)
            return slope.subs(symbol, name(variable.id))

        return evaluate(expression, Meaning(name, _number, FUNCTIONS, {"D": derivative}))


def _number(number: int | float) -> sympy.Expr:
    return sympy.Rational(str(number))


def check_equal(expressions: list[ast.expr], scalars: Scalars) -> None:
    """Raises FormulaError unless sympy proves all sides equal."""
    first, *others = (scalars.evaluate(side) for side in expressions)
    for side, value in zip(expressions[1:], others, strict=True):
        difference = sympy.sympify(first - value)
        if not _vanishes(difference):
            left, right = ast.unparse(expressions[0]), ast.unparse(side)
            raise FormulaError(f"{left} = {right} does not hold: the difference is {difference}")


@functools.cache
def _vanishes(difference: sympy.Expr) -> bool:
    """Measured at a point first, which is quick where it does not, then proved."""
    symbols = sorted(difference.free_symbols, key=str)
    somewhere = sympy.N(difference.subs(dict(zip(symbols, PLACES, strict=False))), 30)
    if abs(somewhere) > 1e-20:
        return False
    return sympy.simplify(difference) == 0
