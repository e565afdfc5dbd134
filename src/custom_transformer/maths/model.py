"""The model: its parameters, and its way from tokens to gradients.

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths import checks, ops
from custom_transformer.maths.architecture import Architecture, architecture_of
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.optim import SGD
from custom_transformer.maths.parameters import InProducts, Tensors, count, initial
from custom_transformer.maths.scope import Dropout, Op, Saved, Scope, Watch, nobody
from custom_transformer.maths.settings import own_settings
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
    recompute: whether each block keeps its input only and computes the rest again before its backward (stack.py): less
        memory, more time, the same gradients.
    watch: sees each layer's result and each gradient by its name, as Scope says; the blocks then compute one
        operation after another.

    Every method checks its arguments before it computes, and raises ValueError for what does not fit. PyTorch's
    settings around a call (autocast, inference mode, default dtype and device) change nothing.
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
        recompute: bool = False,
    ):
        if not isinstance(config, CustomTransformerConfig):
            config = CustomTransformerConfig.from_mapping(config)
        self.config = config
        self.dtype = dtype or torch.float32
        if self.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"dtype must be float32, float64 or bfloat16, not {self.dtype}")
        self.device = checks.usable_device("cpu" if device is None else device)
        seed = checks.check_count("seed", seed, -(2**63), 2**64)
        self.engine, self.architecture = engine, architecture or architecture_of(config)
        self.recompute = recompute
        self.training = False
        self.watch: Watch = nobody
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.table = self.architecture.parameters(config)
        with own_settings(self.device):
            self.parameters = {
                name: tensor.to(self.device, self.parameter_dtype)
                for name, tensor in initial(self.table, config.n_blocks, seed).items()
            }
        self.gradients: Tensors = {}
        self._last: tuple[Literal["forward", "loss"], Scope, Saved] | None = None

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def parameter_device(self) -> torch.device:
        """Of several GPUs the one that `device` "cuda" meant when the parameters were made."""
        return next(iter(self.parameters.values())).device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A context in which this model computes: with its own settings, and its engine's products."""
        with own_settings(self.device), self.engine.products():
            yield

    # -- forward

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V) in `dtype`; what `backward` needs is kept until it runs.

        Raises ValueError for tokens of another shape or dtype, on another device, outside the vocabulary, or longer
        than max_seq_len.
        """
        with self.computing():
            self.check_tokens(tokens)
            at = self._scope(saved={}, dropout=self._dropout())
            logits, head = self._linear.forward(self._hidden(tokens, at), self.head_weight().T, None)
        self._last = ("forward", at, head)
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> the last norm's output (B, T, D), without dropout and keeping nothing for a backward."""
        with self.computing():
            self.check_tokens(tokens)
            return self._hidden(tokens, self._scope())

    def scores(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each label in nats, and the likeliest token in its place; both 0 where the label is -100.

        tokens, labels (B, T) int64 -> losses (B, T) float32 or wider, predicted (B, T) int64
        """
        with self.computing():
            self.check_batch(tokens, labels)
            return self.engine.head.scores(self._hidden(tokens, self._scope()), self.head_weight(), _own(labels))

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of `labels` (B, T; already shifted, -100 left out) after `tokens` (B, T), in nats.

        Head and loss are one operation: the logits never exist at once. `loss_backward` fills `gradients`. Raises
        ValueError for tokens as `forward` does, for labels of another shape, dtype or device than the tokens', and for
        labels that are neither in the vocabulary nor -100.
        """
        with self.computing():
            self.check_batch(tokens, labels)
            at = self._scope(saved={}, dropout=self._dropout())
            loss, head = self.engine.head.loss.forward(self._hidden(tokens, at), self.head_weight(), _own(labels))
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
        with self.computing():
            self.check_tokens(tokens)
            x = self._hidden(tokens, Scope(parameters, equals=self.engine.equals))
            return self.engine.head.last_logits(x, head_weight)

    def cached_logits(
        self, new_tokens: Tensor, caches: Sequence[KeyValues], parameters: Mapping[str, Tensor], head_weight: Tensor
    ) -> Tensor:
        """`last_logits` after new_tokens (B, T_new), whose keys and values join those of the earlier tokens.

        caches: one for each block. Raises ValueError if the new tokens do not fit into them or into the model.
        """
        at, stack = Scope(parameters, equals=self.engine.equals), self.engine.stack(self.architecture)
        with self.computing():
            if len(caches) != self.config.n_blocks or len({cache.length for cache in caches}) != 1:
                lengths = [cache.length for cache in caches]
                raise ValueError(f"caches must be {self.config.n_blocks} of one length, not of the lengths {lengths}")
            self.check_tokens(new_tokens, before=caches[0].length)
            x = self.architecture.embedding_forward(_own(new_tokens), at, caches[0].length)
            for i, cache in enumerate(caches):
                x = stack.cached_block(x, at / f"blocks.{i}", self.config, cache)
            x = self.architecture.final_norm_forward(x, at, self.config)
            return self.engine.head.last_logits(x, head_weight)

    @property
    def _linear(self) -> Op:
        return self.engine.equals.get(ops.linear, ops.linear)

    def _dropout(self) -> Dropout | None:
        p = self.config.dropout
        return Dropout(p, self.generator) if self.training and p else None

    def _scope(self, saved: dict[str, Saved] | None = None, dropout: Dropout | None = None) -> Scope:
        return Scope(self.in_products(), saved, {}, self.engine.equals, dropout, self.recompute, self.watch)

    def _hidden(self, tokens: Tensor, at: Scope) -> Tensor:
        x = self.architecture.embedding_forward(_own(tokens), at, 0)
        return self._stack(at).forward(x, at, self.config)

    def _stack(self, at: Scope) -> Stack:
        return readable_stack(self.architecture) if at.watch is not nobody else self.engine.stack(self.architecture)

    def check_tokens(self, tokens: Tensor, before: int = 0) -> None:
        """Raises ValueError for tokens that the model does not take.

        before: how many earlier tokens it knows, which take a part of max_seq_len.
        """
        checks.check_ids("tokens", tokens, self.parameter_device)
        if (time := before + tokens.shape[1]) > self.config.max_seq_len:
            raise ValueError(f"{time} tokens do not fit: max_seq_len is {self.config.max_seq_len}")
        checks.check_tokens_in_vocabulary(tokens, self.config.vocab_size)

    def check_batch(self, tokens: Tensor, labels: Tensor) -> None:
        """Raises ValueError for tokens that the model does not take, and for labels that are not theirs."""
        self.check_tokens(tokens)
        checks.check_ids("labels", labels, self.parameter_device)
        checks.check_same_shape("labels", labels, "tokens", tokens)
        checks.check_labels_in_vocabulary(labels, self.config.vocab_size)

    # -- backward

    def backward(self, loss_gradient: Tensor) -> None:
        """dL/dlogits (B, T, V) -> `gradients`, for the last `forward`.

        Raises RuntimeError when there was none, and ValueError for another shape than the logits', for a dtype that is
        not floating-point, and for another device than the model's.
        """
        at, head = self._last_of("forward")
        of_logits = (*head[0].shape[:-1], self.config.vocab_size)
        checks.check_tensor("loss_gradient", loss_gradient, f"{of_logits} like the logits", self.parameter_device)
        if loss_gradient.shape != of_logits or not loss_gradient.is_floating_point():
            raise ValueError(
                f"loss_gradient must be of the logits' shape, {of_logits}, and floating-point, "
                f"not {tuple(loss_gradient.shape)} {loss_gradient.dtype}"
            )
        self._last = None
        with self.computing():
            dx, d_head_transposed, _ = self._linear.backward(loss_gradient.contiguous(), head)
            self._hidden_backward(dx, d_head_transposed.T, replace(at, gradients={}))

    def loss_backward(self, dloss: Tensor | float = 1.0, gradients: MutableMapping[str, Tensor] | None = None) -> None:
        """Fills `gradients` for the last `loss`, scaled by `dloss`: a finite number, or a tensor that is one.

        gradients: is given each gradient by its parameter's name as soon as it is ready, the last layer's first. It may
        send them away: `self.gradients` then has only those that it still holds.
        Raises RuntimeError when there was no `loss`.
        """
        at, head = self._last_of("loss")
        if isinstance(dloss, Tensor):
            checks.check_tensor("dloss", dloss, "() like the loss", self.parameter_device)
            if dloss.ndim or not dloss.is_floating_point():
                raise ValueError(f"dloss must be () and floating-point, not {tuple(dloss.shape)} {dloss.dtype}")
        else:
            dloss = checks.check_number("dloss", dloss, -checks.LARGEST, checks.LARGEST)
        self._last = None
        with self.computing():
            dx, d_head = self.engine.head.loss.backward(dloss, head)
            self._hidden_backward(dx, d_head, replace(at, gradients={} if gradients is None else gradients))

    def _last_of(self, kind: Literal["forward", "loss"]) -> tuple[Scope, Saved]:
        if self._last is None or self._last[0] != kind:
            raise RuntimeError(f"backward without a {kind} before it")
        return self._last[1:]

    def _hidden_backward(self, dx: Tensor, d_head: Tensor, at: Scope) -> None:
        tied = self.config.tie_embeddings
        if not tied:
            at.give("head.weight", d_head)
        dx = self._stack(at).backward(dx, at, self.config)
        self.architecture.embedding_backward(dx, at, d_head if tied else None)
        self.gradients = {name: at.gradients[name] for name in self.parameters if name in at.gradients}

    # -- parameters

    def update_parameters(self, learning_rate: float) -> None:
        """Plain SGD by the last gradients. Raises RuntimeError when no backward has run, and ValueError for a learning
        rate that is negative or not finite."""
        learning_rate = checks.check_learning_rate(learning_rate)
        if not self.gradients:
            raise RuntimeError("update_parameters without a backward before it")
        with self.computing():
            SGD({}, self.engine.rules.sgd).update(self.parameters, self.gradients, learning_rate)

    def state_dict(self) -> Tensors:
        """A copy of every parameter: {name: tensor}."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over every parameter's values, in whatever floating-point dtype and on whatever device they are.

        Raises ValueError, and changes nothing, when names or shapes differ.
        """
        table = self.table
        if missing := [name for name in table if name not in state]:
            raise ValueError(f"{missing[0]} is missing ({len(missing)} of {len(table)} parameters are)")
        if unknown := [name for name in state if name not in table]:
            raise ValueError(f"{unknown[0]} is no parameter of this model ({len(unknown)} are not)")
        for name, (shape, _) in table.items():
            tensor = state[name]
            checks.check_tensor(name, tensor, f"{shape} of floating-point numbers")
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, this model's is {shape}")
            if not tensor.is_floating_point():
                raise ValueError(f"{name} must be of floating-point numbers, not {tensor.dtype}")
        with own_settings(self.device):
            self.parameters = {
                name: state[name].detach().to(self.parameter_device, self.parameter_dtype, copy=True).contiguous()
                for name in table
            }

    def to(self, device: torch.device | str) -> CustomTransformer:
        """Moves the parameters to `device`, where dropout's generator starts anew from its seed; returns self.

        The engine of one kind of device is not another's: on another kind the model goes on with the readable one.
        Raises ValueError, and changes nothing, for a device that PyTorch cannot use here.
        """
        target = checks.usable_device(device)
        with own_settings(target):
            parameters = {name: p.to(target) for name, p in self.parameters.items()}
        generator = torch.Generator(target).manual_seed(self.generator.initial_seed())
        if target.type != self.device.type:
            self.engine = READABLE
        self.device, self.parameters, self.generator = target, parameters, generator
        self.gradients, self._last = {}, None
        return self

    def count_parameters(self) -> int:
        """The number of scalars that are trained; a tied table counts once."""
        return count(self.table)


def _own(ids: Tensor) -> Tensor:
    """A contiguous copy, which whoever gave it cannot change before the backward reads it."""
    return ids.clone(memory_format=torch.contiguous_format)
