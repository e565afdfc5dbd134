"""The loop: steps are what they claim, runs repeat bit for bit, NaN changes nothing, a resumed run ends the same."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom_transformer.config import TrainingParams, load_params
from custom_transformer.errors import UserError
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.optim import SGD
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.runs.observe import activation_statistics
from custom_transformer.runs.record import SPIKE_WINDOW, is_spike
from custom_transformer.runs.scoring import validation_loss
from custom_transformer.runs.snapshots import snapshot_steps
from custom_transformer.runs.step import training_step
from custom_transformer.runs.training import Trainer
from custom_transformer.text.tokens import TokenSplit
from tests.helpers import SIZES, Held, random_model, random_tokens

TRAINING = load_params("configs/smoke.yaml").training
LENGTH = 9


def split(n_tokens: int = 400, seed: int = 0) -> TokenSplit:
    """A stream with something to learn: mostly each token's successor."""
    generator = np.random.default_rng(seed)
    tokens = (np.arange(n_tokens) + (generator.random(n_tokens) < 0.1)) % SIZES["vocab_size"]
    return TokenSplit(tokens.astype("<u2"), {"tokenizer": {"sha256": "0", "vocab_size": 37}, "bytes": 3 * n_tokens})


def trainer(folder: Path, model: CustomTransformer | None = None, **changes: Any) -> Trainer:
    settings = {"batch_size": 4, "max_steps": None, "num_epochs": 2, "eval_every": 5, "log_every": 3, **changes}
    params = TrainingParams.model_validate(TRAINING.model_dump() | settings)
    model = model or CustomTransformer({**SIZES, "dropout": 0.1}, seed=3)
    return Trainer(
        model, params, split(), split(150, 1), max_length=LENGTH, seed=5, checkpoints=folder, keep_state=not_expected
    )


def not_expected(step: int, state: dict[str, Any]) -> Path:
    raise AssertionError(f"a state was kept after step {step}")


def test_accumulated_batches_are_one_larger_batch() -> None:
    """Also where the labels that count are spread unevenly over the batches."""
    tokens = random_tokens(batch=6)
    input_ids, labels = tokens[:, :-1], tokens[:, 1:].clone()
    labels[0, 2:] = labels[1, :] = labels[4, 3] = -100
    together, apart = random_model(), random_model()
    whole = training_step(together, SGD({}), [(input_ids, labels)], 0.1, 0.5)
    chunks = list(zip(input_ids.split(2), labels.split(2), strict=True))
    parts = training_step(apart, SGD({}), chunks, 0.1, 0.5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.grad_norm_before_clip == pytest.approx(whole.grad_norm_before_clip, rel=1e-10)
    assert whole.grad_norm == 0.5
    for name, p in together.parameters.items():
        torch.testing.assert_close(apart.parameters[name], p, rtol=1e-10, atol=1e-12)


def test_several_batches_hold_one_sum_per_level_of_the_tree_and_the_gradient_that_arrives() -> None:
    most = []
    for batches in (1, 4):
        model, tokens = random_model(vocab_size=3000), random_tokens()  # the table's gradient is most of what lives
        with Held() as held:
            training_step(model, SGD({}), [(tokens, tokens)] * batches, 0.1, None)
        most.append(held.most)
    assert most[1] - most[0] <= 2 * sum(p.nbytes for p in model.parameters.values())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_changes_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    before = model.state_dict()
    tokens = random_tokens()
    if where == "loss":
        monkeypatch.setattr(model, "loss", lambda *_: torch.tensor(float("inf")))
    else:
        backward = model.loss_backward

        def poisoned(share: float, gradients: dict[str, torch.Tensor]) -> None:
            backward(share, gradients)
            model.gradients["blocks.1.up.weight"][0, 0] = float("nan")

        monkeypatch.setattr(model, "loss_backward", poisoned)
    result = training_step(model, SGD({}), [(tokens[:, :-1], tokens[:, 1:])], 0.1, 1.0)
    assert result.status == {"loss": "nan_detected", "gradient": "nan_gradient"}[where]
    assert all(torch.equal(before[name], p) for name, p in model.parameters.items())


def test_the_run_stops_at_max_nan_steps_with_the_state_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trainer(tmp_path, max_nan_steps=3, eval_every=1000)
    kept: dict[int, dict[str, Any]] = {}

    def keep(step: int, state: dict[str, Any]) -> Path:
        kept[step] = copy.deepcopy(state)
        return tmp_path / "kept.pt"

    t.keep_state = keep
    loss = t.model.loss
    monkeypatch.setattr(
        t.model, "loss", lambda *a: loss(*a) if t.progress.step not in (2, 4, 5) else torch.tensor(math.nan)
    )
    statuses, before_first = [], None
    with pytest.raises(UserError, match=r"max_nan_steps.*the first of them is kept in .*kept\.pt"):
        for m in t.run():
            statuses.append(m.result.status)
            if m.step == 2:
                before_first = copy.deepcopy(t.state())
    assert statuses == ["ok", "ok", "nan_detected", "ok", "nan_detected", "nan_detected"]
    assert list(kept) == [2]
    assert before_first is not None
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(kept[2][part], before_first[part], rtol=0, atol=0)
    assert kept[2]["progress"] == before_first["progress"]
    # It is a checkpoint like any other.
    torch.save(kept[2], tmp_path / "kept.pt")
    assert load_checkpoint(tmp_path / "kept.pt").metadata["step"] == 2


def test_a_spike_stands_out_above_the_losses_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, SPIKE_WINDOW)
    recent = list(3 - 0.01 * np.arange(SPIKE_WINDOW) + noise)
    assert not is_spike(recent[-1] + 0.2, recent)
    assert is_spike(recent[-1] + 3.0, recent)
    assert not is_spike(100.0, recent[1:])  # too few to compare with

    t = trainer(tmp_path, num_epochs=6)
    loss = t.model.loss
    monkeypatch.setattr(t.model, "loss", lambda *a: loss(*a) + (30.0 if t.progress.step == 55 else 0.0))
    assert [m.step for m in t.run() if m.spike] == [56]
    assert t.summary()["loss_spikes"] == 1


def test_each_epoch_trains_on_every_window_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(tmp_path, batch_size=3, grad_accumulation=2)
    seen: list[int] = []
    windows = TokenSplit.windows

    def noted(self: TokenSplit, indices: Any, length: int) -> Any:
        if self is t.train:
            seen.extend(int(i) for i in indices)
        return windows(self, indices, length)

    monkeypatch.setattr(TokenSplit, "windows", noted)
    steps = list(t.run())
    n = t.n_windows
    assert len(seen) == 2 * n
    assert sorted(seen[:n]) == sorted(seen[n:]) == list(range(n))
    assert seen[:n] != seen[n:]
    assert steps[-1].tokens == 2 * n * LENGTH


def test_a_run_learns_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    ends = []
    for name in ("one", "two"):
        t = trainer(tmp_path / name, num_epochs=8, learning_rate=0.01)
        list(t.run())
        ends.append(t)
    assert ends[0].summary() == ends[1].summary()
    assert ends[0].curves() == ends[1].curves()
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "best.pt" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (
        ends[0].progress.validation_curve[-1]["validation_loss"] < 1.5 < 3.0 < ends[0].progress.curve[0]["train_loss"]
    )


def test_precisions_end_at_the_same_loss(tmp_path: Path) -> None:
    """Products of operands rounded to 2⁻⁹ wander, but learn the same."""
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = CustomTransformer(SIZES, dtype=dtype, seed=3)
        t = trainer(tmp_path / str(dtype), model, num_epochs=8, learning_rate=0.01)
        list(t.run())
        losses[dtype] = t.progress.validation_curve[-1]["validation_loss"]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("stop", [1, 7, 12])
def test_a_resumed_run_ends_the_same(tmp_path: Path, stop: int, optimizer: str) -> None:
    whole = trainer(tmp_path / "whole", optimizer=optimizer)
    list(whole.run())
    first = trainer(tmp_path / "resumed", optimizer=optimizer)
    for m in first.run():
        if m.step == stop:
            break
    state = copy.deepcopy(first.state())
    second = trainer(tmp_path / "resumed", CustomTransformer({**SIZES, "dropout": 0.1}, seed=99), optimizer=optimizer)
    second.restore(state)
    list(second.run())
    assert second.summary() == whole.summary()
    assert second.curves() == whole.curves()
    assert second.progress == whole.progress
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "resumed" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("most", "kept"), [(4, [1, 8, 16]), (11, [1, 4, 8, 12, 16, 20])])
def test_the_norm_of_each_gradient_is_kept_of_so_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, kept: list[int]
) -> None:
    """From the first step on, evenly; their squares add up to that of the norm before clipping."""
    monkeypatch.setattr("custom_transformer.runs.training.GRADIENT_ROWS", most)
    t = trainer(tmp_path, log_every=2)
    norms = {m.step: m.result.grad_norm_before_clip for m in t.run()}
    assert t.total_steps == 22
    assert list(t.progress.gradient_norms) == kept
    rows = t.curves()["gradient_norms.csv"]
    assert [row["parameter"] for row in rows] == [*t.model.parameters] * len(kept)
    for step in t.progress.gradient_norms:
        squares = sum(float(row["gradient_norm"]) ** 2 for row in rows if row["step"] == step)
        assert math.sqrt(squares) == pytest.approx(norms[step], rel=1e-6)


def test_activations_are_those_of_the_same_windows_at_each_validation(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    list(t.run())
    assert [(row["step"], row["block"]) for row in t.progress.activations] == [
        (row["step"], block) for row in t.progress.validation_curve for block in (0, 1)
    ]
    observed, _ = t.validation.windows(range(4), LENGTH)
    assert [
        row | {"step": t.progress.step} for row in activation_statistics(t.model, observed)
    ] == t.progress.activations[-2:]


def test_checkpoints_of_the_last_epochs_and_the_best(tmp_path: Path) -> None:
    t = trainer(tmp_path, num_epochs=4, keep_checkpoints=2)
    list(t.run())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.pt", "custom_transformer_epoch_3.pt", "custom_transformer_epoch_4.pt"]
    best = load_checkpoint(tmp_path / "best.pt")
    assert best.metadata["step"] == t.progress.best_step
    loss = validation_loss(best.build_model(), t.validation, LENGTH, 4)
    assert loss == pytest.approx(min(row["validation_loss"] for row in t.progress.validation_curve), abs=1e-6)


def test_checkpoints_of_early_steps_are_those_of_a_resumed_run_too(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", num_epochs=10, keep_checkpoints=1)
    steps = [max(1, round(share * whole.total_steps)) for share in (0.01, 0.03, 0.1, 0.3)]
    states = [copy.deepcopy(whole.state()) for m in whole.run() if m.step == steps[1]]
    names = [f"custom_transformer_step_{step}.pt" for step in steps]
    early = tmp_path / "whole"
    assert {path.name for path in early.glob("*_step_*")} == set(names)
    assert [load_checkpoint(early / name).metadata["step"] for name in names] == steps
    resumed = trainer(tmp_path / "resumed", num_epochs=10, keep_checkpoints=1)
    resumed.restore(states[0])
    list(resumed.run())
    for name in names[2:]:
        assert (tmp_path / "resumed" / name).read_bytes() == (early / name).read_bytes()


def test_no_early_steps_are_kept_of_a_short_run_or_a_large_model() -> None:
    assert snapshot_steps(1000, 10**6) == {10, 30, 100, 300}
    assert not snapshot_steps(99, 10**6)
    assert not snapshot_steps(1000, 10**7)


def test_too_little_text_is_named(tmp_path: Path) -> None:
    params = TrainingParams.model_validate(TRAINING.model_dump())
    with pytest.raises(UserError, match=r"not one window of data\.max_length = 9"):
        Trainer(
            random_model(), params, split(5), split(5),
            max_length=LENGTH, seed=1, checkpoints=tmp_path, keep_state=not_expected,
        )  # fmt: skip


def test_a_run_that_diverges_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom_transformer.runs.training.validation_loss", lambda *_: float("nan"))
    with pytest.raises(UserError, match="the validation loss is nan"):
        list(trainer(tmp_path).run())
    assert not list(tmp_path.iterdir())
