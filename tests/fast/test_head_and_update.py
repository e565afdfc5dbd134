"""The fast heads and updates against the readable ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.maths import ops, optim
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.muon import MatrixUpdate
from custom_transformer.maths.optim import SGD, AdamW
from tests.fast.closeness import BOUNDS, assert_close, wide

# N, D, V: several chunks of rows and tiles of the vocabulary, and one.
HEADS = [(7, 15, 37), (1500, 24, 4500), (1, 8, 2049), (1025, 3, 2)]


def head_problem(rows: int, d: int, vocab: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(rows, d, generator=generator, dtype=wide(dtype))
    weight = torch.randn(vocab, d, generator=generator, dtype=wide(dtype)).to(dtype)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[1::3] = ops.IGNORE_INDEX
    return x, weight, labels


def run_head(engine: Engine, problem: tuple[Tensor, ...], dloss: float = 0.7) -> dict[str, Tensor]:
    with engine.products():
        loss, saved = engine.head.loss.forward(*problem)
        dx, dweight = engine.head.loss.backward(dloss, saved)
    return {"loss": loss, "dx": dx, "dweight": dweight}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("sizes", HEADS)
def test_the_fast_heads_equal_the_readable_one(sizes: tuple[int, int, int], dtype: torch.dtype, engine: Engine) -> None:
    problem = head_problem(*sizes, dtype)
    assert_close(run_head(engine, problem), run_head(READABLE, problem), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_that_grow_along_the_vocabulary_keep_the_loss_exact(dtype: torch.dtype) -> None:
    # Logits from −1000 to 1000, the largest in the last tile: a reference that does not follow them would overflow.
    rows, vocab = 5, 5000
    x = torch.ones(rows, 1, dtype=wide(dtype))
    weight = torch.linspace(-1000, 1000, vocab, dtype=wide(dtype)).unsqueeze(1).to(dtype)
    labels = torch.tensor([0, 17, 2500, 4998, 4999])
    results = run_head(NATIVE, (x, weight, labels))
    assert all(torch.isfinite(t).all() for t in results.values())
    # A logit near 1000 is itself rounded, in float32 by up to 2⁻¹⁵, and its exponential by as much relatively.
    bound = max(BOUNDS[dtype], 2**-15) if dtype != torch.float64 else BOUNDS[dtype]
    assert_close(results, run_head(READABLE, (x, weight, labels)), bound)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_not_finite_is_seen_in_the_loss(dtype: torch.dtype, bad: float) -> None:
    x, weight, labels = head_problem(9, 5, 2100, dtype)
    x[3, 2] = bad  # a row that counts
    loss = run_head(NATIVE, (x, weight, labels))["loss"]
    assert not torch.isfinite(loss)


def test_no_label_that_counts_gives_nan_as_the_readable_head_does() -> None:
    x, weight, labels = head_problem(4, 5, 7, torch.float32)
    nothing = torch.full_like(labels, ops.IGNORE_INDEX)
    assert torch.isnan(run_head(NATIVE, (x, weight, nothing))["loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_native_updates_equal_the_readable_ones(weight_decay: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"matrix": torch.randn(37, 41, generator=generator, dtype=dtype), "vector": torch.ones(7, dtype=dtype)}
    steps = [{n: torch.randn(p.shape, generator=generator, dtype=dtype) for n, p in start.items()} for _ in range(20)]
    assert NATIVE.rules.global_norm(steps[0]) == pytest.approx(optim.global_norm(steps[0]), rel=1e-12)
    decays = {"matrix": weight_decay}
    for kind in ("sgd", "adamw"):
        ends = []
        for rules in (READABLE.rules, NATIVE.rules):
            p = {n: t.clone() for n, t in start.items()}
            optimizer: SGD | AdamW = (
                SGD(decays, rules.sgd) if kind == "sgd" else AdamW(p, (0.9, 0.9999), decays, rule=rules.adamw)
            )
            for gradients in steps:
                optimizer.update(p, gradients, 0.05, scale=0.3)
            changes = {n: t - start[n] for n, t in p.items()}
            moments = {f"{kind} {n}": t for kind in ("m", "v") for n, t in optimizer.state.get(kind, {}).items()}
            ends.append(changes | moments)
        assert_close(ends[1], ends[0], BOUNDS[dtype])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_native_norm_of_bad_gradients_is_not_finite_and_that_of_large_ones_is(bad: float) -> None:
    gradients = {"a": torch.ones(10_000), "b": torch.tensor([1.0, bad])}
    assert not math.isfinite(NATIVE.rules.global_norm(gradients))
    assert NATIVE.rules.global_norm({"g": torch.full((10,), 1e30)}) == pytest.approx(10**0.5 * 1e30)


# Of each matrix the columns from the sixth on are updated: sizes that are not whole tiles, one whose small side is more
# than a chunk of a product, and the sides in either order.
MATRICES = [(37, 46), (24, 29), (20, 136), (131, 25), (1, 5), (520, 535)]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_updates_of_muon_equal_the_readable_ones(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [[torch.randn(size, generator=generator, dtype=dtype) for size in MATRICES] for _ in range(2)]
    steps[1][2] = steps[1][2].T.contiguous().T  # one that does not lie row by row
    ends = []
    for rules in (READABLE.rules, NATIVE.rules):
        p, momenta = ([torch.zeros(size, dtype=dtype) for size in MATRICES] for _ in range(2))
        for gradients in steps:
            parts = zip(p, gradients, momenta, strict=True)
            updates = [MatrixUpdate(*(t[:, min(t.shape[1] - 1, 5) :] for t in tensors), 0.1) for tensors in parts]
            rules.muon(updates, 0.3, 0.05, 0.9)
        ends.append({f"{kind} {i}": t for kind, ts in (("p", p), ("m", momenta)) for i, t in enumerate(ts)})
    # On the small side alone, rounding errors are those of squared singular values.
    assert_close(ends[1], ends[0], 100 * BOUNDS[dtype])
