"""What an answer is checked on: tiny problems in float64, with their right results by name.

A gradient is right when it equals finite differences of the forward. A value is right when it equals the project's own
function's. No answer is needed for the first, so no exercise keeps a second copy of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from custom_transformer.maths.gradcheck import TOLERANCE, gradient_at

Functions = Mapping[str, Callable[..., Any]]
VALUE_TOLERANCE = 1e-9


class Wrong(Exception):
    """What is wrong with an answer, in words for the learner."""


class Right(NamedTuple):
    """A right result; None where the answer has to give None."""

    value: Tensor | None
    known_by: str
    tolerance: float


@dataclass(frozen=True)
class Case:
    """One problem.

    title: what is special about it
    given: what the answer is called with, by name; it may not write into these tensors
    run: calls the answer's functions, and returns their results by name. Raises Wrong for too few or too many.
    find_right: the right results, by the same names
    """

    title: str
    given: Mapping[str, Any]
    run: Callable[[Functions], dict[str, Any]]
    find_right: Callable[[], dict[str, Right]]

    @cached_property
    def right(self) -> dict[str, Right]:
        return self.find_right()


class Draw:
    """Random float64 numbers, the same ones for a seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def keep(self, *shape: int) -> Tensor:
        """A dropout mask in which both values occur."""
        keep = torch.rand(shape, generator=self.generator, device="cpu") >= 0.4
        keep.view(-1)[:2] = torch.tensor([True, False])
        return keep

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator, device="cpu")


def finite_differences(loss: Callable[..., Tensor], inputs: Sequence[Tensor | None], number: int) -> Tensor | None:
    """The gradient of `loss(*inputs)` with respect to input `number`, element by element; None for tokens and None."""
    x = inputs[number]
    if x is None or not x.is_floating_point():
        return None
    return gradient_at(lambda moved: loss(*inputs[:number], moved, *inputs[number + 1 :]).item(), x)


def measured(loss: Callable[..., Tensor], inputs: Sequence[Tensor | None], names: Sequence[str]) -> dict[str, Right]:
    """The gradients of all inputs by finite differences, under `names`."""
    return {
        name: Right(finite_differences(loss, inputs, i), "finite differences say", TOLERANCE)
        for i, name in enumerate(names)
    }


def backward_case(
    title: str,
    function: str,
    forward: Callable[..., tuple[Any, tuple[Any, ...]]],
    inputs: Mapping[str, Any],
    gradients: Sequence[str],
    saved: Sequence[str],
    draw: Draw,
    *,
    dy: str = "dy",
    order: Callable[[tuple[Tensor, ...], tuple[Any, ...]], tuple[Any, ...]] = lambda dys, saved: (*dys, saved),
) -> Case:
    """`function(dy, saved)` gives the gradient of each input of `forward`.

    forward: y, saved = forward(*inputs); y may be several tensors
    gradients, saved: the names of the results, and of what the forward saved
    dy: the name of y's gradient, or several, between spaces
    order: the function's arguments, from y's gradients and `saved`
    """
    values = list(inputs.values())
    y, kept = forward(*values)
    dys = tuple(draw(*part.shape) for part in _several(y))

    def loss(*moved: Any) -> Tensor:
        return weighted(forward(*moved)[0], dys)

    def run(functions: Functions) -> dict[str, Any]:
        return named(functions[function](*order(dys, kept)), gradients, function)

    given = dict(zip(dy.split(), dys, strict=True)) | dict(zip(saved, kept, strict=True))
    return Case(title, given, run, lambda: measured(loss, values, gradients))


def pair_case(
    title: str,
    name: str,
    forward: Callable[..., Tensor],
    inputs: Mapping[str, Tensor],
    gradients: Sequence[str],
    draw: Draw,
) -> Case:
    """The answer is `NAME_forward` and `NAME_backward`, and decides itself what it saves.

    forward: y of the inputs
    """
    values = list(inputs.values())
    y = forward(*values)
    dy = draw(*y.shape)

    def run(functions: Functions) -> dict[str, Any]:
        results = named(functions[f"{name}_forward"](*values), ("y", "saved"), f"{name}_forward")
        kept = [part.clone() for part in tensors(results["saved"])]
        found = named(functions[f"{name}_backward"](dy, results["saved"]), gradients, f"{name}_backward")
        if any(not torch.equal(a, b) for a, b in zip(kept, tensors(results["saved"]), strict=True)):
            raise Wrong(f"{name}_backward writes into a saved tensor: make a new tensor in its place")
        return {"y": results["y"], **found}

    def right() -> dict[str, Right]:
        of_y = {"y": Right(y, "it should be", VALUE_TOLERANCE)}
        return of_y | measured(lambda *moved: weighted(forward(*moved), (dy,)), values, gradients)

    return Case(title, {**inputs, "dy": dy}, run, right)


def value_case(title: str, function: str, given: Mapping[str, Any], right: Callable[..., Any], name: str) -> Case:
    """`function(*given)` gives one value or tensor. right: a function of the same arguments."""

    def run(functions: Functions) -> dict[str, Any]:
        (result,) = named(functions[function](*given.values()), (name,), function).values()
        number = isinstance(result, float | int) or (isinstance(result, Tensor) and not result.ndim)
        return {name: torch.as_tensor(result, dtype=torch.float64) if number else result}

    def find() -> dict[str, Right]:
        value = torch.as_tensor(right(*given.values()), dtype=torch.float64)
        return {name: Right(value, "it should be", VALUE_TOLERANCE)}

    return Case(title, given, run, find)


def update_case(
    title: str, function: str, given: Mapping[str, Any], right: Callable[..., Any], changed: Sequence[str]
) -> Case:
    """`function(*given)` writes its results into the arguments `changed`. right: a function that does the same."""

    def written(call: Callable[..., Any]) -> dict[str, Tensor]:
        arguments = {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}
        call(*arguments.values())
        for k, v in arguments.items():
            if isinstance(v, Tensor) and k not in changed and not torch.equal(v, given[k]):
                raise Wrong(f"{function} writes into {k}, which has to stay as it is")
        return {name: arguments[name] for name in changed}

    def find() -> dict[str, Right]:
        return {k: Right(v, "it should be", VALUE_TOLERANCE) for k, v in written(right).items()}

    return Case(title, given, lambda functions: written(functions[function]), find)


def named(found: Any, names: Sequence[str], function: str) -> dict[str, Any]:
    """What a function returned, under the names of what it should return."""
    if found is None:
        raise Wrong(f"{function} returns nothing: is a return missing?")
    values = found if isinstance(found, tuple | list) else (found,)
    if len(values) != len(names):
        wanted = f"{', '.join(names)}{', in this order' if len(names) > 1 else ' alone'}"
        raise Wrong(f"{function} returns {len(values)} value{'s'[: len(values) != 1]}, it has to return {wanted}.")
    return dict(zip(names, values, strict=True))


def weighted(y: Any, dys: Sequence[Tensor]) -> Tensor:
    """The scalar L = Σ dy ∘ y, whose gradient with respect to y is dy."""
    return torch.stack([(dy * part).sum() for dy, part in zip(dys, _several(y), strict=True)]).sum()


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, tuple | list) else []


def _several(y: Any) -> tuple[Tensor, ...]:
    return tuple(y) if isinstance(y, tuple | list) else (y,)
