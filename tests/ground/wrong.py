"""Wrong values of single parameters, which both the loader and the schema refuse."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

DEFAULT: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())
REMOVED = object()
WRONG = [
    ("training.learning_rate", "0.003", "drop the quotes"),
    ("training.learning_rate", "3e-4x", "number, not '3e-4x'"),
    ("training.learning_rate", -1.0, "greater than 0"),
    ("training.learning_rate", REMOVED, "missing"),
    ("training.learnig_rate", 0.1, "unknown key"),
    ("training.batch_size", 1.5, "integer"),
    ("training.batch_size", True, "integer"),
    ("training.batch_size", 0, "greater than or equal to 1"),
    ("training.betas", [0.9], "betas"),
    ("training.betas", [0.9, 1.0], "betas.1: input should be less than 1"),
    ("training.optimizer", "adam", "'sgd', 'adamw' or 'muon'"),
    ("training.precision", "float16", "float16"),
    ("training.compile", "yes", "'auto', true or false"),
    ("training.device", "gpu", "'auto', 'cpu' or 'cuda'"),
    ("model.dropout", 1.0, "less than 1"),
    ("model.rope", True, "unknown key"),
    ("data.val_fraction", 0.0, "greater than 0"),
    ("data.vocab_size", 100, "greater than or equal to 257"),
    ("data.dataset", ["a"], "string"),
    ("data.revision", 1234e5, "not 123400000.0; put quotes around it"),
    ("tracking.sweep", 2024, "put quotes around it"),
    ("data.dataset", "", "at least 1 character"),
    ("generation.prompts", [], "at least 1 item"),
    ("tracking.experiment", "x" * 501, "at most 500 characters"),
    ("tracking.registered_model", "a/b", "is no name for models:/NAME"),
    ("tracking.registered_model", "x@best", "is no name for models:/NAME"),
    ("tracking.registered_model", "", "is no name for models:/NAME"),
    ("generation.top_p", 1.5, "less than or equal to 1"),
    ("seed", -1, "greater than or equal to 0"),
    ("seeds", 1, "unknown key"),
]


def with_change(key: str, value: Any) -> dict[str, Any]:
    """The default parameters with one of them changed, added or REMOVED."""
    content = copy.deepcopy(DEFAULT)
    *sections, name = key.split(".")
    group = content[sections[0]] if sections else content
    if value is REMOVED:
        del group[name]
    else:
        group[name] = value
    return content
