"""The fast functions against the readable ones: over sizes, dtypes, options, and what may go wrong."""

from __future__ import annotations

import ast
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from custom_transformer import CustomTransformer
from custom_transformer.config import CustomTransformerConfig, load_params
from custom_transformer.errors import UserError
from custom_transformer.fast import fused, kernels
from custom_transformer.fast.choose import FUSED, NATIVE, choose_device, choose_engine, prepare
from custom_transformer.fast.compiled import compiled_engine
from custom_transformer.fast.products import fast_products
from custom_transformer.maths import ops, optim
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.gradcheck import check_gradients
from custom_transformer.maths.optim import SGD, AdamW
from custom_transformer.maths.parameters import InProducts, Tensors
from custom_transformer.maths.scope import Dropout, Scope
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


def random_parameters(config: CustomTransformerConfig, dtype: torch.dtype, generator: torch.Generator) -> Tensors:
    """Of a whole model, on the table's names; gains near 1."""
    return {
        name: 0.3 * torch.randn(shape, generator=generator, dtype=wide(dtype)) + (role == "gain")
        for name, (shape, role) in GPT2.parameters(config).items()
    }


def config_of(d: int, f: int, n_heads: int, **changes: Any) -> CustomTransformerConfig:
    sizes = {"vocab_size": 1, "max_seq_len": 1, "n_blocks": 2, "n_heads": n_heads, "d_model": d, "d_ffn": f}
    return CustomTransformerConfig(**{**sizes, **changes})


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float) -> None:
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        got = actual[name]
        assert got.shape == right.shape, name
        error = (got.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30)
        assert error < bound, f"{name}: {error}"


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("engine", [NATIVE, FUSED], ids=["native", "fused"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("sizes", "bias", "dropout"), list(itertools.product(STACKS, [True, False], [0.0, 0.2])))
def test_the_fast_stacks_equal_the_readable_one(
    sizes: tuple[int, ...], bias: bool, dropout: float, dtype: torch.dtype, engine: Engine
) -> None:
    batch, time, d, f, n_heads = sizes
    config = config_of(d, f, n_heads, bias=bias, dropout=dropout)
    generator = torch.Generator().manual_seed(0)
    parameters = random_parameters(config, dtype, generator)
    x, dy = (torch.randn(batch, time, d, generator=generator, dtype=wide(dtype)) for _ in range(2))
    given = [t.clone() for t in (x, dy)]
    results = []
    for functions in (READABLE, engine):
        drop = Dropout(dropout, torch.Generator().manual_seed(1))
        at = Scope(
            InProducts(parameters, GPT2.parameters(config), dtype),
            saved={},
            equals=functions.equals,
            dropout=drop if dropout else None,
        )
        stack = functions.stack(GPT2)
        y = stack.forward(x, at, config)
        dx = stack.backward(dy, at, config)
        assert at.saved == {}
        results.append({"y": y, "dx": dx, **at.gradients})
    inside = {name for name in parameters if name.startswith(("blocks.", "final_norm"))}
    assert results[0].keys() == {"y", "dx"} | inside
    assert all(results[1][name].dtype == wide(dtype) for name in inside)
    assert_close(results[1], results[0], BOUNDS[dtype])
    assert torch.equal(x, given[0])
    assert torch.equal(dy, given[1])


def head_problem(rows: int, d: int, vocab: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(rows, d, generator=generator, dtype=wide(dtype))
    weight = torch.randn(vocab, d, generator=generator, dtype=wide(dtype)).to(dtype)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[1::3] = ops.IGNORE_INDEX
    return x, weight, labels


def run_head(engine: Engine, problem: tuple[Tensor, ...], dloss: float = 0.7) -> dict[str, Tensor]:
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
    loss, _ = NATIVE.head.loss.forward(x, weight, labels)
    assert not torch.isfinite(loss)


def test_no_label_that_counts_gives_nan_as_the_readable_head_does() -> None:
    x, weight, labels = head_problem(4, 5, 7, torch.float32)
    nothing = torch.full_like(labels, ops.IGNORE_INDEX)
    assert torch.isnan(NATIVE.head.loss.forward(x, weight, nothing)[0])


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


def engine_of(name: str) -> Engine:
    return {"native": NATIVE, "fused": FUSED}.get(name) or compiled_engine()


@pytest.mark.parametrize("engine", [READABLE, NATIVE, FUSED], ids=lambda engine: engine.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_depends_on_what_new_memory_holds(
    dtype: torch.dtype, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, tokens = [], random_tokens()
    for filled in (True, False):  # deterministic mode may fill each new tensor with NaN
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", filled)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        model = random_model(dtype, dropout=0.2, engine=engine)
        optimizer = AdamW(model.parameters, (0.9, 0.999), {}, rule=engine.rules.adamw)
        result = training_step(model, optimizer, [(tokens[:, :-1], tokens[:, 1:])], 1e-2, 1.0)
        text = generate(model, tokens[:, :3], 12, generator=torch.Generator().manual_seed(0))
        torch.use_deterministic_algorithms(before)
        ends.append((result, text, model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert all(torch.equal(p, ends[1][2][name]) for name, p in ends[0][2].items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_native_norm_of_bad_gradients_is_not_finite_and_that_of_large_ones_is(bad: float) -> None:
    gradients = {"a": torch.ones(10_000), "b": torch.tensor([1.0, bad])}
    assert not math.isfinite(NATIVE.rules.global_norm(gradients))
    assert NATIVE.rules.global_norm({"g": torch.full((10,), 1e30)}) == pytest.approx(10**0.5 * 1e30)


@pytest.mark.parametrize(("tie_embeddings", "bias", "dropout"), [(True, True, 0.2), (False, False, 0.0)])
@pytest.mark.parametrize("engine", ["native", "fused", "compiled"])
def test_every_fast_gradient_is_right(tie_embeddings: bool, bias: bool, dropout: float, engine: str) -> None:
    config = random_model(tie_embeddings=tie_embeddings, bias=bias, dropout=dropout).config
    assert [check for check in check_gradients(config, engine=engine_of(engine)) if not check.ok] == []


@pytest.mark.parametrize("engine", ["native", "fused", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_training_step_is_the_same_by_every_engine(tie_embeddings: bool, dtype: torch.dtype, engine: str) -> None:
    ends = []
    tokens = random_tokens()
    for functions in (READABLE, engine_of(engine)):
        model = random_model(dtype, tie_embeddings=tie_embeddings, engine=functions)
        before, optimizer = model.state_dict(), SGD({}, functions.rules.sgd)
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
    for functions in (READABLE, engine):
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
    assert training_step(model, SGD({}, NATIVE.rules.sgd), [(tokens, tokens)], 0.1, 1.0).status == "ok"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_native_runs_give_identical_bits(dtype: torch.dtype) -> None:
    ends = []
    for _ in range(2):
        model = CustomTransformer({**SIZES, "dropout": 0.1}, dtype=dtype, engine=NATIVE)
        model.training = True
        optimizer, tokens = AdamW(model.parameters, (0.9, 0.999), {}, rule=NATIVE.rules.adamw), random_tokens()
        losses = [training_step(model, optimizer, [(tokens, tokens)], 1e-2, 1.0).loss for _ in range(5)]
        ends.append((losses, model.parameters))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(p, ends[1][1][name]) for name, p in ends[0][1].items())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("batch", "bias"), [(1, True), (3, False), (17, True)])
def test_native_decoding_equals_the_readable_one(batch: int, bias: bool, dtype: torch.dtype) -> None:
    config, capacity, length = config_of(15, 22, 3, bias=bias), 40, 30
    generator = torch.Generator().manual_seed(0)
    at = Scope(InProducts(random_parameters(config, dtype, generator), GPT2.parameters(config), dtype)) / "blocks.0"
    x = torch.randn(batch, 1, config.d_model, generator=generator, dtype=wide(dtype))
    past = torch.randn(2, batch, 3, capacity, config.head_size, generator=generator).to(dtype)
    head = torch.randn(37, config.d_model, generator=generator).to(dtype)
    results = []
    for engine in (READABLE, NATIVE):
        cache = KeyValues(capacity)
        cache.length, (cache.keys, cache.values) = length, past.clone().unbind()
        y = engine.stack(GPT2).cached_block(x, at, config, cache)
        assert cache.length == length + 1
        logits = engine.head.last_logits(y, head)
        results.append({"y": y, "keys": cache.keys, "values": cache.values, "logits": logits})
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
        for engine in (READABLE, NATIVE)
    ]
    assert torch.equal(texts[0], texts[1])


def test_float32_products_stay_float32_and_the_setting_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    a, b = torch.randn(64, 64), torch.randn(64, 64)

    right = a.double() @ b.double()
    with fast_products():
        product = a @ b
    assert (product - right).norm() / right.norm() < 1e-6
    assert torch.get_float32_matmul_precision() == before


def test_a_kernel_refuses_tensors_it_would_misread() -> None:
    square = kernels.kernel("sum_of_squares", torch.float32)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        square(torch.ones(3, dtype=torch.float64), 3)
    with pytest.raises(ValueError, match="contiguous"):
        square(torch.ones(3, 2).T, 6)
    with pytest.raises(ValueError, match=r"sum_of_squares: g: .* of 7 elements .* not .*6"):
        square(torch.ones(6), 7)
    with pytest.raises(ValueError, match="NoneType"):
        square(None, 6)


def test_no_kernel_takes_a_tensor_that_is_one_element_short() -> None:
    """Of every kernel, each pointer in turn; a pointer that may be null may also be left out."""
    sizes = dict.fromkeys(["time", "keys", "capacity"], 4) | {"length": 2, "first": 0, "part_index": 0}
    dtypes = {"T*": torch.float64, "W*": torch.float64} | kernels._DTYPE_OF
    for name, (_, parameters) in kernels._signatures().items():
        index = {p.name: sizes.get(p.name, 2) for p in parameters if p.kind == "Index"}

        def arguments(
            wrong: str = "", add: int = 0, parameters: Any = parameters, index: dict[str, int] = index
        ) -> list[Any]:
            made: list[Any] = []
            for p in parameters:
                count = math.prod(int(size) if size.isdigit() else index[size] for size in p.sizes)
                count += add * (p.name == wrong)
                made.append(torch.ones(count, dtype=dtypes[p.kind]) if p.kind in dtypes else index.get(p.name, 0.5))
            return made

        kernel = kernels.kernel(name, torch.float64)
        kernel(*arguments())
        for p in parameters:
            for add in (-1, 1) if p.kind in dtypes else ():
                with pytest.raises(ValueError, match=f"^{name}: {p.name}: .* elements"):
                    kernel(*arguments(p.name, add))


def test_each_exported_kernel_has_a_signature_of_the_types_it_is_called_with() -> None:
    source = kernels._SOURCE.read_text(encoding="utf-8")
    exported = set(re.findall(r"EXPORT\w*\((\w+)\)", source)) - {"function"}
    signatures = kernels._signatures()
    assert signatures.keys() == exported
    assert len(exported) > 10
    pointers, numbers = {"T*", "W*", *kernels._DTYPE_OF}, {"W", *kernels._NUMBERS} - {"void"}
    for name, (result, parameters) in signatures.items():
        assert result in ("void", "double"), name
        assert parameters, name
        sizes = {parameter.name for parameter in parameters if parameter.kind == "Index"}
        for parameter in parameters:
            assert parameter.kind in pointers | numbers, name
            assert bool(parameter.sizes) == (parameter.kind in pointers), f"{name}: the sizes of {parameter.name}"
            assert all(size.isdigit() or size in sizes for size in parameter.sizes), name


def kernel_calls() -> list[tuple[str, list[ast.expr]]]:
    """Each call `kernel("name", dtype)(…)` in the package: the kernel's name and the arguments it is given."""
    calls = []
    for path in kernels._SOURCE.parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Call(ast.Name("kernel"), [ast.Constant(str(name)), _]), arguments):
                    calls.append((name, arguments))
    return calls


def could_be(arguments: list[ast.expr], count: int) -> bool:
    """`*x.shape` counts as the two sizes of a matrix; how many `*name` stands for shows only when it runs."""
    stars = [a.value for a in arguments if isinstance(a, ast.Starred)]
    known = len(arguments) - len(stars) + 2 * sum(isinstance(star, ast.Attribute) for star in stars)
    return known < count if any(isinstance(star, ast.Name) for star in stars) else known == count


def test_every_call_of_a_kernel_has_as_many_arguments_as_its_signature() -> None:
    calls, signatures = kernel_calls(), kernels._signatures()
    assert {name for name, _ in calls} == signatures.keys()
    assert [name for name, arguments in calls if not could_be(arguments, len(signatures[name][1]))] == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_arguments_is_refused_before_the_kernel_runs(count: int) -> None:
    square = kernels.kernel("sum_of_squares", torch.float32)
    with pytest.raises(ValueError, match="argument"):
        square(torch.ones(3), *[3] * (count - 1))


# ------------------------------------------------------------------------------------------ compiling and choosing


def choose_in_a_process(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import torch; from custom_transformer.fast.choose import choose_engine\n"
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
    assert choose_engine(False, cpu, 1e20) is READABLE
    assert choose_engine("auto", cpu, 1e9) is READABLE
    assert choose_engine("auto", torch.device("mps"), 1e20) is READABLE
    assert choose_engine("auto", cpu, 1e20) is NATIVE
    assert choose_engine(True, cpu, 0) is NATIVE
    assert choose_engine(True, torch.device("cuda"), 0).name == "compiled"
    assert choose_engine("auto", torch.device("cuda"), 1e12) is READABLE
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("choice", "gpu", "device", "line"),
    [
        ("auto", None, "cpu", "training.device: auto takes the processor, since PyTorch finds no NVIDIA GPU\n"),
        ("auto", "A GPU", "cuda", "training.device: auto takes A GPU\n"),
        ("cpu", None, "cpu", ""),
        ("cpu", "A GPU", "cpu", ""),
        ("cuda", "A GPU", "cuda", ""),
    ],
)
def test_the_device_follows_the_parameter_and_auto_says_what_it_took(
    choice: Any,
    gpu: str | None,
    device: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    assert choose_device(choice) == torch.device(device)
    assert capsys.readouterr() == ("", line)


def test_a_gpu_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^training\.device: cuda: .*no NVIDIA GPU.*set it to cpu or auto$"):
        choose_device("cuda")


def test_a_process_is_prepared_for_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device and engine together, and deterministic from here on."""
    noted: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", noted.append)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = load_params("configs/smoke.yaml").training
    for compile, flops, engine in ((False, 1e20, READABLE), (True, 0.0, NATIVE), ("auto", 1e9, READABLE)):
        chosen = training.model_copy(update={"device": "cpu", "compile": compile})
        assert prepare(chosen, flops) == (torch.device("cpu"), engine)
    assert noted == [True] * 3
    assert torch.utils.deterministic.fill_uninitialized_memory is False
    with pytest.raises(UserError, match=r"training\.device"):
        prepare(training.model_copy(update={"device": "cuda"}), 1e20)


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
    config = config_of(24, 40, 3)
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
