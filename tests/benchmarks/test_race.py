"""How the race reads its runs, and that a configuration trains the same by hand and by autograd."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.race import Run, ablations, contestants, table_rows, targets, task_of
from benchmarks.racer import Contestant
from benchmarks.variants import VARIANTS
from custom_transformer import CustomTransformer, CustomTransformerConfig
from custom_transformer.errors import UserError
from custom_transformer.maths.gradcheck import derivative_at_0
from tests.helpers import ROOT, SIZES, random_tokens

SHIPPED, TUNED = "nanoGPT, compiled", "nanoGPT, compiled, tuned"


def run_of(name: str, seed: int, *losses: float) -> Run:
    return Run(name, seed, tuple((10 * i, 2.0 * i, loss) for i, loss in enumerate(losses, start=1)))


def test_every_run_of_the_slowest_reaches_its_own_target() -> None:
    runs = [run_of(SHIPPED, 0, 3.0, 2.0), run_of(SHIPPED, 1, 3.0, 2.0004), run_of(TUNED, 0, 2.5, 1.5)]
    assert targets(runs) == {"as shipped": 2.001, "with a tuned learning rate": 1.5}
    rows = {name: words for name, *words in table_rows(runs, 2.001)}
    assert rows[SHIPPED] == ["2.000", "20", "4.0 (4.0–4.0)", 4.0]
    assert rows[TUNED] == ["1.500", "20", "4.0 (4.0–4.0)", 4.0]
    assert {name: row[-1] for name, *row in table_rows(runs, 1.5)} == {SHIPPED: math.inf, TUNED: 4.0}


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(UserError, match="too few for a race"):
        task_of(tmp_path / "a.txt", "bytes", tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_gradient_of_a_variant_is_right(name: str) -> None:
    """Along one random direction in each parameter's space, in float64."""
    config = CustomTransformerConfig(**SIZES | {"architecture": "modern", "d_model": 18})
    model = CustomTransformer(
        config, dtype=torch.float64, architecture=VARIANTS[name].architecture, engine=VARIANTS[name].engine
    )
    generator, tokens = torch.Generator().manual_seed(0), random_tokens(time=config.max_seq_len + 1)
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    for p in model.parameters.values():
        p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    model.loss(*batch)
    model.loss_backward()
    assert model.gradients.keys() == model.parameters.keys()
    for key, p in model.parameters.items():
        before, direction = p.clone(), torch.randn(p.shape, generator=generator, dtype=torch.float64)

        def moved(distance: float, p: Tensor = p, before: Tensor = before, direction: Tensor = direction) -> float:
            p.copy_(before + distance * direction)
            return model.loss(*batch).item()

        measured = derivative_at_0(moved, 1e-5)
        p.copy_(before)
        assert (model.gradients[key] * direction).sum().item() == pytest.approx(measured, rel=1e-5, abs=1e-8), key


def test_ablations_are_of_the_whole_recipe_with_one_change() -> None:
    whole, *changed = ablations("bytes")
    assert {c.steps for c in changed} == {whole.steps}
    for c in changed:
        model = {k for k in {**whole.model, **c.model} if whole.model.get(k) != c.model.get(k)}
        assert bool(c.variant) + bool(model) + (c.training != whole.training) == 1, c.name


@pytest.mark.processes
def test_contestants_train_and_the_same_configuration_does_the_same_by_autograd(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((ROOT / "README.md").read_bytes())
    task, ends = task_of(tmp_path / "a.txt", "bytes", tmp_path), {}
    for given in contestants("bytes", 5e-3):
        if given.kind == "compiled":
            continue
        training = {**given.training, "learning_rate": 5e-3, "min_learning_rate": 0.0}
        short = Contestant(given.name, given.kind, 4, given.model, training)
        command = [sys.executable, "-m", "benchmarks.racer", short.as_json(), task.as_json(), "0", "0"]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        assert [step for step, _, _ in rows] == [1, 2, 3, 4]
        assert all(earlier[1] < later[1] for earlier, later in pairwise(rows))
        ends[given.name] = [loss for _, _, loss in rows]
    assert ends["ours, GPT-2, tuned"] == pytest.approx(ends["nanoGPT, eager"], rel=1e-3)
    assert ends["ours, modern"] == ends["ours, modern, longer"] != ends["ours, GPT-2, tuned"]
