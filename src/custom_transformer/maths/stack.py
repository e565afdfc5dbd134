"""The blocks of a model one after another, and the last norm: forwards, upside down, and with cached keys and values.

Shapes: B batch, T time, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import Architecture
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.scope import Op, Scope


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
        x = architecture.block_forward(x, at / f"blocks.{i}", config)
        at.watch(f"blocks.{i}", x)
    return architecture.final_norm_forward(x, at, config)


def stack_backward(architecture: Architecture, dx: Tensor, at: Scope, config: CustomTransformerConfig) -> Tensor:
    """dx (B, T, D) -> (B, T, D)"""
    dx = architecture.final_norm_backward(dx, at)
    for i in reversed(range(config.n_blocks)):
        at.watch(f"d blocks.{i}", dx)
        dx = architecture.block_backward(dx, at / f"blocks.{i}")
    return dx


def cached_block_forward(
    architecture: Architecture, x: Tensor, at: Scope, config: CustomTransformerConfig, cache: KeyValues
) -> Tensor:
    """The block for the newest tokens alone, which attend to earlier ones by their keys and values.

    x (B, T_new, D) -> (B, T_new, D); the new tokens' keys and values join the cache.
    """
    attention = Op(partial(architecture.cached_attention, cache=cache), architecture.attention.backward)
    return architecture.block_forward(x, replace(at, equals={**at.equals, architecture.attention: attention}), config)
