"""Text in, text and log-probabilities out: what they are, where a text stops, and what a request is refused for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.runs.generation import generate
from custom_transformer.runs.serving import CHECKPOINT, TOKENIZER, Completion, TextModel
from custom_transformer.tracking.models import save_model
from tests.helpers import random_model
from tests.text.making import make

WINDOW = 24
DEFAULTS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.7, "top_k": None, "top_p": None, "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a served model is made of: a checkpoint, and the tokenizer that belongs to it."""
    folder = tmp_path_factory.mktemp("served")
    meta = make(folder / "text")["tokenizer"]
    (folder / "text/tokenizer").rename(folder / TOKENIZER)
    model = random_model(torch.float32, vocab_size=meta["vocab_size"], max_seq_len=WINDOW)
    save_checkpoint(folder / CHECKPOINT, model, {"tokenizer": meta["sha256"]})
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    return TextModel(folder)


def complete(model: TextModel, prompt: object, **settings: Any) -> Completion:
    (completion,) = model.complete([prompt], DEFAULTS | settings)
    return completion


def test_log_probabilities_are_the_models_own_whatever_the_sampling(model: TextModel) -> None:
    answer = complete(model, "The cat", temperature=0.2, top_k=1)
    end = model._tokenizer.eos_token_id
    prompt = torch.tensor([[end, *model._tokenizer.encode("The cat")]])
    row = generate(model._model, prompt, prompt.shape[1] + 8, temperature=0, eos_token_id=end)
    expected = model._model.forward(row[:, :-1]).double().log_softmax(-1)[0].gather(-1, row[0, 1:, None])[:, 0]
    found = answer.prompt_log_probabilities + answer.log_probabilities
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert "".join(answer.prompt_tokens) == "The cat"
    assert model._tokenizer.decode(row[0, 1:]).startswith("The cat" + answer.continuation)


def test_a_text_stops_at_its_end(model: TextModel) -> None:
    answers = list(model.complete(["The"] * 200, DEFAULTS | {"temperature": 1.5}))
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    assert 0 < len(stopped) < len(answers)
    for answer in stopped:
        assert answer.tokens[-1] == "<|endoftext|>" not in answer.continuation
    for answer in answers:
        assert answer.finish_reason == "stop" or len(answer.tokens) == 8


def test_a_text_stops_where_the_context_is_full(model: TextModel) -> None:
    answer = complete(model, "a" * 10, max_new_tokens=WINDOW, temperature=0)
    assert len(answer.prompt_tokens) + len(answer.tokens) == WINDOW or answer.finish_reason == "stop"
    assert len(complete(model, "a" * (WINDOW - 1), max_new_tokens=WINDOW).tokens) == 1


def test_nothing_new_is_asked_for_or_nothing_given(model: TextModel) -> None:
    scored = complete(model, "The cat", max_new_tokens=0)
    assert (scored.continuation, scored.tokens, scored.finish_reason) == ("", [], "length")
    assert all(x < 0 for x in scored.prompt_log_probabilities)
    assert complete(model, "").prompt_tokens == []
    assert complete(model, "", max_new_tokens=0).log_probabilities == []


def test_a_seed_gives_the_same_text_and_none_another(model: TextModel) -> None:
    assert complete(model, "The") == complete(model, "The")
    assert len({complete(model, "The", seed=seed).continuation for seed in [None] * 5}) > 1
    one, two = model.complete(["The", "The"], DEFAULTS)
    assert one.continuation != two.continuation


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        (None, {}, "row 0: prompt: should be text, not None"),
        (math.nan, {}, "should be text, not nan"),
        (5, {}, "should be text"),
        (["\x1b[31m"], {}, r"should be text, not \['\\x1b"),
        ("\ud800", {}, "not valid Unicode"),
        ("a" * WINDOW, {}, "24 tokens, where the model takes 23"),
        ("a", {"max_new_tokens": WINDOW + 1}, "max_new_tokens: at most 24"),
        ("a", {"max_new_tokens": -1}, "max_new_tokens"),
        ("a", {"temperature": math.nan}, "temperature: input should be a finite number"),
        ("a", {"temperature": None}, "temperature"),
        ("a", {"top_k": 0}, "top_k"),
        ("a", {"top_p": 1.5}, "top_p"),
        ("a", {"seed": -1}, "seed"),
        ("a", {"typo": 1}, "typo: unknown key"),
    ],
)
def test_what_is_refused(model: TextModel, prompt: object, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        complete(model, prompt, **settings)


LOADED = """
import json, sys
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
model = mlflow.pyfunc.load_model(sys.argv[1])
import custom_transformer
try:
    model.predict(pd.DataFrame({"prompt": ["a"]}), params={"top_k": 0})
except MlflowException as error:
    refusal = error.message
answer = model.predict(pd.DataFrame({"prompt": ["The", ""]}), params={"seed": 1})
print(json.dumps([custom_transformer.__file__, answer.to_dict("records"), refusal]))
"""


@pytest.mark.processes
def test_mlflow_loads_it_from_its_folder_alone(folder: Path, model: TextModel, tmp_path: Path) -> None:
    defaults = load_params("params.yaml").generation.model_copy(update=DEFAULTS)
    digests = [save_model(tmp_path / name, folder / CHECKPOINT, folder / TOKENIZER, defaults) for name in ("m", "n")]
    assert digests[0] == digests[1]
    assert not [path for path in (tmp_path / "m").rglob("*") if "pickle" in path.name or path.suffix == ".pkl"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", LOADED, str(tmp_path / "m")]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    code, answers, refusal = json.loads(done.stdout)
    assert Path(code).is_relative_to(tmp_path / "m/code")
    for answer, expected in zip(answers, model.complete(["The", ""], DEFAULTS), strict=True):
        assert answer["continuation"] == expected.continuation
        assert answer["log_probabilities"] == pytest.approx(expected.log_probabilities, abs=1e-5)
    assert [answer["prompt"] for answer in answers] == ["The", ""]
    assert refusal == "params: top_k: input should be greater than or equal to 1, not 0"
