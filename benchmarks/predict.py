"""What sharing a training between many GPUs would cost: python -m benchmarks.predict

A model of the step by several processes, not a measurement: how large the parts of the exchange are comes from the
exchange itself (runs/distributed.py), the arithmetic and the activations from the summary of a configuration, and
everything about the machine is an argument. One process's step takes

    compute = FLOPs per token · tokens / (utilisation · peak)

a third of it forward. A bucket's gradients are sent once the last pass's backward has made them, one bucket after the
other, and the parameters once all gradients have arrived; backward and exchange do not slow each other down. A bucket
takes, for the slowest process (the LogGP model: Alexandrov et al. 1995),

    latency + overhead · messages + max(bytes inside the host / NVLink, bytes between hosts / network)

One bucket's parameters take as long as its gradients. The sum over all processes takes 2 ⌈log₂ P⌉ latencies and
twice its bytes. The update itself and copies within a GPU are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from custom_transformer import CustomTransformerConfig
from custom_transformer.errors import ArgumentParser, run_main
from custom_transformer.maths.architecture import architecture_of, flops_per_token
from custom_transformer.maths.optim import BLOCK
from custom_transformer.maths.parameters import IN_PRODUCTS, count
from custom_transformer.runs.distributed import Shares
from custom_transformer.runs.processes import Processes
from custom_transformer.runs.summary import memory_bytes

WINDOW = 1024
Number = TypeVar("Number", int, float)


class Case(NamedTuple):
    """A model, and a loss to which it is trained: its checkpoint's on OpenWebText (nanoGPT's README, "baselines")."""

    title: str
    config: CustomTransformerConfig
    loss: float


def gpt2(d_model: int, n_blocks: int, n_heads: int) -> CustomTransformerConfig:
    """(Radford et al. 2019, table 2)"""
    return CustomTransformerConfig(
        vocab_size=50257, max_seq_len=WINDOW, d_model=d_model, n_blocks=n_blocks, n_heads=n_heads, d_ffn=4 * d_model
    )


CASES = (Case("GPT-2 124M", gpt2(768, 12, 12), 3.12), Case("GPT-2 1.5B", gpt2(1600, 48, 25), 2.56))


@dataclass(frozen=True)
class Cluster:
    """GPUs in hosts; bandwidths in bytes per second, in each direction, of each GPU; times in seconds.

    Defaults: an H100 SXM (NVIDIA's data sheet: 989 TFLOP/s of dense bfloat16, 80 GB, NVLink of 900 GB/s both ways
    together); DGX H100 has eight and a 400 Gbit/s port for each. The utilisation is that of Llama 3's training on up to
    16,384 of them, 38 to 43% (Grattafiori et al. 2024, table 4). The latency is NCCL's own estimate for its simple
    protocol, 8.4 µs to begin and 9.6 for a hop over the network (NCCL 2.7, src/graph/tuning.cc). The overhead of a
    message has no source: it is assumed.
    """

    peak: float = 989e12
    utilisation: float = 0.4
    per_host: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    latency: float = 18e-6
    overhead: float = 1e-6
    memory: float = 80e9


@dataclass(frozen=True)
class Work:
    """What each process does per step: `passes` forward passes of `windows` windows, in bfloat16, and AdamW."""

    config: CustomTransformerConfig
    processes: int
    windows: int
    passes: int

    @property
    def tokens(self) -> int:
        """Of one process per step."""
        return self.windows * self.passes * self.config.max_seq_len

    @cached_property
    def _shares(self) -> Shares:
        table = architecture_of(self.config).parameters(self.config)
        parameters = {name: torch.empty(shape, device="meta") for name, (shape, _) in table.items()}
        return Shares(Processes(0, self.processes), parameters, self.passes * self.processes)

    @cached_property
    def owned(self) -> np.ndarray:
        """(buckets, processes) int64: how many numbers of each bucket each process owns"""
        return np.array([self._shares.dealt(bucket)[0] for bucket in self._shares.buckets])

    @cached_property
    def ready(self) -> np.ndarray:
        """(buckets,): how much of the backward is done when a bucket's gradients are complete

        In proportion to the products' parameters. The head comes first and a table's gradient last.
        """
        table = architecture_of(self.config).parameters(self.config)
        sizes = [
            sum(math.prod(table[name].shape) for name in bucket if IN_PRODUCTS[table[name].role])
            for bucket in self._shares.buckets
        ]
        done = np.cumsum([self.config.vocab_size * self.config.d_model, *sizes])
        return done[1:] / done[-1]

    @property
    def sent(self) -> np.ndarray:
        """(processes,) int64: bytes that each sends to others per update, of gradients and of parameters"""
        own, itemsize = self.owned.sum(0), 4
        return itemsize * ((own.sum() - own) + (self.processes - 1) * own)

    @property
    def summed(self) -> int:
        """Bytes of the sum over all processes: one number per block of each parameter and one per pass's loss."""
        table = architecture_of(self.config).parameters(self.config)
        return 8 * (sum(-(-math.prod(shape) // BLOCK) for shape, _ in table.values()) + self.passes * self.processes)

    @property
    def sums(self) -> int:
        """How many sums of gradients are held of each parameter when the last pass begins."""
        return max(1, self.passes.bit_length() - 1)

    def memory(self) -> int:
        """Bytes of the process that owns most.

        While it computes: the activations, the gradients to send, and as many again received or, of several passes, the
        sums of earlier ones. While it collects the parameters: the gradients received, and the parameters to send
        and received.
        """
        table = architecture_of(self.config).parameters(self.config)
        parameters, own = 4 * count(table), 4 * int(self.owned.sum(0).max())
        asked = (self.config, self.windows, self.config.max_seq_len, torch.bfloat16, "adamw")
        computing = memory_bytes(*asked)["activations"] + parameters * ((self.processes > 1) + self.sums)
        received = own * self.processes
        return parameters + 2 * own + max(computing, 3 * received if self.processes > 1 else 0)


class Times(NamedTuple):
    """Seconds of a step: computing, exchanging meanwhile, and exchanging alone."""

    compute: float
    hidden: float
    exposed: float

    @property
    def efficiency(self) -> float:
        return self.compute / (self.compute + self.exposed)


def predicted(work: Work, cluster: Cluster) -> Times:
    """One step of these processes on this cluster."""
    flops = flops_per_token(work.config, work.config.max_seq_len) * work.tokens
    compute = flops / (cluster.peak * cluster.utilisation)
    if work.processes == 1:
        return Times(compute, 0.0, 0.0)
    exchange = [bucket_seconds(owned, cluster) for owned in work.owned]
    last_backward = compute * 2 / 3 / work.passes
    end = 0.0
    for ready, seconds in zip(work.ready, exchange, strict=True):
        end = max(end, compute - last_backward * (1 - ready)) + seconds
    slowest = cluster.nvlink if work.processes <= cluster.per_host else cluster.network
    norm = 2 * math.ceil(math.log2(work.processes)) * cluster.latency + 2 * work.summed / slowest
    exposed = end - compute + norm + sum(exchange)
    return Times(compute, compute - end + sum(exchange), exposed)


def bucket_seconds(owned: np.ndarray, cluster: Cluster) -> float:
    """The exchange of one bucket of which each process owns so many float32 gradients: (processes,) int64."""
    processes, sizes = len(owned), 4 * owned
    hosts = -(-processes // cluster.per_host)
    of_host = np.repeat(np.add.reduceat(sizes, np.arange(hosts) * cluster.per_host), cluster.per_host)[:processes]
    in_host = np.minimum(cluster.per_host, processes - np.arange(processes) // cluster.per_host * cluster.per_host)
    near = np.maximum(of_host - sizes, (in_host - 1) * sizes)
    far = np.maximum(sizes.sum() - of_host, (processes - in_host) * sizes)
    messages = np.maximum(np.count_nonzero(sizes) - (sizes > 0), (processes - 1) * (sizes > 0)).max()
    return float(
        cluster.latency + cluster.overhead * messages + np.maximum(near / cluster.nvlink, far / cluster.network).max()
    )


def critical_batch(loss: float) -> float:
    """Tokens beyond which a larger batch saves few steps: 2·10⁸ / loss^(1/0.21) (Kaplan et al. 2020, equation 1.4)."""
    return 2e8 / loss ** (1 / 0.21)


def useful(batch: float, critical: float) -> float:
    """How many tokens the smallest batch would need to the same loss, divided by how many this batch needs: 1 / (1 +
    batch / critical)  (McCandlish et al. 2018, equation 2.11; Kaplan et al. 2020, equation 5.5)"""
    return 1 / (1 + batch / critical)


def positive(kind: Callable[[Any], Number]) -> Callable[[Any], Number]:
    """Reads an argument that is to be a number above 0."""

    def read(text: Any) -> Number:
        if not (number := kind(text)) > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    read.__name__ = kind.__name__  # which argparse names where it is none at all
    return read


def main() -> None:
    cluster = Cluster()
    parser = ArgumentParser(
        prog="python -m benchmarks.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=positive(int), nargs="+", default=[8, 64, 1024])
    parser.add_argument(
        "--windows", type=positive(int), default=4, help=f"of {WINDOW} tokens per forward pass (%(default)s)"
    )
    parser.add_argument(
        "--passes", type=positive(int), default=4, help="per process and update: 1, 2, 4, … (%(default)s)"
    )
    units = {
        "peak": (1e12, "TFLOP/s of one GPU"),
        "utilisation": (1, "of that in forward and backward"),
        "per_host": (1, "GPUs in a host"),
        "nvlink": (1e9, "GB/s per GPU inside a host, each way"),
        "network": (1e9, "GB/s per GPU between hosts, each way"),
        "latency": (1e-6, "microseconds of an exchange"),
        "overhead": (1e-6, "microseconds of each message"),
        "memory": (1e9, "GB of one GPU"),
    }
    for name, (unit, what) in units.items():
        default = getattr(cluster, name) / unit
        kind = float if name in ("latency", "overhead") else positive(int if name == "per_host" else float)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=kind(default), help=f"{what} ({default:g})"
        )
    arguments = parser.parse_args()
    values = {name: getattr(arguments, name) * unit for name, (unit, _) in units.items()}
    cluster = Cluster(**values)
    Console().print(table(arguments.gpus, arguments.windows, arguments.passes, cluster))
    for line in limits(arguments.windows, arguments.passes, cluster):
        print(line)


def table(gpus: Sequence[int], windows: int, passes: int, cluster: Cluster) -> Table:
    title = f"{passes} forward passes of {windows} × {WINDOW:,} tokens per GPU and update, float32 exchange"
    columns = "", "GPUs", "MB sent", "compute ms", "hidden ms", "waiting ms", "efficiency", "GB", "useful tokens"
    of_all = Table(*columns, title=title)
    for column in of_all.columns[1:]:
        column.justify = "right"
    for case in CASES:
        for count_of in gpus:
            work = Work(case.config, count_of, windows, passes)
            times = predicted(work, cluster)
            of_all.add_row(
                case.title,
                f"{count_of:,}",
                f"{work.sent.max() / 1e6:,.0f}",
                *(f"{seconds * 1e3:,.1f}" for seconds in times),
                f"{times.efficiency:.1%}",
                f"{work.memory() / 1e9:.1f}",
                f"{useful(count_of * work.tokens, critical_batch(case.loss)):.0%}",
            )
        of_all.add_section()
    return of_all


def limits(windows: int, passes: int, cluster: Cluster) -> list[str]:
    """Where data parallelism with sharded optimiser state ends, in sentences."""
    found = []
    for case in CASES:
        critical, tokens = critical_batch(case.loss), Work(case.config, 1, windows, passes).tokens
        found.append(
            f"{case.title}: at a loss of {case.loss} the critical batch has {critical / 1e6:.2f} million tokens: "
            f"{critical / tokens:,.0f} GPUs of {tokens:,} tokens each, or {critical / WINDOW:,.0f} of one window each"
        )
    replicated = 4 * (2 + Work(CASES[0].config, 2, windows, passes).sums)
    found.append(
        f"Each GPU holds {replicated} bytes per parameter that are not sharded: without activations, "
        f"{cluster.memory / 1e9:.0f} GB end at {cluster.memory / replicated / 1e9:.1f} billion parameters"
    )
    return found


if __name__ == "__main__":
    run_main(main)
