"""The record of a training run: each step's metrics, and what is kept of them for curves and for a resumption."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from custom_transformer.maths.parameters import Tensors
from custom_transformer.runs.digests import OF_A_STEP, DigestRow, chained, digest_row

Row = dict[str, float | int]

# A loss more than SPIKE_DEVIATIONS standard deviations above the mean of the SPIKE_WINDOW losses before it is a spike.
SPIKE_DEVIATIONS, SPIKE_WINDOW = 6.0, 50


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """Whether a loss stands out above those of the SPIKE_WINDOW steps before it."""
    if len(recent) < SPIKE_WINDOW:
        return False
    return loss > statistics.fmean(recent) + SPIKE_DEVIATIONS * statistics.pstdev(recent)


@dataclass(frozen=True)
class StepResult:
    """What one update did. Unless `status` is "ok", no parameter has changed."""

    loss: float  # nats per token
    status: Literal["ok", "nan_detected", "nan_gradient"]
    grad_norm: float  # as applied
    grad_norm_before_clip: float


@dataclass(frozen=True)
class Validation:
    """The loss on the validation split, in nats per token, and one row of activation statistics per block."""

    loss: float
    activations: list[Row]


@dataclass(frozen=True)
class StepMetrics:
    """One step of the run. Curves, MLflow and the terminal take their figures from here."""

    step: int  # updates done, this one included
    epoch: int  # counted from 1
    tokens: int  # labels seen so far in the run
    learning_rate: float
    result: StepResult
    spike: bool  # the loss stands out above those of the steps before
    gradient_norms: list[float] | None  # in the parameters' order; None for a step of which they are not kept
    validation: Validation | None  # None for a step after which there was none
    checkpoint: Path | None  # written if an epoch ended with this step
    last: bool
    save: bool = False  # a state is due
    stop: bool = False  # the run is to end here, to be gone on with later

    def figures(self) -> Row:
        """The step's figures by the names they have in every curve."""
        return {
            "epoch": self.epoch,
            "train_loss": self.result.loss,
            "learning_rate": self.learning_rate,
            "grad_norm": self.result.grad_norm_before_clip,
        } | ({"validation_loss": self.validation.loss} if self.validation else {})


@dataclass
class Progress:
    """How far a run is and what is kept of its steps: all that a resumed run needs besides arguments and tensors."""

    step: int = 0
    tokens: int = 0
    nan_steps: int = 0
    loss_spikes: int = 0
    kept_state: str = ""  # where the state before the first step with NaN is kept
    best_validation_loss: float = float("inf")
    best_step: int = 0
    curve: list[Row] = field(default_factory=list)  # one row every log_every steps, train_loss the mean since the last
    validation_curve: list[Row] = field(default_factory=list)
    gradient_norms: dict[int, list[float]] = field(default_factory=dict)  # by step
    activations: list[Row] = field(default_factory=list)  # one row per block at each validation
    losses: list[float] = field(default_factory=list)  # since the last row of the curve
    recent: list[float] = field(default_factory=list)  # of the last SPIKE_WINDOW steps
    chain: str = ""  # over the loss and the gradient norm of each step (digests.py)
    step_digests: list[str] = field(default_factory=list)  # of each step since the last row of digests
    digests: list[DigestRow] = field(default_factory=list)  # one row every save_every steps

    def record(self, m: StepMetrics, log_every: int) -> None:
        self.step, self.tokens = m.step, m.tokens
        self.loss_spikes += m.spike
        self.chain = chained(self.chain, m.result.loss, m.result.grad_norm_before_clip)
        self.step_digests.append(self.chain[:OF_A_STEP])
        if m.result.status == "ok":
            self.losses.append(m.result.loss)
            self.recent = [*self.recent, m.result.loss][-SPIKE_WINDOW:]
        else:
            self.nan_steps += 1
        figures = {"step": m.step} | m.figures()
        if m.validation:
            loss = figures.pop("validation_loss")
            self.validation_curve.append({"step": m.step, "epoch": m.epoch, "validation_loss": loss})
            self.activations += [{"step": m.step} | row for row in m.validation.activations]
            if loss < self.best_validation_loss:
                self.best_validation_loss, self.best_step = loss, m.step
        if self.losses and (m.step % log_every == 0 or m.last):
            self.curve.append(figures | {"train_loss": statistics.fmean(self.losses)})
            self.losses = []
        if m.gradient_norms is not None:
            self.gradient_norms[m.step] = m.gradient_norms

    def digests_now(self, parameters: Tensors, optimizer: Mapping[str, Tensors]) -> DigestRow:
        """The row of digests of this moment, with these tensors of the model and of the optimiser's state."""
        curves = [self.curve, self.validation_curve, [*self.gradient_norms.items()], self.activations]
        return digest_row(self.step, parameters, optimizer, curves, self.step_digests)

    def record_digests(self, parameters: Tensors, optimizer: Mapping[str, Tensors]) -> None:
        self.digests.append(self.digests_now(parameters, optimizer))
        self.step_digests = []
