"""The memory that a configuration needs, computed from its tables, allocating nothing.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils._pytree import tree_leaves

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import IN_PRODUCTS, InProducts, count
from custom_transformer.maths.scope import Dropout, Saved, Scope


def memory_bytes(
    config: CustomTransformerConfig, batch: int, time: int, dtype: torch.dtype, optimizer: str, recompute: bool = False
) -> dict[str, int]:
    """Bytes for parameters, gradients, optimiser state, and the activations saved for the backward of B × T tokens.

    With `recompute` these are every block's input and, as its backward comes, the rest of one block.
    """
    wide = torch.promote_types(dtype, torch.float32)
    table = architecture_of(config).parameters(config)
    parameters = count(table) * wide.itemsize
    by_muon = count({name: p for name, p in table.items() if IN_PRODUCTS[p.role]}) * wide.itemsize
    state = {"sgd": 0, "adamw": 2 * parameters, "muon": 2 * (parameters - by_muon) + by_muon}
    block = _block_bytes(config, batch, time, dtype)
    block_input = batch * time * config.d_model * wide.itemsize
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer state": state[optimizer],
        "activations": block + (config.n_blocks - 1) * (block_input if recompute else block),
    }


class _Unseen(Dropout):
    """Masks of a shape, without memory."""

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bool, device="meta")


def _block_bytes(config: CustomTransformerConfig, batch: int, time: int, dtype: torch.dtype) -> int:
    """What a readable block really saves, found by running one on the meta device, where tensors have no storage."""
    wide = torch.promote_types(dtype, torch.float32)
    architecture = architecture_of(config)
    table = architecture.parameters(config)
    stored = {name: torch.empty(shape, dtype=wide, device="meta") for name, (shape, _) in table.items()}
    p = dict(InProducts(stored, table, dtype))
    saved: dict[str, Saved] = {}
    dropout = _Unseen(config.dropout, torch.Generator()) if config.dropout else None
    at = Scope(p, saved, dropout=dropout) / "blocks.0"
    architecture.block_forward(torch.empty(batch, time, config.d_model, dtype=wide, device="meta"), at, config)
    own = {id(t) for t in p.values()}
    tensors = [t for t in tree_leaves(saved) if isinstance(t, torch.Tensor) and id(t) not in own]
    storages = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())
