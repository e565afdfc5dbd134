"""A layer's parameters, saved tensors and gradients share its name, arrive one by one, and are let go in time."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from custom_transformer.fast.choose import NATIVE
from custom_transformer.maths.engine import READABLE, Engine
from tests.helpers import random_model, random_tokens

ENGINES = pytest.mark.parametrize("engine", [READABLE, NATIVE], ids=lambda engine: engine.name)


class Noted(dict[str, Tensor]):
    """Gradients, and a copy of each as it was when it arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: dict[str, Tensor] = {}

    def __setitem__(self, name: str, gradient: Tensor) -> None:
        assert name not in self
        self.arrived[name] = gradient.clone()
        super().__setitem__(name, gradient)


@ENGINES
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_gradients_arrive_one_by_one_from_the_last_layer_to_the_first(engine: Engine, tie_embeddings: bool) -> None:
    model, noted = random_model(engine=engine, tie_embeddings=tie_embeddings), Noted()
    model.loss(random_tokens(), random_tokens(seed=2))
    model.loss_backward(gradients=noted)
    rooms = [name.rpartition(".")[0].rpartition(".")[0] or name.split(".")[0] for name in noted.arrived]
    first = [] if tie_embeddings else ["head"]
    assert list(dict.fromkeys(rooms)) == [
        *first, "final_norm", "blocks.1", "blocks.0", "position_embedding", "token_embedding"
    ]  # fmt: skip
    assert noted.keys() == model.parameters.keys()
    assert all(torch.equal(noted.arrived[name], gradient) for name, gradient in model.gradients.items())


@ENGINES
def test_what_was_saved_has_its_layers_name_and_is_gone_after_its_backward(engine: Engine) -> None:
    model = random_model(engine=engine)
    model.loss(random_tokens(), random_tokens())
    assert model._last is not None
    saved = model._last[1].saved
    assert saved is not None
    assert {"blocks.0.norm_1", "blocks.1.attention", "blocks.1.gelu", "final_norm", "token_embedding"} <= saved.keys()
    model.loss_backward()
    assert saved == {}


def test_a_watcher_sees_each_result_and_each_gradient_by_name() -> None:
    seen: dict[str, Tensor] = {}
    model, tokens = random_model(engine=NATIVE), random_tokens()
    expected = model.hidden(tokens)
    model.watch = seen.__setitem__
    model.loss(tokens, tokens)
    model.loss_backward()
    torch.testing.assert_close(seen["final_norm"], expected)
    results = {name for name in seen if not name.startswith("d ")}
    assert {"token_embedding", "blocks.0.qkv", "blocks.0.attention", "blocks.0", "blocks.1.down"} <= results
    assert {f"d {name}" for name in results} <= seen.keys()  # of each result, its gradient
    for name, gradient in model.gradients.items():
        assert torch.equal(seen[f"d {name}"], gradient)
    assert seen["d blocks.0.qkv"].shape == seen["blocks.0.qkv"].shape


class LiveBytes(TorchDispatchMode):
    """The most that all tensors made meanwhile took at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.live:
                self.live[key] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@ENGINES
def test_inference_keeps_one_blocks_tensors_however_many_blocks_there_are(engine: Engine) -> None:
    tokens, peaks = random_tokens(batch=8), {}
    for n_blocks in (1, 2, 8):
        model = random_model(torch.float32, engine=engine, n_blocks=n_blocks)
        model.scores(tokens, tokens)  # what is made once
        with LiveBytes() as memory:
            model.scores(tokens, tokens)
        peaks[n_blocks] = memory.peak
    assert peaks[2] == peaks[8]
    with LiveBytes() as memory:
        model.loss(tokens, tokens)
    assert memory.peak > 3 * peaks[8]  # what a backward needs is measured
