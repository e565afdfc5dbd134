"""Generates samples from checkpoints/best.pt; writes metrics/samples.jsonl and metrics/samples.md."""

from __future__ import annotations

import json

from custom_transformer.config import Params
from custom_transformer.errors import run_main
from custom_transformer.files import atomic_write
from custom_transformer.pages.samples import samples_markdown
from custom_transformer.paths import BEST, METRICS, TOKENIZER
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint
from custom_transformer.runs.generation import generate_samples
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.tracking import Run, checkpoint_run
from stages.cli import parameters


def main() -> None:
    params = parameters(__doc__)
    checkpoint = load_checkpoint(BEST)
    with checkpoint_run(params, BEST, stage="generate") as run:
        write_samples(checkpoint, params, run)


def write_samples(checkpoint: Checkpoint, params: Params, run: Run) -> None:
    """Both files of samples, and a copy of each in the MLflow run."""
    tokenizer = load_tokenizer(TOKENIZER, checkpoint.metadata.get("tokenizer"))
    count = len(params.generation.prompts) * params.generation.num_samples
    model = checkpoint.model_for(params.training, count * params.generation.max_new_tokens)
    samples = []
    with ProgressBar("generate", count, "samples") as progress:
        for sample in generate_samples(model, tokenizer, params.generation, params.seed):
            samples.append(sample)
            progress.update(len(samples))
    with atomic_write(METRICS / "samples.jsonl", "w") as file:
        file.writelines(json.dumps(sample.as_dict(), ensure_ascii=False) + "\n" for sample in samples)
    with atomic_write(METRICS / "samples.md", "w") as file:
        file.write(samples_markdown(samples, params.generation))
    for name in ("samples.jsonl", "samples.md"):
        run.log_artifact(METRICS / name, "samples")


if __name__ == "__main__":
    run_main(main)
