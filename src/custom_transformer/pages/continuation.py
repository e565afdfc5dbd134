"""A continuation in the terminal as the model makes it: as text, or token by token with what each was chosen over."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from custom_transformer.config import SamplingParams
from custom_transformer.errors import UserError, lines_only, shown
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.generation import continuation

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

ALTERNATIVES = 3


def print_continuation(
    model: CustomTransformer,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    settings: SamplingParams,
    seed: int | None,
    log_probabilities: bool,
) -> None:
    """Prints `prompt`, read as the beginning of a text, and its continuation; then, on stderr, tokens per second.

    seed: equal seeds give equal texts; None gives another text each time. log_probabilities: a line per token, with
    its probability at temperature 1 and the likeliest others. Raises UserError for a prompt that is not valid Unicode.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"the prompt {shown(prompt)} is not valid Unicode text") from None
    end = tokenizer.eos_token_id
    prompt_ids = [end, *tokenizer.encode(prompt, add_special_tokens=False)]
    generator = torch.Generator(model.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    steps = continuation(
        model,
        torch.tensor([prompt_ids], device=model.device),
        len(prompt_ids) + settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        eos_token_id=end,
        generator=generator,
    )
    show = _Table(tokenizer) if log_probabilities else _Text(tokenizer, prompt_ids[1:])
    started, count = time.monotonic(), 0
    for count, (chosen, logits) in enumerate(steps, 1):  # noqa: B007
        show.add(int(chosen), logits[0])
    show.end()
    seconds = time.monotonic() - started
    print(f"{count:,} tokens, {count / seconds:,.0f} per second", file=sys.stderr)


class _Text:
    """The text so far. A token may be part of a character, which is shown once it is whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int]):
        self._tokenizer, self._ids, self._shown = tokenizer, list(prompt_ids), 0
        self._show(whole=False)

    def add(self, token: int, _logits: Tensor) -> None:
        if token != self._tokenizer.eos_token_id:
            self._ids.append(token)
            self._show(whole=False)

    def end(self) -> None:
        self._show(whole=True)
        print(flush=True)

    def _show(self, whole: bool) -> None:
        text = str(self._tokenizer.decode(self._ids))
        if whole or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(lines_only(text[self._shown :]), end="", flush=True)
            self._shown = len(text)


class _Table:
    """A line per token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._print("token", "probability", "chosen over")

    def add(self, token: int, logits: Tensor) -> None:
        probabilities = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
        likeliest = [i for i in probabilities.topk(min(ALTERNATIVES + 1, len(logits))).indices.tolist() if i != token]
        others = [f"{self._name(i)} {probabilities[i]:.2%}" for i in likeliest[:ALTERNATIVES]]
        self._print(self._name(token), f"{probabilities[token]:.2%}", "  ".join(others))

    def end(self) -> None:
        pass

    def _name(self, token: int) -> str:
        return repr(self._tokenizer.decode([token]))

    @staticmethod
    def _print(token: Any, probability: str, others: str) -> None:
        print(f"{token:<16} {probability:>11}   {others}", flush=True)
