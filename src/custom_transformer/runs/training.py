"""The training step, and the loop of a run as a generator of step metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from custom_transformer.config import TrainingParams
from custom_transformer.errors import UserError
from custom_transformer.maths import checks
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.maths.optim import Optimizer, build_optimizer, clip_scale, learning_rate_at
from custom_transformer.runs.checkpoint import checkpoint_content, save_checkpoint
from custom_transformer.runs.observe import activation_statistics, gradient_norms
from custom_transformer.runs.record import Progress, StepMetrics, StepResult, Validation, is_spike
from custom_transformer.runs.scoring import validation_loss
from custom_transformer.runs.snapshots import snapshot_steps
from custom_transformer.text.tokens import TokenSplit, epoch_order, eval_windows

Batch = tuple[Tensor, Tensor]  # input_ids and labels, each (B, T) int64

GRADIENT_ROWS = 200  # steps, at most, of which the norm of each gradient is kept: as many as a picture can show
OBSERVED_WINDOWS = 4  # of the validation split, by which the activations are observed


def training_step(
    model: CustomTransformer,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    max_grad_norm: float | None,
) -> StepResult:
    """One update from one or more batches, the same as from all their rows in one batch.

    Each batch's mean loss is weighed by its share of the labels that count. A loss or gradient that is NaN or
    infinite leaves parameters and optimiser as they were. Raises ValueError, and changes no parameter, for batches that
    the model does not take, a learning rate that is negative or not finite, and a max_grad_norm that is not above 0.
    """
    learning_rate, max_grad_norm = checks.check_learning_rate(learning_rate), checks.check_max_grad_norm(max_grad_norm)
    if not batches:
        raise ValueError("batches must be at least one pair of input_ids and labels, not none")
    for input_ids, labels in batches:
        # Their values are looked at one batch after another: on a GPU that waits for it.
        checks.check_ids("input_ids", input_ids, model.parameter_device)
        checks.check_ids("labels", labels, model.parameter_device)
        checks.check_same_shape("labels", labels, "input_ids", input_ids)
    with model.computing():
        return _step(model, optimizer, batches, learning_rate, max_grad_norm)


class _Sums(dict[str, Tensor]):
    """Gradients of several backwards, each added as it arrives: none is held beside the sum."""

    def __setitem__(self, name: str, gradient: Tensor) -> None:
        if name in self:
            self[name].add_(gradient)
        else:
            super().__setitem__(name, gradient)


def _step(
    model: CustomTransformer,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    learning_rate: float,
    max_grad_norm: float | None,
) -> StepResult:
    counts = [int((labels != IGNORE_INDEX).sum()) for _, labels in batches]
    loss = 0.0
    gradients = _Sums()
    model.gradients = {}  # frees the last step's, so that this step reuses their memory
    for (input_ids, labels), count in zip(batches, counts, strict=True):
        share = count / max(1, sum(counts))
        batch_loss = model.loss(input_ids, labels)
        if not torch.isfinite(batch_loss):
            return StepResult(batch_loss.item(), "nan_detected", 0.0, 0.0)
        loss += share * batch_loss.item()
        model.loss_backward(share, gradients)
    norm = model.engine.rules.global_norm(model.gradients)
    if not math.isfinite(norm):
        return StepResult(loss, "nan_gradient", norm, norm)
    scale = clip_scale(norm, max_grad_norm)
    optimizer.update(model.parameters, model.gradients, learning_rate, scale)
    return StepResult(loss, "ok", norm if max_grad_norm is None else min(norm, max_grad_norm), norm)


class Trainer:
    """A run from its first update to its last: model, optimiser, schedule, validation and checkpoints.

    Everything random is a function of (seed, step), so that `state()` after any step, restored into a new Trainer
    of the same arguments, goes on to the same end. Checkpoints are written into `checkpoints`:
    custom_transformer_epoch_N.pt as epochs end, best.pt whenever the validation loss improves, and
    custom_transformer_step_N.pt after a few early steps, for the explorer. `keep_state` is given the state before the
    first step whose loss or gradient is NaN or infinite, with its number of steps, and returns where it keeps it.
    `origin`: where the model's parameters come from, for the checkpoints' metadata.
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
        origin: Mapping[str, str] = MappingProxyType({}),
    ):
        self.model, self.params = model, params
        self.train, self.validation = train, validation
        self.max_length, self.seed = max_length, seed
        self.checkpoints, self.keep_state, self.origin = checkpoints, keep_state, origin
        self.optimizer = build_optimizer(
            params, model.parameters, model.table, model.config.head_size, model.engine.rules
        )
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
        self.gradient_steps = params.log_every * math.ceil(self.total_steps / (params.log_every * (GRADIENT_ROWS - 1)))
        self.snapshot_steps = snapshot_steps(self.total_steps, model.count_parameters())
        self.progress = Progress()

    def run(self) -> Iterator[StepMetrics]:
        """The remaining steps. Raises UserError when max_nan_steps steps have been skipped for NaN."""
        order_epoch = -1
        while True:
            self._check_nan_steps()
            if self.progress.step == self.total_steps:
                return
            epoch, position = divmod(self.progress.step, self.steps_per_epoch)
            if order_epoch != epoch:
                order, order_epoch = epoch_order(self.n_windows, self.seed, epoch), epoch
            first = position * self.windows_per_step
            yield self._advance(order[first : first + self.windows_per_step], epoch + 1)

    def _advance(self, indices: Any, epoch: int) -> StepMetrics:
        progress, params = self.progress, self.params
        learning_rate = learning_rate_at(progress.step, self.total_steps, params)
        self.model.generator.manual_seed((self.seed << 32) + progress.step)
        self.model.training = True
        result = training_step(self.model, self.optimizer, self._batches(indices), learning_rate, params.max_grad_norm)
        ok = result.status == "ok"
        if not ok and progress.nan_steps == 0:  # it has changed nothing yet
            progress.kept_state = str(self.keep_state(progress.step, self.state()))

        step, tokens = progress.step + 1, progress.tokens + len(indices) * self.max_length
        last = step == self.total_steps
        epoch_ends = last or step % self.steps_per_epoch == 0
        due = epoch_ends if params.eval_every is None else last or step % params.eval_every == 0
        facts = self._metadata(epoch, step, tokens)
        if step in self.snapshot_steps:
            save_checkpoint(self.checkpoints / f"custom_transformer_step_{step}.pt", self.model, facts)
        norms_due = ok and (step % self.gradient_steps == 0 or not progress.gradient_norms)
        m = StepMetrics(
            step=step,
            epoch=epoch,
            tokens=tokens,
            learning_rate=learning_rate,
            result=result,
            spike=ok and is_spike(result.loss, progress.recent),
            gradient_norms=gradient_norms(self.model.gradients, self.model.engine) if norms_due else None,
            validation=self._validate(facts) if due else None,
            checkpoint=self._save_epoch(facts | {"train_loss": result.loss}) if epoch_ends else None,
            last=last,
        )
        progress.record(m, params.log_every)
        if step % params.save_every == 0 or last:
            progress.record_digests(self.model.parameters, self.optimizer.state)
        return m

    def _batches(self, indices: Any) -> list[Batch]:
        size, device = self.params.batch_size, self.model.device
        chunks = (indices[i : i + size] for i in range(0, len(indices), size))
        batches = (self.train.windows(chunk, self.max_length) for chunk in chunks)
        return [(input_ids.to(device), labels.to(device)) for input_ids, labels in batches]

    def _check_nan_steps(self) -> None:
        progress = self.progress
        if progress.nan_steps >= min(self.params.max_nan_steps, self.total_steps):
            raise UserError(
                f"training stopped at step {progress.step}: {progress.nan_steps} steps had a loss or gradient that was "
                "NaN or infinite (training.max_nan_steps); lower training.learning_rate or max_grad_norm; the state "
                f"before the first of them is kept in {progress.kept_state}"
            )

    def _validate(self, facts: dict[str, Any]) -> Validation:
        loss = validation_loss(self.model, self.validation, self.max_length, self.params.batch_size)
        if not math.isfinite(loss):
            raise UserError(
                f"training stopped at step {facts['step']}: the validation loss is {loss}; lower training.learning_rate"
            )
        observed, _ = next(eval_windows(self.validation, self.max_length, OBSERVED_WINDOWS))
        if loss < self.progress.best_validation_loss:
            save_checkpoint(self.checkpoints / "best.pt", self.model, facts | {"validation_loss": loss})
        return Validation(loss, activation_statistics(self.model, observed.to(self.model.device)))

    def _save_epoch(self, facts: dict[str, Any]) -> Path:
        path, outdated = (
            self.checkpoints / f"custom_transformer_epoch_{epoch}.pt"
            for epoch in (facts["epoch"], facts["epoch"] - self.params.keep_checkpoints)
        )
        save_checkpoint(path, self.model, facts)
        outdated.unlink(missing_ok=True)
        return path

    def _metadata(self, epoch: int, step: int, tokens: int) -> dict[str, Any]:
        facts = {"epoch": epoch, "step": step, "tokens": tokens, "seed": self.seed}
        return facts | {"tokenizer": self.train.meta["tokenizer"]["sha256"], **self.origin}

    def curves(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """The rows of each CSV file in metrics/, by its name; gradient norms are those before clipping."""
        progress = self.progress
        gradient_rows = [
            {"step": step, "parameter": name, "gradient_norm": norm}
            for step, norms in progress.gradient_norms.items()
            for name, norm in zip(self.model.parameters, norms, strict=True)
        ]
        return {
            "training_curve.csv": progress.curve,
            "validation_curve.csv": progress.validation_curve,
            "gradient_norms.csv": gradient_rows,
            "activations.csv": progress.activations,
            "digests.csv": progress.digests,
        }

    def summary(self) -> dict[str, float | int]:
        """metrics/train.json: the result of a finished run, losses in nats per token."""
        progress = self.progress
        names = ("best_validation_loss", "best_step", "nan_steps", "loss_spikes")
        return {
            "parameters": self.model.count_parameters(),
            "steps": progress.step,
            "tokens": progress.tokens,
            "train_loss": progress.curve[-1]["train_loss"],
            "validation_loss": progress.validation_curve[-1]["validation_loss"],
        } | {name: getattr(progress, name) for name in names}

    def state(self) -> dict[str, Any]:
        """A checkpoint with the optimiser and the progress beside it, for torch.save; valid until the next step."""
        progress = self.progress
        facts = self._metadata(progress.step // self.steps_per_epoch, progress.step, progress.tokens)
        return {
            **checkpoint_content(self.model, facts),
            "optimizer": self.optimizer.state,
            "progress": asdict(progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to the step at which `state` was taken."""
        device = self.model.device
        self.optimizer.state = {
            kind: {name: tensor.to(device) for name, tensor in tensors.items()}
            for kind, tensors in state["optimizer"].items()
        }
        self.model.load_state_dict(state["state_dict"])  # last: into the memory of the optimiser's former state
        self.progress = Progress(**state["progress"])
