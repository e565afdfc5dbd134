"""What is observed is what the model computes, and looking changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from custom_transformer.maths import ops
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.engine import Engine
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.scope import Scope
from custom_transformer.runs.observe import activation_statistics, views
from tests.helpers import LLAMA, MODERN, random_model, random_tokens


def test_the_last_view_ends_where_the_model_does() -> None:
    model, tokens = random_model(), random_tokens()
    *_, last = views(model, tokens)
    y, _ = ops.layer_norm_forward(
        last.stream, model.parameters["final_norm.weight"], model.parameters["final_norm.bias"]
    )
    torch.testing.assert_close(y, model.hidden(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_shared_among_what_came_before(dtype: torch.dtype) -> None:
    model, tokens = random_model(dtype), random_tokens()
    for view in views(model, tokens):
        assert view.attention.shape == (3, 3, 11, 11)
        torch.testing.assert_close(view.attention.sum(-1), torch.ones(3, 3, 11))
        assert torch.equal(view.attention.triu(1), torch.zeros(3, 3, 11, 11))


def test_attention_and_units_of_the_first_block_are_those_of_its_formulas() -> None:
    model, tokens = random_model(), random_tokens()
    p = Scope(model.parameters) / "blocks.0"
    view = next(views(model, tokens))
    x = model.parameters["token_embedding"][tokens] + model.parameters["position_embedding"][:11]
    norm = torch.nn.functional.layer_norm(x, (15,), p["norm_1.weight"], p["norm_1.bias"])
    q, k, v = (norm @ p["qkv.weight"] + p["qkv.bias"]).view(3, 11, 3, 3, 5).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(5)
    attention = torch.softmax(scores.masked_fill(torch.ones(11, 11).triu(1).bool(), -math.inf), -1)
    torch.testing.assert_close(view.attention, attention)
    x = x + (attention @ v).transpose(1, 2).reshape(3, 11, 15) @ p["projection.weight"] + p["projection.bias"]
    norm = torch.nn.functional.layer_norm(x, (15,), p["norm_2.weight"], p["norm_2.bias"])
    torch.testing.assert_close(view.unit_input, norm @ p["up.weight"] + p["up.bias"])


def test_statistics_are_what_their_names_say() -> None:
    model, tokens = random_model(), random_tokens()
    model.parameters["blocks.1.up.bias"][:4] = -1000.0  # four dead units of 22
    rows = activation_statistics(model, tokens)
    assert [row["block"] for row in rows] == [0, 1]
    for row, view in zip(rows, views(model, tokens), strict=True):
        off = (view.unit_input < GPT2.units.off_below).numpy()
        assert row["residual_rms"] == pytest.approx((view.stream.numpy() ** 2).mean() ** 0.5)
        assert row["gelu_off"] == pytest.approx(off.mean())
        assert row["gelu_dead"] == pytest.approx(off.reshape(33, 22).all(0).mean())
        entropies = [-sum(p * math.log(p) for p in query if p > 0) for query in view.attention.reshape(-1, 11).tolist()]
        assert row["attention_entropy"] == pytest.approx(sum(entropies) / len(entropies))
    assert rows[1]["gelu_dead"] >= 4 / 22 > rows[0]["gelu_dead"]


@pytest.mark.parametrize("changes", [{}, LLAMA, MODERN])
def test_the_engine_s_own_operations_are_observed(changes: dict[str, object]) -> None:
    used: list[str] = []

    def linear(*arguments: Any) -> Any:
        used.append("linear")
        return ops.linear.forward(*arguments)

    def probabilities(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        used.append("probabilities")
        return ops.attention_probabilities(q, k)

    engine = Engine("own", {ops.linear: ops.linear._replace(forward=linear)}, attention_probabilities=probabilities)
    rows = activation_statistics(random_model(engine=engine, **changes), random_tokens())
    assert used == (["linear"] * 4 + ["probabilities"]) * 2
    assert rows == activation_statistics(random_model(**changes), random_tokens())


def test_attention_that_knows_nothing_has_the_entropy_of_chance() -> None:
    model = CustomTransformer({"vocab_size": 5, "max_seq_len": 8, "n_blocks": 1, "d_model": 4, "d_ffn": 4})
    model.parameters["blocks.0.qkv.weight"].zero_()
    (row,) = activation_statistics(model, torch.zeros(2, 8, dtype=torch.int64))
    assert row["attention_entropy"] == pytest.approx(sum(math.log(n) for n in range(1, 9)) / 8)


def test_looking_changes_nothing() -> None:
    """Not between a forward and its backward, and not dropout's next masks."""
    tokens = random_tokens()
    gradients = []
    for looked in (False, True):
        model = random_model(dropout=0.3)
        model.training = True
        model.loss(tokens[:, :-1], tokens[:, 1:])
        if looked:
            activation_statistics(model, tokens)
        model.loss_backward()
        model.loss(tokens[:, :-1], tokens[:, 1:])
        model.loss_backward()
        gradients.append(model.gradients)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        list(views(random_model(), torch.zeros(1, 14, dtype=torch.int64)))
