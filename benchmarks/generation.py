"""Generated tokens per second, compared with transformers' `generate` on the same weights.

python -m benchmarks.generation: with the key-value cache, in float32 and with bfloat16 weights. Then all of
transformers' arithmetic is in bfloat16, and ours except for the residual stream and the norms.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks.workloads import DEFAULT, Workload
from custom_transformer import CustomTransformer
from custom_transformer.errors import ArgumentParser, run_main
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


def median_seconds(model: CustomTransformer, peer: Any, batch: int) -> tuple[float, float]:
    """Ours and theirs, in turns."""
    shape, generator = (batch, PROMPT), torch.Generator().manual_seed(0)
    prompt = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    ours, theirs = [], []
    for _ in range(ROUNDS + 1):  # the first is a warm-up
        ours.append(seconds_ours(model, prompt))
        theirs.append(seconds_theirs(peer, prompt))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=DEFAULT, default=DEFAULT, metavar="NAME")
    workloads = parser.parse_args().workloads
    logging.set_verbosity_error()
    engine = choose_engine(True, torch.device("cpu"), flops=0)
    table = Table("model", "weights", "batch", "ours, tokens/s", "transformers, tokens/s", "ratio")
    for name, precision in itertools.product(workloads, ("float32", "bfloat16")):
        dtype = getattr(torch, precision)
        model = CustomTransformer(Workload(name, precision, "sgd", tied=True).config, dtype=dtype, engine=engine)
        peer = to_huggingface(model).to(dtype)
        for batch in (1, 8):
            a, b = median_seconds(model, peer, batch)
            rates = (f"{batch * NEW / a:,.0f}", f"{batch * NEW / b:,.0f}", f"{b / a:.2f}")
            table.add_row(name, precision, f"{batch}", *rates)
    Console(width=100).print(table)


if __name__ == "__main__":
    run_main(main)
