"""The training loop, as a generator of step metrics, and all that a run needs to go on where it stopped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from custom_transformer.config import TrainingParams
from custom_transformer.errors import UserError
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.maths.optim import (
    Optimizer,
    Tensors,
    build_optimizer,
    clip_scale,
    learning_rate_at,
)
from custom_transformer.runs.checkpoint import checkpoint_content, save_checkpoint
from custom_transformer.runs.evaluation import validation_loss
from custom_transformer.runs.observe import activation_statistics, gradient_norms
from custom_transformer.text.tokens import TokenSplit, epoch_order, eval_windows

Batch = tuple[Tensor, Tensor]  # input_ids and labels, each (B, T) int64


@dataclass(frozen=True)
class StepResult:
    """What one update did. Unless `status` is "ok", no parameter has changed."""

    loss: float  # nats per token
    status: Literal["ok", "nan_detected", "nan_gradient"]
    grad_norm: float  # as applied
    grad_norm_before_clip: float


def training_step(
    model: CustomTransformer,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    max_grad_norm: float | None,
) -> StepResult:
    """One update from one or more batches, the same as from all their rows in one batch.

    Each batch's mean loss is weighed by its share of the labels that count. A loss or gradient that is NaN or
    infinite leaves parameters and optimiser as they were.
    """
    counts = [int((labels != IGNORE_INDEX).sum()) for _, labels in batches]
    loss = 0.0
    gradients: Tensors = {}
    model.gradients = {}  # the last step's, whose memory this one can use
    for (input_ids, labels), count in zip(batches, counts, strict=True):
        share = count / max(1, sum(counts))
        batch_loss = model.loss(input_ids, labels)
        if not torch.isfinite(batch_loss):
            return StepResult(batch_loss.item(), "nan_detected", 0.0, 0.0)
        loss += share * batch_loss.item()
        model.loss_backward(share)
        gradients = {name: gradients[name] + g for name, g in model.gradients.items()} if gradients else model.gradients
    norm = model.engine.global_norm(gradients)
    if not math.isfinite(norm):
        return StepResult(loss, "nan_gradient", norm, norm)
    model.gradients = gradients
    scale = clip_scale(norm, max_grad_norm)
    optimizer.update(model.parameters, gradients, learning_rate, scale)
    return StepResult(loss, "ok", norm if max_grad_norm is None else min(norm, max_grad_norm), norm)


@dataclass(frozen=True)
class StepMetrics:
    """One step of the run, as it is shown, logged and plotted."""

    step: int  # updates done, this one included
    epoch: int  # counted from 1
    tokens: int  # labels seen so far in the run
    learning_rate: float
    result: StepResult
    spike: bool  # the loss stands out above those of the steps before
    validation_loss: float | None  # where this step was followed by a validation
    checkpoint: Path | None  # where an epoch ended with this step


# A loss this many standard deviations above the mean of so many before it is a spike.
SPIKE_DEVIATIONS, SPIKE_WINDOW = 6.0, 50

GRADIENT_ROWS = 200  # steps, at most, of which the norm of each gradient is kept: as many as a picture can show
OBSERVED_WINDOWS = 4  # of the validation split, by which the activations are observed


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """Whether a loss stands out above those of the SPIKE_WINDOW steps before it."""
    if len(recent) < SPIKE_WINDOW:
        return False
    return loss > statistics.fmean(recent) + SPIKE_DEVIATIONS * statistics.pstdev(recent)


class Trainer:
    """A run from its first update to its last: model, optimiser, schedule, validation and checkpoints.

    Everything random is a function of (seed, step), so that `state()` after any step, restored into a new Trainer
    of the same arguments, goes on to the same end. Checkpoints are written into `checkpoints`:
    custom_transformer_epoch_N.pt as epochs end, best.pt whenever the validation loss improves. `keep_state`
    is given the state before the first step whose loss or gradient is NaN or infinite, with its number of steps, and
    returns where it keeps it.
    """

    def __init__(
        self,
        model: CustomTransformer,
        params: TrainingParams,
        train: TokenSplit,
        validation: TokenSplit,
        *,
        max_length: int,
        seed: int,
        checkpoints: Path,
        keep_state: Callable[[int, dict[str, Any]], Path],
    ):
        self.model, self.params = model, params
        self.train, self.validation = train, validation
        self.max_length, self.seed = max_length, seed
        self.checkpoints = checkpoints
        self.keep_state, self.kept_state = keep_state, ""
        self.optimizer = build_optimizer(params, model.parameters, model.engine)
        self.n_windows = train.n_windows(max_length)
        if self.n_windows == 0:
            raise UserError(
                f"the training split has {train.n_tokens} tokens, not one window of data.max_length = {max_length}: "
                "give it more text or shorten max_length"
            )
        self.windows_per_step = params.batch_size * params.grad_accumulation
        self.steps_per_epoch = -(-self.n_windows // self.windows_per_step)
        self.total_steps = params.num_epochs * self.steps_per_epoch
        if params.max_steps is not None:
            self.total_steps = min(self.total_steps, params.max_steps)
        self.step = self.tokens = self.nan_steps = self.loss_spikes = 0
        self.best_validation_loss, self.best_step = float("inf"), 0
        self.curve: list[dict[str, float | int]] = []  # one row each log_every steps
        self.validation_curve: list[dict[str, float | int]] = []
        self.gradient_steps = params.log_every * math.ceil(self.total_steps / (params.log_every * (GRADIENT_ROWS - 1)))
        self.gradient_norms: dict[int, list[float]] = {}  # by step, in the parameters' order
        self.activations: list[dict[str, float | int]] = []  # one row a block at each validation
        self._losses: list[float] = []  # since the last row of the curve
        self._recent: list[float] = []  # of the last SPIKE_WINDOW steps

    def run(self) -> Iterator[StepMetrics]:
        """The remaining steps. Raises UserError when max_nan_steps steps have been skipped for NaN."""
        order_epoch = -1
        while True:
            self._check_nan_steps()
            if self.step == self.total_steps:
                return
            epoch, position = divmod(self.step, self.steps_per_epoch)
            if order_epoch != epoch:
                order, order_epoch = epoch_order(self.n_windows, self.seed, epoch), epoch
            first = position * self.windows_per_step
            yield self._advance(order[first : first + self.windows_per_step], epoch + 1)

    def _advance(self, indices: Any, epoch: int) -> StepMetrics:
        size = self.params.batch_size
        chunks = [indices[i : i + size] for i in range(0, len(indices), size)]
        device = self.model.device
        batches = [
            (input_ids.to(device), labels.to(device))
            for input_ids, labels in (self.train.windows(chunk, self.max_length) for chunk in chunks)
        ]
        learning_rate = learning_rate_at(self.step, self.total_steps, self.params)
        self.model.generator.manual_seed((self.seed << 32) + self.step)
        self.model.training = True
        result = training_step(self.model, self.optimizer, batches, learning_rate, self.params.max_grad_norm)
        if result.status != "ok" and self.nan_steps == 0:  # it has changed nothing yet
            self.kept_state = str(self.keep_state(self.step, self.state()))
        self.step += 1
        self.tokens += len(indices) * self.max_length
        self.nan_steps += result.status != "ok"
        spike = self._count_spike(result)
        self._record(result, learning_rate, epoch)

        epoch_ends = self.step % self.steps_per_epoch == 0 or self.step == self.total_steps
        every = self.params.eval_every
        due = epoch_ends if every is None else self.step % every == 0 or self.step == self.total_steps
        loss = self._validate(epoch) if due else None
        checkpoint = self._save_epoch(epoch, result) if epoch_ends else None
        return StepMetrics(self.step, epoch, self.tokens, learning_rate, result, spike, loss, checkpoint)

    def _check_nan_steps(self) -> None:
        if self.nan_steps >= min(self.params.max_nan_steps, self.total_steps):
            raise UserError(
                f"training stopped at step {self.step}: {self.nan_steps} steps had a loss or gradient that was NaN "
                "or infinite (training.max_nan_steps); lower training.learning_rate or max_grad_norm; the state before "
                f"the first of them is kept in {self.kept_state}"
            )

    def _count_spike(self, result: StepResult) -> bool:
        if result.status != "ok":
            return False
        spike = is_spike(result.loss, self._recent)
        self.loss_spikes += spike
        self._recent = [*self._recent, result.loss][-SPIKE_WINDOW:]
        return spike

    def _record(self, result: StepResult, learning_rate: float, epoch: int) -> None:
        if result.status == "ok":
            self._losses.append(result.loss)
        if self._losses and (self.step % self.params.log_every == 0 or self.step == self.total_steps):
            self.curve.append(
                {
                    "step": self.step,
                    "epoch": epoch,
                    "train_loss": sum(self._losses) / len(self._losses),
                    "learning_rate": learning_rate,
                    "grad_norm": result.grad_norm_before_clip,
                }
            )
            self._losses = []
        if result.status == "ok" and (self.step % self.gradient_steps == 0 or not self.gradient_norms):
            self.gradient_norms[self.step] = gradient_norms(self.model.gradients, self.model.engine)

    def _validate(self, epoch: int) -> float:
        loss = validation_loss(self.model, self.validation, self.max_length, self.params.batch_size)
        if not math.isfinite(loss):
            raise UserError(
                f"training stopped at step {self.step}: the validation loss is {loss}; lower training.learning_rate"
            )
        self.validation_curve.append({"step": self.step, "epoch": epoch, "validation_loss": loss})
        observed, _ = next(eval_windows(self.validation, self.max_length, OBSERVED_WINDOWS))
        rows = activation_statistics(self.model, observed.to(self.model.device))
        self.activations += [{"step": self.step} | row for row in rows]
        if loss < self.best_validation_loss:
            self.best_validation_loss, self.best_step = loss, self.step
            self._save("best.pt", epoch, {"validation_loss": loss})
        return loss

    def _save_epoch(self, epoch: int, result: StepResult) -> Path:
        path = self._save(f"custom_transformer_epoch_{epoch}.pt", epoch, {"train_loss": result.loss})
        (self.checkpoints / f"custom_transformer_epoch_{epoch - self.params.keep_checkpoints}.pt").unlink(
            missing_ok=True
        )
        return path

    def _save(self, name: str, epoch: int, losses: dict[str, float]) -> Path:
        path = self.checkpoints / name
        save_checkpoint(path, self.model, self._metadata(epoch) | losses)
        return path

    def _metadata(self, epoch: int) -> dict[str, Any]:
        facts = {"epoch": epoch, "step": self.step, "tokens": self.tokens, "seed": self.seed}
        return facts | {"tokenizer": self.train.meta["tokenizer"]["sha256"]}

    def gradient_rows(self) -> list[dict[str, float | int | str]]:
        """The norm of each parameter's gradient, before clipping, one row a parameter at each step kept."""
        return [
            {"step": step, "parameter": name, "gradient_norm": norm}
            for step, norms in self.gradient_norms.items()
            for name, norm in zip(self.model.parameters, norms, strict=True)
        ]

    def summary(self) -> dict[str, float | int]:
        """metrics/train.json: what a finished run comes to, losses in nats per token."""
        return {
            "parameters": self.model.count_parameters(),
            "steps": self.step,
            "tokens": self.tokens,
            "train_loss": self.curve[-1]["train_loss"],
            "validation_loss": self.validation_curve[-1]["validation_loss"],
            "best_validation_loss": self.best_validation_loss,
            "best_step": self.best_step,
            "nan_steps": self.nan_steps,
            "loss_spikes": self.loss_spikes,
        }

    # What a resumed run needs besides its arguments: tensors, and these plain attributes.
    _PROGRESS = (
        "step",
        "tokens",
        "nan_steps",
        "loss_spikes",
        "kept_state",
        "best_validation_loss",
        "best_step",
        "curve",
        "validation_curve",
        "gradient_norms",
        "activations",
        "_losses",
        "_recent",
    )

    def state(self) -> dict[str, Any]:
        """A checkpoint with the optimiser and the progress beside it, for torch.save; valid until the next step."""
        return {
            **checkpoint_content(self.model, self._metadata(epoch=self.step // self.steps_per_epoch)),
            "optimizer": self.optimizer.state,
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to the step at which `state` was taken."""
        self.model.load_state_dict(state["state_dict"])
        device = self.model.device
        self.optimizer.state = {
            kind: {name: tensor.to(device) for name, tensor in tensors.items()}
            for kind, tensors in state["optimizer"].items()
        }
        for name in self._PROGRESS:
            setattr(self, name, state["progress"][name])
