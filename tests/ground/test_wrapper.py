"""CustomTransformerWrapper, as its users call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from custom_transformer import CustomTransformerWrapper
from tests.helpers import SIZES, random_tokens


def build(**changes: Any) -> CustomTransformerWrapper:
    return CustomTransformerWrapper(**{**SIZES, **changes})


def test_the_loss_is_the_shifted_cross_entropy() -> None:
    wrapper, ids = build(), random_tokens()
    out = wrapper.forward(ids, labels=ids)
    assert out["logits"].shape == (3, 11, 37)
    expected = F.cross_entropy(out["logits"][:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out["loss"], expected)
    assert set(wrapper.forward(ids)) == {"logits"}


def test_ignored_and_padded_labels_leave_the_loss() -> None:
    wrapper, ids = build(pad_token_id=0), random_tokens().clamp(min=1)
    short, labels = ids[:, :8], ids.clone()
    labels[:, 8:10] = -100
    labels[:, 10:] = 0
    torch.testing.assert_close(wrapper.forward(ids, labels)["loss"], wrapper.forward(short, short)["loss"])


def test_train_step_is_clipped_sgd_on_the_right_gradients() -> None:
    wrapper, ids = build(dtype=torch.float64), random_tokens()
    before = wrapper.model.state_dict()
    loss = wrapper.forward(ids, labels=ids)["loss"].item()
    result = wrapper.train_step(ids, ids, learning_rate=0.5, max_grad_norm=0.01)
    assert result["status"] == "ok"
    assert result["loss"] == pytest.approx(loss)
    assert result["grad_norm_before_clip"] > result["grad_norm"] == 0.01
    change = {n: (before[n] - p) / 0.5 for n, p in wrapper.model.parameters.items()}
    assert torch.cat([c.flatten() for c in change.values()]).norm().item() == pytest.approx(0.01)
    for name, gradient in wrapper.model.gradients.items():
        torch.testing.assert_close(change[name], gradient * (0.01 / result["grad_norm_before_clip"]))


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_it_learns(dtype: torch.dtype | None, dropout: float) -> None:
    wrapper, ids = build(dtype=dtype, dropout=dropout), random_tokens()
    losses = [wrapper.train_step(ids, ids, learning_rate=0.3)["loss"] for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_changes_no_parameter_and_is_reported(where: str) -> None:
    wrapper, ids = build(), random_tokens()
    if where == "loss":
        wrapper.model.parameters["final_norm.weight"][0] = torch.nan
    else:  # the loss stays finite; its derivative overflows on the way back
        wrapper.model.parameters["blocks.0.norm_1.weight"].fill_(1e-30)
        wrapper.model.parameters["blocks.0.qkv.weight"].fill_(1e38)
        wrapper.model.parameters["blocks.0.projection.weight"].fill_(1e18)
    before = wrapper.model.state_dict()
    result = wrapper.train_step(ids, ids)
    assert result["status"] == {"loss": "nan_detected", "gradient": "nan_gradient"}[where]
    for name, p in wrapper.model.parameters.items():
        assert torch.equal(p.nan_to_num(7.0), before[name].nan_to_num(7.0))


def test_checkpoints_round_trip_with_metadata(tmp_path: Path) -> None:
    wrapper, ids = build(dropout=0.2, tie_embeddings=False, bias=False), random_tokens()
    wrapper.train_step(ids, ids)
    wrapper.save_checkpoint(tmp_path / "model.pt", epoch=5, train_loss=1.25)
    again = CustomTransformerWrapper.from_checkpoint(tmp_path / "model.pt")
    assert torch.equal(again.eval().forward(ids)["logits"], wrapper.eval().forward(ids)["logits"])
    assert build(tie_embeddings=False, bias=False).load_checkpoint(tmp_path / "model.pt") == {
        "epoch": 5,
        "train_loss": 1.25,
    }


def test_generate_continues_the_prompt_to_max_length() -> None:
    wrapper, ids = build(), random_tokens(time=4)
    rows = [wrapper.generate(ids, max_length=9, top_k=5, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert rows[0].shape == (3, 9)
    assert torch.equal(rows[0][:, :4], ids)
    assert torch.equal(*rows)


def test_modes_devices_and_information() -> None:
    wrapper, ids = build(dropout=0.5), random_tokens()
    assert wrapper.eval() is wrapper
    assert torch.equal(wrapper.forward(ids)["logits"], wrapper.forward(ids)["logits"])
    assert wrapper.train() is wrapper
    assert not torch.equal(wrapper.forward(ids)["logits"], wrapper.forward(ids)["logits"])
    assert wrapper.to("cpu") is wrapper
    info = wrapper.get_model_info()
    assert info["parameters"] == wrapper.count_parameters() == sum(p.numel() for p in wrapper.model.parameters.values())
    assert (info["d_model"], info["dtype"], info["device"]) == (15, "float32", "cpu")
