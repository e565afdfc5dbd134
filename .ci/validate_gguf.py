"""GGUF files in llama.cpp: python .ci/validate_gguf.py export FOLDER, here, and then run FOLDER, where cyllama is.

`export` writes models of each kind with what they compute here; `run` compares llama.cpp's tokens of difficult texts,
logits and greedy continuations with these. The second needs only cyllama, llama.cpp in a package, and NumPy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

TEXTS = [
    "The 3rd of 1,234 texts: it's ours, they'll see, I'd say WE'RE done.",
    "  two spaces,\ttab\n\n\nthree lines \r\n and trailing   ",
    "naïve café, 素朴な文, Привет, שלום, 🙂👩‍👩‍👧 e\u0301 \u00a0\u3000\u200b",
    "def f(x):\n    return x**2 + 10_000 # ½ ² ③ ٣",
    "it says <|endoftext|> itself",
    "a",
    "\n",
    " ",
    "x" * 40 + "1" * 20 + "!?" * 10,
    "don't DON'T 'tis 's'S",
]
LENGTH = 24  # positions of each model, all of which are used
F32 = 0  # ggml's number for the type
# Largest difference of logits, relative to the largest: llama.cpp looks GELU up in a table of float16.
BOUNDS = {"gpt2": 2e-3, "llama": 2e-5}


def export(folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers

    from custom_transformer.interchange.gguf_files import export_gguf
    from custom_transformer.runs.generation import generate
    from custom_transformer.text.tokenization import build_tokenizer
    from tests.helpers import random_model
    from tests.text.making import data

    sizes = {"n_blocks": 3, "n_heads": 6, "d_model": 36, "d_ffn": 50, "max_seq_len": LENGTH}
    llama = {"architecture": "llama", "rope_base": 500.0, "norm_eps": 1e-6}
    variants = {
        "gpt2-tied": {"tie_embeddings": True},
        "gpt2-untied-without-biases": {"tie_embeddings": False, "bias": False},
        "llama-tied-groups": llama | {"tie_embeddings": True, "n_kv_heads": 2},
        "llama-untied": llama | {"tie_embeddings": False},
        "llama-digits-one-by-one": llama | {"tie_embeddings": True, "n_kv_heads": 1},
        "gpt2-more-entries-than-tokens": {"tie_embeddings": True, "more": 7},
    }
    for name, changes in variants.items():
        tokenizer = build_tokenizer(data(vocab_size=400), TEXTS * 3)
        if "digits" in name:
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        vocab_size = len(tokenizer) + int(changes.pop("more", 0))
        model = random_model(torch.float32, vocab_size=vocab_size, **sizes | changes)
        export_gguf(model, tokenizer, folder / name)
        prompt = [tokenizer.eos_token_id, *tokenizer.encode(TEXTS[0])][:8]
        tokens = generate(model, torch.tensor([prompt]), LENGTH, temperature=0)
        expected = {
            "architecture": model.architecture.name,
            "texts": [tokenizer.encode(text) for text in TEXTS],
            "prompt": len(prompt),
            "tokens": tokens[0].tolist(),
            "logits": model.forward(tokens)[0].tolist(),
            "end": tokenizer.eos_token_id,
        }
        (folder / name / "expected.json").write_text(json.dumps(expected))


def run(folder: Path) -> None:
    failed = [path.parent.name for path in sorted(folder.glob("*/model.gguf")) if not agrees(path.parent)]
    if failed:
        sys.exit(f"FAILED: {', '.join(failed)}")


def agrees(folder: Path) -> bool:
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """With what its context asks for and does not find in cyllama 0.2.18, to return logits."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    llama_cpp.disable_logging()
    expected = json.loads((folder / "expected.json").read_text())
    model = Model(str(folder / "model.gguf"), verbose=False)
    vocab, params = model.get_vocab(), llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = LENGTH
    params.type_k = params.type_v = F32  # else keys and values are kept in float16,
    params.flash_attn_type = 0  # and attention is computed in it
    context = llama_cpp.LlamaContext(model, params, verbose=False)
    texts = [vocab.tokenize(text, add_special=True, parse_special=False) for text in TEXTS]
    prompt = expected["tokens"][: expected["prompt"]]
    tokens, logits = list(prompt), []
    for position in range(LENGTH):
        batch = llama_cpp.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
        batch.set_batch([tokens[position]], position, True)
        context.decode(batch)
        logits.append(np.array(context.get_logits()))
        if position + 1 == len(tokens) < LENGTH:
            tokens.append(int(logits[-1].argmax()))
    ours = np.array(expected["logits"])
    error = float(np.abs(np.array(logits) - ours).max() / np.abs(ours).max())
    checks = {
        "tokens of texts": texts == expected["texts"],
        "greedy tokens": tokens == expected["tokens"],
        f"logits to {error:.1e}": error < BOUNDS[expected["architecture"]],
        f"{model.n_ctx_train} positions": model.n_ctx_train == LENGTH,
        "end token": vocab.token_eos() == vocab.token_bos() == expected["end"] and vocab.is_eog(expected["end"]),
        "no token put first": not vocab.get_add_bos(),
    }
    print(f"{folder.name}: " + ", ".join(f"{name} {'ok' if ok else 'OFF'}" for name, ok in checks.items()))
    for text, theirs, here in zip(TEXTS, texts, expected["texts"], strict=True):
        if theirs != here:
            print(f"  {text!r}: {theirs} in llama.cpp, {here} here")
    return all(checks.values())


if __name__ == "__main__":
    {"export": export, "run": run}[sys.argv[1]](Path(sys.argv[2]))
