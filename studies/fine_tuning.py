"""An imported model fine-tuned by the pipeline, as an experiment of DVC's, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dvc.api

from custom_transformer.config import CustomTransformerConfig, Params, load_params
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER
from custom_transformer.paths import BEST, METRICS, TOKENS
from custom_transformer.runs.checkpoint import DTYPES, load_checkpoint
from custom_transformer.runs.evaluation import evaluate
from custom_transformer.runs.generation import generate_samples
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokens import load_tokens
from custom_transformer.tracking import PEAK_MEMORY
from stages.dvc import run_dvc
from studies import queue
from studies.scaling import Point, find, finished, with_changes

CONFIG = Path("configs/smollm2.yaml")
NAME = "smollm2"  # of the experiment


@dataclass(frozen=True)
class Result:
    """What a model makes of the validation texts, as in metrics/eval.json, and its samples, as in samples.jsonl."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


def fine_tuning_params(imported: Path, config: CustomTransformerConfig, text: Path | None, steps: int | None) -> Params:
    """CONFIG for the model in the folder `imported`, whose configuration is `config`, and for `text` and `steps` where
    they are given. Raises UserError for what the pipeline would not take."""
    base = load_params(CONFIG)
    changes: dict[str, Any] = {
        "data.tokenizer": str(imported / TOKENIZER),
        "data.max_length": min(base.data.max_length, config.max_seq_len),
        "model": config.model_dump(exclude={"vocab_size"}),
        "training.init_from": str(imported / CHECKPOINT),
    }
    if text is not None:
        changes["data.dataset"] = str(text)
    if steps is not None:
        changes["training.max_steps"] = steps
    return with_changes(base, changes)


def run_experiment(params: Params) -> None:
    """dvc exp run with `params` in a temporary copy of the repository, up to the evaluation and the samples.

    An earlier experiment of the name is replaced. What it computed is in DVC's cache, and an unfinished training goes
    on. Raises UserError if it fails.
    """
    if NAME in queue.experiments():
        run_dvc("exp", "remove", NAME)
    # ++: also the keys that params.yaml leaves out
    settings = queue.settings({f"++{key}": value for key, value in _keys(params.model_dump(mode="json"))})
    run_dvc("exp", "run", "--temp", "--name", NAME, *settings, "evaluate", "generate", output=None)


def _keys(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def fetch_checkpoint(path: Path) -> None:
    """Copies the experiment's best checkpoint to `path`."""
    dvc.api.DVCFileSystem(rev=NAME).get(str(BEST), str(path))


def result_after() -> Result:
    """What the experiment's stages found."""
    metrics, samples = (dvc.api.read(str(METRICS / name), rev=NAME) for name in ("eval.json", "samples.jsonl"))
    return Result(json.loads(metrics), [json.loads(line) for line in samples.split("\n") if line])


def result_before(imported: Path, params: Params) -> Result:
    """The same of the imported model, on the experiment's validation texts, in the precision of the training."""
    with TemporaryDirectory() as scratch:
        dvc.api.DVCFileSystem(rev=NAME).get(str(TOKENS), f"{scratch}/tokens", recursive=True)
        split = load_tokens(f"{scratch}/tokens", "validation")
        checkpoint = replace(load_checkpoint(imported / CHECKPOINT), dtype=DTYPES[params.training.precision])
        tokenizer = load_tokenizer(imported / TOKENIZER, checkpoint.metadata["tokenizer"])
        generation = params.generation
        new_tokens = len(generation.prompts) * generation.num_samples * generation.max_new_tokens
        model = checkpoint.model_for(params.training, split.n_tokens)
        metrics, _ = evaluate(model, split, params.evaluation.batch_size, params.evaluation.max_batches)
        model = checkpoint.model_for(params.training, new_tokens)
        samples = generate_samples(model, tokenizer, generation, params.seed)
        return Result(dict(metrics), [sample.as_dict() for sample in samples])


def peak_memory(params: Params) -> float | None:
    """The most memory that the training's process held, in bytes; None if MLflow does not have its run."""
    key = f"system/{PEAK_MEMORY}"
    run = find(Point({}, params), [run for run in finished(params) if key in run.metrics])
    return None if run is None else run.metrics[key] * 1e6
