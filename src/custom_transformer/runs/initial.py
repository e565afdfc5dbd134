"""Training from a checkpoint's parameters, which must be those of the configured model with the data's tokenizer.

The optimiser, the schedule and everything random begin anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from custom_transformer.config import CustomTransformerConfig, ModelParams
from custom_transformer.errors import UserError
from custom_transformer.paths import TOKENIZER
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint

FREE = {"vocab_size", "dropout"}  # the tokenizer decides the one, and the other is no part of a trained model


def load_initial(path: Path, model: ModelParams, tokenizer: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in `path`, which is one of `model`, whatever its dropout, with the tokenizer of the data.

    tokenizer: what meta.json says of it. The model's vocabulary may be larger, as some models' are. Raises UserError,
    naming the file and what is wrong, for a checkpoint that is damaged or does not agree.
    """
    checkpoint = load_checkpoint(path)
    size, digest = checkpoint.config.vocab_size, checkpoint.metadata.get("tokenizer")
    if digest not in (None, tokenizer["sha256"]):
        beside = path.parent / TOKENIZER.name
        its_own = beside if beside.exists() else "the one it was trained with"
        raise UserError(f"{path}: has another tokenizer than data/tokens; set data.tokenizer to {its_own}")
    if size < tokenizer["vocab_size"] or (digest is None and size > tokenizer["vocab_size"]):
        raise UserError(
            f"{path}: has a vocabulary of {size} entries, the tokenizer of data/tokens has {tokenizer['vocab_size']}; "
            "set data.tokenizer to the one it was trained with"
        )
    ours, theirs = _shape(model), _shape(checkpoint.config)
    if different := [key for key in theirs if ours.get(key) != theirs[key]]:
        key = different[0]
        section = ", ".join(f"{name}: {_yaml(value)}" for name, value in (theirs | {"dropout": model.dropout}).items())
        raise UserError(
            f"{path}: its {key} is {_yaml(theirs[key])}, model.{key} is {_yaml(ours.get(key))}; "
            f"write model: {{{section}}}"
        )
    return checkpoint


def _shape(model: ModelParams | CustomTransformerConfig) -> dict[str, Any]:
    """What must agree, by its key; heads of keys and values that are as many as the others are written out."""
    shape = model.model_dump(exclude=FREE)
    return shape | {"n_kv_heads": model.kv_heads} if "n_kv_heads" in shape else shape


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
