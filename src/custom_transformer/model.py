"""The model: its parameter table, its initialisation, and its block forwards and backwards.

GPT-2's architecture (Radford et al. 2019): token + position embedding, then blocks of
x + projection(attention(norm(x))) and x + down(gelu(up(norm(x)))), a last norm, and a head that is the token
table again when the embeddings are tied. Linear weights stand as (D_in, D_out), as in y = x W.

Shapes: B batch, T time, D d_model, F d_ffn, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from custom_transformer import ops
from custom_transformer.config import CustomTransformerConfig
from custom_transformer.optim import SGD, Tensors

INIT_STD = 0.02  # Radford et al. 2018, section 4.1


def parameter_table(config: CustomTransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in the order of the forward pass."""
    d, f = config.d_model, config.d_ffn
    linears = {"qkv": (d, 3 * d), "projection": (d, d), "up": (d, f), "down": (f, d)}

    def with_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        bias = {f"{name}.bias": shape[-1:]} if config.bias else {}
        return {f"{name}.weight": shape} | bias

    block = (
        with_bias("norm_1", (d,))
        | with_bias("qkv", linears["qkv"])
        | with_bias("projection", linears["projection"])
        | with_bias("norm_2", (d,))
        | with_bias("up", linears["up"])
        | with_bias("down", linears["down"])
    )
    table: dict[str, tuple[int, ...]] = {
        "token_embedding": (config.vocab_size, d),
        "position_embedding": (config.max_seq_len, d),
    }
    for i in range(config.n_blocks):
        table |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    table |= with_bias("final_norm", (d,))
    if not config.tie_embeddings:
        table["head.weight"] = (config.vocab_size, d)
    return table


def initial_parameters(config: CustomTransformerConfig, seed: int) -> Tensors:
    """GPT-2's initialisation, float32 on the CPU: matrices from N(0, 0.02²), norms 1, biases 0.

    The two matrices of a block that write into the residual stream are scaled by 1/√(2 n_blocks), so that the
    stream's variance does not grow with depth (Radford et al. 2019, section 2.3).
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: Tensors = {}
    for name, shape in parameter_table(config).items():
        if len(shape) == 1:
            parameters[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        else:
            residual = name.endswith(("projection.weight", "down.weight"))
            std = INIT_STD / math.sqrt(2 * config.n_blocks) if residual else INIT_STD
            parameters[name] = torch.randn(shape, generator=generator) * std
    return parameters


# -------------------------------------------------------------------------------------------------- block


def keep_shapes(config: CustomTransformerConfig, batch: int, time: int) -> dict[str, tuple[int, ...]]:
    """Where a block drops something, and the shape of the mask there."""
    return {
        "attention": (batch, config.n_heads, time, time),
        "projection": (batch, time, config.d_model),
        "down": (batch, time, config.d_model),
    }


def draw_keep(shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Tensor:
    """A dropout mask: True with probability 1 − p. Drawn on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) >= dropout


def attention_layer_forward(
    x: Tensor, p: Mapping[str, Tensor], n_heads: int, keep: Mapping[str, Tensor], dropout: float
) -> tuple[Tensor, ops.Saved]:
    """x + dropout(projection(attention(qkv(norm(x)))))        x (B, T, D) -> (B, T, D)"""
    h, norm = ops.layer_norm_forward(x, p["norm_1.weight"], p.get("norm_1.bias"))
    h, qkv = ops.linear_forward(h, p["qkv.weight"], p.get("qkv.bias"))
    h, attention = ops.causal_attention_forward(h, n_heads, keep.get("attention"), dropout)
    h, projection = ops.linear_forward(h, p["projection.weight"], p.get("projection.bias"))
    h, drop = ops.dropout_forward(h, keep.get("projection"), dropout)
    return x + h, (norm, qkv, attention, projection, drop)


def attention_layer_backward(dx: Tensor, saved: ops.Saved) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The forward, upside down; the gradients of its parameters under their names."""
    norm, qkv, attention, projection, drop = saved
    g: dict[str, Tensor | None] = {}
    dh = ops.dropout_backward(dx, drop)
    dh, g["projection.weight"], g["projection.bias"] = ops.linear_backward(dh, projection)
    dh = ops.causal_attention_backward(dh, attention)
    dh, g["qkv.weight"], g["qkv.bias"] = ops.linear_backward(dh, qkv)
    dh, g["norm_1.weight"], g["norm_1.bias"] = ops.layer_norm_backward(dh, norm)
    return dx + dh, g  # x + h hands x to both sides, so their gradients add


def feed_forward_layer_forward(
    x: Tensor, p: Mapping[str, Tensor], keep: Mapping[str, Tensor], dropout: float
) -> tuple[Tensor, ops.Saved]:
    """x + dropout(down(gelu(up(norm(x)))))        x (B, T, D) -> (B, T, D)"""
    h, norm = ops.layer_norm_forward(x, p["norm_2.weight"], p.get("norm_2.bias"))
    h, up = ops.linear_forward(h, p["up.weight"], p.get("up.bias"))
    h, gelu = ops.gelu_forward(h)
    h, down = ops.linear_forward(h, p["down.weight"], p.get("down.bias"))
    h, drop = ops.dropout_forward(h, keep.get("down"), dropout)
    return x + h, (norm, up, gelu, down, drop)


def feed_forward_layer_backward(dx: Tensor, saved: ops.Saved) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The forward, upside down; the gradients of its parameters under their names."""
    norm, up, gelu, down, drop = saved
    g: dict[str, Tensor | None] = {}
    dh = ops.dropout_backward(dx, drop)
    dh, g["down.weight"], g["down.bias"] = ops.linear_backward(dh, down)
    dh = ops.gelu_backward(dh, gelu)
    dh, g["up.weight"], g["up.bias"] = ops.linear_backward(dh, up)
    dh, g["norm_2.weight"], g["norm_2.bias"] = ops.layer_norm_backward(dh, norm)
    return dx + dh, g


def block_forward(
    x: Tensor, p: Mapping[str, Tensor], n_heads: int, keep: Mapping[str, Tensor], dropout: float
) -> tuple[Tensor, ops.Saved]:
    """x (B, T, D) -> (B, T, D), by the block's own parameters `p`; `keep` is empty when nothing is dropped."""
    x, attention_layer = attention_layer_forward(x, p, n_heads, keep, dropout)
    x, feed_forward_layer = feed_forward_layer_forward(x, p, keep, dropout)
    return x, (attention_layer, feed_forward_layer)


def block_backward(dx: Tensor, saved: ops.Saved) -> tuple[Tensor, dict[str, Tensor | None]]:
    """dx (B, T, D) -> (B, T, D), and the gradients of the block's parameters under their short names"""
    attention_layer, feed_forward_layer = saved
    dx, g_feed_forward = feed_forward_layer_backward(dx, feed_forward_layer)
    dx, g_attention = attention_layer_backward(dx, attention_layer)
    return dx, g_attention | g_feed_forward


# -------------------------------------------------------------------------------------------------- model


class CustomTransformer:
    """A decoder-only transformer of raw tensors, with a backward of its own.

    parameters, gradients: {name: tensor}, the same names and shapes (see `parameter_table`); `gradients` is empty
        until a backward has run, and new after each.
    training: whether dropout is active; its masks are drawn from `generator`.
    dtype: float32 or float64, or bfloat16 for bfloat16 matrix products over float32 parameters, with the
        residual stream, norms, softmax, loss and gradients in float32 (Micikevicius et al. 2018, section 3.1).
    compile: whether the block functions run through torch.compile (its forward graphs only: the backward is
        ours). The first steps then take a minute; later ones are faster.
    """

    def __init__(
        self,
        config: CustomTransformerConfig | Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        compile: bool = False,
    ):
        if not isinstance(config, CustomTransformerConfig):
            config = CustomTransformerConfig.from_mapping(config)
        self.config = config
        self.dtype = dtype or torch.float32
        if self.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"dtype must be float32, float64 or bfloat16, not {self.dtype}")
        self.device = torch.device(device or "cpu")
        self.training = False
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.parameters = {
            name: tensor.to(self.device, self.parameter_dtype)
            for name, tensor in initial_parameters(config, seed).items()
        }
        self.gradients: Tensors = {}
        self._saved: Any = None
        self._block_forward = torch.compile(block_forward) if compile else block_forward
        self._block_backward = torch.compile(block_backward) if compile else block_backward

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    # -- forward

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V) in `dtype`; what `backward` needs is kept until it runs.

        Raises ValueError for tokens of another shape or dtype, outside the vocabulary, or longer than max_seq_len.
        """
        with torch.no_grad():
            x, saved = self._hidden_forward(tokens)
            logits, head = ops.linear_forward(x, self.head_weight().T, None)
        self._saved = (saved, head)
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> the last norm's output (B, T, D), without dropout and keeping nothing for a backward."""
        with torch.no_grad():
            return self._hidden_forward(tokens, for_backward=False)[0]

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of `labels` (B, T; already shifted, -100 left out) after `tokens` (B, T), in nats.

        Head and loss are fused: the logits never exist at once. `loss_backward` fills `gradients`. Raises ValueError
        for tokens as `forward` does, and for labels that are neither in the vocabulary nor -100.
        """
        outside = (labels != ops.IGNORE_INDEX) & ((labels < 0) | (labels >= self.config.vocab_size))
        if outside.any():
            wrong = int(labels[outside][0])
            raise ValueError(f"label {wrong} is neither in the vocabulary of {self.config.vocab_size} nor -100")
        with torch.no_grad():
            x, saved = self._hidden_forward(tokens)
            loss, head = ops.linear_cross_entropy_forward(x, self.head_weight(), labels)
        self._saved = (saved, head)
        return loss

    def head_weight(self) -> Tensor:
        """The head's matrix (V, D), in the dtype of the products: the token table when they are tied."""
        name = "token_embedding" if self.config.tie_embeddings else "head.weight"
        return self.parameters[name].to(self.dtype)

    def block_parameters(self, i: int) -> Tensors:
        """Block i's parameters under their short names; those of its products in the dtype of the products."""
        prefix = f"blocks.{i}."
        return {
            (short := name.removeprefix(prefix)): p if short.startswith("norm") else p.to(self.dtype)
            for name, p in self.parameters.items()
            if name.startswith(prefix)
        }

    def _hidden_forward(self, tokens: Tensor, for_backward: bool = True) -> tuple[Tensor, Any]:
        self.check_tokens(tokens)
        config, p = self.config, self.parameters
        drop = for_backward and self.training and config.dropout > 0
        batch, time = tokens.shape
        x, embedding = ops.embedding_forward(tokens, p["token_embedding"], p["position_embedding"])
        keep = draw_keep(tuple(x.shape), config.dropout, self.generator) if drop else None
        x, embedding_drop = ops.dropout_forward(x, keep, config.dropout)
        shapes = keep_shapes(config, batch, time) if drop else {}
        blocks = []
        for i in range(config.n_blocks):
            masks = {name: draw_keep(s, config.dropout, self.generator) for name, s in shapes.items()}
            x, saved = self._block_forward(x, self.block_parameters(i), config.n_heads, masks, config.dropout)
            if for_backward:
                blocks.append(saved)
        x, final_norm = ops.layer_norm_forward(x, p["final_norm.weight"], p.get("final_norm.bias"))
        return x, (embedding, embedding_drop, blocks, final_norm)

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises ValueError for tokens of another shape or dtype, outside the vocabulary, or beyond max_seq_len."""
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (B, T) int64, not {tuple(tokens.shape)} {tokens.dtype}")
        if not 0 < tokens.shape[1] <= self.config.max_seq_len:
            raise ValueError(
                f"{tokens.shape[1]} tokens do not fit: max_seq_len is {self.config.max_seq_len}, at least 1 is needed"
            )
        if tokens.numel():
            low, high = (int(bound) for bound in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")

    # -- backward

    def backward(self, loss_gradient: Tensor) -> None:
        """dL/dlogits (B, T, V) -> `gradients`, for the last `forward`. Raises RuntimeError when there was none."""
        saved, head = self._take_saved("forward")
        with torch.no_grad():
            dx, d_head_transposed, _ = ops.linear_backward(loss_gradient, head)
            self._hidden_backward(dx, d_head_transposed.T, saved)

    def loss_backward(self, dloss: Tensor | float = 1.0) -> None:
        """Fills `gradients` for the last `loss`, scaled by `dloss`. Raises RuntimeError when there was none."""
        saved, head = self._take_saved("loss")
        with torch.no_grad():
            dx, d_head = ops.linear_cross_entropy_backward(dloss, head)
            self._hidden_backward(dx, d_head, saved)

    def _take_saved(self, needed: str) -> Any:
        if self._saved is None:
            raise RuntimeError(f"backward without a {needed} before it")
        saved, self._saved = self._saved, None
        return saved

    def _hidden_backward(self, dx: Tensor, d_head: Tensor, saved: Any) -> None:
        embedding, embedding_drop, blocks, final_norm = saved
        g: dict[str, Tensor | None] = {}
        dx, g["final_norm.weight"], g["final_norm.bias"] = ops.layer_norm_backward(dx, final_norm)
        for i in reversed(range(self.config.n_blocks)):
            dx, block = self._block_backward(dx, blocks.pop())
            g |= {f"blocks.{i}.{name}": gradient for name, gradient in block.items()}
        dx = ops.dropout_backward(dx, embedding_drop)
        d_token_table, g["position_embedding"] = ops.embedding_backward(dx, embedding)
        if self.config.tie_embeddings:
            g["token_embedding"] = d_token_table + d_head  # used twice, so its gradients add
        else:
            g["token_embedding"], g["head.weight"] = d_token_table, d_head
        self.gradients = {name: g[name].to(p.dtype) for name, p in self.parameters.items()}  # type: ignore[union-attr]

    # -- parameters

    def update_parameters(self, learning_rate: float) -> None:
        """Plain SGD by the last gradients. Raises RuntimeError when no backward has run."""
        if not self.gradients:
            raise RuntimeError("update_parameters without a backward before it")
        SGD().update(self.parameters, self.gradients, learning_rate)

    def state_dict(self) -> Tensors:
        """A copy of every parameter: {name: tensor}."""
        return {name: p.clone() for name, p in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over every parameter's values. Raises ValueError, and changes nothing, when names or shapes differ."""
        table = parameter_table(self.config)
        if missing := [name for name in table if name not in state]:
            raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(table)} parameters are)")
        if unknown := [name for name in state if name not in table]:
            raise ValueError(f"{unknown[0]} is no parameter of this model ({len(unknown)} are not)")
        for name, shape in table.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, this model's is {shape}")
        self.parameters = {
            name: state[name].detach().to(self.device, self.parameter_dtype, copy=True) for name in table
        }

    def to(self, device: torch.device | str) -> CustomTransformer:
        """Moves the parameters to `device`, where dropout's generator starts anew from its seed; returns self."""
        self.device = torch.device(device)
        self.parameters = {name: p.to(self.device) for name, p in self.parameters.items()}
        self.gradients = {}
        self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        return self

    def count_parameters(self) -> int:
        """The number of scalars that are trained; a tied table counts once."""
        return sum(p.numel() for p in self.parameters.values())
