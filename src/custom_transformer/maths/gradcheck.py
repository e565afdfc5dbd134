"""The proof: every gradient against finite differences, and against autograd on the same mathematics.

This is the only place where autograd is used, and what it differentiates is written here a second time, from
PyTorch's own layers, so that a mistake in ops.py cannot hide in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError
from custom_transformer.maths.architecture import Architecture
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.maths.scope import nobody

TOLERANCE = 1e-8
BATCH = 3
ELEMENTS = 12  # of each tensor, whose derivatives are measured one by one
STEP = 3e-4  # of a finite difference
# If units have a corner: a shorter step, and how far each unit's input is from its corner, which few then cross
STEP_NEAR_CORNERS, FAR, MOST_DRAWN = 1e-4, 1e-3, 300

# parameters, configuration, tokens and dropout's generator -> the last norm's output
Reference = Callable[[Mapping[str, Tensor], CustomTransformerConfig, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class GradientCheck:
    """One parameter's gradient: its largest deviations, relative to the largest gradient of that tensor."""

    name: str
    shape: tuple[int, ...]
    finite_difference_error: float
    autograd_error: float

    @property
    def ok(self) -> bool:
        # Written so that NaN is not ok.
        return self.finite_difference_error < TOLERANCE and self.autograd_error < TOLERANCE


def reduced(config: CustomTransformerConfig) -> CustomTransformerConfig:
    """The same architecture, at sizes where float64 differences take seconds: all different, odd where they may be."""
    n_heads = min(config.n_heads, 3)
    n_kv_heads = next(n for n in range(min(config.kv_heads, n_heads), 0, -1) if n_heads % n == 0)
    head_size = min(config.head_size, max(5, 12 // n_heads))  # a norm over a few numbers is too crooked to measure
    head_size += config.turns_pairs and head_size % 2
    sizes = {
        "vocab_size": min(config.vocab_size, 37),
        "max_seq_len": min(config.max_seq_len, 13),
        "n_blocks": min(config.n_blocks, 2),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_model": n_heads * head_size,
        "d_ffn": min(config.d_ffn, 23),
    }
    if config.d_model <= 16:
        sizes |= {"n_heads": config.n_heads, "n_kv_heads": config.kv_heads, "d_model": config.d_model}
    return config.model_copy(update=sizes)


def check_gradients(
    config: CustomTransformerConfig,
    seed: int = 0,
    engine: Engine = READABLE,
    architecture: Architecture | None = None,
    reference: Reference | None = None,
) -> Iterator[GradientCheck]:
    """Checks every parameter of a float64 model with random weights, norms and biases, one after another.

    architecture: by default the one that `config` names. reference: its mathematics for autograd; by default the one
    written here.
    """
    model, tokens, labels = _random_problem(config, seed, engine, architecture)
    _loss(model, tokens, labels, seed)
    model.loss_backward()
    gradients = model.gradients
    expected = _autograd_gradients(model, reference or REFERENCES[config.architecture], tokens, labels, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item() or 1.0  # a gradient that is 0 must be measured as 0
        measured = _finite_differences(model, name, tokens, labels, seed, generator)
        difference = max(abs(value - (gradient * d).sum().item()) for d, value in measured)
        autograd = (gradient - expected[name]).abs().max().item()
        yield GradientCheck(name, tuple(gradient.shape), difference / scale, autograd / scale)


def _random_problem(
    config: CustomTransformerConfig, seed: int, engine: Engine, architecture: Architecture | None
) -> tuple[CustomTransformer, Tensor, Tensor]:
    """A model, tokens and labels; from the first seed on, the first with which every unit is far from its corner.

    Raises UserError if there is none, as where so much is dropped that some unit's input is always 0.
    """
    for drawn in range(seed, seed + MOST_DRAWN):
        model, tokens, labels = _random_model(config, drawn, engine, architecture)
        if not model.architecture.units.corner or _distance_from_corner(model, tokens, labels, seed) > FAR:
            return model, tokens, labels
    raise UserError("no model found whose units are all far from their corner; check it with less model.dropout")


def _distance_from_corner(model: CustomTransformer, tokens: Tensor, labels: Tensor, seed: int) -> float:
    seen: dict[str, Tensor] = {}
    model.watch = seen.__setitem__
    _loss(model, tokens, labels, seed)
    model.watch = nobody
    distances = []
    for block in (f"blocks.{i}." for i in range(model.config.n_blocks)):
        of_block = {name.removeprefix(block): tensor for name, tensor in seen.items() if name.startswith(block)}
        _, _, units = model.architecture.inside(of_block, model.config)
        distances.append((units - model.architecture.units.off_below).abs().min().item())
    return min(distances)


def _random_model(
    config: CustomTransformerConfig, seed: int, engine: Engine, architecture: Architecture | None
) -> tuple[CustomTransformer, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = CustomTransformer(config, dtype=torch.float64, seed=seed, engine=engine, architecture=architecture)
    model.training = True
    # The initial weights (norms all 1, biases all 0) would hide a missing factor or term.
    for parameter in model.parameters.values():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu"))
    time = max(1, config.max_seq_len - 2)
    tokens = torch.randint(config.vocab_size, (BATCH, time), generator=generator, device="cpu")
    labels = torch.randint(config.vocab_size, (BATCH, time), generator=generator, device="cpu")
    labels[0, : time // 3] = IGNORE_INDEX
    return model, tokens, labels


def _loss(model: CustomTransformer, tokens: Tensor, labels: Tensor, seed: int) -> float:
    model.generator.manual_seed(seed)  # the same dropout masks each time
    return model.loss(tokens, labels).item()


def _finite_differences(
    model: CustomTransformer, name: str, tokens: Tensor, labels: Tensor, seed: int, generator: torch.Generator
) -> list[tuple[Tensor, float]]:
    """Directions in the parameter's space and the loss's measured derivative along each.

    The directions are one random unit vector, which no element escapes, and ELEMENTS single elements.
    """
    parameter = model.parameters[name]
    direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device="cpu")
    directions = [direction / direction.norm()]
    for index in torch.randperm(parameter.numel(), generator=generator, device="cpu")[:ELEMENTS]:
        one = torch.zeros_like(parameter)
        one.view(-1)[index] = 1
        directions.append(one)

    def moved(d: Tensor, distance: float) -> float:
        model.parameters[name] = parameter + distance * d
        return _loss(model, tokens, labels, seed)

    step = STEP_NEAR_CORNERS if model.architecture.units.corner else STEP
    measured = [(d, derivative_at_0(partial(moved, d), step)) for d in directions]
    model.parameters[name] = parameter
    return measured


def derivative_at_0(loss: Callable[[float], float], step: float = STEP) -> float:
    """The measured derivative of a function of one number where that number is 0.

    The error of the five-point stencil is h⁴/30 · L⁽⁵⁾, far below the rounding of a two-point one.
    """
    values = [loss(steps * step) for steps in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def gradient_at(loss: Callable[[Tensor], float], x: Tensor) -> Tensor:
    """The measured gradient of `loss` at x, element by element; of x's shape and dtype, which should be float64."""

    def moved(direction: Tensor, distance: float) -> float:
        return loss(x + distance * direction)

    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        one = torch.zeros_like(x)
        one.view(-1)[i] = 1
        gradient.view(-1)[i] = derivative_at_0(partial(moved, one))
    return gradient


# ---------------------------------------------------------------------- the same mathematics, for autograd


def _autograd_gradients(
    model: CustomTransformer, reference: Reference, tokens: Tensor, labels: Tensor, seed: int
) -> dict[str, Tensor]:
    parameters = {name: p.clone().requires_grad_() for name, p in model.parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        x = reference(parameters, model.config, tokens, generator)
        head = parameters["token_embedding" if model.config.tie_embeddings else "head.weight"]
        loss = F.cross_entropy((x @ head.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def _drop(config: CustomTransformerConfig, generator: torch.Generator, h: Tensor) -> Tensor:
    """Drawn from `generator` as the model draws it."""
    if not config.dropout:
        return h
    drawn = torch.randint(2**24, h.shape, generator=generator, dtype=torch.int32, device="cpu")
    return h * (drawn >= math.ceil(config.dropout * 2**24)) / (1 - config.dropout)


def gpt2_hidden(
    p: Mapping[str, Tensor], config: CustomTransformerConfig, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """The last norm's output from PyTorch's own layers. Dropout is drawn from `generator` as the model draws it.

    tokens (B, T) int64 -> (B, T, D)
    """

    def linear(h: Tensor, name: str) -> Tensor:
        return F.linear(h, p[f"{name}.weight"].T, p.get(f"{name}.bias"))

    def norm(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, h.shape[-1:], p[f"{name}.weight"], p.get(f"{name}.bias"))

    time = tokens.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device="cpu").tril()
    x = _drop(config, generator, p["token_embedding"][tokens] + p["position_embedding"][:time])
    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        q, k, v = (
            part.unflatten(-1, (config.n_heads, config.head_size)).transpose(1, 2)
            for part in linear(norm(x, f"{block}.norm_1"), f"{block}.qkv").split(config.d_model, dim=-1)
        )
        scores = torch.where(causal, q @ k.mT / config.head_size**0.5, -torch.inf)
        h = (_drop(config, generator, F.softmax(scores, dim=-1)) @ v).transpose(1, 2).flatten(2)
        x = x + _drop(config, generator, linear(h, f"{block}.projection"))
        h = F.gelu(linear(norm(x, f"{block}.norm_2"), f"{block}.up"), approximate="tanh")
        x = x + _drop(config, generator, linear(h, f"{block}.down"))
    return norm(x, "final_norm")


def _grouped_heads(qkv: Tensor, config: CustomTransformerConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, (H + 2·G)·K) -> queries (B, T, H, K), keys and values (B, T, G, K)"""
    q, k, v = qkv.unflatten(-1, (-1, config.head_size)).split([config.n_heads, config.kv_heads, config.kv_heads], 2)
    return q, k, v


def _turned(h: Tensor, config: CustomTransformerConfig) -> Tensor:
    """Products of complex numbers        (B, T, heads, K)"""
    half = config.head_size // 2
    steps, rates = (torch.arange(n, dtype=torch.float64, device="cpu") for n in (h.shape[1], half))
    angles = steps[:, None, None] * config.rope_base ** (-rates / half)
    z = torch.complex(h[..., :half], h[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def _attended(q: Tensor, k: Tensor, v: Tensor, config: CustomTransformerConfig, generator: torch.Generator) -> Tensor:
    """q (B, T, H, K), k and v (B, T, G, K) -> (B, T, H·K)"""
    shared, time = config.n_heads // config.kv_heads, q.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device="cpu").tril()
    q, k, v = (h.transpose(1, 2) for h in (q, k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2)))
    scores = torch.where(causal, q @ k.mT / config.head_size**0.5, -torch.inf)
    return (_drop(config, generator, F.softmax(scores, dim=-1)) @ v).transpose(1, 2).flatten(2)


def llama_hidden(
    p: Mapping[str, Tensor], config: CustomTransformerConfig, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """As `gpt2_hidden`        tokens (B, T) int64 -> (B, T, D)"""

    def norm(h: Tensor, name: str) -> Tensor:
        return F.rms_norm(h, h.shape[-1:], p[f"{name}.weight"], config.norm_eps)

    x = _drop(config, generator, p["token_embedding"][tokens])
    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        q, k, v = _grouped_heads(norm(x, f"{block}.norm_1") @ p[f"{block}.qkv.weight"], config)
        h = _attended(_turned(q, config), _turned(k, config), v, config, generator)
        x = x + _drop(config, generator, h @ p[f"{block}.projection.weight"])
        gate, up = (norm(x, f"{block}.norm_2") @ p[f"{block}.gate_up.weight"]).chunk(2, -1)
        x = x + _drop(config, generator, (F.silu(gate) * up) @ p[f"{block}.down.weight"])
    return norm(x, "final_norm")


def modern_hidden(
    p: Mapping[str, Tensor], config: CustomTransformerConfig, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """As `llama_hidden`        tokens (B, T) int64 -> (B, T, D)"""

    def norm(h: Tensor) -> Tensor:
        return F.rms_norm(h, h.shape[-1:], eps=config.norm_eps)

    x = _drop(config, generator, p["token_embedding"][tokens])
    for block in (f"blocks.{i}" for i in range(config.n_blocks)):
        q, k, v = _grouped_heads(norm(x) @ p[f"{block}.qkv.weight"], config)
        # norm(q) and norm(k) have the length √K, so their cosine is norm(q) · norm(k) / K; 10 times it is the score
        q, k = ((10 / config.head_size**0.5) ** 0.5 * _turned(norm(part), config) for part in (q, k))
        h = _attended(q, k, v, config, generator)
        x = x + _drop(config, generator, h @ p[f"{block}.projection.weight"])
        units = F.relu(norm(x) @ p[f"{block}.up.weight"]) ** 2
        x = x + _drop(config, generator, units @ p[f"{block}.down.weight"])
    return norm(x)


REFERENCES: dict[str, Reference] = {"gpt2": gpt2_hidden, "llama": llama_hidden, "modern": modern_hidden}
