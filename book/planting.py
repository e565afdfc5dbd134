"""Mistakes: a line of the project's source is changed, and finite differences look at the result."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from book import code
from book.expressions import FormulaError
from book.tensors import Tensors, output_of
from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.gradcheck import TOLERANCE, check_gradients, gradient_at

MODEL = {"vocab_size": 7, "max_seq_len": 6, "n_blocks": 1, "n_heads": 2, "d_model": 8, "d_ffn": 9}


class Verdict(NamedTuple):
    """name: of a gradient. error: its largest deviation, relative to its largest element."""

    name: str
    error: float

    @property
    def ok(self) -> bool:
        return self.error < TOLERANCE


def planted(function: str, change: str) -> dict[str, ModuleType]:
    """The function's module, by name, with the lines marked "-" replaced by those marked "+".

    Raises FormulaError unless the lines stand in the function exactly once.
    """
    lines = change.strip("\n").splitlines()
    if any(not line.startswith(("-", "+")) for line in lines):
        raise FormulaError("a mistake is given by lines that begin with - or +")
    old, new = (
        "\n".join(textwrap.dedent(line[1:]).strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    module = inspect.getmodule(code.function(function))
    assert module is not None
    whole, part = inspect.getsource(module), code.source(function).text
    flat = "\n".join(line.strip() for line in part.splitlines())
    if not old or flat.count(old) != 1:
        raise FormulaError(f"{function} does not have {old!r} exactly once")
    changed = whole.replace(part, _replaced(part, old, new))
    name = module.__name__.rpartition(".")[2]
    wrong = ModuleType(module.__name__)
    exec(compile(changed, f"{name}.py, changed", "exec"), wrong.__dict__)
    return {name: wrong}


def _replaced(part: str, old: str, new: str) -> str:
    """`part` with `old`, given without indentation, replaced, in the indentation of its first line."""
    lines, wanted = part.splitlines(keepends=True), old.splitlines()
    stripped = [line.strip() for line in lines]
    for i in range(len(lines)):
        if stripped[i : i + len(wanted)] == wanted:
            indent = lines[i][: len(lines[i]) - len(lines[i].lstrip())]
            lines[i : i + len(wanted)] = [textwrap.indent(new, indent) + "\n"]
            return "".join(lines)
        if old in stripped[i]:
            lines[i] = lines[i].replace(old, new)
            return "".join(lines)
    raise FormulaError(f"{old!r} must be whole lines or a part of one")


def finite_difference_errors(run: Callable[..., dict[str, Any]], tensors: Tensors) -> list[Verdict]:
    """Each gradient that `run` computes, beside the measured derivative of L = Σ dy ∘ y by each element.

    As the gradient check measures it.
    """
    claimed = {name: value for name, value in run().items() if _input_of(name, tensors) is not None}

    def loss(name: str, x: Tensor) -> float:
        results = run(**{name: x})
        return sum((seed * results[output_of(d)]).sum().item() for d, seed in tensors.seeds.items())

    verdicts = []
    for d_name, gradient in claimed.items():
        name = _input_of(d_name, tensors)
        assert name is not None
        x = tensors.inputs[name]
        measured = gradient_at(partial(loss, name), x)
        error = (gradient - measured).abs().max().item() if gradient.shape == x.shape else torch.inf
        verdicts.append(Verdict(d_name, error / (measured.abs().max().item() or 1.0)))
    return verdicts


def _input_of(d_name: str, tensors: Tensors) -> str | None:
    name = output_of(d_name) if d_name.startswith("d") else ""
    return name if name in tensors.inputs else None


def model_errors(function: str, changed: dict[str, ModuleType]) -> list[Verdict]:
    """What the project's gradient check says of a model of one block, with a changed function of its architecture."""
    name, _, part = function.partition(".")
    config = CustomTransformerConfig.from_mapping(MODEL | {"architecture": name})
    architecture = replace(architecture_of(config), **{part: getattr(changed[name], part)})
    checks = check_gradients(config, architecture=architecture)
    return [Verdict(check.name, max(check.finite_difference_error, check.autograd_error)) for check in checks]
