"""python -m tests.benchmarks.exchanged: one update by several processes; prints what each has sent, and its spans."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.timeline import Recorder
from custom_transformer import CustomTransformer, CustomTransformerConfig
from custom_transformer.maths.optim import AdamW
from custom_transformer.runs import distributed
from custom_transformer.runs.distributed import Shares
from custom_transformer.runs.processes import Processes, joined
from custom_transformer.runs.step import shared_step

CONFIG = CustomTransformerConfig(vocab_size=301, max_seq_len=16, n_blocks=2, n_heads=2, d_model=64, d_ffn=200)
BUCKET, PASSES = 2**13, 2  # several buckets of this small model


def update(processes: Processes) -> dict[str, Any]:
    """sent: bytes to others in slices; summed: bytes of what is summed over all; spans: of the step"""
    model = CustomTransformer(CONFIG)
    passes = PASSES * processes.count
    shares = Shares(processes, model.parameters, passes)
    optimizer = AdamW(shares.own(model.parameters), (0.9, 0.999), {})
    tokens = torch.zeros(1, CONFIG.max_seq_len, dtype=torch.int64)
    sent, summed = 0, 0
    exchange, add_up = dist.all_to_all_single, dist.all_reduce

    def counted_exchange(received: Tensor, given: Tensor, sizes: list[int], given_sizes: list[int], **how: Any) -> Any:
        nonlocal sent
        sent += given.element_size() * (sum(given_sizes) - given_sizes[processes.rank])
        return exchange(received, given, sizes, given_sizes, **how)

    def counted_sum(numbers: Tensor) -> Any:
        nonlocal summed
        summed += numbers.nbytes
        return add_up(numbers)

    dist.all_to_all_single, dist.all_reduce = counted_exchange, counted_sum  # type: ignore[assignment]
    recorder = Recorder(model, optimizer, shares)
    batches = [(tokens, tokens)] * len(shares.shards(passes))
    shared_step(model, optimizer, batches, [CONFIG.max_seq_len] * passes, 1e-3, 1.0, shares)
    dist.all_to_all_single, dist.all_reduce = exchange, add_up
    return {"sent": sent, "summed": summed, "spans": recorder.taken()}


def main() -> None:
    distributed.BUCKET = BUCKET
    with joined() as processes:
        processes.connect(torch.device("cpu"))
        print(json.dumps(processes.of_each(update(processes))))


if __name__ == "__main__":
    main()
