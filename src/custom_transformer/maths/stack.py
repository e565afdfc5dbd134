"""The blocks of a model one after another, and the last norm: forwards, upside down, and with cached keys and values.

With recomputation (Chen et al. 2016, "Training deep nets with sublinear memory cost") a block saves its input alone.
Just before its backward its forward runs once more, on the same input with the same dropout masks, and saves the rest:
the same functions of the same numbers, so the gradients have the same bits. The memory of what is saved is then that of
one block and of each block's input; the time grows by that of the blocks' forward.

Shapes: B batch, T time, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import Architecture
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Op, Scope, nobody

# (stream, at, config) -> stream: what one block hands to the next, x in the readable stack
BlockForward = Callable[[Any, Scope, CustomTransformerConfig], Any]


class Stack(NamedTuple):
    """The functions below for one architecture, or faster equals of them; a backward may use up what was saved."""

    forward: Callable[[Tensor, Scope, CustomTransformerConfig], Tensor]
    backward: Callable[[Tensor, Scope, CustomTransformerConfig], Tensor]
    cached_block: Callable[[Tensor, Scope, CustomTransformerConfig, KeyValues], Tensor]


def readable_stack(architecture: Architecture) -> Stack:
    functions = (stack_forward, stack_backward, cached_block_forward)
    return Stack(*(partial(function, architecture) for function in functions))


def stack_forward(architecture: Architecture, x: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """x (B, T, D) -> (B, T, D)"""
    for i in range(config.n_blocks):
        x = recomputable_forward(architecture.block_forward, x, at / f"blocks.{i}", config)
        at.watch(f"blocks.{i}", x)
    return architecture.final_norm_forward(x, at, config)


def stack_backward(architecture: Architecture, dx: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """dx (B, T, D) -> (B, T, D)"""
    dx = architecture.final_norm_backward(dx, at)
    for i in reversed(range(config.n_blocks)):
        at.watch(f"d blocks.{i}", dx)
        block = at / f"blocks.{i}"
        recompute(architecture.block_forward, block, config)
        dx = architecture.block_backward(dx, block)
    return dx


def recomputable_forward(block_forward: BlockForward, stream: Any, at: Scope, config: CustomTransformerConfig) -> Any:
    """The block's forward, which saves its input only if the scope recomputes"""
    if not at.recompute:
        return block_forward(stream, at, config)
    at.save("", (stream, at.dropout and at.dropout.again()))
    return block_forward(stream, replace(at, saved=None), config)


def recompute(block_forward: BlockForward, at: Scope, config: CustomTransformerConfig) -> None:
    """Before the block's backward: saves what `recomputable_forward` has dropped"""
    if at.recompute:
        stream, dropout = at.take("")
        block_forward(stream, replace(at, dropout=dropout, watch=nobody), config)


def cached_block_forward(
    architecture: Architecture, x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues
) -> Tensor:
    """The block for the newest tokens alone, which attend to earlier ones by their keys and values.

    x (B, T_new, D) -> (B, T_new, D); the new tokens' keys and values join the cache.
    """
    attention = Op(partial(architecture.cached_attention, cache=cache), architecture.attention.backward)
    return architecture.block_forward(x, replace(at, equals={**at.equals, architecture.attention: attention}), config)
