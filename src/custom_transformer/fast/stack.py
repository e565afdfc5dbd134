"""The blocks of a model one after another in kernels, and the last norm; every architecture's block fits in.

A block leaves its last addition to the norm that follows it, which is the next block's first or the last one. So what a
block hands on is x and an addend, not their sum.

Shapes: B batch, T time, D d_model, N = B·T rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.norm import Addend, add_norm_backward
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Saved, Scope
from custom_transformer.maths.stack import Stack, recomputable_forward, recompute


class Stream(NamedTuple):
    """What a block hands to the next, whose first norm adds it up.

    batch: rows of one position, B;    x (N, D) float32 or wider
    """

    batch: int
    x: Tensor
    addend: Addend = Addend()


class StreamGradient(NamedTuple):
    """What a block's backward hands to that of the block before it: the gradients of a Stream's x, h and bias."""

    dx: Tensor
    dh: Tensor
    d_bias: Tensor | None


class Block(NamedTuple):
    """One architecture's block in kernels.

    norm(x, addend, at, name, config, dtype) -> x + addend (N, D), and its norm (N, D) `dtype`; keeps what it saves
    """

    norm: Callable[[Tensor, Addend, Scope, str, CustomTransformerConfig, torch.dtype], tuple[Tensor, Tensor]]
    forward: Callable[[Stream, Scope, CustomTransformerConfig], Stream]
    backward: Callable[[StreamGradient, Scope], StreamGradient]
    cached: Callable[[Tensor, Scope, CustomTransformerConfig, KeyValues], Tensor]


def stack_of(block: Block) -> Stack:
    return Stack(partial(stack_forward, block), partial(stack_backward, block), block.cached)


def stack_forward(block: Block, x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As maths/stack.stack_forward"""
    stream = Stream(len(x), x.view(-1, x.shape[-1]))
    for i in range(config.n_blocks):
        stream = recomputable_forward(block.forward, stream, at / f"blocks.{i}", config)
    addend = stream.addend
    if addend.h is not None:
        addend = addend._replace(h=addend.h.to(x.dtype))
    return block.norm(stream.x, addend, at, "final_norm", config, x.dtype)[1].view(x.shape)


def stack_backward(block: Block, dy: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """As maths/stack.stack_backward"""
    gradient = norm_backward(dy.reshape(-1, dy.shape[-1]), None, at.take("final_norm"), at, "final_norm")
    for i in reversed(range(config.n_blocks)):
        scope = at / f"blocks.{i}"
        recompute(block.forward, scope, config)
        gradient = block.backward(gradient, scope)
    return gradient.dx.view(dy.shape)


def norm_backward(dy: Tensor, d_residual: Tensor | None, saved: Saved, at: Scope, name: str) -> StreamGradient:
    """The backward of the norm `name`; d_residual: what reaches its sum along its other way, the residual stream."""
    dx, dh, d_bias, dweight, dbias = add_norm_backward(dy, d_residual, saved)
    at.give(f"{name}.weight", dweight)
    at.give(f"{name}.bias", dbias)
    return StreamGradient(dx, dh, d_bias)
