"""Sampling from the model, with a key-value cache.

Shapes: B batch, T time, D d_model, H heads, K head size, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from custom_transformer.config import GenerationParams
from custom_transformer.errors import shown
from custom_transformer.maths import checks, portable
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.seeds import seed_of

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast


@torch.no_grad()
def continuation(
    model: CustomTransformer,
    input_ids: Tensor,
    max_length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tokens that continue each row of `input_ids` (B, T) int64 until it has `max_length`, the prompt included.

    Yields for each step the tokens (B,) int64 and the logits (B, V) from which they were chosen. Rows that have
    produced `eos_token_id` are filled up with it; generation ends early once all have. Beyond max_seq_len the model
    sees the last max_seq_len tokens. The cache changes the speed, not the tokens: positions move once that
    window slides, so from there on each step computes it whole. Raises ValueError for an empty prompt, a token outside
    the vocabulary, and settings that are out of range, also where nothing is left to generate.
    """
    tokens, window = input_ids, model.config.max_seq_len
    if isinstance(tokens, Tensor) and tokens.shape[-1:] == (0,):
        raise ValueError("an empty prompt: give at least one token (the end token starts a new text)")
    checks.check_ids("input_ids", tokens, model.parameter_device)
    checks.check_tokens_in_vocabulary(tokens, model.config.vocab_size)
    max_length = checks.check_count("max_length", max_length, 0)
    if eos_token_id is not None:
        eos_token_id = checks.check_count("eos_token_id", eos_token_id, 0, model.config.vocab_size)
    _check_sampling(temperature, top_k, top_p, generator, tokens.device)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    capacity = min(window, max(max_length, tokens.shape[1]))
    caches = [KeyValues(capacity) for _ in range(model.config.n_blocks)]
    parameters, head_weight = dict(model.in_products()), model.head_weight()  # cast once for all tokens
    while tokens.shape[1] < max_length and not done.all():
        if use_cache and tokens.shape[1] <= window:
            logits = model.cached_logits(tokens[:, caches[0].length :], caches, parameters, head_weight)
        else:
            logits = model.last_logits(tokens[:, -window:], parameters, head_weight)
        chosen = sample(logits, temperature, top_k, top_p, generator)
        if eos_token_id is not None:
            chosen = torch.where(done, eos_token_id, chosen)
            done = done | (chosen == eos_token_id)
        tokens = torch.cat([tokens, chosen.unsqueeze(1)], dim=1)
        yield chosen, logits


def generate(model: CustomTransformer, input_ids: Tensor, max_length: int, **settings: Any) -> Tensor:
    """The whole `continuation` behind its prompt, with the same settings and errors.

    Returns (B, T′) int64 with T ≤ T′ ≤ max(T, max_length).
    """
    chosen = [tokens.unsqueeze(1) for tokens, _ in continuation(model, input_ids, max_length, **settings)]
    return torch.cat([input_ids, *chosen], dim=1)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one token per row: logits (B, V) -> (B,) int64. Temperature 0 takes the likeliest.

    top_k keeps the k likeliest tokens (Fan et al. 2018); top_p then keeps the fewest whose probabilities add up
    to p (Holtzman et al. 2020). Equal logits, settings and states of the generator give the same tokens on every
    machine. Raises ValueError for settings that are out of range, and for a row whose largest logit is not finite.
    """
    checks.check_tensor("logits", logits, "(B, V) of floating-point numbers")
    if logits.ndim != 2 or not logits.numel() or not logits.is_floating_point():
        raise ValueError(f"logits must be (B, V) floating-point, not {tuple(logits.shape)} {logits.dtype}")
    _check_sampling(temperature, top_k, top_p, generator, logits.device)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if float(temperature) < sys.float_info.min:  # what is smaller may be 0
        return z.argmax(-1)
    z, order = z.sort(stable=True, dim=-1, descending=True)
    if not z[:, 0].isfinite().all():  # NaN comes before every number
        raise ValueError("logits must have a finite largest number in each row, and no NaN")
    if top_k is not None:
        z = z[:, : min(int(top_k), z.shape[1])]
    bits = torch.randint(2**53, (len(z),), generator=generator, device=z.device).cpu().numpy()
    rank = _ranks(z.detach().double().cpu().numpy(), float(temperature), top_p, bits)
    return order.gather(-1, torch.from_numpy(rank).to(z.device).unsqueeze(-1)).squeeze(-1)


def _ranks(z: portable.Array, temperature: float, top_p: float | None, bits: np.ndarray) -> np.ndarray:
    """Which of its logits each row draws: z (B, K), the largest first, bits (B,) from 0 … 2⁵³ − 1 -> (B,) int64

    The first whose sum of weights, its own and all before it, is above u times the sum of those that are kept, where
    u = bits / 2⁵³ is below 1. The weights are the softmax's numerators, and their sums run from left to right.
    """
    with np.errstate(over="ignore"):  # a difference may be too large for a float, at a low temperature
        weights = portable.exp((z - z[:, :1]) / temperature)
    sums = np.add.accumulate(weights, axis=1)
    kept = sums[:, -1]
    if top_p is not None:
        last = (sums[:, :-1] < float(top_p) * sums[:, -1:]).sum(1, keepdims=True)
        kept = np.take_along_axis(sums, last, 1)[:, 0]
    return (sums <= (bits * 2.0**-53 * kept)[:, None]).sum(1)


def _check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None, device: torch.device
) -> None:
    fits = isinstance(temperature, Real) and 0 <= temperature <= checks.LARGEST
    fits &= top_k is None or (isinstance(top_k, Integral) and top_k >= 1)
    fits &= top_p is None or (isinstance(top_p, Real) and 0 < top_p <= 1)
    if not fits:
        given = f"{shown(temperature)}, {shown(top_k)} and {shown(top_p)}"
        raise ValueError(f"temperature ≥ 0 and finite, a whole top_k ≥ 1 and 0 < top_p ≤ 1, not {given}")
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == device.type):
        raise ValueError(f"generator must be a torch.Generator on {device} as the model is, not {shown(generator)}")


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt; `text` starts with the prompt as given, `ended` says that the model ended it."""

    prompt: str
    text: str
    new_tokens: int
    ended: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def generate_samples(
    model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, params: GenerationParams, seed: int
) -> Iterator[Sample]:
    """`num_samples` continuations of each prompt, as the beginning of a text, the same for the same seed."""
    end = tokenizer.eos_token_id
    for i, prompt in enumerate(params.prompts):
        prompt_ids = [end, *tokenizer.encode(prompt, add_special_tokens=False)]
        rows = generate(
            model,
            torch.tensor([prompt_ids] * params.num_samples, device=model.device),
            len(prompt_ids) + params.max_new_tokens,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            eos_token_id=end,
            generator=torch.Generator(model.device).manual_seed(seed_of(seed, i)),
        )
        for row in rows.tolist():
            new = row[len(prompt_ids) :]
            ended = end in new
            new = new[: new.index(end)] if ended else new
            yield Sample(prompt, prompt + new_text(tokenizer, prompt_ids[1:], new), len(new) + ended, ended)


def new_text(tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int], new_ids: list[int]) -> str:
    """What the tokens `new_ids` add to the text of `prompt_ids`.

    A prompt may come back from its tokens in other words, in lower case for instance. So the text of all tokens is cut
    behind what the prompt's own become, not at the length of what was typed.
    """
    prompt, whole = (str(tokenizer.decode(ids)) for ids in (prompt_ids, prompt_ids + new_ids))
    # Some decoders change what they have written when more follows.
    return whole[len(prompt) :] if whole.startswith(prompt) else str(tokenizer.decode(new_ids))
