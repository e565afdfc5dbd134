"""Sampling: the cache changes nothing, and every setting does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from custom_transformer.config import load_params
from custom_transformer.runs.generation import _ranks, generate, generate_samples, new_text, sample
from tests.helpers import random_model, random_tokens


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("max_length", [9, 13, 20])  # 20: beyond max_seq_len, where the window slides
def test_the_cache_gives_the_same_tokens(max_length: int, tie_embeddings: bool) -> None:
    model, prompt = random_model(tie_embeddings=tie_embeddings), random_tokens(time=4)
    rows = [
        generate(model, prompt, max_length, generator=torch.Generator().manual_seed(5), use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*rows)
    assert rows[0].shape == (3, max_length)
    assert torch.equal(rows[0][:, :4], prompt)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    model, prompt = random_model(), random_tokens(time=4)
    tokens = generate(model, prompt, 10, temperature=0)
    for t in range(4, 10):
        assert torch.equal(tokens[:, t], model.forward(tokens[:, :t])[:, -1].argmax(-1))


def test_rows_end_at_the_end_token_and_are_filled_up_with_it() -> None:
    model, prompt = random_model(), random_tokens(batch=8, time=2)
    free = generate(model, prompt, 13, temperature=0)
    end = int(free[0, 5])
    tokens = generate(model, prompt, 13, temperature=0, eos_token_id=end)
    for row, unstopped in zip(tokens.tolist(), free.tolist(), strict=True):
        first = unstopped.index(end, 2) if end in unstopped[2:] else len(unstopped)
        assert row[: first + 1] == unstopped[: len(row)][: first + 1]
        assert set(row[first:]) <= {end}


def test_generation_stops_once_every_row_has_ended() -> None:
    model, prompt = random_model(), random_tokens(batch=1, time=2)
    end = int(generate(model, prompt, 3, temperature=0)[0, 2])
    assert generate(model, prompt, 13, temperature=0, eos_token_id=end).tolist() == [[*prompt[0].tolist(), end]]


def test_generation_ignores_training_mode() -> None:
    model, prompt = random_model(dropout=0.5), random_tokens(time=4)
    quiet = generate(model, prompt, 20, temperature=0)
    model.training = True
    assert torch.equal(generate(model, prompt, 20, temperature=0), quiet)


LOGITS = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()


def draw(**settings: float) -> list[float]:
    """The frequency of each token over many draws."""
    generator = torch.Generator().manual_seed(0)
    drawn = sample(LOGITS.expand(20000, -1), generator=generator, **settings)  # type: ignore[arg-type]
    return (torch.bincount(drawn, minlength=4) / len(drawn)).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.1, 0.3, 0.1]),
        ({"temperature": 0.5}, [0.25 / 0.36, 0.01 / 0.36, 0.09 / 0.36, 0.01 / 0.36]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [0.625, 0, 0.375, 0]),
        ({"top_k": 100}, [0.5, 0.1, 0.3, 0.1]),
        ({"top_p": 0.1}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [0.625, 0, 0.375, 0]),
        ({"top_p": 1.0}, [0.5, 0.1, 0.3, 0.1]),
    ],
)
def test_sampling_settings(settings: dict[str, float], expected: list[float]) -> None:
    assert draw(**settings) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("top_p", "likely", "unlikely"), [(None, 0, 2), (0.8, 0, 2), (0.6, 0, 1), (0.4, 0, 0)])
def test_the_ends_of_the_unit_interval_draw_the_likeliest_and_the_last_kept(
    top_p: float | None, likely: int, unlikely: int
) -> None:
    z = np.log([[0.5, 0.25, 0.25, 1e-300]])
    ends = [int(_ranks(z, 1.0, top_p, np.array([bits]))[0]) for bits in (0, 2**53 - 1)]
    assert ends == [likely, unlikely]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_without_a_finite_largest_one_are_refused(wrong: float) -> None:
    logits = LOGITS.repeat(2, 1)
    logits[1, 2] = wrong
    with pytest.raises(ValueError, match="finite largest"):
        sample(logits)
    with pytest.raises(ValueError, match="finite largest"):
        sample(torch.full((1, 3), -math.inf))


def test_what_is_impossible_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -math.inf, -800.0, 0.0]]).expand(500, -1)
    assert set(sample(logits, 1e-2, generator=torch.Generator().manual_seed(0)).tolist()) == {0, 3}


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        generate(random_model(), torch.zeros(1, 0, dtype=torch.int64), 5)


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="temperature ≥ 0"):
        sample(LOGITS, **settings)


@pytest.mark.parametrize("settings", [{"temperature": 1e-45}, {"temperature": 1e-320}, {"top_p": 1e-300}])
def test_the_smallest_settings_take_the_likeliest(settings: dict[str, float]) -> None:
    assert sample(LOGITS, **settings).tolist() == [0]  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [-1, 37])
def test_a_prompt_outside_the_vocabulary_is_named(token: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token} is outside"):
        generate(random_model(), torch.tensor([[3, token]]), 5)


# ------------------------------------------------------------------------------------------------- texts

PIECES = "[UNK] <end> four five add don t ' ##s [ ] \u2581four \u2581five \u2581add \u0120four \u0120five add</w>"


def wordpiece() -> Tokenizer:
    """In lower case, with spaces around punctuation; what it does not know becomes [UNK]."""
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def suffixes() -> Tokenizer:
    """Its decoder puts a space behind a word only when another follows."""
    tokenizer = words()
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def spaced_bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


VOCABULARY = {piece: i for i, piece in enumerate(PIECES.split())}


@pytest.mark.parametrize("prompt", ["Don't add four", "FOUR", "four four", " four", "\u7d20\u6734", "", "add  five\n"])
@pytest.mark.parametrize("make", [wordpiece, words, metaspace, suffixes, spaced_bytes])
def test_a_sample_is_the_prompt_as_given_and_what_the_model_adds(make: Callable[[], Tokenizer], prompt: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="<end>", clean_up_tokenization_spaces=False)
    model = random_model(torch.float32, vocab_size=len(VOCABULARY), max_seq_len=24)
    params = load_params("params.yaml").generation
    params = params.model_copy(update={"prompts": [prompt], "max_new_tokens": 6, "temperature": 0.0, "num_samples": 1})
    (drawn,) = generate_samples(model, tokenizer, params, seed=1)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    start = torch.tensor([[VOCABULARY["<end>"], *prompt_ids]])
    ids = generate(model, start, start.shape[1] + 6, temperature=0.0, eos_token_id=VOCABULARY["<end>"])[0, 1:].tolist()
    whole = tokenizer.decode(ids[:-1] if drawn.ended else ids)
    assert drawn.text.startswith(prompt)
    assert tokenizer.decode(prompt_ids) + drawn.text[len(prompt) :] == whole


def test_the_text_of_new_tokens_is_cut_behind_the_decoded_prompt() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece(), clean_up_tokenization_spaces=False)
    prompt = tokenizer.encode("Don't add Four")
    assert new_text(tokenizer, prompt, [VOCABULARY["five"], VOCABULARY["##s"]]) == " fives"
    assert new_text(tokenizer, prompt, []) == ""


def test_a_decoder_that_changes_the_prompt_when_more_follows_repeats_none_of_it() -> None:
    backend = wordpiece()
    backend.decoder = decoders.Sequence([decoders.WordPiece(), decoders.Fuse(), decoders.Replace("four five", "nine")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    assert new_text(tokenizer, tokenizer.encode("add four"), tokenizer.encode("five")) == "five"
