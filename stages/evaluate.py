"""Evaluates a checkpoint on the validation split; writes metrics/eval.json and the loss by position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from custom_transformer.config import Params, load_params
from custom_transformer.errors import UserError, run_main
from custom_transformer.files import write_csv, write_json
from custom_transformer.paths import BEST, METRICS, TOKENIZER, TOKENS
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint
from custom_transformer.runs.evaluation import evaluate, held_out_accuracy
from custom_transformer.text.primer import held_out_questions
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokens import load_tokens
from custom_transformer.tracking import Run, checkpoint_run
from stages.cli import parser
from stages.generate import write_samples
from stages.show import print_metrics


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--checkpoint", type=Path, default=BEST)
    arguments_parser.add_argument("--generate", action="store_true", help="generate samples from it as well")
    arguments = arguments_parser.parse_args()
    params = load_params(arguments.config)

    checkpoint = load_checkpoint(arguments.checkpoint)
    metrics = evaluate_checkpoint(checkpoint, params)
    with checkpoint_run(params, arguments.checkpoint, stage="evaluate") as run:
        log_result(run, arguments.checkpoint, checkpoint, params, metrics)
        run.log_artifact(METRICS / "eval.json", "metrics")
        run.log_artifact(METRICS / "loss_by_position.csv", "metrics")
        if arguments.generate:
            write_samples(checkpoint, params, run)
    print_metrics(metrics)


def log_result(
    run: Run, path: Path, checkpoint: Checkpoint, params: Params, metrics: Mapping[str, float | int]
) -> None:
    """The metrics, for the run's best checkpoint with an MLflow model of it."""
    named, step = {f"eval_{name}": value for name, value in metrics.items()}, checkpoint.metadata.get("step", 0)
    if path != BEST:
        run.note_metrics(named, step)  # whatever the step: a checkpoint from elsewhere may tell of none
        return
    limit = min(params.generation.max_new_tokens, checkpoint.config.max_seq_len)
    run.log_model(
        path,
        TOKENIZER,
        defaults=params.generation.model_copy(update={"max_new_tokens": limit}),
        metrics=named,
        step=step,
        validation=evaluated_text(metrics),
        registered_model=params.tracking.registered_model,
    )


def evaluated_text(metrics: Mapping[str, float | int]) -> str:
    """A digest of the text that the metrics tell of, and how it was read: figures by another rule compare with none."""
    split = load_tokens(TOKENS, "validation")
    digest = str(split.meta["text_sha256"])
    if metrics["tokens"] != split.n_text_tokens:
        digest = sha256(f"the first {metrics['tokens']} tokens of {split.meta['sha256']}".encode()).hexdigest()
    return f"by-document:{digest}"


def evaluate_checkpoint(checkpoint: Checkpoint, params: Params) -> dict[str, float | int]:
    split = load_tokens(TOKENS, "validation")
    tokenizer = load_tokenizer(TOKENIZER, checkpoint.metadata.get("tokenizer"))
    model = checkpoint.model_for(params.training, split.n_tokens)
    vocab_size = split.meta["tokenizer"]["vocab_size"]
    # A model taken over may have entries that its tokenizer has not.
    checked = "tokenizer" in checkpoint.metadata
    if model.config.vocab_size < vocab_size or (model.config.vocab_size > vocab_size and not checked):
        raise UserError(
            f"the checkpoint's vocabulary has {model.config.vocab_size} entries, data/tokens was made with "
            f"{vocab_size}: evaluate it with the configuration it was trained with"
        )
    if not split.n_text_tokens:
        raise UserError("data/tokens: the validation split has no token of a text; give it more text")
    metrics, by_position = evaluate(model, split, params.evaluation.batch_size, params.evaluation.max_batches)
    for name in ("loss", "end_loss"):
        if not math.isfinite(metrics.get(name, 0)):
            raise UserError(f"the {name} of the validation split is {metrics[name]}: evaluate an earlier checkpoint")
    if params.data.dataset == "primer":
        metrics["held_out_accuracy"] = held_out_accuracy(model, tokenizer, held_out_questions())
    write_json(METRICS / "eval.json", metrics)
    write_csv(METRICS / "loss_by_position.csv", by_position)
    return metrics


if __name__ == "__main__":
    run_main(main)
