"""The model: its parameter table, its initialisation, and its way from tokens to gradients.

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

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.engine import EAGER, Engine
from custom_transformer.maths import ops
from custom_transformer.maths.blocks import Gradients, draw_keep, keep_shapes
from custom_transformer.maths.optim import SGD, Tensors

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


# -------------------------------------------------------------------------------------------------- model


class CustomTransformer:
    """A decoder-only transformer of raw tensors, with a backward of its own.

    parameters, gradients: {name: tensor}, the same names and shapes (see `parameter_table`); `gradients` is empty
        until a backward has run, and new after each.
    training: whether dropout is active; its masks are drawn from `generator`.
    dtype: float32 or float64, or bfloat16 for bfloat16 matrix products over float32 parameters, with the
        residual stream, norms, softmax, loss and gradients in float32 (Micikevicius et al. 2018, section 3.1).
    engine: the functions it computes with (see fast/engine.py); all give the same results within rounding.
    """

    def __init__(
        self,
        config: CustomTransformerConfig | Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        engine: Engine = EAGER,
    ):
        if not isinstance(config, CustomTransformerConfig):
            config = CustomTransformerConfig.from_mapping(config)
        self.config = config
        self.dtype = dtype or torch.float32
        if self.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"dtype must be float32, float64 or bfloat16, not {self.dtype}")
        self.device = torch.device(device or "cpu")
        self.engine = engine
        self.training = False
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.parameters = {
            name: tensor.to(self.device, self.parameter_dtype)
            for name, tensor in initial_parameters(config, seed).items()
        }
        self.gradients: Tensors = {}
        self._saved: Any = None

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    # -- forward

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V) in `dtype`; what `backward` needs is kept until it runs.

        Raises ValueError for tokens of another shape or dtype, outside the vocabulary, or longer than max_seq_len.
        """
        with torch.no_grad():
            x, saved = self._hidden_forward(tokens, self._dropout())
            logits, head = ops.linear_forward(x, self.head_weight().T, None)
        self._saved = (saved, head)
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> the last norm's output (B, T, D), without dropout and keeping nothing for a backward."""
        with torch.no_grad():
            return self._hidden_forward(tokens, dropout=0.0)[0]

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
            x, saved = self._hidden_forward(tokens, self._dropout())
            loss, head = self.engine.linear_cross_entropy_forward(x, self.head_weight(), labels)
        self._saved = (saved, head)
        return loss

    def head_weight(self) -> Tensor:
        """The head's matrix (V, D), in the dtype of the products: the token table when they are tied."""
        name = "token_embedding" if self.config.tie_embeddings else "head.weight"
        return self.parameters[name].to(self.dtype)

    def block_parameters(self, i: int) -> Tensors:
        """Block i's parameters under their short names."""
        prefix = f"blocks.{i}."
        return {name.removeprefix(prefix): p for name, p in self.parameters.items() if name.startswith(prefix)}

    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

    def _hidden_forward(self, tokens: Tensor, dropout: float) -> tuple[Tensor, Any]:
        self.check_tokens(tokens)
        config, p = self.config, self.parameters
        x, embedding = ops.embedding_forward(tokens, p["token_embedding"], p["position_embedding"])
        keep = draw_keep(tuple(x.shape), dropout, self.generator) if dropout else None
        x, embedding_drop = ops.dropout_forward(x, keep, dropout)
        shapes = keep_shapes(config, *tokens.shape) if dropout else {}

        def draw_masks() -> Tensors:
            return {name: draw_keep(shape, dropout, self.generator) for name, shape in shapes.items()}

        blocks = [self.block_parameters(i) for i in range(config.n_blocks)]
        final_norm = {kind: p[f"final_norm.{kind}"] for kind in ("weight", "bias") if f"final_norm.{kind}" in p}
        x, stack = self.engine.stack_forward(x, blocks, final_norm, config.n_heads, self.dtype, draw_masks, dropout)
        return x, (embedding, embedding_drop, stack)

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
            dx, d_head = self.engine.linear_cross_entropy_backward(dloss, head)
            self._hidden_backward(dx, d_head, saved)

    def _take_saved(self, needed: str) -> Any:
        if self._saved is None:
            raise RuntimeError(f"backward without a {needed} before it")
        saved, self._saved = self._saved, None
        return saved

    def _hidden_backward(self, dx: Tensor, d_head: Tensor, saved: Any) -> None:
        embedding, embedding_drop, stack = saved
        g: Gradients = {}
        dx, g_blocks, g_norm = self.engine.stack_backward(dx, stack)
        g |= {f"final_norm.{name}": gradient for name, gradient in g_norm.items()}
        for i, block in enumerate(g_blocks):
            g |= {f"blocks.{i}.{name}": gradient for name, gradient in block.items()}
        dx = ops.dropout_backward(dx, embedding_drop)
        if self.config.tie_embeddings:
            tables = self.engine.tied_embedding_backward(dx, d_head, embedding)
        else:
            tables, g["head.weight"] = ops.embedding_backward(dx, embedding), d_head
        g["token_embedding"], g["position_embedding"] = tables
        self.gradients = {name: g[name].to(p.dtype) for name, p in self.parameters.items()}  # type: ignore[union-attr]

    # -- parameters

    def update_parameters(self, learning_rate: float) -> None:
        """Plain SGD by the last gradients. Raises RuntimeError when no backward has run."""
        if not self.gradients:
            raise RuntimeError("update_parameters without a backward before it")
        SGD(rule=self.engine.sgd_update).update(self.parameters, self.gradients, learning_rate)

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
            name: state[name].detach().to(self.device, self.parameter_dtype, copy=True).contiguous() for name in table
        }

    def to(self, device: torch.device | str) -> CustomTransformer:
        """Moves the parameters to `device`, where dropout's generator starts anew from its seed; returns self.

        The engine of one kind of device is not another's: on another kind the model goes on with the readable one.
        """
        if torch.device(device).type != self.device.type:
            self.engine = EAGER
        self.device = torch.device(device)
        self.parameters = {name: p.to(self.device) for name, p in self.parameters.items()}
        self.gradients = {}
        self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        return self

    def count_parameters(self) -> int:
        """The number of scalars that are trained; a tied table counts once."""
        return sum(p.numel() for p in self.parameters.values())
