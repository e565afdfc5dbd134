"""The loop of a run as a generator of step metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from custom_transformer.config import TrainingParams
from custom_transformer.errors import UserError
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.optim import build_optimizer, learning_rate_at, updated_whole
from custom_transformer.runs.checkpoint import checkpoint_content, save_checkpoint
from custom_transformer.runs.distributed import Shares
from custom_transformer.runs.observe import activation_statistics
from custom_transformer.runs.processes import ALONE, Processes
from custom_transformer.runs.record import Progress, StepMetrics, Validation, is_spike
from custom_transformer.runs.scoring import validation_loss
from custom_transformer.runs.seeds import seed_of
from custom_transformer.runs.snapshots import snapshot_steps
from custom_transformer.runs.step import Batch, shared_step
from custom_transformer.text.tokens import TokenSplit, epoch_order, eval_windows

GRADIENT_ROWS = 200  # steps, at most, of which the norm of each gradient is kept: as many as a picture can show
OBSERVED_WINDOWS = 4  # of the validation split, by which the activations are observed

Asks = Callable[[int], tuple[bool, bool]]  # after a step: whether to save a state, and whether to stop


def nothing(step: int) -> tuple[bool, bool]:
    """Asks for neither."""
    return False, False


class Trainer:
    """A run from its first update to its last: model, optimiser, schedule, validation and checkpoints.

    Everything random is a function of (seed, step, shard), so that `state()` after any step, restored into a new
    Trainer of the same arguments, goes on to the same end, also with another number of processes. Checkpoints are
    written into `checkpoints`: custom_transformer_epoch_N.pt as epochs end, best.pt whenever the validation loss
    improves, and custom_transformer_step_N.pt after a few early steps, for the explorer. `keep_state` is given the
    state before the first step whose loss or gradient is NaN or infinite, with its number of steps, and returns where
    it keeps it.
    `origin`: where the model's parameters come from, for the checkpoints' metadata.
    `processes`: who trains together, each with a Trainer of the same arguments; only the first writes files. What
    `asks` says of a step in one of them holds for all.
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
        processes: Processes = ALONE,
        asks: Asks = nothing,
    ):
        self.model, self.params = model, params
        self.train, self.validation = train, validation
        self.max_length, self.seed = max_length, seed
        self.checkpoints, self.keep_state, self.origin = checkpoints, keep_state, origin
        self.processes, self.asks = processes, asks
        whole = updated_whole(params, model.table)
        self.shares = Shares(processes, model.parameters, params.grad_accumulation, whole)
        self.optimizer = build_optimizer(
            params, self.shares.own(model.parameters), model.table, model.config.head_size, model.engine.rules
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
        self.model.training = True
        counts = [len(shard) * self.max_length for shard in self._shards(indices)]  # a window's labels all count
        result, norms, (asked_to_save, stop) = shared_step(
            self.model,
            self.optimizer,
            self._batches(indices),
            counts,
            learning_rate,
            params.max_grad_norm,
            self.shares,
            self.asks(progress.step + 1),
        )
        ok = result.status == "ok"
        if not ok and progress.nan_steps == 0:  # it has changed nothing yet
            state = self.state()
            kept = str(self.keep_state(progress.step, state)) if self.processes.first else None
            progress.kept_state = self.processes.from_first(kept)

        step, tokens = progress.step + 1, progress.tokens + len(indices) * self.max_length
        last = step == self.total_steps
        epoch_ends = last or step % self.steps_per_epoch == 0
        due = epoch_ends if params.eval_every is None else last or step % params.eval_every == 0
        facts = self._metadata(epoch, step, tokens)
        if step in self.snapshot_steps and self.processes.first:
            save_checkpoint(self.checkpoints / f"custom_transformer_step_{step}.pt", self.model, facts)
        norms_due = ok and (step % self.gradient_steps == 0 or not progress.gradient_norms)
        m = StepMetrics(
            step=step,
            epoch=epoch,
            tokens=tokens,
            learning_rate=learning_rate,
            result=result,
            spike=ok and is_spike(result.loss, progress.recent),
            gradient_norms=[norms[name] for name in self.model.parameters] if norms_due else None,
            validation=self._validate(facts) if due else None,
            checkpoint=self._save_epoch(facts | {"train_loss": result.loss}) if epoch_ends else None,
            last=last,
            save=step % params.save_every == 0 or last or asked_to_save or stop,
            stop=stop,
        )
        progress.record(m, params.log_every)
        if step % params.save_every == 0 or last:
            state = self.shares.whole(self.optimizer.state, self.model.parameters)
            if self.processes.first:
                progress.record_digests(self.model.parameters, state)
        return m

    def _shards(self, indices: Any) -> list[Any]:
        """The windows of each forward pass of a step."""
        size = self.params.batch_size
        return [indices[i : i + size] for i in range(0, len(indices), size)]

    def _batches(self, indices: Any) -> Iterator[Batch]:
        """This process's shards of a step, one after the other; each has its own dropout masks."""
        shards, device = self._shards(indices), self.model.device
        for i in self.shares.shards(len(shards)):
            self.model.generator.manual_seed(seed_of(self.seed, self.progress.step, i))
            input_ids, labels = self.train.windows(shards[i], self.max_length)
            yield input_ids.to(device), labels.to(device)

    def _check_nan_steps(self) -> None:
        progress = self.progress
        if progress.nan_steps >= min(self.params.max_nan_steps, self.total_steps):
            raise UserError(
                f"training stopped at step {progress.step}: {progress.nan_steps} steps had a loss or gradient that was "
                "NaN or infinite (training.max_nan_steps); lower training.learning_rate or max_grad_norm; the state "
                f"before the first of them is kept in {progress.kept_state}"
            )

    def _validate(self, facts: dict[str, Any]) -> Validation:
        loss = validation_loss(self.model, self.validation, self.max_length, self.params.batch_size, self.processes)
        if not math.isfinite(loss):
            raise UserError(
                f"training stopped at step {facts['step']}: the validation loss is {loss}; lower training.learning_rate"
            )
        observed, _ = next(eval_windows(self.validation, self.max_length, OBSERVED_WINDOWS))
        if loss < self.progress.best_validation_loss and self.processes.first:
            save_checkpoint(self.checkpoints / "best.pt", self.model, facts | {"validation_loss": loss})
        return Validation(loss, activation_statistics(self.model, observed.to(self.model.device)))

    def _save_epoch(self, facts: dict[str, Any]) -> Path:
        path, outdated = (
            self.checkpoints / f"custom_transformer_epoch_{epoch}.pt"
            for epoch in (facts["epoch"], facts["epoch"] - self.params.keep_checkpoints)
        )
        if self.processes.first:
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
        """A checkpoint with the optimiser and the progress beside it, for torch.save; valid until the next step.

        All processes call it; the first one's is whole.
        """
        progress = self.progress
        facts = self._metadata(progress.step // self.steps_per_epoch, progress.step, progress.tokens)
        return {
            **checkpoint_content(self.model, facts),
            "optimizer": self.shares.whole(self.optimizer.state, self.model.parameters),
            "progress": asdict(progress),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Goes back to the step at which `state`, the first process's, was taken. The others follow it with None."""
        processes, device = self.processes, self.model.device
        own = {}
        for kind in processes.from_first(state and [*state["optimizer"]]):
            tensors = processes.tensors_from_first(state and state["optimizer"][kind])
            own[kind] = self.shares.kept({name: tensor.to(device) for name, tensor in tensors})
        self.optimizer.state = own
        parameters = dict(processes.tensors_from_first(state and state["state_dict"]))
        self.model.load_state_dict(parameters)  # last: into the memory of the optimiser's former state
        self.progress = Progress(**processes.from_first(state and state["progress"]))
