"""Which functions a model computes with: those to read, or equal ones that are faster on the machine at hand."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from custom_transformer.fast import decoding, fused, native
from custom_transformer.fast.kernels import KernelsUnavailable, library
from custom_transformer.fast.memory import keep_freed_memory
from custom_transformer.fast.products import fast_products
from custom_transformer.maths import blocks, ops, optim


@dataclass(frozen=True)
class Engine:
    """The functions of a training step and of generation. Each has the contract, and within rounding the results, of
    its original, except that a backward may use up what its forward saved:

    stack_forward, stack_backward, cached_block_forward, last_logits
                                                                 of blocks.py
    linear_cross_entropy_forward, linear_cross_entropy_backward,
    tied_embedding_backward                                      of ops.py
    global_norm, sgd_update, adamw_update                        of optim.py
    """

    name: str
    stack_forward: Callable[..., Any]
    stack_backward: Callable[..., Any]
    cached_block_forward: Callable[..., torch.Tensor]
    last_logits: Callable[..., torch.Tensor]
    linear_cross_entropy_forward: Callable[..., Any]
    linear_cross_entropy_backward: Callable[..., Any]
    tied_embedding_backward: Callable[..., Any]
    global_norm: Callable[..., float]
    sgd_update: Callable[..., None]
    adamw_update: Callable[..., None]


EAGER = Engine(
    "eager",
    blocks.stack_forward,
    blocks.stack_backward,
    blocks.cached_block_forward,
    blocks.last_logits,
    ops.linear_cross_entropy_forward,
    ops.linear_cross_entropy_backward,
    ops.tied_embedding_backward,
    optim.global_norm,
    optim.sgd_update,
    optim.adamw_update,
)

FUSED = Engine(
    "fused",
    fast_products(functools.partial(blocks.stack_forward, ops=fused)),
    fast_products(functools.partial(blocks.stack_backward, ops=fused)),
    blocks.cached_block_forward,
    blocks.last_logits,
    fused.linear_cross_entropy_forward,
    fused.linear_cross_entropy_backward,
    native.tied_embedding_backward,
    optim.global_norm,
    optim.sgd_update,
    optim.adamw_update,
)

NATIVE = Engine(
    "native",
    native.stack_forward,
    native.stack_backward,
    decoding.cached_block_forward,
    decoding.last_logits,
    native.linear_cross_entropy_forward,
    native.linear_cross_entropy_backward,
    native.tied_embedding_backward,
    native.global_norm,
    native.sgd_update,
    native.adamw_update,
)


@functools.cache
def compiled_engine() -> Engine:
    """For a GPU: the fused functions, and the readable ones between them, through torch.compile.

    torch.compile sees forward graphs only: the backward is a function of its own. One block is compiled, not the stack
    of them, so that compiling takes as long for a deep model as for a shallow one.
    """
    return Engine(
        "compiled",
        functools.partial(blocks.stack_forward, block_forward=torch.compile(blocks.block_forward), ops=fused),
        functools.partial(blocks.stack_backward, block_backward=torch.compile(blocks.block_backward), ops=fused),
        blocks.cached_block_forward,
        blocks.last_logits,
        torch.compile(ops.linear_cross_entropy_forward),
        torch.compile(ops.linear_cross_entropy_backward),
        ops.tied_embedding_backward,
        optim.global_norm,
        optim.sgd_update,
        optim.adamw_update,
    )


# What the fast functions' compile time is worth, in floating-point operations of the run: some seconds of a pair of
# laptop cores (1e11 a second) for the kernels, a minute of a GPU (1e14 a second) for torch.compile.
_WORTH_COMPILING = {"cpu": 2e12, "cuda": 6e15}


def choose_engine(choice: Literal["auto", True, False], device: torch.device, flops: float) -> Engine:
    """The functions for a run of `flops` floating-point operations on `device`.

    choice: False for the readable ones, True for the fastest, "auto" for the fastest where the run is long enough to
    earn their compile time back, else the readable ones. Where kernels cannot be compiled it is PyTorch's fused ones,
    and one line says so. On a CPU this process keeps the memory it frees from here on (see fast/memory.py).
    """
    if device.type not in _WORTH_COMPILING:
        return EAGER
    if device.type == "cpu":
        keep_freed_memory()
    if choice is False:
        return EAGER
    if choice == "auto" and flops < _WORTH_COMPILING[device.type]:
        print("computing with the readable functions: the run is too short to earn a compilation back", file=sys.stderr)
        return EAGER
    if device.type == "cuda":
        return compiled_engine()
    try:
        library()
    except KernelsUnavailable as error:
        print(f"computing without the compiled kernels: {error}", file=sys.stderr)
        return FUSED
    return NATIVE
