"""What goes on inside a model: the stream, the attention and the feed-forward units of each block.

The readable blocks show each of their results to whoever watches their scope; observing is watching three of them.

Shapes: B batch, T time, D d_model, H heads, F d_ffn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from custom_transformer.maths import portable
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

    The blocks compute one operation after another, each by the engine's equal of it. Raises ValueError for tokens that
    the model does not take.
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
            q, k, unit_input = model.architecture.inside(results, model.config)
            view = BlockView(x, model.engine.attention_probabilities(q, k), unit_input)
        yield view


def activation_statistics(model: CustomTransformer, tokens: Tensor) -> list[dict[str, float | int]]:
    """One row a block, counted from 0, as `tokens` (B, T) pass:

    residual_rms: the root mean square of the residual stream after the block
    attention_entropy: of a query's attention over its keys, in nats, the mean over queries and heads
    gelu_off: the share of feed-forward activations that are off: GELU's input is below −3. For llama it is silu_off,
        SiLU's input below −6, for modern relu_squared_off, below 0
    gelu_dead: the share of feed-forward units that are off at every token; named as the one above
    """
    units, threshold, _ = model.architecture.units
    rows = []
    for i, view in enumerate(views(model, tokens)):
        off = view.unit_input < threshold
        dead = off.flatten(0, 1).all(0)
        stream = view.stream.double().cpu().numpy().ravel()
        queries = math.prod(view.attention.shape[:-1])
        statistics: dict[str, float | int] = {
            "block": i,
            "residual_rms": math.sqrt(portable.total(stream * stream).item() / stream.size),
            "attention_entropy": math.fsum(map(_entropy, view.attention.flatten(0, 1))) / queries,
            f"{units}_off": off.sum().item() / off.numel(),
            f"{units}_dead": dead.sum().item() / dead.numel(),
        }
        rows.append(statistics)
    return rows


def _entropy(attention: Tensor) -> float:
    """−Σ p log p of one head's attention (T, T); what is 0, as where a key lies in the future, has none"""
    p = attention[attention != 0].double().cpu().numpy()
    return -portable.total(p * portable.log(p)).item()
