"""A trained model without tokens in its interface: text in, its continuation and log-probabilities out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from custom_transformer.config import SamplingParams, validated
from custom_transformer.errors import UserError, shown
from custom_transformer.fast.choose import choose_device, choose_engine
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.runs.generation import generate, new_text
from custom_transformer.runs.scoring import score
from custom_transformer.runs.seeds import seed_of
from custom_transformer.text.saved_tokenizer import load_tokenizer

CHECKPOINT, TOKENIZER = "checkpoint.pt", "tokenizer"  # the names in a served model's folder
SERVED_FLOPS = 1e13  # expected of a model that answers for some time: worth compiling kernels, not torch.compile


class ServingParams(SamplingParams):
    """What a request may set."""

    max_new_tokens: Annotated[int, Field(ge=0)]  # 0: the prompt's log-probabilities only
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None  # null: a different continuation each time


@dataclass(frozen=True)
class Completion:
    """The model's continuation of a prompt, which it reads as the beginning of a text.

    tokens and prompt_tokens are the texts of single tokens; a token that is part of a character is shown as �. The
    log-probabilities are natural logarithms, of each token given all before it, at temperature 1 whatever the sampling.
    If the model ended the text, finish_reason is "stop" and the end token is the last of tokens; "length" means that
    max_new_tokens or the model's context was used up.
    """

    continuation: str
    finish_reason: Literal["stop", "length"]
    tokens: list[str]
    log_probabilities: list[float]
    prompt_tokens: list[str]
    prompt_log_probabilities: list[float]


class TextModel:
    """A checkpoint and its tokenizer. Raises UserError if one is missing or damaged."""

    def __init__(self, folder: Path):
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        self._tokenizer = load_tokenizer(folder / TOKENIZER, checkpoint.metadata.get("tokenizer"))
        device = choose_device("auto")
        self._model = checkpoint.build_model(device, choose_engine("auto", device, SERVED_FLOPS))
        self._in_use = threading.Lock()  # one generation at a time, which has all cores

    def complete(self, prompts: Iterable[object], settings: Mapping[str, Any]) -> Iterator[Completion]:
        """The completion of each prompt; equal seeds give equal ones. Raises UserError for a prompt that the model
        cannot take, and for settings out of range."""
        params = validated(ServingParams, dict(settings), "params")
        window = self._model.config.max_seq_len
        if params.max_new_tokens > window:
            raise UserError(
                f"params: max_new_tokens: at most {window}, the model's context, not {params.max_new_tokens}"
            )
        rows = [self._encoded(prompt, number) for number, prompt in enumerate(prompts)]
        for number, prompt_ids in enumerate(rows):
            generator = torch.Generator(self._model.device)
            if params.seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed_of(params.seed, number))
            with self._in_use:
                completion = self._completion(prompt_ids, params, generator)
            yield completion

    def _encoded(self, prompt: object, number: int) -> list[int]:
        """The end token, after which a text begins, and the prompt's tokens; together they fit into the context."""
        if not isinstance(prompt, str):
            raise UserError(f"row {number}: prompt: should be text, not {shown(prompt)}")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"row {number}: prompt: {shown(prompt)} is not valid Unicode text") from None
        ids = [self._tokenizer.eos_token_id, *self._tokenizer.encode(prompt, add_special_tokens=False)]
        if len(ids) > (window := self._model.config.max_seq_len):
            raise UserError(
                f"row {number}: prompt: {len(ids) - 1:,} tokens, where the model takes {window - 1}; shorten it"
            )
        return ids

    def _completion(self, prompt_ids: list[int], params: ServingParams, generator: torch.Generator) -> Completion:
        end, start = self._tokenizer.eos_token_id, len(prompt_ids)
        (row,) = generate(
            self._model,
            torch.tensor([prompt_ids], device=self._model.device),
            # The last token may lie outside the context: nothing comes after it.
            min(start + params.max_new_tokens, self._model.config.max_seq_len + 1),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            eos_token_id=end,
            generator=generator,
        )
        log_probabilities = self._log_probabilities(row)
        ids = row.tolist()
        ended = ids[start:][-1:] == [end]
        tokens = [str(self._tokenizer.decode([token])) for token in ids[1:]]
        return Completion(
            continuation=new_text(self._tokenizer, prompt_ids[1:], ids[start : -1 if ended else None]),
            finish_reason="stop" if ended else "length",
            tokens=tokens[start - 1 :],
            log_probabilities=log_probabilities[start - 1 :],
            prompt_tokens=tokens[: start - 1],
            prompt_log_probabilities=log_probabilities[: start - 1],
        )

    def _log_probabilities(self, row: torch.Tensor) -> list[float]:
        """Of each token except the first, given those before it: row (T,) int64 -> T - 1 numbers."""
        if len(row) < 2:
            return []
        losses, _ = score(self._model, row[None, :-1], row[None, 1:])
        return (0.0 - losses[0]).tolist()
