"""Whole blocks: the forward's lines from the last to the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths import gpt2, llama
from custom_transformer.maths.architecture import Architecture, architecture_of
from custom_transformer.maths.scope import Saved, Scope
from exercises.cases import Case, Draw, Functions, Right, measured, named, weighted
from exercises.catalogue import Exercise, Group

PREFIX = "blocks.0."
SIZES = {"vocab_size": 5, "max_seq_len": 3, "n_blocks": 1, "n_heads": 2, "d_model": 4, "d_ffn": 3}


def block_case(title: str, config: CustomTransformerConfig, draw: Draw) -> Case:
    """`block_backward(dx, at)` gives the block input's gradient, and hands the scope each parameter's."""
    architecture: Architecture = architecture_of(config)
    table = {k: v for k, v in architecture.parameters(config).items() if k.startswith(PREFIX)}
    parameters = {name: 0.5 * draw(*shape) + (role == "gain") for name, (shape, role) in table.items()}
    x = draw(1, 3, config.d_model)
    dy = draw(*x.shape)

    def forward(x: Tensor, parameters: Mapping[str, Tensor], saved: dict[str, Saved] | None) -> Tensor:
        return architecture.block_forward(x, Scope(parameters, saved) / PREFIX[:-1], config)

    def loss(*inputs: Tensor) -> Tensor:
        return weighted(forward(inputs[0], dict(zip(parameters, inputs[1:], strict=True)), None), (dy,))

    kept: dict[str, Saved] = {}
    forward(x, parameters, kept)
    names = ["dx", *(f"d {name.removeprefix(PREFIX)}" for name in parameters)]

    def run(functions: Functions) -> dict[str, Any]:
        at = Scope(parameters, dict(kept)) / PREFIX[:-1]
        (dx,) = named(functions["block_backward"](dy, at), ("dx",), "block_backward").values()
        return dict(zip(names, (dx, *(at.gradients.get(name) for name in parameters)), strict=True))

    def right() -> dict[str, Right]:
        """In the backward's order, so that the first fault is told first."""
        found = measured(loss, (x, *parameters.values()), names)
        return dict(reversed(found.items()))

    return Case(title, {"dx": dy}, run, right)


def _gpt2(draw: Draw) -> list[Case]:
    return [block_case("a block of GPT-2", CustomTransformerConfig.from_mapping(SIZES), draw)]


def _llama(draw: Draw) -> list[Case]:
    config = CustomTransformerConfig.from_mapping({**SIZES, "architecture": "llama", "n_kv_heads": 1})
    return [block_case("a block of Llama", config, draw)]


GROUP = Group(
    "Blocks",
    (
        Exercise("repair_block", {"block_backward": gpt2.block_backward}, _gpt2),
        Exercise("block", {"block_backward": gpt2.block_backward}, _gpt2),
        Exercise("llama_block", {"block_backward": llama.block_backward}, _llama),
    ),
)
