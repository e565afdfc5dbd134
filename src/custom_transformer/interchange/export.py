"""A checkpoint as a folder that other tools read, with a card; the pipeline's own with what its run knows of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from custom_transformer.config import Params
from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.interchange import check_target, export_huggingface
from custom_transformer.interchange.forms import FORMS
from custom_transformer.interchange.harness import QUESTIONS, TASKS, TEXTS, harness_command, write_tasks
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.pages.card import RunFacts, model_card
from custom_transformer.paths import BEST, DIGESTS, METRICS, RAW, TOKENS
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint
from custom_transformer.runs.digests import parameters_digest, read_digests
from custom_transformer.text.documents import read_documents
from custom_transformer.text.primer import held_out_questions
from custom_transformer.text.saved_tokenizer import load_tokenizer, tokenizer_of
from custom_transformer.text.tokens import load_tokens

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast


def export_checkpoint(path: Path, folder: Path, params: Params) -> CustomTransformer:
    """Writes the model in the checkpoint `path` to `folder`, in Hugging Face's format; returns it.

    Of checkpoints/best.pt the card also tells data, training and results, by `params` and the earlier stages' files,
    and tasks for lm-evaluation-harness stand beside the weights. Equal inputs give equal bytes. Raises UserError for a
    missing or damaged input and for a `folder` that holds something else; then nothing is written.
    """
    check_target(folder, ("config.json", "model.safetensors"), path)
    checkpoint, tokenizer = with_tokenizer(path)
    model = checkpoint.build_model()
    origin = {
        "checkpoint, SHA-256": sha256_file(path),
        "parameters, SHA-256": parameters_digest(checkpoint.state_dict),
    } | checkpoint.metadata
    origin = {"tokenizer, SHA-256" if name == "tokenizer" else name: value for name, value in origin.items()}
    if path.resolve() != BEST.resolve():
        export_huggingface(model, tokenizer, folder, model_card(checkpoint.config, origin, folder))
        return model
    meta = load_tokens(TOKENS, "validation").meta
    questions = held_out_questions() if params.data.dataset == "primer" else ()
    tasks = (TEXTS, QUESTIONS) if questions else (TEXTS,)
    train, result, command = _metrics("train"), _metrics("eval"), harness_command(folder, tokenizer, tasks)
    run = RunFacts(params, meta, train, _digests(), result, command)
    texts = _validation_texts(meta["text_sha256"])
    export_huggingface(
        model,
        tokenizer,
        folder,
        model_card(checkpoint.config, origin, folder, run),
        lambda staged: write_tasks(staged / TASKS, texts, questions),
    )
    return model


def with_tokenizer(path: Path) -> tuple[Checkpoint, PreTrainedTokenizerFast]:
    """The checkpoint in `path` and the tokenizer that it was trained with. Raises UserError if one is missing, damaged,
    or of another, and for an architecture that other tools do not have."""
    checkpoint = load_checkpoint(path)
    if (architecture := checkpoint.config.architecture) not in FORMS:
        raise UserError(f"{path}: no other tool has the architecture {architecture}; export one of {', '.join(FORMS)}")
    return checkpoint, load_tokenizer(tokenizer_of(path), checkpoint.metadata.get("tokenizer"))


def _metrics(name: str) -> dict[str, Any]:
    path = METRICS / f"{name}.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not there yet, and the card tells of it; run dvc repro evaluate first") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run dvc repro evaluate") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; run dvc repro evaluate")
    return content


def _digests() -> dict[str, str]:
    """The digests of a run at its end, and of the file that has them."""
    last = read_digests(DIGESTS)[-1]
    columns = {"parameters": "parameters", "optimizer": "optimiser's state", "curve": "curves"}
    of_run = {f"{what} after step {last['step']:,}": str(last[column]) for column, what in columns.items()}
    return of_run | {f"`{DIGESTS}`": sha256_file(DIGESTS)}


def _validation_texts(sha256: str) -> Iterator[str]:
    """The texts whose digest data/tokens has; raises UserError at their end if they are others."""
    digest = hashlib.sha256()
    for text in read_documents(RAW / "validation.parquet"):
        digest.update(text.encode() + b"\xff")
        yield text
    if digest.hexdigest() != sha256:
        raise UserError(f"{RAW}: not the text that {TOKENS} was made of; run dvc repro tokenize")
