"""The memory that a configuration needs, computed from its tables, allocating nothing.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import InProducts, count
from custom_transformer.maths.scope import Dropout, Saved, Scope


def memory_bytes(
    config: CustomTransformerConfig, batch: int, time: int, dtype: torch.dtype, optimizer: str
) -> dict[str, int]:
    """Bytes for parameters, gradients, optimiser state, and the activations saved for the backward of B × T tokens."""
    wide = torch.promote_types(dtype, torch.float32)
    parameters = count(architecture_of(config).parameters(config)) * wide.itemsize
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer state": 2 * parameters if optimizer == "adamw" else 0,
        "activations": _activation_bytes(config, batch, time, dtype),
    }


def _activation_bytes(config: CustomTransformerConfig, batch: int, time: int, dtype: torch.dtype) -> int:
    """What the readable blocks really save, found by running one on the meta device, where tensors have no storage."""
    wide = torch.promote_types(dtype, torch.float32)
    architecture = architecture_of(config)
    table = architecture.parameters(config)
    stored = {name: torch.empty(shape, dtype=wide, device="meta") for name, (shape, _) in table.items()}
    p = dict(InProducts(stored, table, dtype))
    saved: dict[str, Saved] = {}
    drop = Dropout(config.dropout, lambda shape: torch.empty(*shape, dtype=torch.bool, device="meta"))
    at = Scope(p, saved, dropout=drop if config.dropout else None) / "blocks.0"
    architecture.block_forward(torch.empty(batch, time, config.d_model, dtype=wide, device="meta"), at, config)
    own = {id(t) for t in p.values()}
    tensors = [t for t in tree_leaves(saved) if isinstance(t, torch.Tensor) and id(t) not in own]
    storages = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return config.n_blocks * sum(storages.values())
