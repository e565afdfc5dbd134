"""For a GPU: the readable blocks and the fused operations through torch.compile, for each of ARCHITECTURES.

torch.compile sees forward graphs only: the backward is a function of its own. One block is compiled, not the stack of
them, so that compiling takes as long for a deep model as for a shallow one. Within the compiled functions names are
those inside the block, so that one compilation serves every block. With dropout, whose masks come from the model's
generator, blocks stay uncompiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.fused import EQUALS
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import ARCHITECTURES, Architecture
from custom_transformer.maths.engine import Engine, Head
from custom_transformer.maths.scope import Op, Saved, Scope
from custom_transformer.maths.stack import Stack, readable_stack


@functools.cache
def compiled_engine() -> Engine:
    ops.turns = _turns_of_a_graph()  # type: ignore[assignment]
    loss = Op(torch.compile(ops.linear_cross_entropy_forward), torch.compile(ops.linear_cross_entropy_backward))
    stacks = {name: _compiled_stack(architecture) for name, architecture in ARCHITECTURES.items()}
    return Engine("compiled", EQUALS, stacks, Head(loss=loss))


@functools.cache
def _turns_of_a_graph() -> Callable[..., tuple[Tensor, Tensor]]:
    """`turns` as an operation that torch.compile does not look into: neither its cache nor NumPy is for a graph."""
    of_cache = ops.turns
    schema = "(int start, SymInt time, int half, float base, ScalarType dtype, Device device) -> (Tensor, Tensor)"

    def fresh(*given: Any) -> tuple[Tensor, Tensor]:  # a graph may write into what it has been given
        cos, sin = of_cache(*given)
        return cos.clone(), sin.clone()

    def shaped(_start: int, time: int, half: int, _base: float, dtype: torch.dtype, device: torch.device) -> Any:
        return tuple(torch.empty(time, half, dtype=dtype, device=device) for _ in range(2))

    turns = torch.library.custom_op("custom_transformer::turns", fresh, mutates_args=(), schema=schema)
    turns.register_fake(shaped)
    return turns


def _compiled_stack(architecture: Architecture) -> Stack:
    @torch.compile
    def forward(x: Tensor, p: dict[str, Tensor], config: CustomTransformerConfig) -> tuple[Tensor, dict[str, Saved]]:
        saved: dict[str, Saved] = {}
        return architecture.block_forward(x, Scope(p, saved, {}, EQUALS), config), saved

    @torch.compile
    def backward(dx: Tensor, p: dict[str, Tensor], saved: dict[str, Saved]) -> tuple[Tensor, dict[str, Tensor]]:
        gradients: dict[str, Tensor] = {}
        return architecture.block_backward(dx, Scope(p, dict(saved), gradients, EQUALS)), gradients

    def block_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
        if at.dropout:
            return architecture.block_forward(x, at, config)
        x, saved = forward(x, _inside(at), config)
        at.save("", (saved,))
        return x

    def block_backward(dx: Tensor, at: Scope) -> Tensor:
        if at.dropout:
            return architecture.block_backward(dx, at)
        dx, gradients = backward(dx, _inside(at), *at.take(""))
        for name, gradient in gradients.items():
            at.give(name, gradient)
        return dx

    compiled = replace(architecture, block_forward=block_forward, block_backward=block_backward)
    return readable_stack(compiled)._replace(cached_block=readable_stack(architecture).cached_block)


def _inside(at: Scope) -> dict[str, Tensor]:
    """The scope's parameters under their names within it."""
    return {name.removeprefix(at.prefix): at.parameters[name] for name in at.parameters if name.startswith(at.prefix)}
