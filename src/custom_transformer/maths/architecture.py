"""An architecture as a value: its parameters, layers and FLOPs; and all architectures by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths import cache, gpt2, llama, modern, ops
from custom_transformer.maths.parameters import IN_PRODUCTS, Table
from custom_transformer.maths.scope import Op, Saved, Scope


class Units(NamedTuple):
    """The function of feed-forward units, the input below which it passes almost no value and no gradient, and whether
    its slope has a corner there, across which a finite difference measures neither side."""

    name: str
    off_below: float
    corner: bool = False


@dataclass(frozen=True)
class Architecture:
    """Functions in the form of those of gpt2.py.

    parameters: the table of names, shapes and roles. Four names are the same in every architecture, since model and
        stack use them: token_embedding, blocks.{i}, final_norm, and head.weight when the embeddings are not tied.
    attention, cached_attention: the operation by which tokens look at each other, and what stands in for it where the
        earlier tokens' keys and values are cached: the same arguments, and a KeyValues behind them.
    inside: for observation, a block's queries and keys as they meet, and what its feed-forward units are given.
    units: see Units.
    """

    name: str
    parameters: Callable[[CustomTransformerConfig], Table]
    embedding_forward: Callable[[Tensor, Scope, int], Tensor]
    embedding_backward: Callable[[Tensor, Scope, Tensor | None], None]
    block_forward: Callable[[Tensor, Scope, CustomTransformerConfig], Tensor]
    block_backward: Callable[[Tensor, Scope], Tensor]
    final_norm_forward: Callable[[Tensor, Scope, CustomTransformerConfig], Tensor]
    final_norm_backward: Callable[[Tensor, Scope], Tensor]
    inside: Callable[[Mapping[str, Tensor], CustomTransformerConfig], tuple[Tensor, Tensor, Tensor]]
    units: Units
    attention: Op
    cached_attention: Callable[..., tuple[Tensor, Saved]]


def _architecture(
    name: str, module: Any, units: Units, attention: Op, cached: Callable[..., tuple[Tensor, Saved]]
) -> Architecture:
    return Architecture(
        name,
        module.parameters,
        module.embedding_forward,
        module.embedding_backward,
        module.block_forward,
        module.block_backward,
        module.final_norm_forward,
        module.final_norm_backward,
        module.inside,
        units,
        attention,
        cached,
    )


# GELU passes −0.004 and a gradient of −0.012 at −3, SiLU −0.015 and −0.012 at −6.
GPT2 = _architecture("gpt2", gpt2, Units("gelu", -3.0), ops.causal_attention, cache.cached_attention_forward)
_rotary = (ops.rotary_attention, cache.cached_rotary_attention_forward)
LLAMA = _architecture("llama", llama, Units("silu", -6.0), *_rotary)
MODERN = _architecture("modern", modern, Units("relu_squared", 0.0, corner=True), *_rotary)

ARCHITECTURES = {architecture.name: architecture for architecture in (GPT2, LLAMA, MODERN)}


def architecture_of(config: CustomTransformerConfig) -> Architecture:
    return ARCHITECTURES[config.architecture]


def flops_per_token(config: CustomTransformerConfig, time: int, architecture: Architecture | None = None) -> int:
    """Floating-point operations of one training step, per token: 6 · matrix parameters + 12 · n_blocks · d_model · T.

    A multiply and an add for each matrix entry going forward, twice that going back; likewise for attention's
    two products over T positions, the masked half included (Chowdhery et al. 2022, appendix B). The head is a matrix,
    whether or not it is the token table. The forward alone takes a third of the step's operations.
    """
    table = (architecture or architecture_of(config)).parameters(config)
    products = sum(math.prod(shape) for shape, role in table.values() if IN_PRODUCTS[role])
    products += config.vocab_size * config.d_model
    return 6 * products + 12 * config.n_blocks * config.d_model * time
