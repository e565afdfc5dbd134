"""PyTorch's fused attention, and the shapes and dtypes of a block on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast import fused
from custom_transformer.fast.choose import FUSED
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.parameters import InProducts
from custom_transformer.maths.scope import Scope
from tests.fast.closeness import BOUNDS, assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [True, False])
def test_fused_attention_equals_the_readable_one(dtype: torch.dtype, keep: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, time, n_heads, size = 2, 37, 3, 8
    qkv = torch.randn(batch, time, 3 * n_heads * size, generator=generator).to(dtype)
    dy = torch.randn(batch, time, n_heads * size, generator=generator).to(dtype)
    mask = torch.rand(batch, n_heads, time, time, generator=generator) >= 0.2 if keep else None
    results = []
    for functions in (
        (fused.causal_attention_forward, fused.causal_attention_backward),
        (ops.causal_attention_forward, ops.causal_attention_backward),
    ):
        y, saved = functions[0](qkv, n_heads, mask, 0.2 if keep else 0.0)
        results.append({"y": y, "dqkv": functions[1](dy, saved)})
    assert_close(results[0], results[1], BOUNDS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_shapes_and_dtypes_are_the_same(dtype: torch.dtype) -> None:
    # Fake tensors go through each operation's rules for shapes, dtypes and devices, on a machine without a GPU.
    sizes = {"vocab_size": 1, "max_seq_len": 1, "n_blocks": 2, "n_heads": 3, "d_model": 24, "d_ffn": 40}
    config = CustomTransformerConfig(**sizes)
    table = {name: p for name, p in GPT2.parameters(config).items() if name.startswith("blocks.0.")}
    with FakeTensorMode():
        p = {name: torch.empty(shape, device="cuda") for name, (shape, _) in table.items()}
        at = Scope(InProducts(p, table, dtype), saved={}, equals=FUSED.equals) / "blocks.0"
        x = torch.empty(2, 16, 24, device="cuda")
        y = GPT2.block_forward(x, at, config)
        dx = GPT2.block_backward(torch.empty_like(y), at)
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == (x.shape, x.dtype, x.shape, x.dtype)
    assert y.device == dx.device == x.device
    assert {name: g.shape for name, g in at.gradients.items()} == {name: t.shape for name, t in p.items()}
    assert {g.device for g in at.gradients.values()} == {x.device}
