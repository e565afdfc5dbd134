"""Which engine computes, and on which device."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Literal

import torch

from custom_transformer.config import TrainingParams
from custom_transformer.errors import UserError
from custom_transformer.fast import attention, decoding, fused, gpt2, head, llama, modern, muon, operations, update
from custom_transformer.fast.compiled import compiled_engine
from custom_transformer.fast.kernels import KernelsUnavailable, has_fma, library
from custom_transformer.fast.memory import keep_freed_memory
from custom_transformer.fast.products import fast_products, portable_products
from custom_transformer.maths import ops
from custom_transformer.maths.engine import READABLE, Engine, Head
from custom_transformer.maths.optim import Rules
from custom_transformer.maths.scope import Op

# Without a compiler: PyTorch's own fused functions.
FUSED = Engine(
    "fused",
    equals=fused.EQUALS | {ops.lookup: fused.lookup},
    head=Head(loss=fused.linear_cross_entropy),
    products=fast_products,
)

# The kernels, whose bits are the same on every processor.
NATIVE = Engine(
    "native",
    equals=operations.EQUALS,
    stacks={"gpt2": gpt2.STACK, "llama": llama.STACK, "modern": modern.STACK},
    head=Head(
        loss=Op(head.linear_cross_entropy_forward, head.linear_cross_entropy_backward),
        scores=head.linear_cross_entropy_scores,
        last_logits=decoding.last_logits,
    ),
    rules=Rules(update.sums_of_squares, update.sgd_update, update.adamw_update, muon.muon_updates),
    attention_probabilities=attention.attention_probabilities,
    products=portable_products,
)

# The same with the libraries' products, whose bits are the processor's own.
NATIVE_WITH_LIBRARIES = replace(NATIVE, name="native with libraries", products=fast_products)

# What the fast functions' compile time is worth, in floating-point operations of a run: some seconds of a pair of
# laptop cores (1e11 a second) for the kernels, a minute of a GPU (1e14 a second) for torch.compile.
_WORTH_COMPILING = {"cpu": 2e12, "cuda": 6e15}


def prepare(training: TrainingParams, flops: float) -> tuple[torch.device, Engine]:
    """The device and the engine that `training` names, for `flops` floating-point operations in all.

    From here on PyTorch computes deterministically in this process. One line says if `training.portable` cannot be
    kept, or that it leaves fast matrix units unused. Raises UserError where there is no such device.
    """
    device = choose_device(training.device)
    if device.type == "cpu":
        # As use_deterministic_algorithms, which for torch.compile's sake takes more than a second of imports.
        torch.set_deterministic_debug_mode("error")
    else:
        torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # each is filled anyway
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    engine = choose_engine(training.compile, device, flops, training.portable)
    if training.portable and engine is not NATIVE:
        print(
            f"training.portable cannot be kept: the {engine.name} engine computes: the last digits are this machine's",
            file=sys.stderr,
        )
    # AMX adds products in an order of its own, which no other unit has.
    if engine is NATIVE and training.precision == "bfloat16" and torch.cpu._is_amx_tile_supported():
        print(
            "this processor has matrix units for bfloat16, which are several times as fast but round in their own way: "
            "training.portable: false uses them",
            file=sys.stderr,
        )
    return device, engine


def choose_device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """auto: a GPU if there is one; one line says what it took. Raises UserError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("training.device: cuda: PyTorch finds no NVIDIA GPU here; set it to cpu or auto")
    if choice == "auto":
        found = torch.cuda.get_device_name() if available else "the processor, since PyTorch finds no NVIDIA GPU"
        print(f"training.device: auto takes {found}", file=sys.stderr)
    return torch.device("cuda" if available and choice != "cpu" else "cpu")


def choose_engine(
    choice: Literal["auto", True, False], device: torch.device, flops: float, portable: bool = True
) -> Engine:
    """The engine for `flops` floating-point operations on `device`.

    choice: False for the readable one, True for the fastest, "auto" for the fastest if there is enough to compute to
    earn its compile time back, else the readable one. Where kernels cannot be compiled it is PyTorch's fused functions,
    and one line says so. On a CPU this process keeps the memory it frees from here on (see memory.py).
    portable: on a CPU the kernels throughout, however little there is to compute, so that bits do not depend on it.
    """
    if device.type not in _WORTH_COMPILING:
        return READABLE
    if device.type == "cpu":
        keep_freed_memory()
    portable = portable and device.type == "cpu"
    if choice is False or (choice == "auto" and not portable and flops < _WORTH_COMPILING[device.type]):
        return READABLE
    if device.type == "cuda":
        return compiled_engine()
    try:
        library()
    except KernelsUnavailable as error:
        print(f"computing without the compiled kernels: {error}", file=sys.stderr)
        return FUSED
    if portable and not has_fma():
        print(
            "this processor has no fused multiply-add: the kernels compute the same bits without it, a hundred times "
            "slower, which is enough to verify a run but not to train",
            file=sys.stderr,
        )
    return NATIVE if portable else NATIVE_WITH_LIBRARIES
