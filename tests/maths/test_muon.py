"""Muon's orthogonalisation against singular values, its updates against another writing of them, and its parameters."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom_transformer.config import TrainingParams, load_params
from custom_transformer.errors import UserError
from custom_transformer.maths.muon import QUINTICS, muon_update, orthogonalised
from custom_transformer.maths.optim import AdamW, Muon, Rules, build_optimizer, updated_whole
from custom_transformer.runs.summary import memory_bytes
from tests.helpers import random_model

ADAMW = Path("configs/smoke.yaml")  # a configuration with AdamW
TRAINING = load_params(ADAMW).training
MUON = {"optimizer": "muon"}


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def with_singular_values(rows: int, columns: int, values: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd(matrix(rows, columns), full_matrices=False)
    return (u * values) @ vt


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (12, 40), (40, 12)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_every_singular_value_becomes_nearly_one_and_its_directions_stay(rows: int, columns: int, size: float) -> None:
    values = torch.logspace(0, -2.4, 12, dtype=torch.float64)
    x = size * with_singular_values(rows, columns, values)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    inside = u.T @ orthogonalised(x) @ vt.T
    assert (inside.diagonal() - 1).abs().max() < 0.2
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9


def test_smaller_singular_values_grow_most_and_zeros_stay() -> None:
    values = torch.logspace(-2, -6, 8, dtype=torch.float64)
    after = torch.linalg.svdvals(orthogonalised(with_singular_values(9, 9, torch.cat([torch.ones(1), values]))))
    growth = (after[1:8] / values[:7]).tolist()
    assert all(a <= b * 1.001 for a, b in pairwise(growth))
    assert growth[-1] == pytest.approx(math.prod(a for a, _, _ in QUINTICS), rel=0.01)
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_each_quintic_is_the_nearest_to_one_on_its_interval() -> None:
    """By Chebyshev's theorem: its error is as large, with one sign and the other in turn, at four places."""
    low, high = 0.003, 1.0
    for a, b, c in QUINTICS:
        root = math.sqrt(9 * b * b - 20 * a * c)
        turning = [math.sqrt((-3 * b - sign * root) / (10 * c)) for sign in (1, -1)]
        places = [low, *turning, high]
        assert places == sorted(places)
        errors = [a * x + b * x**3 + c * x**5 - 1 for x in places]
        worst = max(map(abs, errors))
        assert errors == pytest.approx([-worst, worst, -worst, worst], abs=3e-3)
        low, high = 1 - worst, 1 + worst
    assert high < 1.2


def plain_direction(x: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / (s**8).sum() ** (1 / 8)
    for a, b, c in QUINTICS:
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ vt


@pytest.mark.parametrize(("shape", "factor"), [((6, 6), 1.0), ((6, 24), 2.0), ((24, 6), 1.0)])
def test_three_updates_equal_those_by_singular_values(shape: tuple[int, int], factor: float) -> None:
    parameter, momentum = matrix(*shape), torch.zeros(shape, dtype=torch.float64)
    expected, mean = parameter.clone(), momentum.clone()
    for step in range(1, 4):
        gradient = matrix(*shape, seed=step)
        muon_update(parameter, gradient, momentum, 0.5, 0.1, 0.9, 0.2)
        mean = 0.9 * mean + 0.1 * (0.5 * gradient)
        ahead = 0.9 * mean + 0.1 * (0.5 * gradient)
        expected = expected - 0.1 * 0.2 * expected - 0.1 * factor * plain_direction(ahead)
        torch.testing.assert_close(momentum, mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-11)


def test_matrices_are_muon_s_and_everything_else_is_adamw_s() -> None:
    model = random_model()
    params = TrainingParams(**TRAINING.model_dump() | MUON | {"muon_learning_rate": 0.05, "weight_decay": 0.1})
    optimizer = build_optimizer(params, model.parameters, model.table, model.config.head_size, Rules())
    assert isinstance(optimizer, Muon)
    matrices = {n for n, p in model.parameters.items() if p.ndim == 2 and "embedding" not in n and "head" not in n}
    assert set(updated_whole(params, model.table)) == matrices
    assert optimizer.state["momentum"].keys() == matrices
    assert optimizer.state["m"].keys() == optimizer.state["v"].keys() == model.parameters.keys() - matrices
    before = model.state_dict()
    gradients = {n: torch.full_like(p, 0.1) + 0.01 * p for n, p in before.items()}
    others = {n: p.clone() for n, p in before.items() if n not in matrices}
    decays = {n: 0.1 for n, p in others.items() if p.ndim == 2}
    AdamW(others, params.betas, decays).update(others, gradients, 1e-3)
    optimizer.update(model.parameters, gradients, 1e-3)
    for name, p in model.parameters.items():
        if name in matrices:
            rate = 1e-3 / params.learning_rate * 0.05  # the same share of its peak as that of the others
            width = model.config.head_size if "qkv" in name else p.shape[1]
            parts = [t.split(width, 1) for t in (before[name], gradients[name], p)]
            for expected, gradient, got in zip(*parts, strict=True):
                muon_update(expected, gradient, torch.zeros_like(got), 1.0, rate, 0.95, 0.1)
                torch.testing.assert_close(got, expected)
        else:
            assert torch.equal(p, others[name])


def test_the_keys_of_muon_may_be_left_out_and_belong_to_it_alone(tmp_path: Path) -> None:
    text = ADAMW.read_text()
    for optimizer, own, words in (
        ("muon", "", ""),
        ("muon", "\n  muon_learning_rate: 0.03\n  muon_momentum: 0.9", ""),
        ("adamw", "\n  muon_momentum: 0.9", "training: muon_momentum is a key of muon, not of 'adamw'; remove it"),
        ("sgd", "\n  muon_learning_rate: 0.1", "muon_learning_rate is a key of muon, not of 'sgd'; remove it"),
        ("muon", "\n  muon_momentum: 1.0", "muon_momentum: input should be less than 1"),
    ):
        path = tmp_path / "params.yaml"
        path.write_text(text.replace("  optimizer: adamw", f"  optimizer: {optimizer}{own}\n "))
        if words:
            with pytest.raises(UserError, match=words):
                load_params(path)
            continue
        training = load_params(path).training
        assert (training.muon_learning_rate, training.muon_momentum) == ((0.03, 0.9) if own else (0.02, 0.95))
        assert TrainingParams(**training.model_dump()) == training
    assert not any("muon" in key for key in TRAINING.model_dump())


def test_the_summary_counts_the_state_that_there_is() -> None:
    model = random_model(torch.float32)
    for optimizer in ("sgd", "adamw", "muon"):
        params = TrainingParams(**TRAINING.model_dump() | {"optimizer": optimizer})
        state: dict[str, Any] = build_optimizer(params, model.parameters, model.table, 6, Rules()).state
        held = sum(t.nbytes for kind, tensors in state.items() if kind != "t" for t in tensors.values())
        assert memory_bytes(model.config, 2, 4, torch.float32, optimizer)["optimizer state"] == held
