"""ONNX files in onnxruntime, where it is installed: the same logits for any number of rows and tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from custom_transformer.errors import UserError
from custom_transformer.interchange import onnx_file
from custom_transformer.text.tokenization import build_tokenizer
from tests.helpers import random_model, random_tokens
from tests.text.making import data

LLAMA = {"architecture": "llama", "n_heads": 4, "d_model": 24, "n_kv_heads": 2, "rope_base": 100.0, "norm_eps": 1e-6}
TEXTS = ["It says so."] * 3


@pytest.mark.parametrize("changes", [{"bias": False, "tie_embeddings": False}, LLAMA], ids=["gpt2", "llama"])
def test_logits_in_onnxruntime(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    tokenizer = build_tokenizer(data(vocab_size=257), TEXTS)
    model = random_model(torch.float32, vocab_size=len(tokenizer), n_blocks=1, **changes)
    if "architecture" in changes:
        monkeypatch.setattr(onnx_file, "MAX_BYTES", 0)  # as a model of gigabytes
    onnx_file.export_onnx(model, tokenizer, tmp_path / "onnx")
    weights = {"model.onnx.data"} if "architecture" in changes else set()
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert names == {onnx_file.FILE, "tokenizer.json", "tokenizer_config.json"} | weights
    assert b"site-packages" not in (tmp_path / "onnx" / onnx_file.FILE).read_bytes()
    session = runtime.InferenceSession(str(tmp_path / "onnx" / onnx_file.FILE))
    for batch, time in ((1, 1), (1, 13), (4, 6)):
        tokens = random_tokens(batch, time, len(tokenizer))
        (logits,) = session.run(["logits"], {"input_ids": tokens.numpy()})
        expected = model.forward(tokens)
        assert (torch.from_numpy(logits) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer(data(vocab_size=257), TEXTS)
    model = random_model(torch.float32, vocab_size=len(tokenizer))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript: pip install -e '\.\[onnx\]'"):
        onnx_file.export_onnx(model, tokenizer, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
