"""Mistakes, planted systematically: in a solution's source, in what it is given, and in what it returns."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

OTHER_OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult}
OTHER_COMPARISONS = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Gt: ast.Lt, ast.LtE: ast.Gt}
OTHER_METHODS = {"sum": "mean", "mean": "sum", "square": "abs", "add_": "sub_", "sub_": "add_", "exp": "log"}


def mutated_sources(source: str, most: int) -> Iterator[tuple[str, str]]:
    """What was changed, and the source with this one change; of all changes at most so many, evenly chosen."""
    tree = ast.parse(source)
    local = sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})
    changes = [(i, number) for i, node in enumerate(ast.walk(tree)) for number, _ in enumerate(_changes(node, local))]
    for i, number in changes[:: -(-len(changes) // most)]:
        changed = ast.parse(source)
        node = list(ast.walk(changed))[i]
        before, (what, new) = ast.unparse(node), list(_changes(node, local))[number]
        _Replace(node, new).visit(changed)
        yield f"{before}: {what}", ast.unparse(ast.fix_missing_locations(changed))


def _changes(node: ast.AST, local: list[str]) -> Iterator[tuple[str, ast.AST]]:
    """Each mistake that one can make at a node, with the node that takes its place."""
    if isinstance(node, ast.BinOp):
        if other := OTHER_OPERATORS.get(type(node.op)):
            yield "another operator", ast.BinOp(node.left, other(), node.right)
        yield "without the right operand", node.left
        yield "without the left operand", node.right
        if isinstance(node.op, ast.MatMult | ast.Sub | ast.Div | ast.Pow):
            yield "operands the wrong way round", ast.BinOp(node.right, node.op, node.left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "without the sign", node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        for value in (node.value + 1, node.value * 2):
            yield f"{value}", ast.Constant(value)
    elif isinstance(node, ast.Compare) and (other_comparison := OTHER_COMPARISONS.get(type(node.ops[0]))):
        yield "another comparison", ast.Compare(node.left, [other_comparison()], node.comparators)
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield "not transposed", node.value
    elif isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute):
            yield "without the call", function.value
            if other_name := OTHER_METHODS.get(function.attr):
                called = ast.Attribute(function.value, other_name, ast.Load())
                yield other_name, ast.Call(called, node.args, node.keywords)
        if node.args:
            yield "its first argument", node.args[0]
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in local:
        for name in local:
            if name != node.id:
                yield name, ast.Name(name, ast.Load())
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        yield "left out", ast.Pass()
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield "in another order", ast.Return(ast.Tuple(node.value.elts[::-1], ast.Load()))


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _for_each_axis(name: str, change: Callable[[Tensor, int], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    return {f"{name} along axis {axis}": lambda t, axis=axis: change(t, axis) for axis in (0, -1)}


def _one(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    t = t.clone()
    last = t.view(-1)[-1:]
    last.copy_(change(last))
    return t


TENSOR_MISTAKES: dict[str, Callable[[Tensor], Any]] = {
    "the sign": lambda t: -t,
    "twice": lambda t: 2 * t,
    "half": lambda t: t / 2,
    "nothing": torch.zeros_like,
    "all ones": torch.ones_like,
    "plus 1": lambda t: t + 1,
    "absolute": torch.abs,
    "squared": torch.square,
    "divided by the number of its elements": lambda t: t / t.numel() if t.numel() > 1 else t / 3,
    "a millionth too large": lambda t: t * (1 + 1e-6),
    "one element's sign": lambda t: _one(t, torch.neg),
    "one element a thousandth too large": lambda t: _one(t, lambda e: 1.001 * e),
    "one element nothing": lambda t: _one(t, torch.zeros_like),
    "not a number": lambda t: _one(t, lambda e: e * torch.nan),
    "without the negative": lambda t: t.clamp(min=0),
    "transposed": lambda t: t.mT if t.ndim > 1 else t + 1,
    "rounded to bfloat16": lambda t: t.bfloat16().to(t.dtype),
    "in float32": lambda t: t.float(),
    "with one axis more": lambda t: t.unsqueeze(0),
    "one number": lambda t: t.sum() if t.ndim else t + 1,
    "missing": lambda t: None,
    **_for_each_axis("reversed", lambda t, axis: t.flip(axis) if t.ndim else -t),
    **_for_each_axis("off by one", lambda t, axis: t.roll(1, axis) if t.ndim else -t),
    **_for_each_axis("averaged", lambda t, axis: t.mean(axis, keepdim=True).expand_as(t) if t.ndim else -t),
    **_for_each_axis("without the mean", lambda t, axis: t - t.mean(axis, keepdim=True) if t.ndim else -t),
}


def mutated_results(function: Function) -> Iterator[tuple[str, Function]]:
    """Each result changed; a function that writes into its arguments has those as its results."""
    for what, mistake in TENSOR_MISTAKES.items():
        for number in range(3):
            yield f"result {number}: {what}", _with_changed_result(function, number, mistake)


def _with_changed_result(function: Function, number: int, mistake: Callable[[Tensor], Any]) -> Function:
    def changed(*arguments: Any) -> Any:
        before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        found = function(*arguments)
        if found is None:
            written = [
                a for a, b in zip(arguments, before, strict=True) if isinstance(a, Tensor) and not torch.equal(a, b)
            ]
            if number < len(written):
                written[number].copy_(mistake(written[number].clone()))
            return None
        results = list(found) if isinstance(found, tuple) else [found]
        if number < len(results) and isinstance(results[number], Tensor):
            results[number] = mistake(results[number])
        elif number < len(results) and isinstance(results[number], float):
            results[number] = mistake(torch.tensor(results[number], dtype=torch.float64))
        return tuple(results) if isinstance(found, tuple) else results[0]

    return changed


def mutated_arguments(function: Function) -> Iterator[tuple[str, Function]]:
    """Each tensor that a function is given, itself or in `saved`, taken for another one."""
    for what in ("the sign", "twice", "all ones", "plus 1", "off by one along axis -1", "reversed along axis 0"):
        for number in range(4):
            yield f"given tensor {number}: {what}", _with_changed_argument(function, number, TENSOR_MISTAKES[what])


def _with_changed_argument(function: Function, number: int, mistake: Callable[[Tensor], Any]) -> Function:
    def changed(*arguments: Any) -> Any:
        count = iter(range(1000))

        def taken(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(taken(part) for part in value)
            wrong = isinstance(value, Tensor) and value.is_floating_point() and next(count) == number
            return mistake(value) if wrong else value

        return function(*(taken(value) for value in arguments))

    return changed
