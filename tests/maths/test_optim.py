"""Optimisers against torch.optim, clipping, and the schedule's shape."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from custom_transformer.config import TrainingParams, load_params
from custom_transformer.maths.optim import SGD, AdamW, bias_corrections, clip_scale, global_norm, learning_rate_at

TRAINING = load_params("params.yaml").training


def training_params(**changes: object) -> TrainingParams:
    return TrainingParams(**{**TRAINING.model_dump(), **changes})


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (5, 7), "vector": (7,), "table": (11, 5)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_steps_equal_torch_optim(name: str, weight_decay: float) -> None:
    ours = random_tensors(0)
    decays = {"matrix": weight_decay, "table": weight_decay}  # not named, hence 0: vector
    theirs = {n: p.clone().requires_grad_() for n, p in ours.items()}
    groups = [
        {"params": [p for p in theirs.values() if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [theirs["vector"]], "weight_decay": 0.0},
    ]
    if name == "sgd":
        optimizer, reference = SGD(decays), torch.optim.SGD(groups, lr=0.1)
    else:
        optimizer = AdamW(ours, betas=(0.8, 0.95), weight_decay=decays)
        reference = torch.optim.AdamW(groups, betas=(0.8, 0.95))
    for step in range(20):
        gradients, learning_rate = random_tensors(step + 1), 0.1 / (step + 1)
        optimizer.update(ours, gradients, learning_rate)
        for group in reference.param_groups:
            group["lr"] = learning_rate
        for n, p in theirs.items():
            p.grad = gradients[n].clone()
        reference.step()
    for n, p in ours.items():
        torch.testing.assert_close(p, theirs[n].detach(), rtol=1e-12, atol=1e-14)


def test_clipping_scales_all_gradients_together_and_only_when_needed() -> None:
    gradients = random_tensors(3)
    norm = global_norm(gradients)
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradients.values()]).norm().item())
    assert clip_scale(norm, norm * 2) == 1.0
    assert clip_scale(norm, None) == 1.0
    scale = clip_scale(norm, norm / 4)
    clipped = {n: g * scale for n, g in gradients.items()}
    assert global_norm(clipped) == pytest.approx(norm / 4)
    for rule in ("sgd", "adamw"):
        ends = []
        for given, factor in ((gradients, scale), (clipped, 1.0)):
            parameters = random_tensors(0)
            (SGD({}) if rule == "sgd" else AdamW(parameters, (0.9, 0.999), {})).update(parameters, given, 0.1, factor)
            ends.append(parameters)
        for n, p in ends[0].items():
            torch.testing.assert_close(p, ends[1][n])


def test_the_norm_of_large_finite_float32_gradients_is_finite() -> None:
    assert global_norm({"g": torch.full((10,), 1e30)}) == pytest.approx(10**0.5 * 1e30)


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule(decay: str) -> None:
    params = training_params(learning_rate=1.0, min_learning_rate=0.1, warmup_ratio=0.1, lr_decay=decay)
    rates = [learning_rate_at(step, 100, params) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(1.0 if decay == "constant" else 0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    middle = {"cosine": 0.55, "linear": 0.55, "constant": 1.0}[decay]
    assert (rates[54] + rates[55]) / 2 == pytest.approx(middle)


def test_corrections_are_what_means_that_began_at_0_have_of_a_constant() -> None:
    betas, m, v = (0.8, 0.95), 0.0, 0.0
    for t in range(1, 9):
        m, v = betas[0] * m + (1 - betas[0]), betas[1] * v + (1 - betas[1])
        assert bias_corrections(betas, t) == pytest.approx((m, v**0.5), rel=1e-14)
    assert bias_corrections((0.0, 0.0), 5) == (1.0, 1.0)


def test_a_run_of_one_step_has_a_learning_rate() -> None:
    assert learning_rate_at(0, 1, training_params(warmup_ratio=0.0)) == TRAINING.learning_rate
