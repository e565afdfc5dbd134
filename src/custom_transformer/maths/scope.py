"""Where a layer stands: its parameters, what it saves and its gradients, all under the layer's one name.

    y  = at.forward("qkv", linear, x)      y, saved = linear.forward(x, weight, bias); `saved` is kept as "…qkv"
    dx = at.backward("qkv", linear, dy)    dx, dweight, dbias = linear.backward(dy, saved); "…qkv.weight" is handed on

In the scope `at / "blocks.0"` these are the parameter blocks.0.qkv.weight, what the layer blocks.0.qkv saved, and the
gradient blocks.0.qkv.weight. The scope only carries: which operation follows which, forwards and backwards, is
written out in the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Saved = tuple[Any, ...]
Watch = Callable[[str, Tensor], None]


class Op(NamedTuple):
    """An operation of ops.py, with the names of its parameters; "" is a parameter with the layer's own name.

    y, saved = forward(x, *parameters, *others);    dx, *dparameters = backward(dy, saved, *others)
    """

    forward: Callable[..., tuple[Tensor, Saved]]
    backward: Callable[..., Any]
    parameters: tuple[str, ...] = ()


class Dropout(NamedTuple):
    """What is dropped while training: a share `p`, by masks that are drawn from `generator`."""

    p: float
    generator: torch.Generator

    def draw(self, shape: Sequence[int]) -> Tensor:
        """A mask, True where something is kept: where an integer below 2²⁴ is at least p · 2²⁴."""
        device = self.generator.device
        drawn = torch.randint(2**24, tuple(shape), generator=self.generator, device=device, dtype=torch.int32)
        return drawn >= math.ceil(self.p * 2**24)

    def again(self) -> Dropout:
        """Draws the same masks as this one from here on, and leaves this one's generator alone."""
        return self._replace(generator=self.generator.clone_state())


def nobody(name: str, tensor: Tensor) -> None:
    """Watches nothing."""


@dataclass(frozen=True)
class Scope:
    """parameters: of the whole model, by name
    saved: what each layer saves for its backward, which takes it out again; None keeps nothing
    gradients: is given each parameter's gradient, float32 or wider, as soon as it is ready
    equals: operations that stand in for others
    dropout: None where nothing is dropped
    recompute: whether a block saves its input only, from which all else is computed again just before its backward
    watch: sees the result y of each layer under the layer's name, and under "d NAME" the gradient of that result and
        the gradient of each parameter
    prefix: of the names in this scope
    """

    parameters: Mapping[str, Tensor]
    saved: MutableMapping[str, Saved] | None = None
    gradients: MutableMapping[str, Tensor] = field(default_factory=dict)
    equals: Mapping[Op, Op] = field(default_factory=dict)
    dropout: Dropout | None = None
    recompute: bool = False
    watch: Watch = nobody
    prefix: str = ""

    def __truediv__(self, name: str) -> Scope:
        """The scope of the part called `name`."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def forward(self, name: str, op: Op, x: Tensor, *others: Any) -> Tensor:
        """The layer's result; what it saves is kept under its name."""
        op = self.equals.get(op, op)
        y, saved = op.forward(x, *(self.get(part) for part in _names(name, op)), *others)
        self.save(name, saved)
        self.watch(self.prefix + name, y)
        return y

    def backward(self, name: str, op: Op, dy: Tensor, *others: Any) -> Any:
        """The gradient of the layer's input; those of its parameters are handed on."""
        op = self.equals.get(op, op)
        self.watch(f"d {self.prefix}{name}", dy)
        found = op.backward(dy, self.take(name), *others)
        dx, *gradients = found if isinstance(found, tuple) else (found,)
        for part, gradient in zip(_names(name, op), gradients, strict=True):
            self.give(part, gradient)
        return dx

    def __getitem__(self, name: str) -> Tensor:
        """A parameter of this scope."""
        return self.parameters[self.prefix + name]

    def get(self, name: str) -> Tensor | None:
        """A parameter of this scope; None if the model has none of this name, as without biases."""
        return self.parameters.get(self.prefix + name)

    def save(self, name: str, saved: Saved) -> None:
        if self.saved is not None:
            self.saved[self.prefix + name] = saved

    def take(self, name: str) -> Saved:
        """What the layer saved, which is freed after its backward."""
        assert self.saved is not None, "a backward in a scope that saves nothing"
        return self.saved.pop(self.prefix + name)

    def give(self, name: str, gradient: Tensor | None) -> None:
        """Hands on a parameter's gradient; None for a parameter that does not exist."""
        if gradient is not None:
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            self.watch(f"d {self.prefix}{name}", gradient)
            self.gradients[self.prefix + name] = gradient

    def dropped(self, shape: Sequence[int]) -> tuple[Tensor | None, float]:
        """The last two arguments of an operation that drops: a new mask, None where nothing is dropped, and p."""
        return (None, 0.0) if self.dropout is None else (self.dropout.draw(shape), self.dropout.p)


def _names(name: str, op: Op) -> list[str]:
    return [f"{name}.{part}" if part else name for part in op.parameters]
