"""A program: its kernels, threads and capability, and digests of what they compute from made-up numbers, as JSON.

It is run under one setting after another; see test_portable.py. Everything that goes in is made of integers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from custom_transformer.fast import operations
from custom_transformer.fast.choose import NATIVE
from custom_transformer.fast.decoding import last_logits, product
from custom_transformer.fast.kernels import kernel, kernels_name
from custom_transformer.fast.norm import Addend, add_layer_norm_forward, add_norm_backward, add_rms_norm_forward
from custom_transformer.fast.products import matmul, weight_gradient
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.muon import MatrixUpdate
from custom_transformer.maths.optim import AdamW
from custom_transformer.runs.generation import continuation
from custom_transformer.runs.observe import views
from custom_transformer.runs.step import training_step

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
MODELS = {
    "gpt2": {"dropout": 0.1},
    "llama": {"architecture": "llama", "n_kv_heads": 2, "tie_embeddings": False},
    "modern": {"architecture": "modern", "dropout": 0.1},
}
SIZES = {"vocab_size": 61, "max_seq_len": 41, "n_blocks": 2, "n_heads": 4, "d_model": 24, "d_ffn": 44}
STEPS = 20


class Numbers:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, spread: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers in (−1, 1), each times 2 to a power between −spread and spread, which products may not lose."""
        wide = torch.promote_types(dtype, torch.float32)
        mantissas = torch.randint(-(2**23) + 1, 2**23, shape, generator=self.generator).to(wide) / 2**23
        powers = torch.randint(-spread, spread + 1, shape, generator=self.generator)
        return torch.ldexp(mantissas, powers).to(dtype)

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)


def digest(tensors: Iterable[Tensor | None]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            assert torch.isfinite(tensor.double()).all()
            found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def products(numbers: Numbers, dtype: torch.dtype) -> Iterator[Tensor]:
    for m, n, k in [(1, 1, 1), (13, 37, 5), (29, 70, 300), (61, 33, 1300), (33, 61, 1300), (200, 96, 64)]:
        for spread in (0, 12, 60):
            for transposed_a in (False, True):
                for transposed_b in (False, True):
                    a = numbers(*((k, m) if transposed_a else (m, k)), spread=spread, dtype=dtype)
                    b = numbers(*((n, k) if transposed_b else (k, n)), spread=spread, dtype=dtype)
                    a, b = (a.T if transposed_a else a), (b.T if transposed_b else b)
                    yield matmul(a, b)
                    yield weight_gradient(a.T, b)
    weight, head = numbers(300, 270, dtype=dtype), numbers(270, 300, dtype=dtype)
    for few in (3, 7):
        x = numbers(few, 300, dtype=dtype)
        yield product(x, weight)
        yield last_logits(x.unsqueeze(1), head)


def rows(numbers: Numbers, dtype: torch.dtype) -> Iterator[Tensor | None]:
    wide, n, d = torch.promote_types(dtype, torch.float32), 131, 77
    weight, bias = numbers(d, dtype=wide), numbers(d, dtype=wide)
    for norm in (add_layer_norm_forward, add_rms_norm_forward):
        keep = numbers.ids(10, n, d) > 0
        addend = Addend(numbers(n, d, dtype=dtype), bias, keep, 0.1)
        last = (bias,) if norm is add_layer_norm_forward else (1e-5,)
        x, y, saved = norm(numbers(n, d, spread=3, dtype=wide), addend, weight, *last, dtype)  # type: ignore[operator]
        yield from (x, y, *add_norm_backward(numbers(n, d, dtype=dtype), numbers(n, d, dtype=wide), saved))
    h = numbers(n, d + 1, spread=5, dtype=dtype)
    for forward, backward in (
        (operations.gelu_forward, operations.gelu_backward),
        (operations.swiglu_forward, operations.swiglu_backward),
    ):
        y, saved = forward(h)
        yield from (y, backward(numbers(*y.shape, dtype=dtype), saved))


def attention(numbers: Numbers, dtype: torch.dtype) -> Iterator[Tensor]:
    for batch, time, n_heads, n_kv_heads, size in [
        (2, 61, 3, 3, 14),
        (1, 201, 4, 2, 32),
        (2, 1, 2, 1, 8),
        (1, 523, 1, 1, 68),
    ]:
        qkv = numbers(batch, time, (n_heads + 2 * n_kv_heads) * size, spread=1, dtype=dtype)
        dy = numbers(batch, time, n_heads * size, dtype=dtype)
        keep = numbers.ids(10, batch, n_heads, time, time) > 0
        y, saved = operations.rotary_attention_forward(qkv, n_heads, n_kv_heads, 10000.0, keep, 0.1)
        yield from (y, operations.attention_backward_of_rows(dy, saved))


def update(numbers: Numbers, dtype: torch.dtype) -> Iterator[Tensor]:
    parameter, gradient, m = (numbers(10007, spread=20, dtype=dtype) for _ in range(3))
    v = numbers(10007, spread=10, dtype=dtype).square()
    NATIVE.rules.adamw(parameter, gradient, m, v, 3, 0.7, 1e-2, (0.9, 0.99), 0.1, 1e-8)
    yield from (parameter, m, v)
    NATIVE.rules.sgd(parameter, gradient, 0.3, 1e-2, 0.1)
    yield from (parameter, torch.tensor(NATIVE.rules.global_norm({"g": gradient}), dtype=torch.float64))
    sizes = [(37, 41), (70, 24), (9, 1100)]
    updates = [MatrixUpdate(*(numbers(*size, dtype=dtype) for _ in range(3)), 0.1) for size in sizes]
    NATIVE.rules.muon(updates, 0.7, 1e-2, 0.9)
    for parameter, _, momentum, _ in updates:
        yield from (parameter, momentum)


def functions(numbers: Numbers) -> Iterator[Tensor]:
    """exp and log as the loss has them: softmax of one row is exp, and its loss a logarithm."""
    logits = numbers(1, 100_003, spread=6)
    labels, losses, predicted = torch.tensor([7]), torch.empty(1), torch.empty(1, dtype=torch.int64)
    kernel("score_rows", torch.float32)(logits, labels, *logits.shape, losses, predicted)
    yield from (losses, predicted)


def training(numbers: Numbers, dtype: torch.dtype, name: str) -> Iterator[Tensor]:
    model = CustomTransformer({**SIZES, **MODELS[name]}, dtype=dtype, seed=3, engine=NATIVE)
    model.load_state_dict({key: numbers(*p.shape, dtype=p.dtype) * 0.1 for key, p in model.parameters.items()})
    optimizer = AdamW(model.parameters, (0.9, 0.99), {}, rule=NATIVE.rules.adamw)
    model.training = True
    for _ in range(STEPS):
        tokens = numbers.ids(61, 2, 40)
        tokens[:, 1::2] = (tokens[:, 0::2] * 7 + 1) % 61  # something to learn
        result = training_step(model, optimizer, [(tokens[:, :-1], tokens[:, 1:])] * 2, 1e-2, 1.0)
        yield torch.tensor([result.loss, result.grad_norm_before_clip], dtype=torch.float64)
    yield from model.parameters.values()
    yield from optimizer.state["v"].values()
    model.training = False
    yield from model.scores(tokens[:, :-1], tokens[:, 1:].contiguous())
    yield model.forward(tokens)
    for chosen, logits in continuation(model, tokens[:, :5], 20, temperature=0.0):
        yield from (chosen, logits)
    for view in views(model, tokens):
        yield from (view.stream, view.attention, view.unit_input)


def main() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # which a fork does not read anew
    capability = torch.backends.cpu.get_cpu_capability()  # type: ignore[no-untyped-call]
    setting = [kernels_name(), torch.get_num_threads(), capability]
    found = {}
    with NATIVE.products():
        for dtype in DTYPES:
            for make in (products, rows, attention):
                found[f"{make.__name__} {dtype}"] = digest(make(Numbers(), dtype))
        for dtype in (torch.float32, torch.float64):
            found[f"update {dtype}"] = digest(update(Numbers(), dtype))
        found["functions"] = digest(functions(Numbers()))
    for dtype in DTYPES:
        for name in MODELS:
            found[f"training {name} {dtype}"] = digest(training(Numbers(), dtype, name))
    print(json.dumps([setting, found]))


if __name__ == "__main__":
    main()
