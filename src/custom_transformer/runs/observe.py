"""What goes on inside a model: the stream, the attention and the feed-forward units of each block.

The readable blocks show each of their results to whoever watches their scope; observing is watching three of them.

Shapes: B batch, T time, D d_model, H heads, F d_ffn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from custom_transformer.maths.engine import Engine
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.scope import Scope


@dataclass(frozen=True)
class BlockView:
    """What passed through one block."""

    stream: Tensor  # (B, T, D) the residual stream after the block
    attention: Tensor  # (B, H, T, T) how much each query (row) takes from each key
    unit_input: Tensor  # (B, T, F) what the feed-forward units' function is given


def views(model: CustomTransformer, tokens: Tensor) -> Iterator[BlockView]:
    """A view of each block, the first first, as `tokens` (B, T) int64 pass without dropout.

    Raises ValueError for tokens that the model does not take.
    """
    model.check_tokens(tokens)
    seen: dict[str, Tensor] = {}
    at = Scope(model.in_products(), equals=model.engine.equals, watch=seen.__setitem__)
    with model.computing():
        x = model.architecture.embedding_forward(tokens, at, 0)
    for i in range(model.config.n_blocks):
        seen.clear()
        with model.computing():
            x = model.architecture.block_forward(x, block := at / f"blocks.{i}", model.config)
            results = {name.removeprefix(block.prefix): tensor for name, tensor in seen.items()}
            view = BlockView(x, *model.architecture.inside(results, model.config, model.engine.probabilities))
        yield view


def activation_statistics(model: CustomTransformer, tokens: Tensor) -> list[dict[str, float | int]]:
    """One row a block, counted from 0, as `tokens` (B, T) pass:

    residual_rms: the root mean square of the residual stream after the block
    attention_entropy: of a query's attention over its keys, in nats, the mean over queries and heads
    gelu_off: the share of feed-forward activations that are off: GELU's input is below −3. For llama it is silu_off,
        SiLU's input below −6, and so with the next
    gelu_dead: the share of feed-forward units that are off at every token
    """
    units, threshold = model.architecture.units
    rows = []
    for i, view in enumerate(views(model, tokens)):
        off = view.unit_input < threshold
        statistics = {
            "residual_rms": view.stream.square().mean().sqrt(),
            "attention_entropy": torch.special.entr(view.attention).sum(-1).mean(),
            f"{units}_off": off.float().mean(),
            f"{units}_dead": off.flatten(0, 1).all(0).float().mean(),
        }
        rows.append({"block": i} | {name: value.item() for name, value in statistics.items()})
    return rows


def gradient_norms(gradients: Mapping[str, Tensor], engine: Engine) -> list[float]:
    """√(Σ g²) of each gradient, in their order; the squares of all add up to that of the global norm."""
    return [engine.rules.global_norm({name: gradient}) for name, gradient in gradients.items()]
