"""Wrong versions of a formula: a sign, a factor, a transpose or a number that is not as it was."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator


def wrong_signs(expression: ast.expr) -> Iterator[ast.expr]:
    """Each + as − and − as +; the whole with a minus, or without the one it has."""
    for node, replace in _places(expression):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            other = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield replace(ast.BinOp(node.left, other, node.right))
        if isinstance(node, ast.UnaryOp):
            yield replace(node.operand)
    if not isinstance(expression, ast.UnaryOp):
        yield ast.UnaryOp(ast.USub(), expression)


def other_slips(expression: ast.expr) -> Iterator[ast.expr]:
    """A factor, a divisor, a transpose or a power is lost; a number is one more."""
    for node, replace in _places(expression):
        match node:
            case ast.BinOp(op=ast.Mult() | ast.MatMult()):
                yield replace(node.left)
                yield replace(node.right)
            case ast.BinOp(op=ast.Div() | ast.Pow()):
                yield replace(node.left)
            case ast.Attribute(value=value):
                yield replace(value)
            case ast.Constant(value=value):
                yield replace(ast.Constant(value + 1))


def _places(expression: ast.expr):
    """Every part of the expression, with a function that gives the whole with another part in its place."""
    whole = list(ast.walk(expression))
    for i, node in enumerate(whole):

        def replaced(by: ast.expr, i: int = i) -> ast.expr:
            if i == 0:
                return by
            changed = copy.deepcopy(expression)
            old = list(ast.walk(changed))[i]
            for parent in ast.walk(changed):
                for name, value in ast.iter_fields(parent):
                    if value is old:
                        setattr(parent, name, by)
                    elif isinstance(value, list) and old in value:
                        value[value.index(old)] = by
            return changed

        if isinstance(node, ast.expr):
            yield node, replaced
