"""Models of each kind as GGUF files in llama.cpp: python .ci/validate_gguf.py."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers

from custom_transformer.interchange.gguf_files import FILE, export_gguf
from custom_transformer.text.tokenization import build_tokenizer
from studies.llama_cpp import TEXTS, NotInstalled, check, expect
from tests.helpers import random_model
from tests.text.making import data

LENGTH = 24  # positions of each model, all of which are used
SIZES = {"n_blocks": 3, "n_heads": 6, "d_model": 36, "d_ffn": 50, "max_seq_len": LENGTH}
LLAMA = {"architecture": "llama", "rope_base": 500.0, "norm_eps": 1e-6}
VARIANTS = {
    "gpt2-tied": {"tie_embeddings": True},
    "gpt2-untied-without-biases": {"tie_embeddings": False, "bias": False},
    "llama-tied-groups": LLAMA | {"tie_embeddings": True, "n_kv_heads": 2},
    "llama-untied": LLAMA | {"tie_embeddings": False},
    "llama-digits-one-by-one": LLAMA | {"tie_embeddings": True, "n_kv_heads": 1},
    "gpt2-more-entries-than-tokens": {"tie_embeddings": True, "more": 7},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in VARIANTS]
        for folder in folders:
            export(folder, **VARIANTS[folder.name])
        try:
            sys.exit(not check(folders))
        except NotInstalled as error:
            sys.exit(f"FAILED: {error}")


def export(folder: Path, more: int = 0, **changes: object) -> None:
    """A model in `folder`, with what llama.cpp should compute of it."""
    tokenizer = build_tokenizer(data(vocab_size=400), TEXTS * 3)
    if "digits" in folder.name:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    model = random_model(torch.float32, vocab_size=len(tokenizer) + more, **SIZES | changes)
    export_gguf(model, tokenizer, folder)
    prompt = [tokenizer.eos_token_id, *tokenizer.encode(TEXTS[0])][:8]
    expect(folder / FILE, model, tokenizer, [prompt], LENGTH, folder)


if __name__ == "__main__":
    main()
