"""The explorer: one HTML page in which the model itself runs, forward and backward, on the reader's own text.

The page holds its script, its style, the weights and the tokenizer, and its Content-Security-Policy forbids it to load
anything. The JavaScript beside this file mirrors maths/: the same functions under the same names.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from torch import Tensor

from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import DECAYS, Table, count, initial
from custom_transformer.pages.explorer.bundle import FOLDER, digest, script
from custom_transformer.pages.explorer.excerpts import excerpts
from custom_transformer.pages.explorer.weights import LEVELS, exact, rounded
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint
from custom_transformer.runs.snapshots import MAX_PARAMETERS

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

TEXT = "Four plus five is nine."
INITIAL_LEVELS = 2  # on each side of 0, for step 0
LARGEST_PAGE = 5_000_000  # bytes: other checkpoints are added as far as the page stays smaller


def explorer_page(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast, text: str = TEXT, others: Iterable[Checkpoint] = ()
) -> str:
    """The page of `checkpoint`, which begins with `text`.

    others: further checkpoints of the same run. They are rounded, and some of them are left out where the page would
    grow too large; one of another model is left out too. Raises UserError if the model or its tokenizer is not of a
    kind that the page's script can run, or the text is not valid Unicode.
    """
    _check(checkpoint, text)
    return page_with(checkpoint, _tokenizer_data(tokenizer), text, others)


def page_with(
    checkpoint: Checkpoint, tokenizer: Mapping[str, Any], text: str, others: Iterable[Checkpoint] = ()
) -> str:
    """As `explorer_page`, with the tokenizer as the page has it, and nothing checked."""
    table = architecture_of(checkpoint.config).parameters(checkpoint.config)
    data: dict[str, Any] = {
        "config": checkpoint.config.model_dump(),
        "parameters": [
            {"name": name, "shape": shape, "role": role, "decays": DECAYS[role]}
            for name, (shape, role) in table.items()
        ],
        "tokenizer": tokenizer,
        "excerpts": excerpts(),
        "text": text,
    }
    own = {"step": _step(checkpoint), "exact": True, "weights": exact(checkpoint.state_dict, table)}
    room = LARGEST_PAGE - len(_filled(data | {"checkpoints": [own]}).encode())
    by_step = {_step(other): other.state_dict for other in others if other.config == checkpoint.config}
    seed, drawn = checkpoint.metadata.get("seed"), "init_from" not in checkpoint.metadata
    if _step(checkpoint) is not None and seed is not None and drawn:
        by_step[0] = initial(table, checkpoint.config.n_blocks, seed)  # where the run began, drawn again
    states = {step: by_step[step] for step in sorted(step for step in by_step if step not in (None, own["step"]))}
    checkpoints = sorted([*_fitting(states, table, room), own], key=lambda entry: entry["step"] or 0)
    return _filled(data | {"checkpoints": checkpoints})


def run_checkpoints(path: Path) -> list[Checkpoint]:
    """Every checkpoint beside the one at `path` that the same run kept for its epochs; damaged ones are left out."""
    found = []
    for other in sorted(path.parent.glob("custom_transformer_*.pt")):
        try:
            found.append(load_checkpoint(other))
        except UserError as error:
            print(f"left out: {one_line(error)}")
    return found


def reason_page(reason: str) -> str:
    """A page in the explorer's place that says why there is none."""
    return Template((FOLDER / "reason.html").read_text("utf-8")).substitute(reason=escape(one_line(reason)))


def _fitting(states: Mapping[int, Mapping[str, Tensor]], table: Table, room: int) -> list[dict[str, Any]]:
    """As many as fit into `room` bytes, at even distances, with the first; those of late steps as exactly as there is
    room, since rounding does most harm where the model knows most."""

    def entry(step: int, levels: int) -> dict[str, Any]:
        # Before training, matrices are random numbers.
        text = rounded(states[step], table, levels if step else INITIAL_LEVELS)
        return {"step": step, "exact": False, "weights": text}

    coarse = {step: entry(step, LEVELS[0]) for step in states}
    for kept in range(len(coarse), 0, -1):
        chosen = {step: coarse[step] for step in (list(coarse)[i * len(coarse) // kept] for i in range(kept))}
        if _size(chosen) <= room:
            break
    else:
        return []
    for levels, step in itertools.product(LEVELS[1:], reversed(list(chosen))):
        if _size(finer := chosen | {step: entry(step, levels)}) <= room:
            chosen = finer
    return list(chosen.values())


def _size(entries: Mapping[int, dict[str, Any]]) -> int:
    return len(json.dumps(list(entries.values())))


def _filled(data: Mapping[str, Any]) -> str:
    code, style = script(), (FOLDER / "style.css").read_text("utf-8")
    # In a script element only "</script" and "<!--" have a meaning; JSON may write "<" as an escape.
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template((FOLDER / "page.html").read_text("utf-8")).substitute(
        script=code, script_digest=digest(code), style=style, style_digest=digest(style), data=embedded
    )


def _check(checkpoint: Checkpoint, text: str) -> None:
    if (size := count(architecture_of(checkpoint.config).parameters(checkpoint.config))) > MAX_PARAMETERS:
        raise UserError(
            f"explore: the model has {size:,} parameters, and a page takes at most {MAX_PARAMETERS:,}; choose a "
            "checkpoint of a smaller model"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"explore: the text {shown(text)} is not valid Unicode; correct --text") from None


def _step(checkpoint: Checkpoint) -> int | None:
    """How many updates the checkpoint has seen; None if it does not say."""
    step = checkpoint.metadata.get("step")
    return step if isinstance(step, int) else None


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
            "explore: the tokenizer is not byte-level BPE as GPT-2's, and the page's script reads only that; choose a "
            "model with data.tokenizer bpe or gpt2"
        )
    vocabulary = tokenizer.get_vocab()
    entries = [""] * (max(vocabulary.values()) + 1)
    for entry, token in vocabulary.items():
        entries[token] = entry
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {"entries": entries, "merges": merges, "end": tokenizer.eos_token_id}
