"""The study's steps on a small model: fetched only if it is the file that is known, taken over, measured."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from custom_transformer.errors import UserError
from custom_transformer.interchange.gguf_files import FILE, export_gguf
from custom_transformer.text.tokenization import build_tokenizer
from studies import smollm2
from tests.helpers import ROOT, random_model
from tests.text.making import TEXTS, data

LLAMA = {"architecture": "llama", "d_model": 24, "n_heads": 4, "n_kv_heads": 2}


def test_a_model_is_taken_over_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_tokenizer(data(vocab_size=300), TEXTS["train"])
    model = random_model(torch.float32, vocab_size=len(tokenizer), max_seq_len=8, **LLAMA)
    export_gguf(model, tokenizer, tmp_path / "gguf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    text = "The 3rd text, naïve."
    (tmp_path / "text.txt").write_text(text * 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smollm2, "WINDOW", 8)
    arguments = ["--gguf", f"gguf/{FILE}", "--text", "text.txt", "--bytes", str(len(text.encode()))]
    monkeypatch.setattr(sys, "argv", ["smollm2", *arguments])
    smollm2.main()
    ids = tokenizer.encode(text)
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, 8):
        window = torch.tensor([ids[start : start + 8]])
        losses = F.cross_entropy(model.forward(window[:, :-1])[0].double(), window[0, 1:], reduction="sum")
        total, count = total + losses.item(), count + window.shape[1] - 1
    said = capsys.readouterr().out
    assert (
        f"perplexity {math.exp(total / count):.1f}, {total / math.log(2) / len(text.encode()):.3f} bits per byte"
        in said
    )


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "FETCHED", tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="not the file that this study knows"):
        smollm2.fetched()


def test_the_measured_text_begins_the_given_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("né")
    assert smollm2.given_text(tmp_path / "text", 2) == "n"
    assert len(smollm2.given_text(None, 500).encode()) == 500
    with pytest.raises(UserError, match="no such file"):
        smollm2.given_text(tmp_path / "nowhere", 2)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        smollm2.given_text(tmp_path / "bytes", 2)
