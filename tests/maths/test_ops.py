"""Every operation against autograd on PyTorch's own layer, over odd sizes and all dtypes, in one harness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_transformer.maths import ops

# float64 proves the formula. The others bound rounding: a result passes through about ten operations, each with
# half a unit in the last place (2⁻²⁴ and 2⁻⁹), relative to the largest entry.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2}
DTYPES = list(TOLERANCES)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def check_op(
    forward: Callable[..., tuple[Tensor, ops.Saved]],
    backward: Callable[[Tensor, ops.Saved], object],
    reference: Callable[..., Tensor],
    inputs: list[Tensor | None],
    dtype: torch.dtype,
) -> None:
    """Output and all gradients equal those of `reference` in float64; inputs, dy and saved tensors stay untouched."""
    inputs = [x if x is None else x.to(dtype) for x in inputs]
    wide = [x if x is None else x.clone().double().requires_grad_() for x in inputs]
    expected = reference(*wide)
    dy = randn(*expected.shape, dtype=dtype, seed=7)
    expected_gradients = torch.autograd.grad(expected, [x for x in wide if x is not None], dy.double())

    y, saved = forward(*inputs)
    watched = [*_tensors(saved), *(x for x in inputs if x is not None), dy]
    before = [x.clone() for x in watched]
    gradients = backward(dy, saved)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)

    assert all(torch.equal(a, b) for a, b in zip(watched, before, strict=True))
    assert len(gradients) == len(inputs), "one gradient an input, in input order"
    assert [g is None for g in gradients] == [x is None for x in inputs]
    assert_close(y, expected, dtype)
    present = [g for g in gradients if g is not None]
    for gradient, x, right in zip(present, [x for x in inputs if x is not None], expected_gradients, strict=True):
        assert gradient.shape == x.shape
        assert gradient.dtype == x.dtype
        assert_close(gradient, right, dtype)


def _tensors(saved: object) -> list[Tensor]:
    if isinstance(saved, Tensor):
        return [saved]
    return [t for part in saved for t in _tensors(part)] if isinstance(saved, tuple) else []


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1, 1), (3, 5), (2, 7, 3)])
def test_linear(dtype: torch.dtype, bias: bool, rows: tuple[int, ...]) -> None:
    inputs = [randn(*rows, 11), randn(11, 7), randn(7) if bias else None]
    check_op(ops.linear_forward, ops.linear_backward, lambda x, w, b: F.linear(x, w.T, b), inputs, dtype)


def test_linear_computes_in_the_weights_dtype_and_answers_in_the_inputs() -> None:
    x, weight = randn(3, 5, dtype=torch.float32), randn(5, 7, dtype=torch.bfloat16)
    y, saved = ops.linear_forward(x, weight, None)
    dx, dweight, _ = ops.linear_backward(torch.ones(3, 7), saved)
    assert (y.dtype, dx.dtype, dweight.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [5, 16, 97])
def test_layer_norm(dtype: torch.dtype, bias: bool, size: int) -> None:
    inputs = [3 + 2 * randn(3, 5, size), 1 + randn(size), randn(size, seed=3) if bias else None]
    check_op(
        ops.layer_norm_forward, ops.layer_norm_backward, lambda x, w, b: F.layer_norm(x, (size,), w, b), inputs, dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu(dtype: torch.dtype) -> None:
    x = torch.cat([randn(50), torch.linspace(-12, 12, 49, dtype=torch.float64)])
    check_op(ops.gelu_forward, ops.gelu_backward, lambda x: F.gelu(x, approximate="tanh"), [x], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout(dtype: torch.dtype, dropout: float) -> None:
    keep = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) >= dropout if dropout else None
    scale = 1.0 if keep is None else keep.double() / (1 - dropout)
    check_op(
        lambda x: ops.dropout_forward(x, keep, dropout), ops.dropout_backward, lambda x: x * scale, [randn(3, 5)], dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", [1, 2, 9])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_causal_attention(dtype: torch.dtype, time: int, heads: int, dropout: float) -> None:
    batch, size = 2, 5
    shape = (batch, heads, time, time)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(2)) >= dropout if dropout else None

    def reference(qkv: Tensor) -> Tensor:
        q, k, v = (h.unflatten(-1, (heads, size)).transpose(1, 2) for h in qkv.chunk(3, dim=-1))
        scores = q @ k.mT / size**0.5
        scores = torch.where(torch.ones(time, time).tril().bool(), scores, -torch.inf)
        weights = F.softmax(scores, -1)
        if keep is not None:
            weights = weights * keep / (1 - dropout)
        return (weights @ v).transpose(1, 2).flatten(2)

    check_op(
        lambda qkv: ops.causal_attention_forward(qkv, heads, keep, dropout),
        ops.causal_attention_backward,
        reference,
        [randn(batch, time, 3 * heads * size)],
        dtype,
    )


def test_attention_equals_the_frameworks_own() -> None:
    qkv = randn(2, 9, 3 * 4 * 6)
    q, k, v = ops.split_heads(qkv, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ops.causal_attention_forward(qkv, 4, None, 0.0)[0], expected)


IDS = torch.tensor([[3, 3, 0, 10], [3, 1, 1, 2]])  # repeated rows must add, unseen rows stay 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_lookup(dtype: torch.dtype, tied: bool) -> None:
    """A tied table is the head's matrix too: its second gradient is added."""
    d_head = randn(11, 5, dtype=dtype, seed=3) if tied else None

    def backward(dx: Tensor, saved: ops.Saved) -> Tensor:
        d_ids, d_table = ops.lookup_backward(dx, saved, d_head)
        assert d_ids is None
        return d_table if d_head is None else d_table - d_head

    check_op(
        lambda table: ops.lookup_forward(IDS, table), backward, lambda t: F.embedding(IDS, t), [randn(11, 5)], dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 2])
def test_positions(dtype: torch.dtype, start: int) -> None:
    check_op(
        lambda x, table: ops.positions_forward(x, table, start),
        ops.positions_backward,
        lambda x, table: x + table[start : start + 4],
        [randn(2, 4, 5), randn(7, 5)],
        dtype,
    )


LABELS = torch.tensor([[4, -100, 0], [36, 4, -100], [1, 2, 3], [5, 6, 7]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy(dtype: torch.dtype) -> None:
    check_op(
        lambda z: ops.cross_entropy_forward(z, LABELS),
        ops.cross_entropy_backward,
        lambda z: F.cross_entropy(z.flatten(0, 1), LABELS.flatten()),
        [4 * randn(4, 3, 37)],
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 12, 1000])
def test_linear_cross_entropy(dtype: torch.dtype, rows: int) -> None:
    check_op(
        lambda x, w: ops.linear_cross_entropy_forward(x, w, LABELS, rows),
        ops.linear_cross_entropy_backward,
        lambda x, w: F.cross_entropy((x @ w.T).flatten(0, 1), LABELS.flatten()),
        [randn(4, 3, 5), randn(37, 5)],
        dtype,
    )


def test_the_fused_head_equals_the_plain_one() -> None:
    x, weight = randn(4, 3, 5), randn(37, 5)
    logits, linear = ops.linear_forward(x, weight.T, None)
    plain, plain_saved = ops.cross_entropy_forward(logits, LABELS)
    dx, dweight, _ = ops.linear_backward(ops.cross_entropy_backward(0.7, plain_saved), linear)
    fused, fused_saved = ops.linear_cross_entropy_forward(x, weight, LABELS, rows=5)
    fused_dx, fused_dweight = ops.linear_cross_entropy_backward(0.7, fused_saved)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(fused_dx, dx)
    torch.testing.assert_close(fused_dweight, dweight.T)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits_neither_overflow_nor_lose_the_label(scale: float) -> None:
    logits = scale * randn(4, 3, 37, dtype=torch.float32)
    loss, saved = ops.cross_entropy_forward(logits, LABELS)
    expected = F.cross_entropy(logits.double().flatten(0, 1), LABELS.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.isfinite(ops.cross_entropy_backward(1.0, saved)).all()


def test_no_counted_label_gives_nan_as_pytorch_does() -> None:
    loss, _ = ops.cross_entropy_forward(randn(2, 37), torch.tensor([-100, -100]))
    assert loss.isnan()


def test_scores_for_evaluation_are_the_losses_and_the_likeliest_tokens() -> None:
    x, weight = randn(4, 3, 5), randn(37, 5)
    losses, predicted = ops.linear_cross_entropy_scores(x, weight, LABELS)
    logits = x @ weight.T
    expected = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="none").view(4, 3)
    torch.testing.assert_close(losses, expected)
    assert torch.equal(predicted, logits.argmax(-1) * (LABELS != -100))
    nothing = torch.full((4, 3), -100)
    assert not any(part.any() for part in ops.linear_cross_entropy_scores(x, weight, nothing))
