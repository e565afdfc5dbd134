"""What a caller may hand over, and what comes back, is the same whichever engine computes."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from custom_transformer import CustomTransformer, CustomTransformerWrapper
from custom_transformer.fast import attention
from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.optim import SGD, AdamW, Muon, Optimizer
from custom_transformer.runs.generation import generate
from custom_transformer.runs.observe import activation_statistics
from custom_transformer.runs.scoring import score
from custom_transformer.runs.step import training_step
from tests.fast.engines import ENGINES, captured_engine
from tests.helpers import LLAMA, SIZES, random_model, random_tokens

TOKENS, LABELS = random_tokens(), random_tokens(seed=2)


NAN = float("nan")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]()


# torch.compile compiles again for each shape and setting, which takes long.
QUICK = pytest.mark.parametrize("engine", [READABLE, FUSED, NATIVE], ids=lambda engine: engine.name)


def wrapper(engine: Engine, **changes: Any) -> CustomTransformerWrapper:
    wrapped = CustomTransformerWrapper(**{**SIZES, **changes}, device="cpu")
    wrapped.model = random_model(torch.float32, engine=engine, **changes)
    return wrapped


def step(model: CustomTransformer, *batches: tuple[Any, Any], rate: Any = 0.1, clip: Any = 1.0) -> Any:
    return training_step(model, SGD({}, model.engine.rules.sgd), batches, rate, clip)


def cached(model: CustomTransformer, tokens: Any, lengths: list[int], rows: int = 3) -> Tensor:
    """The logits after `tokens` where each cache holds as many earlier ones as `lengths` says."""
    caches = [KeyValues(model.config.max_seq_len) for _ in lengths]
    for cache, length in zip(caches, lengths, strict=True):
        cache.length = length
        cache.keys = cache.values = torch.zeros(rows, 3, model.config.max_seq_len, 5)
    return model.cached_logits(tokens, caches, model.in_products(), model.head_weight())


WRONG_TOKENS = {
    "list": ([[1, 2]], "not list"),
    "int32": (TOKENS.int(), r"\(3, 11\) torch\.int32"),
    "float": (TOKENS.float(), r"torch\.float32"),
    "bool": (TOKENS.bool(), r"torch\.bool"),
    "one axis": (TOKENS[0], r"\(11,\)"),
    "three axes": (TOKENS[None], r"\(1, 3, 11\)"),
    "no rows": (TOKENS[:0], r"\(0, 11\)"),
    "no columns": (TOKENS[:, :0], r"at least 1|at least one"),
    "too long": (random_tokens(time=15), "max_seq_len is 13"),
    "negative": (TOKENS - 40, r"token id -\d+"),
    "too large": (TOKENS + 30, "vocabulary of 37"),
    "meta": (TOKENS.to("meta"), "on cpu as the model is, not on meta"),
    "sparse": (TOKENS.to_sparse(), "dense"),
}
WRONG_LABELS = {
    "none": (None, "not NoneType"),
    "int32": (LABELS.int(), r"\(3, 11\) torch\.int32"),
    "float": (LABELS.float(), r"torch\.float32"),
    "a column short": (LABELS[:, :10], r"\(3, 11\), not \(3, 10\)"),
    "a row short": (LABELS[:2], r"\(3, 11\), not \(2, 11\)"),
    "one row for all": (LABELS[:1], r"\(3, 11\), not \(1, 11\)"),
    "a column more": (random_tokens(time=12), r"\(3, 11\), not \(3, 12\)"),
    "as many in another shape": (LABELS.reshape(11, 3), r"\(3, 11\), not \(11, 3\)"),
    "flat": (LABELS.flatten(), r"\(33,\)"),
    "meta": (LABELS.to("meta"), "on meta"),
    "too large": (LABELS + 30, r"label \d+ is neither in the vocabulary of 37 nor -100"),
    "negative": (LABELS - 40, r"label -\d+ is neither"),
}


@pytest.mark.parametrize(("tokens", "message"), WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_tokens_that_do_not_fit_are_refused_by_every_entry_alike(tokens: Any, message: str, engine: Engine) -> None:
    model = random_model(torch.float32, engine=engine)
    before = model.state_dict()
    labels = torch.zeros_like(tokens, dtype=torch.int64) if isinstance(tokens, Tensor) else tokens
    entries: list[Callable[[], object]] = [
        lambda: model.forward(tokens),
        lambda: model.hidden(tokens),
        lambda: model.loss(tokens, labels),
        lambda: model.scores(tokens, labels),
        lambda: model.last_logits(tokens, model.in_products(), model.head_weight()),
        lambda: cached(model, tokens, [0, 0]),
        lambda: step(model, (TOKENS, LABELS), (tokens, labels)),
        lambda: activation_statistics(model, tokens),
    ]
    for entry in entries:
        with pytest.raises(ValueError, match=message):
            entry()
    assert all(torch.equal(model.parameters[name], p) for name, p in before.items())
    assert model.loss(TOKENS, LABELS).isfinite()


@pytest.mark.parametrize("kind", [kind for kind in WRONG_TOKENS if kind != "too long"])
def test_prompts_and_inputs_of_the_wrapper_too(kind: str, engine: Engine) -> None:
    tokens, message = WRONG_TOKENS[kind]
    wrapped, model = wrapper(engine), random_model(torch.float32, engine=engine)
    entries = [
        lambda: wrapped.forward(tokens),
        lambda: wrapped.train_step(tokens, tokens),
        lambda: wrapped.generate(tokens, 13),
        lambda: generate(model, tokens, 13),
        lambda: generate(model, tokens, 1),  # nothing is left to generate
        lambda: score(model, tokens, tokens),
    ]
    for entry in entries:
        # The wrapper may see first that tokens outside the vocabulary are wrong as labels.
        with pytest.raises(ValueError, match=f"{message}|label|on meta"):
            entry()


@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_that_do_not_fit_their_tokens_are_refused_by_every_entry_alike(
    labels: Any, message: str, engine: Engine
) -> None:
    model, wrapped = random_model(torch.float32, engine=engine), wrapper(engine)
    before = model.state_dict()
    entries: list[Callable[[], object]] = [
        lambda: model.loss(TOKENS, labels),
        lambda: model.scores(TOKENS, labels),
        lambda: score(model, TOKENS, labels),
        lambda: step(model, (TOKENS, LABELS), (TOKENS, labels)),
        lambda: wrapped.train_step(TOKENS, labels),
    ]
    if labels is not None:
        entries.append(lambda: wrapped.forward(TOKENS, labels))
    for entry in entries:
        with pytest.raises(ValueError, match=message):
            entry()
    assert all(torch.equal(model.parameters[name], p) for name, p in before.items())


def test_a_batch_whose_later_part_is_wrong_trains_nothing(engine: Engine) -> None:
    model = random_model(torch.float32, engine=engine)
    before = model.state_dict()
    with pytest.raises(ValueError, match="at least one"):
        step(model)
    with pytest.raises(ValueError, match="label 99"):
        step(model, (TOKENS, LABELS), (TOKENS, torch.full_like(LABELS, 99)))
    assert all(torch.equal(model.parameters[name], p) for name, p in before.items())


@QUICK
def test_one_token_has_no_label_and_two_have_one(engine: Engine) -> None:
    wrapped = wrapper(engine)
    assert wrapped.forward(TOKENS[:, :1])["logits"].shape == (3, 1, 37)
    for call in (wrapped.train_step, wrapped.forward):
        with pytest.raises(ValueError, match="at least 2 tokens"):
            call(TOKENS[:, :1], TOKENS[:, :1])
    assert wrapped.train_step(TOKENS[:, :2], TOKENS[:, :2])["status"] == "ok"
    longest = random_tokens(time=14)  # 13 inputs, and a label for each
    assert wrapped.train_step(longest, longest)["status"] == "ok"


@pytest.mark.parametrize("rate", [NAN, math.inf, -math.inf, -0.1, 1e39, 10**400, None, "0.1", torch.tensor(0.1)])
def test_a_learning_rate_that_would_ruin_the_weights_is_refused(rate: Any, engine: Engine) -> None:
    model, wrapped = random_model(torch.float32, engine=engine), wrapper(engine)
    model.loss(TOKENS, LABELS)
    model.loss_backward()
    optimizers = (
        SGD({}, engine.rules.sgd),
        AdamW(model.parameters, (0.9, 0.99), {}, rule=engine.rules.adamw),
        Muon(model.parameters, {"blocks.0.up.weight": 2}, (0.9, 0.99), {}, 2.0, 0.95, engine.rules),
    )
    before, wrapped_before = model.state_dict(), wrapped.model.state_dict()
    entries: list[Callable[[], object]] = [
        lambda: step(model, (TOKENS, LABELS), rate=rate),
        lambda: wrapped.train_step(TOKENS, TOKENS, learning_rate=rate),
        lambda: model.update_parameters(rate),
        *(lambda o=o: o.update(model.parameters, model.gradients, rate) for o in optimizers),  # type: ignore[misc]
    ]
    for entry in entries:
        with pytest.raises(ValueError, match="learning_rate must be a number ≥ 0"):
            entry()
    assert all(torch.equal(model.parameters[name], p) for name, p in before.items())
    assert all(torch.equal(wrapped.model.parameters[name], p) for name, p in wrapped_before.items())
    assert [int(o.state["t"]["t"]) for o in optimizers[1:]] == [0, 0]


@pytest.mark.parametrize("clip", [NAN, 0, -1.0, "1", -math.inf])
def test_a_norm_to_clip_to_that_is_not_above_zero_is_refused(clip: Any, engine: Engine) -> None:
    wrapped = wrapper(engine)
    before = wrapped.model.state_dict()
    with pytest.raises(ValueError, match="max_grad_norm must be a number > 0"):
        wrapped.train_step(TOKENS, TOKENS, max_grad_norm=clip)
    assert all(torch.equal(wrapped.model.parameters[name], p) for name, p in before.items())


@pytest.mark.parametrize("clip", [None, math.inf])
def test_without_a_norm_to_clip_to_the_gradients_are_applied_as_they_are(clip: float | None, engine: Engine) -> None:
    result = wrapper(engine).train_step(TOKENS, TOKENS, max_grad_norm=clip)
    assert result["grad_norm"] == result["grad_norm_before_clip"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": NAN}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": NAN}, "top_p"),
        ({"max_length": -1}, "max_length"),
        ({"max_length": 12.5}, "max_length"),
        ({"eos_token_id": 37}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"generator": 1}, "generator"),
    ],
)
def test_settings_of_generation_are_refused_also_where_nothing_is_left_to_generate(
    settings: dict[str, Any], message: str, engine: Engine
) -> None:
    for length in (20, 3):
        with pytest.raises(ValueError, match=message):
            wrapper(engine).generate(TOKENS, **{"max_length": length} | settings)


@pytest.mark.parametrize(
    "gradient",
    [
        torch.ones(3, 11, 36),
        torch.ones(3, 10, 37),
        torch.ones(37),
        torch.ones(3, 11, 37, dtype=torch.int64),
        torch.ones(3, 11, 37, dtype=torch.complex64),
        torch.ones(3, 11, 37, device="meta"),
        1.0,
    ],
    ids=lambda g: f"{tuple(g.shape)} {g.dtype} {g.device}" if isinstance(g, Tensor) else str(g),
)
def test_a_gradient_that_is_not_the_logits_is_refused_and_the_right_one_may_follow(
    gradient: Any, engine: Engine
) -> None:
    model = random_model(torch.float32, engine=engine)
    logits = model.forward(TOKENS)
    with pytest.raises(ValueError, match=r"loss_gradient must be .*\(3, 11, 37\)|on cpu as the model is"):
        model.backward(gradient)
    model.backward(torch.ones_like(logits))
    assert model.gradients.keys() == model.parameters.keys()


@pytest.mark.parametrize(
    "dloss", [NAN, math.inf, "1", torch.ones(3), torch.tensor(1), torch.tensor(1.0, device="meta")]
)
def test_a_loss_is_scaled_by_one_finite_number(dloss: Any, engine: Engine) -> None:
    model = random_model(torch.float32, engine=engine)
    model.loss(TOKENS, LABELS)
    with pytest.raises(ValueError, match="dloss must be"):
        model.loss_backward(dloss)
    model.loss_backward(torch.tensor(2.0))
    doubled = model.gradients
    model.loss(TOKENS, LABELS)
    model.loss_backward(2)
    assert all(torch.equal(gradient, doubled[name]) for name, gradient in model.gradients.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon", "muon, of the other"])
@pytest.mark.parametrize("change", ["missing", "shape", "dtype", "moment"])
def test_an_update_that_does_not_fit_changes_nothing(optimizer: str, change: str, engine: Engine) -> None:
    p = {"a": torch.ones(4, 3), "b": torch.ones(3, 1)}
    chosen: Optimizer = SGD({}, engine.rules.sgd)
    moment = "m"
    if optimizer == "adamw":
        chosen = AdamW(p, (0.9, 0.99), {}, rule=engine.rules.adamw)
    elif "muon" in optimizer:
        chosen = Muon(p, {"b" if optimizer == "muon" else "a": 1}, (0.9, 0.99), {}, 1.0, 0.95, engine.rules)
        moment = "momentum" if optimizer == "muon" else "m"
    elif change == "moment":
        pytest.skip("SGD has none")
    gradients: dict[str, Tensor] = {name: torch.ones_like(t) for name, t in p.items()}
    if change == "missing":
        del gradients["b"]
    elif change == "moment":
        chosen.state[moment]["b"] = torch.zeros(1)
    else:
        gradients["b"] = torch.ones(1) if change == "shape" else torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"b is \(3, 1\) torch\.float32"):
        chosen.update(p, gradients, 0.1)
    assert all((t == 1).all() for t in p.values())


@pytest.mark.parametrize(
    ("lengths", "tokens", "message"),
    [
        ([4], TOKENS[:, :1], "caches must be 2"),
        ([4, 3], TOKENS[:, :1], "of one length"),
        ([13, 13], TOKENS[:, :1], "14 tokens do not fit"),
        ([12, 12], TOKENS[:, :2], "14 tokens do not fit"),
        ([4, 4], TOKENS[:2, :1], "2 rows"),
    ],
)
def test_tokens_that_do_not_fit_their_caches_are_refused(
    lengths: list[int], tokens: Tensor, message: str, engine: Engine
) -> None:
    model = random_model(torch.float32, engine=engine)
    with pytest.raises(ValueError, match=message):
        cached(model, tokens, lengths)
    assert cached(model, TOKENS[:, :1], [12, 12]).shape == (3, 37)


def strided(ids: Tensor) -> Iterator[Tensor]:
    """The same numbers, laid out in other ways."""
    yield ids.T.contiguous().T
    yield torch.stack([ids, ids + 1], dim=-1)[..., 0]
    yield torch.cat([ids, ids], dim=1)[:, : ids.shape[1]]
    yield torch.nn.functional.pad(ids, (3, 2))[:, 3:-2]


@QUICK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_of_a_batch_changes_nothing(dtype: torch.dtype, engine: Engine) -> None:
    def results(tokens: Tensor, labels: Tensor) -> list[Tensor]:
        model = random_model(dtype, engine=engine)
        logits = model.forward(tokens)
        model.backward(logits)
        out = [logits, *model.gradients.values(), *model.scores(tokens, labels), model.hidden(tokens)]
        step(model, (tokens, labels), (tokens[:1], labels[:1]))
        generator = torch.Generator().manual_seed(0)
        return [*out, *model.parameters.values(), generate(model, tokens, 13, generator=generator)]

    expected = results(TOKENS, LABELS)
    for tokens, labels in zip(strided(TOKENS), strided(LABELS), strict=True):
        assert not tokens.is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(results(tokens, labels), expected, strict=True))
    same_row = TOKENS[:1].expand(3, -1)
    assert torch.equal(results(same_row, same_row)[0], results(same_row.clone(), same_row.clone())[0])


def test_the_layout_of_a_gradient_changes_nothing(engine: Engine) -> None:
    model, gradients = random_model(torch.float32, engine=engine), []
    for gradient in (
        torch.full((), 0.1).expand(3, 11, 37),
        torch.full((11, 37, 3), 0.1).movedim(-1, 0),
        torch.full((3, 11, 37), 0.1),
    ):
        model.forward(TOKENS)
        model.backward(gradient)
        gradients.append(model.gradients)
    for other in gradients[:-1]:
        assert all(torch.equal(gradient, other[name]) for name, gradient in gradients[-1].items())


def test_a_batch_that_its_owner_overwrites_is_learnt_as_it_was(engine: Engine) -> None:
    gradients = []
    for overwrite in (False, True):
        model, tokens, labels = random_model(torch.float32, engine=engine), TOKENS.clone(), LABELS.clone()
        model.loss(tokens, labels)
        if overwrite:
            tokens.fill_(10**6), labels.fill_(5)
        model.loss_backward()
        gradients.append(model.gradients)
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


# ------------------------------------------------------------------------- what others have set around a call


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "autograd on": torch.enable_grad,
    "autograd off": torch.no_grad,
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
}


def life(model: CustomTransformer) -> Iterator[Tensor]:
    """Everything that a model does, one step after another, with what comes of it."""
    model.training = True
    yield from model.parameters.values()
    optimizer = AdamW(model.parameters, (0.9, 0.99), {}, rule=model.engine.rules.adamw)
    for _ in range(2):
        yield model.loss(TOKENS, LABELS)
        model.loss_backward()
        yield from model.gradients.values()
        model.update_parameters(0.1)
        result = training_step(model, optimizer, [(TOKENS, LABELS), (LABELS, TOKENS)], 0.01, 0.5)
        yield torch.tensor([result.loss, result.grad_norm_before_clip], dtype=torch.float64, device="cpu")
        yield from model.parameters.values()
    logits = model.forward(TOKENS)
    yield logits
    model.backward(logits.clone())
    yield from model.gradients.values()
    model.training = False
    yield from score(model, TOKENS, LABELS)
    yield torch.tensor([*activation_statistics(model, TOKENS)[0].values()], dtype=torch.float64, device="cpu")
    for settings in ({"temperature": 0.0}, {"top_k": 9, "top_p": 0.9}):
        generator = torch.Generator("cpu").manual_seed(0)
        yield generate(model, TOKENS[:, :4], 16, generator=generator, **settings)  # type: ignore[arg-type]
    model.load_state_dict(model.state_dict())
    model.to("cpu")
    yield model.loss(TOKENS, LABELS)
    model.loss_backward()
    yield from model.gradients.values()


def lived(engine: Engine, dtype: torch.dtype, **changes: Any) -> Iterator[Tensor]:
    return life(CustomTransformer({**SIZES, "dropout": 0.1, **changes}, dtype=dtype, engine=engine))


@QUICK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_set_around_a_call_changes_nothing(setting: str, dtype: torch.dtype, engine: Engine) -> None:
    compare_lives(setting, engine, dtype)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_set_around_a_llamas_call_changes_nothing(setting: str) -> None:
    attention.rotary_turns.cache_clear()  # so that it is filled under the setting
    compare_lives(setting, NATIVE, torch.float32, **LLAMA)


def compare_lives(setting: str, engine: Engine, dtype: torch.dtype, **changes: Any) -> None:
    with SETTINGS[setting]():
        results = [t.clone() for t in lived(engine, dtype, **changes)]
    expected = [t.clone() for t in lived(engine, dtype, **changes)]
    assert len(results) == len(expected)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("setting", ["default dtype float64", "default device", "autocast to bfloat16"])
def test_what_is_set_around_a_compiled_call_changes_nothing(setting: str) -> None:
    results = []
    for around in (contextlib.nullcontext, SETTINGS[setting]):
        with around():
            model = random_model(torch.float32, engine=captured_engine())
            # With a batch in another layout, too.
            results += [step(model, (TOKENS, LABELS)), step(model, (next(strided(TOKENS)), LABELS))]
    losses = [result.loss for result in results]
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5)  # a function compiled anew may round otherwise


@QUICK
@pytest.mark.parametrize("parity", [0, 1])
def test_inference_mode_may_begin_and_end_between_any_two_calls(parity: int, engine: Engine) -> None:
    expected = [t.clone() for t in lived(engine, torch.float32)]
    steps, results = None, []
    for number in range(len(expected)):
        with torch.inference_mode(number // 3 % 2 == parity):
            steps = steps or lived(engine, torch.float32)
            results.append(next(steps).clone())
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@QUICK
def test_models_in_threads_compute_what_they_do_alone(engine: Engine) -> None:
    def work() -> list[Tensor]:
        return [t.clone() for t in lived(engine, torch.float32)]

    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    expected, results = work(), []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:  # observing a model has its products by whichever library the others have switched to
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
