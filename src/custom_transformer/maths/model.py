"""The model: its parameters, and its way from tokens to gradients.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import Architecture, architecture_of
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.optim import SGD
from custom_transformer.maths.parameters import InProducts, Tensors, count, initial
from custom_transformer.maths.scope import Dropout, Saved, Scope, Watch, nobody
from custom_transformer.maths.stack import Stack, readable_stack


class CustomTransformer:
    """A decoder-only transformer of raw tensors, with a backward of its own.

    table: each parameter's shape and role, by name.
    parameters, gradients: {name: tensor}, the names and shapes of `table`; `gradients` is empty until a backward has
        run, and new after each.
    training: whether dropout is active; its masks are drawn from `generator`.
    dtype: float32 or float64, or bfloat16 for bfloat16 matrix products over float32 parameters, with the
        residual stream, norms, softmax, loss and gradients in float32 (Micikevicius et al. 2018, section 3.1).
    architecture: which layers it has, by default those that the configuration names.
    engine: the functions it computes them with, all of the same results within rounding.
    watch: sees each layer's result and each gradient by its name, as Scope says; the blocks then compute one
        operation after another.
    """

    def __init__(
        self,
        config: CustomTransformerConfig | Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        engine: Engine = READABLE,
        architecture: Architecture | None = None,
    ):
        if not isinstance(config, CustomTransformerConfig):
            config = CustomTransformerConfig.from_mapping(config)
        self.config = config
        self.dtype = dtype or torch.float32
        if self.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"dtype must be float32, float64 or bfloat16, not {self.dtype}")
        self.device = torch.device(device or "cpu")
        self.engine, self.architecture = engine, architecture or architecture_of(config)
        self.training = False
        self.watch: Watch = nobody
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.table = self.architecture.parameters(config)
        self.parameters = {
            name: tensor.to(self.device, self.parameter_dtype)
            for name, tensor in initial(self.table, config.n_blocks, seed).items()
        }
        self.gradients: Tensors = {}
        self._last: tuple[Literal["forward", "loss"], Scope, Saved] | None = None

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    # -- forward

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V) in `dtype`; what `backward` needs is kept until it runs.

        Raises ValueError for tokens of another shape or dtype, outside the vocabulary, or longer than max_seq_len.
        """
        at = self._scope(saved={}, dropout=self._dropout())
        with torch.no_grad(), self.engine.products():
            logits, head = ops.linear_forward(self._hidden(tokens, at), self.head_weight().T, None)
        self._last = ("forward", at, head)
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> the last norm's output (B, T, D), without dropout and keeping nothing for a backward."""
        with torch.no_grad(), self.engine.products():
            return self._hidden(tokens, self._scope())

    def scores(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each label in nats (0 where it is -100), and the likeliest token in its place.

        tokens, labels (B, T) int64 -> losses (B, T) float32 or wider, predicted (B, T) int64
        """
        with torch.no_grad(), self.engine.products():
            return self.engine.head.scores(self._hidden(tokens, self._scope()), self.head_weight(), labels)

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of `labels` (B, T; already shifted, -100 left out) after `tokens` (B, T), in nats.

        Head and loss are one operation: the logits never exist at once. `loss_backward` fills `gradients`. Raises
        ValueError for tokens as `forward` does, and for labels that are neither in the vocabulary nor -100.
        """
        outside = (labels != ops.IGNORE_INDEX) & ((labels < 0) | (labels >= self.config.vocab_size))
        if outside.any():
            wrong = int(labels[outside][0])
            raise ValueError(f"label {wrong} is neither in the vocabulary of {self.config.vocab_size} nor -100")
        at = self._scope(saved={}, dropout=self._dropout())
        with torch.no_grad(), self.engine.products():
            loss, head = self.engine.head.loss.forward(self._hidden(tokens, at), self.head_weight(), labels)
        self._last = ("loss", at, head)
        return loss

    def head_weight(self) -> Tensor:
        """The head's matrix (V, D), in the dtype of the products: the token table when they are tied."""
        name = "token_embedding" if self.config.tie_embeddings else "head.weight"
        return self.parameters[name].to(self.dtype)

    def in_products(self) -> InProducts:
        """The parameters as products read them."""
        return InProducts(self.parameters, self.table, self.dtype)

    def last_logits(self, tokens: Tensor, parameters: Mapping[str, Tensor], head_weight: Tensor) -> Tensor:
        """The logits (B, V) after `tokens` (B, T).

        parameters, head_weight: as `in_products` and `head_weight` give them, so that they are cast only once.
        """
        with torch.no_grad(), self.engine.products():
            x = self._hidden(tokens, Scope(parameters, equals=self.engine.equals))
            return self.engine.head.last_logits(x, head_weight)

    def cached_logits(
        self, new_tokens: Tensor, caches: Sequence[KeyValues], parameters: Mapping[str, Tensor], head_weight: Tensor
    ) -> Tensor:
        """`last_logits` after new_tokens (B, T_new), whose keys and values join those of the earlier tokens.

        caches: one for each block.
        """
        at, stack = Scope(parameters, equals=self.engine.equals), self.engine.stack(self.architecture)
        with torch.no_grad(), self.engine.products():
            x = self.architecture.embedding_forward(new_tokens, at, caches[0].length)
            for i, cache in enumerate(caches):
                x = stack.cached_block(x, at / f"blocks.{i}", self.config, cache)
            x = self.architecture.final_norm_forward(x, at, self.config)
            return self.engine.head.last_logits(x, head_weight)

    def _dropout(self) -> Dropout | None:
        p, generator = self.config.dropout, self.generator
        if not (self.training and p):
            return None
        return Dropout(p, lambda shape: torch.rand(shape, generator=generator, device=generator.device) >= p)

    def _scope(self, saved: dict[str, Saved] | None = None, dropout: Dropout | None = None) -> Scope:
        return Scope(self.in_products(), saved, {}, self.engine.equals, dropout, self.watch)

    def _hidden(self, tokens: Tensor, at: Scope) -> Tensor:
        self.check_tokens(tokens)
        x = self.architecture.embedding_forward(tokens, at, 0)
        return self._stack(at).forward(x, at, self.config)

    def _stack(self, at: Scope) -> Stack:
        return readable_stack(self.architecture) if at.watch is not nobody else self.engine.stack(self.architecture)

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
        at, head = self._take_last("forward", {})
        with torch.no_grad(), self.engine.products():
            dx, d_head_transposed, _ = ops.linear_backward(loss_gradient, head)
            self._hidden_backward(dx, d_head_transposed.T, at)

    def loss_backward(self, dloss: Tensor | float = 1.0, gradients: MutableMapping[str, Tensor] | None = None) -> None:
        """Fills `gradients` for the last `loss`, scaled by `dloss`. Raises RuntimeError when there was none.

        gradients: is given each gradient by its parameter's name as soon as it is ready, the last layer's first. It may
        send them away: `self.gradients` then has only those that it still holds.
        """
        at, head = self._take_last("loss", {} if gradients is None else gradients)
        with torch.no_grad(), self.engine.products():
            dx, d_head = self.engine.head.loss.backward(dloss, head)
            self._hidden_backward(dx, d_head, at)

    def _take_last(self, needed: str, gradients: MutableMapping[str, Tensor]) -> tuple[Scope, Saved]:
        if self._last is None or self._last[0] != needed:
            raise RuntimeError(f"backward without a {needed} before it")
        (_, at, head), self._last = self._last, None
        return replace(at, gradients=gradients), head

    def _hidden_backward(self, dx: Tensor, d_head: Tensor, at: Scope) -> None:
        tied = self.config.tie_embeddings
        if not tied:
            at.give("head.weight", d_head)
        dx = self._stack(at).backward(dx, at, self.config)
        self.architecture.embedding_backward(dx, at, d_head if tied else None)
        self.gradients = {name: at.gradients[name] for name in self.parameters if name in at.gradients}

    # -- parameters

    def update_parameters(self, learning_rate: float) -> None:
        """Plain SGD by the last gradients. Raises RuntimeError when no backward has run."""
        if not self.gradients:
            raise RuntimeError("update_parameters without a backward before it")
        SGD({}, self.engine.rules.sgd).update(self.parameters, self.gradients, learning_rate)

    def state_dict(self) -> Tensors:
        """A copy of every parameter: {name: tensor}."""
        return {name: p.clone() for name, p in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over every parameter's values. Raises ValueError, and changes nothing, when names or shapes differ."""
        table = self.table
        if missing := [name for name in table if name not in state]:
            raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(table)} parameters are)")
        if unknown := [name for name in state if name not in table]:
            raise ValueError(f"{unknown[0]} is no parameter of this model ({len(unknown)} are not)")
        for name, (shape, _) in table.items():
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
            self.engine = READABLE
        self.device = torch.device(device)
        self.parameters = {name: p.to(self.device) for name, p in self.parameters.items()}
        self.gradients = {}
        self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        return self

    def count_parameters(self) -> int:
        """The number of scalars that are trained; a tied table counts once."""
        return count(self.table)
