"""An architecture as a value: its parameters, layers and FLOPs; and all architectures by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths import cache, gpt2, ops
from custom_transformer.maths.parameters import IN_PRODUCTS, Table
from custom_transformer.maths.scope import Op, Saved, Scope


@dataclass(frozen=True)
class Architecture:
    """Functions in the form of those of gpt2.py.

    parameters: the table of names, shapes and roles. Four names are the same in every architecture, since model and
        stack use them: token_embedding, blocks.{i}, final_norm, and head.weight when the embeddings are not tied.
    attention, cached_attention: the operation by which tokens look at each other, and what stands in for it where the
        earlier tokens' keys and values are cached: the same arguments, and a KeyValues behind them.
    norm: of the residual stream before the head.
    """

    name: str
    parameters: Callable[[CustomTransformerConfig], Table]
    embedding_forward: Callable[[Tensor, Scope, int], Tensor]
    embedding_backward: Callable[[Tensor, Scope, Tensor | None], None]
    block_forward: Callable[[Tensor, Scope, CustomTransformerConfig], Tensor]
    block_backward: Callable[[Tensor, Scope], Tensor]
    attention: Op
    cached_attention: Callable[..., tuple[Tensor, Saved]]
    norm: Op


GPT2 = Architecture(
    "gpt2",
    gpt2.parameters,
    gpt2.embedding_forward,
    gpt2.embedding_backward,
    gpt2.block_forward,
    gpt2.block_backward,
    ops.causal_attention,
    cache.cached_attention_forward,
    ops.layer_norm,
)

ARCHITECTURES = {architecture.name: architecture for architecture in (GPT2,)}


def flops_per_token(architecture: Architecture, config: CustomTransformerConfig, time: int) -> int:
    """Floating-point operations of one training step, per token: 6 · matrix parameters + 12 · n_blocks · d_model · T.

    A multiply and an add for each matrix entry going forward, twice that going back; likewise for attention's
    two products over T positions, the masked half included (Chowdhery et al. 2022, appendix B). The head is a matrix,
    whether or not it is the token table. The forward alone takes a third of the step's operations.
    """
    table = architecture.parameters(config)
    products = sum(math.prod(shape) for shape, role in table.values() if IN_PRODUCTS[role])
    products += config.vocab_size * config.d_model
    return 6 * products + 12 * config.n_blocks * config.d_model * time
