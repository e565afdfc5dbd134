"""What a model computes with: the readable functions, or equal ones that are faster on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from custom_transformer.maths import ops
from custom_transformer.maths.architecture import Architecture
from custom_transformer.maths.optim import Rules
from custom_transformer.maths.scope import Op
from custom_transformer.maths.stack import Stack, readable_stack


class Head(NamedTuple):
    """From the last norm to the loss, to evaluation's scores, and to the next token's logits."""

    loss: Op = ops.linear_cross_entropy
    scores: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = ops.linear_cross_entropy_scores
    last_logits: Callable[[Tensor, Tensor], Tensor] = ops.last_logits


READABLE_HEAD, READABLE_RULES = Head(), Rules()


@dataclass(frozen=True)
class Engine:
    """Functions with the contracts and, within rounding, the results of the readable ones.

    equals: operations that have a faster equal
    stacks: architectures, by name, of which the whole stack of blocks has one
    head, rules: for the head and the update of every architecture
    attention_probabilities: for observation
    products: a context in which the model's matrix products are computed
    """

    name: str
    equals: Mapping[Op, Op] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    head: Head = READABLE_HEAD
    rules: Rules = READABLE_RULES
    attention_probabilities: Callable[[Tensor, Tensor], Tensor] = ops.attention_probabilities
    products: Callable[[], AbstractContextManager[None]] = nullcontext

    def stack(self, architecture: Architecture) -> Stack:
        return self.stacks.get(architecture.name) or readable_stack(architecture)


READABLE = Engine("readable")
