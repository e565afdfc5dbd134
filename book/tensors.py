"""Formulas of tensors, computed in float64: values, differentials δ and gradients d of every name.

Given are inputs with random values and the definitions of a forward pass. From these follow, by PyTorch's automatic
differentiation, which is the reference here and is not used by the model:

    δx      for an input x: a random direction; for anything else: its derivative along these directions
    dx      ∂L/∂x, where L = Σ dy ∘ y for the given dy
"""

from __future__ import annotations

import ast
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from book.expressions import FIRST_AXIS, FormulaError, Meaning, evaluate

TOLERANCE = 1e-10  # of the largest element


def random_normal(name: str, shape: tuple[int, ...]) -> Tensor:
    """The same numbers for a name, whatever else the page has."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _sum(x: Tensor, along: str) -> Tensor:
    return x.sum(0) if along in FIRST_AXIS else x.sum(-1, keepdim=True)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mean": lambda x: x.mean(-1, keepdim=True),
    "total": torch.sum,
    "sum": _sum,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "cos": torch.cos,
    "sin": torch.sin,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softmax": partial(torch.softmax, dim=-1),
    "onehot": lambda ids, n: torch.nn.functional.one_hot(ids, int(n)).double(),
}


class Tensors:
    """The numbers of one forward pass and its backward.

    inputs: float64 tensors, which have differentials and gradients. constants: ids, masks, sizes, which have none.
    definitions: in the order of the forward. seeds: the given gradients, by their names ("dy").
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        definitions: Mapping[str, ast.expr],
        seeds: Mapping[str, Tensor],
    ):
        self.inputs, self.definitions, self.seeds = dict(inputs), dict(definitions), dict(seeds)
        with torch.enable_grad():
            self._graph = dict(constants) | {name: x.clone().requires_grad_() for name, x in inputs.items()}
            for name, expression in self.definitions.items():
                self._graph[name] = evaluate(expression, Meaning(partial(_named, self._graph), _number, FUNCTIONS))
        self.values = {name: x.detach() for name, x in self._graph.items()}
        self.gradients = self._gradients() | self.seeds

    def _gradients(self) -> dict[str, Tensor]:
        if not self.seeds:
            return {}
        with torch.enable_grad():
            loss = torch.stack([(seed * self._graph[output_of(d)]).sum() for d, seed in self.seeds.items()]).sum()
        names = [name for name, x in self._graph.items() if x.requires_grad]
        found = torch.autograd.grad(
            loss, [self._graph[name] for name in names], retain_graph=True, materialize_grads=True
        )
        return {f"d{name}": gradient for name, gradient in zip(names, found, strict=True)}

    def evaluate(self, expression: ast.expr) -> Tensor:
        return evaluate(expression, Meaning(self._name, _number, FUNCTIONS, {"δ": self._differential})).detach()

    def _name(self, name: str) -> Tensor:
        if name.startswith("δ"):
            return self._differential(ast.Name(name[1:]))
        if (gradient := self.gradient(name)) is not None:
            return gradient
        return _named(self.values, name)

    def gradient(self, name: str) -> Tensor | None:
        """Of x for "dx" or "d_x"; None if the name is not one of a gradient."""
        return self.gradients.get(name) if name in self.gradients else self.gradients.get(name.replace("d_", "d", 1))

    def _differential(self, expression: ast.expr) -> Tensor:
        """The derivative along the inputs' directions. As Σ dx ∘ δx = Σ dy ∘ δy for any dy, it is the gradient, with
        respect to dy, of the left side."""
        inputs = [self._graph[name] for name in self.inputs]
        directions = [random_normal(f"δ{name}", tuple(x.shape)) for name, x in self.inputs.items()]
        with torch.enable_grad():
            y = evaluate(expression, Meaning(partial(_named, self._graph), _number, FUNCTIONS))
            dy = torch.ones_like(y, requires_grad=True)
            gradients = torch.autograd.grad(y, inputs, dy, create_graph=True, materialize_grads=True)
            change = torch.stack([(dx * δx).sum() for dx, δx in zip(gradients, directions, strict=True)]).sum()
        return torch.autograd.grad(change, dy, materialize_grads=True)[0]


def output_of(seed: str) -> str:
    """y for dy"""
    return seed[1:].removeprefix("_")


def _named(values: Mapping[str, Tensor], name: str) -> Tensor:
    if name == "pi":
        return torch.tensor(math.pi, dtype=torch.float64)
    if name not in values:
        raise FormulaError(f"{name} has no meaning here")
    return values[name]


def _number(number: int | float) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64)


def deviation(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest element; infinite for another shape."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.double(), b.double()
    scale = max(a.abs().max().item(), b.abs().max().item())
    difference = (a - b).abs().max().item()
    return difference / scale if scale else 0.0


def check_equal(expressions: list[ast.expr], tensors: Tensors) -> None:
    """Raises FormulaError unless all sides are equal."""
    first, *others = (tensors.evaluate(side) for side in expressions)
    for side, value in zip(expressions[1:], others, strict=True):
        if not (off := deviation(first, value)) < TOLERANCE:
            left, right = ast.unparse(expressions[0]), ast.unparse(side)
            raise FormulaError(f"{left} = {right} does not hold: off by {off:.2g} of the largest element")
