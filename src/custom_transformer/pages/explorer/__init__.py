"""The explorer: one HTML page in which the model itself runs, forward and backward, on the reader's own text.

The page holds its script, its style, the weights and the tokenizer, and its Content-Security-Policy forbids it to load
anything. The JavaScript beside this file mirrors maths/: the same functions under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from custom_transformer.errors import UserError, one_line
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.gpt2 import parameters
from custom_transformer.maths.parameters import DECAYS, count, initial
from custom_transformer.pages.explorer.bundle import FOLDER, digest, script
from custom_transformer.pages.explorer.excerpts import excerpts
from custom_transformer.pages.explorer.weights import exact, rounded
from custom_transformer.runs.checkpoint import Checkpoint

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

TEXT = "Four plus five is nine."
MAX_PARAMETERS = 4_000_000  # a page of 17 MB
LARGEST_PAGE = 5_000_000  # bytes: other checkpoints are added as far as the page stays smaller


def explorer_page(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast, text: str = TEXT, others: Mapping[str, Checkpoint] = {}
) -> str:
    """The page of `checkpoint`, which begins with `text`.

    others: further checkpoints of the same run, by a name for people, in the order of training. They are rounded, and
    some of them are left out where the page would grow too large. Raises UserError if the model
    or its tokenizer is not of a kind that the page's script can run.
    """
    _check_model(checkpoint)
    data: dict[str, Any] = {
        "config": checkpoint.config.model_dump(),
        "parameters": [
            {"name": name, "shape": shape, "role": role, "decays": DECAYS[role]}
            for name, (shape, role) in parameters(checkpoint.config).items()
        ],
        "name": _name(checkpoint),
        "weights": exact(checkpoint.state_dict, parameters(checkpoint.config)),
        "others": [],
        "tokenizer": _tokenizer_data(tokenizer),
        "excerpts": excerpts(),
        "text": text,
    }
    room = LARGEST_PAGE - len(_filled(data).encode())
    return _filled(data | {"others": _fitting(_rounded_checkpoints(checkpoint, others), room)})


def _rounded_checkpoints(checkpoint: Checkpoint, others: Mapping[str, Checkpoint]) -> list[dict[str, str]]:
    """The weights before training, and the other checkpoints of the same model."""
    start = _start(checkpoint)
    named = ({} if start is None else {"step 0, before training": start}) | dict(others)
    table = parameters(checkpoint.config)
    return [
        {"name": name, "weights": rounded(other.state_dict, table)}
        for name, other in named.items()
        if other.config == checkpoint.config
    ]


def _fitting(entries: list[dict[str, str]], room: int) -> list[dict[str, str]]:
    """As many as fit into `room` bytes, at even distances, with the first."""
    for count in range(len(entries), 0, -1):
        chosen = [entries[i * len(entries) // count] for i in range(count)]
        if len(json.dumps(chosen)) <= room:
            return chosen
    return []


def reason_page(reason: str) -> str:
    """A page in the explorer's place that says why there is none."""
    return Template((FOLDER / "reason.html").read_text("utf-8")).substitute(reason=escape(one_line(reason)))


def _filled(data: Mapping[str, Any]) -> str:
    code, style = script(), (FOLDER / "style.css").read_text("utf-8")
    # In a script element only "</script" and "<!--" have a meaning; JSON may write "<" as an escape.
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template((FOLDER / "page.html").read_text("utf-8")).substitute(
        script=code, script_digest=digest(code), style=style, style_digest=digest(style), data=embedded
    )


def _check_model(checkpoint: Checkpoint) -> None:
    architecture = architecture_of(checkpoint.config)
    if architecture.name != "gpt2":
        raise UserError(
            f"explore: a model of the architecture {architecture.name}; the page's script runs gpt2 only, choose a "
            "checkpoint of that"
        )
    if (size := count(parameters(checkpoint.config))) > MAX_PARAMETERS:
        raise UserError(
            f"explore: a model of {size:,} parameters; a browser reads and runs at most {MAX_PARAMETERS:,} with ease, "
            "choose a smaller one"
        )


def _name(checkpoint: Checkpoint) -> str:
    step = checkpoint.metadata.get("step")
    return f"step {step:,}" if isinstance(step, int) else "the checkpoint"


def _start(checkpoint: Checkpoint) -> Checkpoint | None:
    """The weights from which the run began, drawn again from its seed."""
    seed, config = checkpoint.metadata.get("seed"), checkpoint.config
    if not isinstance(seed, int) or not isinstance(checkpoint.metadata.get("step"), int):
        return None
    return Checkpoint(initial(parameters(config), config.n_blocks, seed), config, checkpoint.dtype, {})


def _tokenizer_data(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Entries by id and merges of a byte-level BPE. Raises UserError for any other kind."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model, before = definition["model"], definition.get("pre_tokenizer") or {}
    byte_level = before.get("type") == "ByteLevel" and before.get("use_regex", True)
    plain = not (before.get("add_prefix_space") or definition.get("normalizer"))
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    ordinary = not any(model.get(option) for option in options)
    own = all(token["special"] for token in definition["added_tokens"])
    if not (model["type"] == "BPE" and byte_level and plain and ordinary and own):
        raise UserError(
            "explore: a tokenizer other than byte-level BPE as GPT-2's; the page's script reads only that, choose a "
            "model with data.tokenizer bpe or gpt2"
        )
    vocabulary = tokenizer.get_vocab()
    entries = [""] * (max(vocabulary.values()) + 1)
    for entry, token in vocabulary.items():
        entries[token] = entry
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {"entries": entries, "merges": merges, "end": tokenizer.eos_token_id}
