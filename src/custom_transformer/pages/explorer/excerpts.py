"""The operations' formulas and lines of ops.py, as they stand there."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from custom_transformer.maths import ops, optim

_PAIRS = (
    "lookup",
    "positions",
    "linear",
    "layer_norm",
    "rms_norm",
    "qk_norm",
    "gelu",
    "swiglu",
    "relu_squared",
    "causal_attention",
    "rotary_attention",
    "cross_entropy",
)


def excerpts() -> dict[str, dict[str, Any]]:
    """By the name of a function: its formula (the docstring's first paragraph), the rest of the docstring, its code
    and where it begins."""
    functions = [getattr(ops, f"{name}_{way}") for name in _PAIRS for way in ("forward", "backward")]
    functions += [ops.qk_norm_gain, ops.attention_scores, ops.split_groups, ops.rotate, ops.shared_by_queries]
    functions += [ops._token_losses, ops._token_losses_backward]
    functions += [optim.sgd_update, optim.adamw_update]
    return {function.__name__: _excerpt(function) for function in functions}


def _excerpt(function: Callable[..., Any]) -> dict[str, Any]:
    lines, first = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    words = inspect.cleandoc(ast.get_docstring(definition) or "")
    formula, _, rest = words.partition("\n\n")
    code = "\n".join(source.splitlines()[definition.body[1].lineno - 1 :])
    module = (inspect.getmodule(function) or ops).__name__.rpartition(".")[2]
    return {
        "formula": formula,
        "words": rest,
        "code": textwrap.dedent(code),
        "signature": f"{function.__name__}({', '.join(inspect.signature(function).parameters)})",
        "place": f"src/custom_transformer/maths/{module}.py, line {first}",
    }
