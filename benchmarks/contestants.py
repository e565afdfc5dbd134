"""Who is timed: each builds, from a workload, a function that does one whole training step and returns its loss.

All start from the same parameters and do forward, backward, clipping at a global norm of 1, and the update. Only the
peers (peers.py) use autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.peers import FUSED_PEERS, LEARNING_RATE, PEERS, Step
from benchmarks.workloads import Workload, training_params
from custom_transformer import CustomTransformer
from custom_transformer.fast import head
from custom_transformer.fast.choose import FUSED, NATIVE, NATIVE_WITH_LIBRARIES, choose_engine
from custom_transformer.fast.kernels import library
from custom_transformer.fast.memory import keep_freed_memory
from custom_transformer.fast.products import onednn_computes_float32
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.engine import READABLE_RULES, Engine
from custom_transformer.maths.optim import build_optimizer
from custom_transformer.maths.parameters import IN_PRODUCTS
from custom_transformer.runs.step import training_step

UPDATE: dict[str, Any] = {"learning_rate": LEARNING_RATE, "betas": (0.9, 0.999), "weight_decay": 0.0}

# --------------------------------------------------------------------------------------------------- ours


def ours_eager(workload: Workload) -> Step:
    return _ours(workload, choose_engine(False, torch.device("cpu"), 0))


def ours_fast(workload: Workload) -> Step:
    library()  # without a compiler this is no contestant
    return _ours(workload, choose_engine(True, torch.device("cpu"), 0))


def ours_without_compiler(workload: Workload) -> Step:
    keep_freed_memory()
    return _ours(workload, FUSED)


def _ours(workload: Workload, engine: Engine) -> Step:
    model = CustomTransformer(workload.config, dtype=getattr(torch, workload.precision), engine=engine)
    model.training = True
    params = training_params(**UPDATE, optimizer=workload.optimizer)
    optimizer = build_optimizer(params, model.parameters, model.table, workload.config.head_size, engine.rules)
    batch = workload.batch()
    return lambda: training_step(model, optimizer, [batch], LEARNING_RATE, 1.0).loss


def with_adamw(workload: Workload) -> Step:
    return ours_fast(replace(workload, optimizer="adamw"))


# ours, fast, with one of its techniques left out


def without_kept_memory(workload: Workload) -> Step:
    library()
    return _ours(workload, NATIVE)


def with_library_products(workload: Workload) -> Step:
    keep_freed_memory()
    return _ours(workload, NATIVE_WITH_LIBRARIES)


def without_vocabulary_tiles(workload: Workload) -> Step:
    head.TILE = 1 << 30
    return ours_fast(workload)


def _without(**readable: Any) -> Callable[[Workload], Step]:
    def contestant(workload: Workload) -> Step:
        keep_freed_memory()
        return _ours(workload, replace(NATIVE, **readable))

    return contestant


# -------------------------------------------------------------------------------------------------- floor


def floor(workload: Workload) -> Step:
    """Only the products of forward and backward, at their shapes, in their best layout, into allocated memory."""
    config, n = workload.config, workload.tokens
    dtype, time, size = getattr(torch, workload.precision), config.max_seq_len, config.head_size
    table = architecture_of(config).parameters(config)
    linears = [shape for shape, role in table.values() if IN_PRODUCTS[role]] + [(config.d_model, config.vocab_size)]

    def operands(k: int, m: int) -> tuple[Callable[[], Any], ...]:
        x, weight, dy = (torch.randn(shape, dtype=dtype) for shape in ((n, k), (k, m), (n, m)))
        y, dx, dweight = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(weight)
        transposed = weight.T.contiguous()
        return (
            lambda: torch.mm(x, weight, out=y),
            lambda: torch.mm(dy, transposed, out=dx),
            lambda: torch.mm(x.T, dy, out=dweight),
        )

    # Queries that share their keys and values are rows of one product.
    pairs, queries = workload.batch_size * config.kv_heads, config.n_heads // config.kv_heads * time
    q, v = (torch.randn(pairs, rows, size, dtype=dtype) for rows in (queries, time))
    scores, y = torch.randn(pairs, queries, time, dtype=dtype), torch.empty_like(q)
    products = [product for shape in set(linears) for product in operands(*shape) for _ in range(linears.count(shape))]
    # Causal attention needs half of each of its six products: the scores and their gradient, and four like y.
    halves = [lambda: torch.bmm(q, v.transpose(1, 2), out=scores)] + 2 * [lambda: torch.bmm(scores, v, out=y)]
    products += halves * config.n_blocks

    def step() -> float:
        for product in products:
            product()
        return 0.0

    return step


ABLATIONS: dict[str, Callable[[Workload], Step]] = {
    "without kept memory": without_kept_memory,
    "ours, not portable": with_library_products,
    "without the head's kernel": _without(head=NATIVE.head._replace(loss=FUSED.head.loss)),
    "without tiles of the vocabulary": without_vocabulary_tiles,
    "without the blocks' kernels": _without(stacks={}),
    "without the update's kernels": _without(rules=READABLE_RULES),
    "without the tied table's sum in place": _without(
        equals={op: equal for op, equal in NATIVE.equals.items() if op is not ops.lookup}
    ),
}

OURS: dict[str, Callable[[Workload], Step]] = {
    "ours, fast": ours_fast,
    "ours, no compiler": ours_without_compiler,
    "ours, eager": ours_eager,
    "ours, AdamW": with_adamw,
    **ABLATIONS,
}


def build(name: str, workload: Workload, tuned: bool) -> Step:
    """The step of contestant `name`, or the floor's.

    tuned, for a peer: freed memory is kept, and float32 products use the faster of PyTorch's two libraries, unless that
    one would round operands to bfloat16 on this processor. Anyone can set both without touching the model.
    """
    torch.manual_seed(0)
    if name in OURS:
        return OURS[name](workload)
    if tuned or name == "floor":
        keep_freed_memory()
        if onednn_computes_float32():
            torch.set_float32_matmul_precision("medium")
    return floor(workload) if name == "floor" else (PEERS | FUSED_PEERS)[name](workload)
