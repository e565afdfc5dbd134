"""The fast functions against the readable ones: over sizes, dtypes, options, and what may go wrong."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from custom_transformer.fast.engine import EAGER, FUSED, NATIVE, Engine, choose_engine, compiled_engine
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from custom_transformer import CustomTransformer
from custom_transformer.fast import fused, kernels, native
from custom_transformer.fast.products import fast_products
from custom_transformer.maths import blocks, ops, optim
from custom_transformer.maths.gradcheck import check_gradients
from custom_transformer.maths.optim import SGD, AdamW
from custom_transformer.runs.generation import generate
from custom_transformer.runs.training import training_step
from tests.helpers import SIZES, random_model, random_tokens

# Relative to the norm of the right result. float64 and float32: some thousand roundings of 2⁻⁵³ and 2⁻²⁴ in sums whose
# terms partly cancel. bfloat16: either path rounds each product's operands to 2⁻⁹ and neither rounds where the other
# does; over the twenty products of two blocks such errors add up like a random walk, √20 · 2⁻⁹ · √2 ≈ 1.2%, and up to
# four times that where terms cancel.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}

# B, T, D, F, H, V: all odd and different; several tiles of queries and of the vocabulary, several chunks of rows; one.
STACKS = [(3, 13, 15, 22, 3), (2, 150, 32, 70, 4), (1, 1, 8, 9, 1)]
HEADS = [(7, 15, 37), (1500, 24, 4500), (1, 8, 2049), (1025, 3, 2)]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def random_block(d: int, f: int, bias: bool, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    shapes = {"norm_1": (d,), "qkv": (d, 3 * d), "projection": (d, d), "norm_2": (d,), "up": (d, f), "down": (f, d)}
    p = {}
    for name, shape in shapes.items():
        p[f"{name}.weight"] = 0.3 * torch.randn(shape, generator=generator, dtype=dtype) + (len(shape) == 1)
        if bias:
            p[f"{name}.bias"] = 0.3 * torch.randn(shape[-1:], generator=generator, dtype=dtype)
    return p


def assert_close(actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], bound: float) -> None:
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        got = actual[name]
        if right is None or got is None:
            assert got is right, name
            continue
        assert got.shape == right.shape, name
        error = (got.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30)
        assert error < bound, f"{name}: {error}"


def run_stack(functions: object, arguments: tuple[object, ...], dy: Tensor) -> dict[str, Tensor | None]:
    y, saved = functions.stack_forward(*arguments)  # type: ignore[attr-defined]
    dx, g_blocks, g_norm = functions.stack_backward(dy, saved)  # type: ignore[attr-defined]
    results: dict[str, Tensor | None] = {"y": y, "dx": dx}
    results |= {f"{i}.{name}": g for i, block in enumerate(g_blocks) for name, g in block.items()}
    return results | {f"final.{name}": g for name, g in g_norm.items()}


@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("sizes", "bias", "dropout"), list(itertools.product(STACKS, [True, False], [0.0, 0.2])))
def test_the_fast_stacks_equal_the_readable_one(
    sizes: tuple[int, ...], bias: bool, dropout: float, dtype: torch.dtype, engine: Engine
) -> None:
    batch, time, d, f, n_heads = sizes
    generator = torch.Generator().manual_seed(0)
    p = [random_block(d, f, bias, wide(dtype), generator) for _ in range(2)]
    norm = {name.removeprefix("norm_1."): t for name, t in p[0].items() if name.startswith("norm_1")}
    x, dy = (torch.randn(batch, time, d, generator=generator, dtype=wide(dtype)) for _ in range(2))
    masks = {
        "attention": torch.rand(batch, n_heads, time, time, generator=generator) >= 0.2,
        "projection": torch.rand(batch, time, d, generator=generator) >= 0.2,
        "down": torch.rand(batch, time, d, generator=generator) >= 0.2,
    }
    given = [t.clone() for t in (x, dy)]
    arguments = (x, p, norm, n_heads, dtype, lambda: masks if dropout else {}, dropout)
    assert_close(run_stack(engine, arguments, dy), run_stack(blocks, arguments, dy), BOUNDS[dtype])
    assert torch.equal(x, given[0])
    assert torch.equal(dy, given[1])


def head_problem(rows: int, d: int, vocab: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(rows, d, generator=generator, dtype=wide(dtype))
    weight = torch.randn(vocab, d, generator=generator, dtype=wide(dtype)).to(dtype)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[1::3] = ops.IGNORE_INDEX
    return x, weight, labels


def run_head(functions: object, problem: tuple[Tensor, ...], dloss: float = 0.7) -> dict[str, Tensor | None]:
    loss, saved = functions.linear_cross_entropy_forward(*problem)  # type: ignore[attr-defined]
    dx, dweight = functions.linear_cross_entropy_backward(dloss, saved)  # type: ignore[attr-defined]
    return {"loss": loss, "dx": dx, "dweight": dweight}


@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("sizes", HEADS)
def test_the_fast_heads_equal_the_readable_one(sizes: tuple[int, int, int], dtype: torch.dtype, engine: Engine) -> None:
    problem = head_problem(*sizes, dtype)
    assert_close(run_head(engine, problem), run_head(ops, problem), BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_that_grow_along_the_vocabulary_keep_the_loss_exact(dtype: torch.dtype) -> None:
    # Logits from −1000 to 1000, the largest in the last tile: a reference that does not follow them would overflow.
    rows, vocab = 5, 5000
    x = torch.ones(rows, 1, dtype=wide(dtype))
    weight = torch.linspace(-1000, 1000, vocab, dtype=wide(dtype)).unsqueeze(1).to(dtype)
    labels = torch.tensor([0, 17, 2500, 4998, 4999])
    results = run_head(native, (x, weight, labels))
    assert all(torch.isfinite(t).all() for t in results.values() if t is not None)
    # A logit near 1000 is itself rounded, in float32 by up to 2⁻¹⁵, and its exponential by as much relatively.
    bound = max(BOUNDS[dtype], 2**-15) if dtype != torch.float64 else BOUNDS[dtype]
    assert_close(results, run_head(ops, (x, weight, labels)), bound)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_is_not_finite_is_seen_in_the_loss(dtype: torch.dtype, bad: float) -> None:
    x, weight, labels = head_problem(9, 5, 2100, dtype)
    x[3, 2] = bad  # a row that counts
    loss, _ = native.linear_cross_entropy_forward(x, weight, labels)
    assert not torch.isfinite(loss)


def test_no_label_that_counts_gives_nan_as_the_readable_head_does() -> None:
    x, weight, labels = head_problem(4, 5, 7, torch.float32)
    nothing = torch.full_like(labels, ops.IGNORE_INDEX)
    assert torch.isnan(native.linear_cross_entropy_forward(x, weight, nothing)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_native_updates_equal_the_readable_ones(weight_decay: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"matrix": torch.randn(37, 41, generator=generator, dtype=dtype), "vector": torch.ones(7, dtype=dtype)}
    steps = [{n: torch.randn(p.shape, generator=generator, dtype=dtype) for n, p in start.items()} for _ in range(20)]
    assert native.global_norm(steps[0]) == pytest.approx(optim.global_norm(steps[0]), rel=1e-12)
    for kind in ("sgd", "adamw"):
        ends = []
        for rules in (optim, native):
            p = {n: t.clone() for n, t in start.items()}
            betas = (0.9, 0.9999)
            optimizer: SGD | AdamW = (
                SGD(weight_decay, rules.sgd_update)
                if kind == "sgd"
                else AdamW(p, betas, weight_decay, rule=rules.adamw_update)
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
    assert not math.isfinite(native.global_norm(gradients))
    assert native.global_norm({"g": torch.full((10,), 1e30)}) == pytest.approx(10**0.5 * 1e30)


@pytest.mark.parametrize(("tie_embeddings", "bias", "dropout"), [(True, True, 0.2), (False, False, 0.0)])
@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
def test_every_fast_gradient_is_right(tie_embeddings: bool, bias: bool, dropout: float, engine: Engine) -> None:
    config = random_model(tie_embeddings=tie_embeddings, bias=bias, dropout=dropout).config
    assert [check for check in check_gradients(config, engine=engine) if not check.ok] == []


@pytest.mark.parametrize("engine", ["native", "fused", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_training_step_is_the_same_by_every_engine(tie_embeddings: bool, dtype: torch.dtype, engine: str) -> None:
    ends = []
    tokens = random_tokens()
    for functions in (EAGER, {"native": NATIVE, "fused": FUSED}.get(engine) or compiled_engine()):
        model = random_model(dtype, tie_embeddings=tie_embeddings, engine=functions)
        before, optimizer = model.state_dict(), SGD(rule=functions.sgd_update)
        results = [
            training_step(
                model, optimizer, [(tokens[:2, :-1], tokens[:2, 1:]), (tokens[2:, :-1], tokens[2:, 1:])], 1e-3, 0.5
            )
            for _ in range(3)
        ]
        ends.append((results, {name: p - before[name] for name, p in model.parameters.items()}))
    for a, b in zip(ends[1][0], ends[0][0], strict=True):
        assert a.status == "ok"
        assert a.loss == pytest.approx(b.loss, rel=BOUNDS[dtype])
        assert a.grad_norm_before_clip == pytest.approx(b.grad_norm_before_clip, rel=BOUNDS[dtype])
    # Three steps' errors add up, and a change is rounded with the parameter it is added to.
    assert_close(ends[1][1], ends[0][1], 10 * BOUNDS[dtype])


@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_backward_from_logits_is_the_same_by_every_engine(
    tie_embeddings: bool, dtype: torch.dtype, engine: Engine
) -> None:
    gradients, tokens = [], random_tokens()
    for functions in (EAGER, engine):
        model = random_model(dtype, tie_embeddings=tie_embeddings, engine=functions)
        _, saved = ops.cross_entropy_forward(model.forward(tokens), tokens)
        model.backward(ops.cross_entropy_backward(1.0, saved))
        gradients.append(model.gradients)
    assert_close(gradients[1], gradients[0], BOUNDS[dtype])


def test_parameters_loaded_from_a_transposed_tensor_train_all_the_same() -> None:
    state = random_model(torch.float32).state_dict()
    state["blocks.0.up.weight"] = state["blocks.0.up.weight"].T.contiguous().T
    model = random_model(torch.float32, engine=NATIVE)
    model.load_state_dict(state)
    tokens = random_tokens()
    assert training_step(model, SGD(rule=NATIVE.sgd_update), [(tokens, tokens)], 0.1, 1.0).status == "ok"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_native_runs_give_identical_bits(dtype: torch.dtype) -> None:
    ends = []
    for _ in range(2):
        model = CustomTransformer({**SIZES, "dropout": 0.1}, dtype=dtype, engine=NATIVE)
        model.training = True
        optimizer, tokens = AdamW(model.parameters, rule=NATIVE.adamw_update), random_tokens()
        losses = [training_step(model, optimizer, [(tokens, tokens)], 1e-2, 1.0).loss for _ in range(5)]
        ends.append((losses, model.parameters))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(p, ends[1][1][name]) for name, p in ends[0][1].items())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("batch", "bias"), [(1, True), (3, False), (17, True)])
def test_native_decoding_equals_the_readable_one(batch: int, bias: bool, dtype: torch.dtype) -> None:
    d, f, n_heads, capacity, length = 15, 22, 3, 40, 30
    generator = torch.Generator().manual_seed(0)
    p = blocks.in_product_dtype(random_block(d, f, bias, wide(dtype), generator), dtype)
    x = torch.randn(batch, 1, d, generator=generator, dtype=wide(dtype))
    past = torch.randn(2, batch, n_heads, capacity, d // n_heads, generator=generator).to(dtype)
    head = torch.randn(37, d, generator=generator).to(dtype)
    results = []
    for functions in (EAGER, NATIVE):
        keys, values = past.clone().unbind()
        y = functions.cached_block_forward(x, p, n_heads, keys, values, length)
        results.append({"y": y, "keys": keys, "values": values, "logits": functions.last_logits(y, head)})
    assert_close(results[1], results[0], BOUNDS[dtype])


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_native_generation_draws_the_readable_ones_tokens(tie_embeddings: bool) -> None:
    texts = [
        generate(
            random_model(tie_embeddings=tie_embeddings, engine=engine),  # float64: no near-tie is decided by rounding
            random_tokens(time=4),
            20,  # beyond max_seq_len, where the window slides
            generator=torch.Generator().manual_seed(5),
        )
        for engine in (EAGER, NATIVE)
    ]
    assert torch.equal(texts[0], texts[1])


def test_float32_products_stay_float32_and_the_setting_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    a, b = torch.randn(64, 64), torch.randn(64, 64)

    @fast_products
    def product() -> Tensor:
        return a @ b

    right = a.double() @ b.double()
    assert (product() - right).norm() / right.norm() < 1e-6
    assert torch.get_float32_matmul_precision() == before


def test_a_kernel_refuses_tensors_it_would_misread() -> None:
    square = kernels.kernel("sum_of_squares", torch.float32)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        square(torch.ones(3, dtype=torch.float64), 3)
    with pytest.raises(ValueError, match="contiguous"):
        square(torch.ones(3, 2).T, 6)


# ------------------------------------------------------------------------------------------ compiling and choosing


def choose_in_a_process(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import torch; from custom_transformer.fast.engine import choose_engine\n"
        "print(choose_engine(True, torch.device('cpu'), 0).name)"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_kernels_are_compiled_once_and_found_again(tmp_path: Path) -> None:
    assert choose_in_a_process(tmp_path).stdout == "native\n"
    (built,) = (tmp_path / "custom_transformer").iterdir()
    made = built.stat().st_mtime_ns
    assert choose_in_a_process(tmp_path).stdout == "native\n"
    assert built.stat().st_mtime_ns == made


def test_without_a_compiler_it_is_the_fused_functions_and_one_line_says_so(tmp_path: Path) -> None:
    done = choose_in_a_process(tmp_path, PATH=str(tmp_path))
    assert done.stdout == "fused\n"
    assert done.stderr == "computing without the compiled kernels: no C++ compiler was found\n"


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("#!/bin/sh\necho 'c++: fatal error: no such thing' >&2; exit 1\n", "fatal error: no such thing"),
        ("no program", "Exec format error"),
        (
            "#!/bin/sh\necho 'ld: final link failed: disk full\ncollect2: error: ld returned 1' >&2; exit 1\n",
            "final link failed: disk full",
        ),
    ],
)
def test_with_a_compiler_that_does_not_work_too(compiler: str, message: str, tmp_path: Path) -> None:
    broken, cache = tmp_path / "c++", tmp_path / "cache"
    broken.write_text(compiler)
    broken.chmod(0o755)
    done = choose_in_a_process(cache, CXX=str(broken))
    assert done.stdout == "fused\n"
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_with_a_cache_that_cannot_be_written_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = choose_in_a_process(tmp_path / "file")
    assert done.stdout == "fused\n"
    assert "Not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_choice_follows_the_parameter_and_the_length_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = torch.device("cpu")
    assert choose_engine(False, cpu, 1e20) is EAGER
    assert choose_engine("auto", cpu, 1e9) is EAGER
    assert capsys.readouterr().err.count("\n") == 1
    assert choose_engine("auto", torch.device("mps"), 1e20) is EAGER
    assert choose_engine("auto", cpu, 1e20) is NATIVE
    assert choose_engine(True, cpu, 0) is NATIVE
    assert choose_engine(True, torch.device("cuda"), 0).name == "compiled"
    assert choose_engine("auto", torch.device("cuda"), 1e12) is EAGER


# ----------------------------------------------------------------------------------------------- for a GPU


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
    with FakeTensorMode():
        shapes = {name: t.shape for name, t in random_block(24, 40, True, torch.float32, torch.Generator()).items()}
        p = {n: torch.empty(shape, device="cuda") for n, shape in shapes.items()}
        p = blocks.in_product_dtype(p, dtype)
        x = torch.empty(2, 16, 24, device="cuda")
        y, saved = blocks.block_forward(x, p, 3, {}, 0.0, fused)
        dx, gradients = blocks.block_backward(torch.empty_like(y), saved, fused)
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == (x.shape, x.dtype, x.shape, x.dtype)
    assert y.device == dx.device == x.device
    assert {n: None if g is None else g.shape for n, g in gradients.items()} == {n: t.shape for n, t in p.items()}
