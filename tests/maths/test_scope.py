"""One name for a layer's parameters, what it saves and its gradients; each gradient as soon as it is ready."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch import Tensor

from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.ops import linear
from custom_transformer.maths.scope import Scope
from tests.helpers import Held, random_model, random_tokens

ENGINES = pytest.mark.parametrize("engine", [READABLE, FUSED, NATIVE], ids=lambda engine: engine.name)


class Arriving(dict[str, Tensor]):
    """Notes each gradient as it arrives, with a copy of what it was then."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[tuple[str, Tensor]] = []

    def __setitem__(self, name: str, gradient: Tensor) -> None:
        assert name not in self, "a gradient that arrives twice was not ready the first time"
        self.arrived.append((name, gradient.clone()))
        super().__setitem__(name, gradient)


def layer_of(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0]


def test_parameter_saved_tensor_and_gradient_share_a_name() -> None:
    weight, bias, x, dy = torch.ones(2, 3), torch.ones(3), torch.ones(4, 2), torch.ones(4, 3)
    at = Scope({"blocks.0.up.weight": weight, "blocks.0.up.bias": bias}, saved={})
    block = at / "blocks.0"
    assert block["up.weight"] is weight
    assert block.get("up.bias") is bias
    assert block.get("down.bias") is None
    y = block.forward("up", linear, x)
    assert torch.equal(y, x @ weight + bias)
    assert list(at.saved or ()) == ["blocks.0.up"]
    dx = block.backward("up", linear, dy)
    assert torch.equal(dx, dy @ weight.T)
    assert at.saved == {}
    assert list(at.gradients) == ["blocks.0.up.weight", "blocks.0.up.bias"]
    assert torch.equal(at.gradients["blocks.0.up.weight"], x.T @ dy)
    with pytest.raises(KeyError, match=r"blocks\.0\.up"):
        block.backward("up", linear, dy)


def test_every_layer_that_saves_is_named_as_its_parameters() -> None:
    model, tokens = random_model(), random_tokens()
    model.loss(tokens, tokens)
    assert model._last is not None
    _, at, _ = model._last
    saved = set(at.saved or {})
    with_parameters = {name.removesuffix(".weight").removesuffix(".bias") for name in model.parameters}
    assert with_parameters <= saved
    assert {name.split(".")[-1] for name in saved - with_parameters} == {
        "drop",
        "attention",
        "drop_1",
        "gelu",
        "drop_2",
    }


def test_gradients_are_float32_or_wider() -> None:
    at = Scope({})
    for dtype, given in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        at.give("x", torch.ones(2, dtype=dtype))
        assert at.gradients["x"].dtype == given
    at.give("none", None)
    assert "none" not in at.gradients


@ENGINES
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_arrive_one_by_one_from_the_last_layer_to_the_first(engine: Engine, tied: bool) -> None:
    model, tokens, sink = random_model(tie_embeddings=tied, engine=engine), random_tokens(), Arriving()
    model.loss(tokens, tokens)
    model.loss_backward(gradients=sink)
    order = [name for name, _ in groupby(layer_of(name) for name, _ in sink.arrived)]
    layers = ["final_norm", "blocks.1", "blocks.0", "position_embedding", "token_embedding"]
    assert order == (layers if tied else ["head", *layers])
    assert {name for name, _ in sink.arrived} == model.parameters.keys()
    for name, then in sink.arrived:
        assert torch.equal(then, sink[name]), f"{name} changed after it had arrived"
        assert model.gradients[name] is sink[name]

    again = random_model(tie_embeddings=tied, engine=engine)
    again.loss(tokens, tokens)
    again.loss_backward()
    for name, gradient in again.gradients.items():
        assert torch.equal(gradient, sink[name])


@ENGINES
def test_after_a_backward_nothing_saved_is_left(engine: Engine) -> None:
    model, tokens = random_model(engine=engine, dropout=0.1), random_tokens()
    model.training = True
    for backward in ("loss", "forward"):
        if backward == "loss":
            model.loss(tokens, tokens)
        else:
            logits = model.forward(tokens)
        assert model._last is not None
        _, at, _ = model._last
        assert at.saved
        model.loss_backward() if backward == "loss" else model.backward(torch.ones_like(logits))
        assert at.saved == {}
        assert model._last is None


@ENGINES
def test_watching_sees_each_result_and_each_gradient_by_name(engine: Engine) -> None:
    """By one operation after another, even where the engine has a whole stack."""
    model, tokens = random_model(engine=engine), random_tokens()
    model.loss(tokens, tokens)
    model.loss_backward()
    unwatched = model.gradients
    seen: dict[str, Tensor] = {}
    model.watch = seen.__setitem__
    model.loss(tokens, tokens)
    layers = ["norm_1", "qkv", "attention", "projection", "drop_1", "norm_2", "up", "gelu", "down", "drop_2"]
    expected = ["token_embedding", "position_embedding", "drop"]
    for i in (0, 1):
        expected += [f"blocks.{i}.{name}" for name in layers] + [f"blocks.{i}"]
    expected.append("final_norm")
    assert list(seen) == expected
    forward = dict(seen)
    seen.clear()
    model.loss_backward()
    layers_only = [name for name in reversed(expected) if name not in model.parameters]
    assert [name for name in seen if name.removeprefix("d ") in layers_only] == [f"d {name}" for name in layers_only]
    for name, y in forward.items():
        if name not in model.parameters:  # there the last that is seen is the table's gradient
            assert seen[f"d {name}"].shape == y.shape, name
    for name, gradient in model.gradients.items():
        assert seen[f"d {name}"] is gradient
        torch.testing.assert_close(gradient, unwatched[name], rtol=1e-9, atol=1e-12)
    assert seen.keys() == {f"d {name}" for name in [*expected, *model.parameters]}


def most_bytes(engine: Engine, n_blocks: int, what: str) -> int:
    model, tokens = random_model(torch.float32, engine=engine, n_blocks=n_blocks), random_tokens()
    with Held() as held:
        getattr(model, what)(*((tokens,) if what == "hidden" else (tokens, tokens)))
    return held.most


@ENGINES
def test_without_a_backward_nothing_is_kept_however_deep_the_model_is(engine: Engine) -> None:
    shallow, deep = most_bytes(engine, 2, "hidden"), most_bytes(engine, 8, "hidden")
    assert shallow == deep > 0
    # The measure does see what is kept: the loss, which a backward follows, keeps six blocks more.
    assert most_bytes(engine, 8, "loss") > 2 * most_bytes(engine, 2, "loss")


@ENGINES
def test_a_sink_may_send_each_gradient_away(engine: Engine) -> None:
    class Away(dict[str, Tensor]):
        def __setitem__(self, name: str, gradient: Tensor) -> None:
            sent[name] = gradient

    sent: dict[str, Tensor] = {}
    model, tokens = random_model(engine=engine), random_tokens()
    model.loss(tokens, tokens)
    model.loss_backward(gradients=Away())
    assert sent.keys() == model.parameters.keys()
    assert model.gradients == {}
