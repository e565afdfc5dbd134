"""What a configuration comes to: parameters, memory, arithmetic. Computed from the tables, allocating nothing.

Shapes: B batch, T time, D d_model.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.blocks import block_forward, keep_shapes
from custom_transformer.maths.model import parameter_table
from custom_transformer.maths.optim import Tensors


def flops_per_token(config: CustomTransformerConfig, time: int) -> int:
    """Floating-point operations of one training step, by token: 6 · matrix parameters + 12 · n_blocks · d_model · T.

    A multiply and an add for each matrix entry going forward, twice that going back; likewise for attention's
    two products over T positions, the masked half included (Chowdhery et al. 2022, appendix B).
    """
    table = parameter_table(config)
    products = sum(math.prod(shape) for name, shape in table.items() if len(shape) == 2 and "embedding" not in name)
    if config.tie_embeddings:
        products += math.prod(table["token_embedding"])
    return 6 * products + 12 * config.n_blocks * config.d_model * time


def memory_bytes(
    config: CustomTransformerConfig, batch: int, time: int, dtype: torch.dtype, optimizer: str
) -> dict[str, int]:
    """Bytes for parameters, gradients, optimiser state, and the activations saved for the backward of B × T tokens."""
    wide = torch.promote_types(dtype, torch.float32)
    parameters = sum(math.prod(shape) for shape in parameter_table(config).values()) * wide.itemsize
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer state": 2 * parameters if optimizer == "adamw" else 0,
        "activations": _activation_bytes(config, batch, time, dtype),
    }


def _activation_bytes(config: CustomTransformerConfig, batch: int, time: int, dtype: torch.dtype) -> int:
    """What the readable blocks really save, found by running one on the meta device, where tensors have no storage."""
    wide = torch.promote_types(dtype, torch.float32)
    prefix = "blocks.0."
    p: Tensors = {
        (short := name.removeprefix(prefix)): torch.empty(
            shape, dtype=wide if short.startswith("norm") else dtype, device="meta"
        )
        for name, shape in parameter_table(config).items()
        if name.startswith(prefix)
    }
    x = torch.empty(batch, time, config.d_model, dtype=wide, device="meta")
    keep = {}
    if config.dropout:
        shapes = keep_shapes(config, batch, time)
        keep = {name: torch.empty(shape, dtype=torch.bool, device="meta") for name, shape in shapes.items()}
    _, saved = block_forward(x, p, config.n_heads, keep, config.dropout)
    storages: dict[int, int] = {}
    _collect_storages(saved, storages, exclude={id(t) for t in p.values()})
    return config.n_blocks * sum(storages.values())


def _collect_storages(saved: Any, into: dict[int, int], exclude: set[int]) -> None:
    if isinstance(saved, torch.Tensor):
        if id(saved) not in exclude:
            storage = saved.untyped_storage()
            into[storage._cdata] = storage.nbytes()
    elif isinstance(saved, tuple):
        for part in saved:
            _collect_storages(part, into, exclude)
