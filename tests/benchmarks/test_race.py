"""How the race reads its runs, and that a configuration trains the same by hand and by autograd."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.race import Run, ablations, contestants, table_rows, targets
from benchmarks.racer import Batches, Contestant, Task, ours, validation_loss
from benchmarks.tasks import ABOVE_FLOOR, task_of_primer, task_of_text
from benchmarks.variants import PAIRS, VARIANTS
from custom_transformer import CustomTransformer, CustomTransformerConfig
from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from custom_transformer.maths.gradcheck import derivative_at_0
from custom_transformer.runs.evaluation import evaluate
from custom_transformer.text.tokens import load_tokens
from tests.helpers import ROOT, SIZES, random_tokens
from tests.processes import run

SHIPPED, TUNED = "nanoGPT, compiled", "nanoGPT, compiled, tuned"


def run_of(name: str, seed: int, *losses: float) -> Run:
    return Run(name, seed, tuple((10 * i, 2.0 * i, loss) for i, loss in enumerate(losses, start=1)))


def test_every_run_of_the_slowest_reaches_its_own_target() -> None:
    runs = [run_of(SHIPPED, 0, 3.0, 2.0), run_of(SHIPPED, 1, 3.0, 2.0004), run_of(TUNED, 0, 2.5, 1.5)]
    on_text = Task("a text", "", {}, 1)
    ends = {"the loss of nanoGPT as shipped": 2.001, "the loss of nanoGPT with a tuned learning rate": 1.5}
    assert targets(on_text, runs) == ends
    assert targets(Task("the primer", "", {}, 1, {"a goal": 1.2}), runs) == {"a goal": 1.2}
    rows = {name: words for name, *words in table_rows(runs, 2.001)}
    assert rows[SHIPPED] == ["2.000", "20", "4.0 (4.0–4.0)", 4.0]
    assert rows[TUNED] == ["1.500", "20", "4.0 (4.0–4.0)", 4.0]
    assert {name: row[-1] for name, *row in table_rows(runs, 1.5)} == {SHIPPED: math.inf, TUNED: 4.0}


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(UserError, match="too few for a race"):
        task_of_text(tmp_path / "a.txt", "bytes", tmp_path)


def test_the_primer_is_validated_as_the_stage_does(tmp_path: Path) -> None:
    task = task_of_primer(load_params(ROOT / "configs/smoke.yaml"), tmp_path)
    _, mean_loss = ours(Contestant("a", "ours", 1), task, seed=3)
    found = validation_loss(mean_loss, task.array("input_ids"), task.array("labels"))
    model = CustomTransformer(CustomTransformerConfig(**task.model), seed=3)
    metrics, _ = evaluate(model, load_tokens(tmp_path / "tokens", "validation"), batch_size=32)
    assert found == pytest.approx(metrics["loss"], rel=1e-5)
    nats_per_token = metrics["loss"] / metrics["bits_per_byte"]
    (goal,) = task.goals.values()
    assert goal == pytest.approx((metrics["bits_per_byte_floor"] + ABOVE_FLOOR) * nats_per_token)


def test_an_average_of_the_parameters_is_validated(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((ROOT / "README.md").read_bytes())
    task = task_of_text(tmp_path / "a.txt", "bytes", tmp_path)
    (whole,) = (c for c in ablations("bytes") if c.name == "ours, modern")
    windows = task.array("input_ids"), task.array("labels")
    found = {}
    for decay in (0.0, 1e-9, 1 - 1e-9):  # the parameters; hardly an average; hardly moved
        step, mean_loss = ours(replace(whole, ema_decay=decay), task, seed=0)
        before = validation_loss(mean_loss, *windows)
        for _ in range(3):
            step(Batches(task, 0)(), 0.01)
        found[decay] = before, validation_loss(mean_loss, *windows)
    assert found[0.0][1] == pytest.approx(found[1e-9][1], rel=1e-6)
    assert found[1 - 1e-9][1] == pytest.approx(found[0.0][0], rel=1e-6) != found[0.0][1]


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

        measured = derivative_at_0(moved, 1e-6)  # hardly a unit passes the kink of ReLU² on that way
        p.copy_(before)
        assert (model.gradients[key] * direction).sum().item() == pytest.approx(measured, rel=1e-5, abs=1e-8), key


def test_ablations_are_of_the_whole_recipe_with_one_change() -> None:
    whole, *changed = ablations("bytes")
    assert {c.steps for c in changed} == {whole.steps}
    for c in changed:
        model = {k for k in {**whole.model, **c.model} if whole.model.get(k) != c.model.get(k)}
        averaged, training = c.ema_decay != whole.ema_decay, c.training != whole.training
        changes = bool(c.variant) + bool(model) + training + averaged
        assert changes == (2 if c.name == "rate stays, weights averaged" else 1), c.name
    assert PAIRS in {c.name for c in changed} and PAIRS not in {c.name for c in ablations("primer")}


@pytest.mark.processes
def test_contestants_train_and_the_same_configuration_does_the_same_by_autograd(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((ROOT / "README.md").read_bytes())
    task, ends = task_of_text(tmp_path / "a.txt", "bytes", tmp_path), {}
    for given in contestants("bytes", 5e-3):
        if given.kind == "compiled":
            continue
        training = {**given.training, "learning_rate": 5e-3, "min_learning_rate": 0.0}
        short = Contestant(given.name, given.kind, 4, given.model, training)
        done = run("-m", "benchmarks.racer", short.as_json(), task.as_json(), 0, 0)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [step for step, _, _ in rows] == [1, 2, 3, 4]
        assert all(earlier[1] < later[1] for earlier, later in pairwise(rows))
        ends[given.name] = [loss for _, _, loss in rows]
    assert ends["ours, GPT-2, tuned"] == pytest.approx(ends["nanoGPT, eager"], rel=1e-3)
    assert ends["ours, modern"] == ends["ours, modern, longer"] != ends["ours, GPT-2, tuned"]
