"""For a GPU: the readable blocks and the fused operations through torch.compile, for every architecture.

torch.compile sees forward graphs only: the backward is a function of its own. One block is compiled, not the stack of
them, so that compiling takes as long for a deep model as for a shallow one. Within the compiled functions names are
those inside the block, and masks are drawn outside, so that one compilation serves every block.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.fused import EQUALS
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import ARCHITECTURES, Architecture
from custom_transformer.maths.engine import Engine, Head
from custom_transformer.maths.scope import Dropout, Op, Saved, Scope
from custom_transformer.maths.stack import Stack, readable_stack

Shapes = list[tuple[int, ...]]


@functools.cache
def compiled_engine() -> Engine:
    loss = Op(torch.compile(ops.linear_cross_entropy_forward), torch.compile(ops.linear_cross_entropy_backward))
    stacks = {name: _compiled_stack(architecture) for name, architecture in ARCHITECTURES.items()}
    return Engine("compiled", EQUALS, stacks, Head(loss=loss))


def _compiled_stack(architecture: Architecture) -> Stack:
    @torch.compile
    def forward(
        x: Tensor, p: dict[str, Tensor], config: CustomTransformerConfig, masks: list[Tensor], dropout: float
    ) -> tuple[Tensor, dict[str, Saved]]:
        saved: dict[str, Saved] = {}
        drawn = iter(masks)  # a block asks for them in this order
        at = Scope(p, saved, {}, EQUALS, Dropout(dropout, lambda shape: next(drawn)) if masks else None)
        return architecture.block_forward(x, at, config), saved

    @torch.compile
    def backward(dx: Tensor, p: dict[str, Tensor], saved: dict[str, Saved]) -> tuple[Tensor, dict[str, Tensor]]:
        at = Scope(p, dict(saved), {}, EQUALS)
        return architecture.block_backward(dx, at), dict(at.gradients)

    def stack_forward(x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
        shapes = _mask_shapes(architecture, config, x.shape[0], x.shape[1]) if at.dropout else []
        for i in range(config.n_blocks):
            block = at / f"blocks.{i}"
            masks = [at.dropout.draw(shape) for shape in shapes] if at.dropout else []
            x, saved = forward(x, _inside(block), config, masks, config.dropout)
            block.save("", (saved,))
        return at.forward("final_norm", architecture.norm, x)

    def stack_backward(dx: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
        dx = at.backward("final_norm", architecture.norm, dx)
        for i in reversed(range(config.n_blocks)):
            block = at / f"blocks.{i}"
            (saved,) = block.take("")
            dx, gradients = backward(dx, _inside(block), saved)
            for name, gradient in gradients.items():
                block.give(name, gradient)
        return dx

    return readable_stack(architecture)._replace(forward=stack_forward, backward=stack_backward)


def _inside(at: Scope) -> dict[str, Tensor]:
    """The scope's parameters under their names within it."""
    return {name.removeprefix(at.prefix): at.parameters[name] for name in at.parameters if name.startswith(at.prefix)}


@functools.cache
def _mask_shapes(architecture: Architecture, config: CustomTransformerConfig, batch: int, time: int) -> Shapes:
    """The shapes of a block's masks in the order in which they are drawn, found on the meta device."""
    shapes: Shapes = []

    def draw(shape: Any) -> Tensor:
        shapes.append(tuple(shape))
        return torch.empty(*shape, dtype=torch.bool, device="meta")

    table = architecture.parameters(config)
    p = {name: torch.empty(shape, device="meta") for name, (shape, _) in table.items()}
    at = Scope(p, dropout=Dropout(config.dropout, draw)) / "blocks.0"
    architecture.block_forward(torch.empty(batch, time, config.d_model, device="meta"), at, config)
    return shapes
