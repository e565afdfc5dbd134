"""The gradients are proved, and a wrong one is named."""

from __future__ import annotations

import math

import pytest

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError
from custom_transformer.maths import gpt2, gradcheck
from custom_transformer.maths.gradcheck import check_gradients, reduced
from tests.helpers import MODERN, SIZES


def test_gradcheck_passes_and_catches(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CustomTransformerConfig(**SIZES)
    assert all(check.ok for check in check_gradients(config, 1))
    right = gpt2.gelu.backward
    monkeypatch.setattr(gpt2, "gelu", gpt2.gelu._replace(backward=lambda dy, saved: right(dy, saved) * 1.0001))
    wrong = [check.name for check in check_gradients(config, 1) if not check.ok]
    assert "blocks.0.up.weight" in wrong
    assert "final_norm.weight" not in wrong


@pytest.mark.parametrize(
    "changes", [{"d_model": 64, "n_heads": 1}, {"d_model": 8, "n_heads": 8}, {"d_model": 1, "n_heads": 1}]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck_measures_well_at_any_size(changes: dict[str, int], seed: int) -> None:
    config = reduced(CustomTransformerConfig(**(SIZES | changes)))
    assert [check.name for check in check_gradients(config, seed) if not check.ok] == []


@pytest.mark.parametrize("size", [{"d_model": 64, "n_heads": 1}, {"d_model": 16, "n_heads": 8}])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck_measures_well_beside_corners(size: dict[str, int], seed: int) -> None:
    config = reduced(CustomTransformerConfig(**SIZES | size | {"architecture": "modern"}))
    assert [check.name for check in check_gradients(config, seed) if not check.ok] == []


def test_gradcheck_ends_if_every_model_has_a_unit_at_its_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcheck, "FAR", math.inf)
    monkeypatch.setattr(gradcheck, "MOST_DRAWN", 2)
    config = CustomTransformerConfig(**SIZES | MODERN)
    with pytest.raises(UserError, match=r"far from their corner; check it with less model\.dropout"):
        next(check_gradients(config))
