"""A continuation in the terminal: the same text as generation's, piece by piece, or a line per token."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest
import torch

from custom_transformer import CustomTransformer
from custom_transformer.config import SamplingParams
from custom_transformer.errors import UserError, lines_only
from custom_transformer.pages.continuation import print_continuation
from custom_transformer.runs.generation import generate
from custom_transformer.text.saved_tokenizer import load_tokenizer
from tests.helpers import random_model
from tests.text.making import make

SETTINGS = SamplingParams(max_new_tokens=40, temperature=1.2, top_k=None, top_p=0.95)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("made")
    make(folder)
    return load_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> CustomTransformer:
    return random_model(torch.float32, vocab_size=len(tokenizer), max_seq_len=64)


def generated(model: CustomTransformer, tokenizer: Any, prompt: str, seed: int) -> list[int]:
    ids = [tokenizer.eos_token_id, *tokenizer.encode(prompt)]
    rows = generate(
        model,
        torch.tensor([ids]),
        len(ids) + SETTINGS.max_new_tokens,
        temperature=SETTINGS.temperature,
        top_p=SETTINGS.top_p,
        eos_token_id=tokenizer.eos_token_id,
        generator=torch.Generator().manual_seed(seed),
    )
    return [int(token) for token in rows[0, 1:]]


class Terminal(io.StringIO):
    """Keeps what was written piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces += [text] if text else []
        return super().write(text)


@pytest.mark.parametrize("prompt", ["The cat", "", "素朴 é", "a\x1b[31m"])
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_text_is_that_of_generation_and_appears_piece_by_piece(
    model: CustomTransformer, tokenizer: Any, prompt: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_continuation(model, tokenizer, prompt, SETTINGS, seed, log_probabilities=False)
    ids = [token for token in generated(model, tokenizer, prompt, seed) if token != tokenizer.eos_token_id]
    assert terminal.getvalue() == lines_only(tokenizer.decode(ids)) + "\n"
    assert "\x1b" not in terminal.getvalue()
    assert len(terminal.pieces) > 3


def test_a_line_per_token_has_its_probability_and_the_likeliest_others(
    model: CustomTransformer, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    print_continuation(model, tokenizer, "The cat", SETTINGS, 0, log_probabilities=True)
    output = capsys.readouterr()
    row = generated(model, tokenizer, "The cat", 0)
    start = len(tokenizer.encode("The cat"))
    logits = model.forward(torch.tensor([[tokenizer.eos_token_id, *row]]))[0].double()
    head, *lines = output.out.splitlines()
    assert head.split() == ["token", "probability", "chosen", "over"]
    assert len(lines) == len(row) - start
    for token, line, z in zip(row[start:], lines, logits[start:], strict=False):
        p = z.softmax(-1)
        assert line.startswith(repr(tokenizer.decode([token])))
        first, *others = (float(found) / 100 for found in re.findall(r"([0-9.]+)%", line.removeprefix(repr("%"))))
        assert first == pytest.approx(p[token].item(), abs=1e-4)
        p[token] = 0
        assert others == pytest.approx(p.topk(3).values.tolist(), abs=1e-4)
    assert re.fullmatch(rf"{len(lines)} tokens, [\d,]+ per second\n", output.err)


def test_equal_seeds_give_equal_texts_and_none_gives_another_each_time(
    model: CustomTransformer, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in (5, 5, None, None):
        print_continuation(model, tokenizer, "The cat", SETTINGS, seed, log_probabilities=False)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_half_a_surrogate_pair_is_refused(model: CustomTransformer, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="not valid Unicode"):
        print_continuation(model, tokenizer, "\ud800", SETTINGS, 0, log_probabilities=False)
