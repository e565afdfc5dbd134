"""With recomputation every gradient has the same bits, by every engine, and the memory is what the summary says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from custom_transformer import CustomTransformer
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.optim import AdamW
from custom_transformer.runs.step import training_step
from custom_transformer.runs.summary import memory_bytes
from tests.fast.engines import ENGINES
from tests.helpers import Held, random_model, random_tokens

LLAMA = {"architecture": "llama", "d_model": 18, "n_kv_heads": 1}
QUICK = pytest.mark.parametrize("engine", ["readable", "fused", "native"])
ARCHITECTURES = pytest.mark.parametrize("changes", [{}, LLAMA], ids=["gpt2", "llama"])
TOKENS, LABELS = random_tokens(), random_tokens(seed=2)


def pair(engine: Engine, dtype: torch.dtype, **changes: Any) -> tuple[CustomTransformer, CustomTransformer]:
    """The same training model, as it is and with recomputation."""
    models = random_model(dtype, engine=engine, **changes), random_model(dtype, engine=engine, **changes)
    for model in models:
        model.training = True
    models[1].recompute = True
    return models


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@QUICK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@ARCHITECTURES
def test_gradients_have_the_same_bits(
    changes: dict[str, Any], tie_embeddings: bool, dropout: float, dtype: torch.dtype, engine: str
) -> None:
    check_bits(*pair(ENGINES[engine](), dtype, **changes, tie_embeddings=tie_embeddings, dropout=dropout))


def test_compiled_blocks_too() -> None:
    check_bits(*pair(ENGINES["compiled"](), torch.float32))


def check_bits(kept: CustomTransformer, recomputed: CustomTransformer) -> None:
    for _ in range(2):  # the second masks follow the first: computing again has drawn none from the model's generator
        losses = [model.loss(TOKENS, LABELS) for model in (kept, recomputed)]
        assert torch.equal(*losses)
        for model in (kept, recomputed):
            model.loss_backward()
        assert same(kept.gradients, recomputed.gradients)
    assert torch.equal(kept.generator.get_state(), recomputed.generator.get_state())
    for model in (kept, recomputed):
        model.backward(model.forward(TOKENS))
    assert same(kept.gradients, recomputed.gradients)


@QUICK
@ARCHITECTURES
def test_some_steps_end_in_the_same_parameters(changes: dict[str, Any], engine: str) -> None:
    models = pair(ENGINES[engine](), torch.bfloat16, **changes, dropout=0.1)
    for model in models:
        optimizer = AdamW(model.parameters, (0.9, 0.99), {}, rule=model.engine.rules.adamw)
        for _ in range(3):
            training_step(model, optimizer, [(TOKENS, LABELS), (LABELS, TOKENS)], 0.01, 1.0)
    assert same(models[0].parameters, models[1].parameters)


@QUICK
@ARCHITECTURES
def test_a_block_keeps_its_input_alone(changes: dict[str, Any], engine: str) -> None:
    _, model = pair(ENGINES[engine](), torch.float32, **changes, dropout=0.1)
    model.loss(TOKENS, LABELS)
    assert model._last is not None
    at = model._last[1]
    assert at.saved is not None
    assert [name for name in at.saved if name.startswith("blocks.")] == ["blocks.0.", "blocks.1."]
    model.loss_backward()
    assert at.saved == {}


def test_whoever_watches_sees_each_result_once() -> None:
    kept, recomputed = pair(READABLE, torch.float64, dropout=0.1)
    seen: list[list[tuple[str, float]]] = [[], []]
    for model, notes in zip((kept, recomputed), seen, strict=True):
        model.watch = lambda name, tensor, notes=notes: notes.append((name, tensor.sum().item()))
        model.loss(TOKENS, LABELS)
        model.loss_backward()
    assert seen[0] == seen[1]


class Away(dict[str, Tensor]):
    def __setitem__(self, name: str, gradient: Tensor) -> None:
        pass


def most_bytes(model: CustomTransformer) -> tuple[int, int]:
    """The most that lives at once in a loss, and in the backward after it but for the gradients."""
    with Held() as held:
        model.loss(TOKENS, LABELS)
        forward, held.most = held.most, 0
        model.loss_backward(gradients=Away())
    return forward, held.most


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@ARCHITECTURES
def test_the_memory_of_a_step_is_what_the_summary_says(changes: dict[str, Any], dropout: float) -> None:
    """To the byte: what six more blocks add, and what recomputation saves at the peak of a step."""
    peaks, said = {}, {}
    for n_blocks in (3, 9):
        for model in pair(READABLE, torch.float32, **changes, dropout=dropout, n_blocks=n_blocks):
            sizes = memory_bytes(model.config, *TOKENS.shape, torch.float32, "sgd", model.recompute)
            said[n_blocks, model.recompute] = sizes["activations"]
            peaks[n_blocks, model.recompute] = most_bytes(model)
    for recompute in (False, True):
        forward, backward = (nine - three for three, nine in zip(peaks[3, recompute], peaks[9, recompute], strict=True))
        assert forward == backward == said[9, recompute] - said[3, recompute]
    assert peaks[9, False][1] - peaks[9, True][1] == said[9, False] - said[9, True] > 0.8 * said[9, False]


# A block of the kernels keeps so little that its input is a larger part of it.
@pytest.mark.parametrize(
    ("changes", "engine", "blocks"), [({}, "fused", 3), (LLAMA, "fused", 3), ({}, "native", 4), (LLAMA, "native", 4)]
)
def test_every_engine_needs_less(changes: dict[str, Any], engine: str, blocks: int) -> None:
    """Nine blocks with recomputation need less than a few without."""
    (few, _), (_, nine) = (
        pair(ENGINES[engine](), torch.bfloat16, **changes, dropout=0.1, n_blocks=n) for n in (blocks, 9)
    )
    assert max(most_bytes(nine)) < max(most_bytes(few))
