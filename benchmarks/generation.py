"""Tokens per second with the key-value cache, compared with transformers' `generate` on the same weights:
python -m benchmarks.generation"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks.workloads import SIZES, Workload
from custom_transformer import CustomTransformer
from custom_transformer.errors import run_main
from custom_transformer.fast.choose import choose_engine
from custom_transformer.fast.products import fast_products
from custom_transformer.interchange import to_huggingface
from custom_transformer.runs.generation import generate

PROMPT, NEW, ROUNDS = 8, 120, 5


def seconds_ours(model: CustomTransformer, prompt: torch.Tensor) -> float:
    start = time.perf_counter()
    tokens = generate(model, prompt, PROMPT + NEW, temperature=0.0)
    seconds = time.perf_counter() - start
    assert tokens.shape[1] == PROMPT + NEW
    return seconds


def seconds_theirs(model: Any, prompt: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad(), fast_products():
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False, use_cache=True
        )
    seconds = time.perf_counter() - start
    assert tokens.shape[1] == PROMPT + NEW
    return seconds


def main() -> None:
    logging.set_verbosity_error()
    engine = choose_engine(True, torch.device("cpu"), flops=0)
    table = Table("model", "batch", "ours, tokens/s", "transformers, tokens/s", "ratio")
    for name in SIZES:
        config = Workload(name, "float32", "sgd", tied=True).config
        model = CustomTransformer(config, engine=engine)
        peer = to_huggingface(model)
        for batch in (1, 8):
            prompt = torch.randint(0, config.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
            ours, theirs = [], []
            for _ in range(ROUNDS + 1):  # the first is a warm-up
                ours.append(seconds_ours(model, prompt))
                theirs.append(seconds_theirs(peer, prompt))
            a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
            table.add_row(name, f"{batch}", f"{batch * NEW / a:,.0f}", f"{batch * NEW / b:,.0f}", f"{b / a:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    run_main(main)
