"""The scaling law recovers what made its data, says how certain it is, and refuses what tells nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.utils.hydra import to_hydra_overrides

from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from custom_transformer.tracking import SweepRun, flat_params
from studies import law
from studies.law import Fit, Law, fit_law
from studies.plot import save_plot
from studies.queue import settings
from studies.scaling import Point, Result, data_changes, find, grid, non_embedding_parameters, with_changes

TRUE = Law(E=0.3, A=40.0, alpha=0.5, B=300.0, beta=0.55)
SIZES = [6e3, 2.5e4, 1e5, 4e5]
BUDGETS = [0.25e6, 0.5e6, 1e6, 2e6, 4e6]
N, D = (axis.ravel() for axis in np.meshgrid(SIZES, BUDGETS))
PARAMS = load_params("params.yaml")


def fit(noise: float, floor: float | None, seed: int = 0, resamples: int = 40) -> Fit:
    random = np.random.default_rng(seed)
    losses = TRUE.loss(N, D) * np.exp(noise * random.standard_normal(len(N)))
    return fit_law(list(N), list(D), list(losses), floor, resamples)


@pytest.mark.parametrize("floor", [None, TRUE.E])
def test_exact_losses_give_the_law_that_made_them(floor: float | None) -> None:
    law = fit(0.0, floor, resamples=2).law
    assert [law.E, law.alpha, law.beta, law.compute_exponent] == pytest.approx(
        [TRUE.E, TRUE.alpha, TRUE.beta, 0.55 / 1.05], rel=1e-3
    )
    factors = [law.A, law.B]
    assert factors == pytest.approx([TRUE.A, TRUE.B], rel=1e-2)


@pytest.mark.parametrize("floor", [None, TRUE.E])
def test_the_truth_lies_in_nine_of_ten_intervals_or_so(floor: float | None) -> None:
    fits = [fit(0.01, floor, seed) for seed in range(5)]
    names = ["alpha", "beta", "compute_exponent"] + ["E"] * (floor is None)
    held = [f.intervals[name][0] <= getattr(TRUE, name) <= f.intervals[name][1] for f in fits for name in names]
    assert np.mean(held) > 0.75
    widths = [f.intervals["alpha"][1] - f.intervals["alpha"][0] for f in fits]
    assert max(widths) < 0.5  # and they are not so wide that they hold anything
    assert all(f.error < 0.03 for f in fits)


def test_a_run_gone_wrong_does_not_pull_the_law() -> None:
    losses = TRUE.loss(N, D)
    losses[7] *= 1.5
    law = fit_law(list(N), list(D), list(losses), TRUE.E, 2).law
    assert [law.alpha, law.beta] == pytest.approx([TRUE.alpha, TRUE.beta], rel=0.02)


def test_each_resample_can_tell_a_power_law(monkeypatch: pytest.MonkeyPatch) -> None:
    descend, drawn = law._descend, []

    def watched(data: Any, *rest: Any) -> Any:
        drawn.append(min(len(np.unique(axis)) for axis in data[:2]))
        return descend(data, *rest)

    monkeypatch.setattr(law, "_descend", watched)
    rows = [0, 1, 2, 5, 10]  # three budgets of one size, two sizes more
    fit_law(list(N[rows]), list(D[rows]), list(TRUE.loss(N, D)[rows]), TRUE.E, 40)
    assert len(drawn) == 41
    assert set(drawn) == {3}


@pytest.mark.parametrize(
    ("rows", "losses", "floor", "words"),
    [
        (slice(4), None, 0.3, "4 runs cannot tell its 4 coefficients"),
        (slice(0), None, None, "0 runs"),
        (np.isin(N, SIZES[:1]), None, 0.3, "5 runs cannot|different model sizes"),
        (np.isin(D, BUDGETS[:1]), None, 0.1, "4 runs cannot|different token budgets"),
        (np.isin(D, BUDGETS[:2]), None, 0.3, "different token budgets"),
        (np.isin(N, SIZES[:2]), None, 0.3, "different model sizes"),
        (slice(None), 1.0, 0.3, "the same loss"),
        (slice(None), float("nan"), 0.3, "finite"),
        (slice(None), None, 2.0, "floor of 2"),
    ],
)
def test_what_tells_nothing_is_refused(rows: Any, losses: float | None, floor: float | None, words: str) -> None:
    measured = TRUE.loss(N, D) if losses is None else np.full(len(N), losses)
    with pytest.raises(UserError, match=words):
        fit_law(list(N[rows]), list(D[rows]), list(measured[rows]), floor, 2)


def test_the_grid_trains_each_budget_to_the_end_of_its_schedule() -> None:
    points = list(grid(PARAMS, {}, 1_000_000, [16, 32], 3, "s"))
    assert [(p.params.model.d_model, p.params.training.max_steps) for p in points] == [
        (32, 976), (16, 976), (32, 690), (16, 690), (32, 488), (16, 488),
    ]  # fmt: skip
    assert {(p.params.model.d_ffn, p.params.tracking.sweep) for p in points[:2]} == {(128, "s"), (64, "s")}
    assert len({p.name for p in points}) == 6
    assert not any(p.params.tracking.registered_model for p in points)
    assert non_embedding_parameters(points[1].params) == 2 * (12 * 16**2 + 13 * 16) + 2 * 16


def test_what_cannot_be_trained_is_refused_before_anything_is_queued() -> None:
    with pytest.raises(UserError, match="multiple of n_heads"):
        list(grid(PARAMS, {}, 1_000_000, [30], 1, "s"))
    with pytest.raises(UserError, match="too few for 5 budgets"):
        list(grid(PARAMS, {}, 3_000, [16], 5, "s"))
    with pytest.raises(UserError, match="too few for 4 budgets"):  # of 3, 2, 1 and 1 steps
        list(grid(PARAMS, {}, 3 * 1024, [16], 4, "s"))


def test_dvc_reads_the_settings_as_they_were_meant() -> None:
    changes = data_changes('texts/it\'s, "all": *.txt') | {"training.learning_rate": 3e-5, "training.max_steps": 7}
    given = {o.key_or_group: o.value() for o in to_hydra_overrides(settings(changes)[1::2])}
    assert {key: str(value) for key, value in given.items()} == {key: str(value) for key, value in changes.items()}
    assert given["data.val_split"] is None


def test_a_points_run_is_that_of_its_parameters() -> None:
    (point,) = grid(PARAMS, {}, 1_000_000, [16], 1, "s")

    def run(name: str, **changes: Any) -> SweepRun:
        params = with_changes(point.params, {key.replace("__", "."): value for key, value in changes.items()})
        return SweepRun(name, name, dict(flat_params(params.model_dump(mode="json"))), {})

    others = [run("seed", seed=5), run("steps", training__max_steps=7), run("part", evaluation__max_batches=2)]
    assert find(point, others) is None
    same = run("same", generation__temperature=0.9, tracking__sweep="t")
    assert find(Point({}, point.params), [*others, same]) is same


def test_the_picture_shows_a_law_without_a_known_floor_too(tmp_path: Path) -> None:
    losses = TRUE.loss(N, D)
    results = [Result(16, int(a), int(b), float(loss), "r") for a, b, loss in zip(N, D, losses, strict=True)]
    save_plot(results, fit(0.01, None, resamples=2), None, tmp_path / "law.png")
    assert (tmp_path / "law.png").stat().st_size > 10_000
