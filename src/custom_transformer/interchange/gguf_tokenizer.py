"""Byte-level BPE as a GGUF file holds it, there and back.

A text is cut into words before merges apply to each; the key `tokenizer.ggml.pre` names how. llama.cpp has the patterns
in src/llama-vocab.cpp. This project knows two of its names, each with the pre-tokenizer that cuts in the same places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import TokenType

from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.text.saved_tokenizer import vocabulary_size

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# What a tokenizer.json says of its pre-tokenizers, one after another, except for trim_offsets, which moves no cut.
_PRE = {"gpt-2": [_BYTES], "smollm": [_DIGITS, _BYTES]}
# Settings of a BPE model that llama.cpp does not have, and the values that leave them without effect.
_WITHOUT_EFFECT = {
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_keys(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> dict[str, Any]:
    """The keys of a GGUF file for a model of `vocab_size` entries; ids without an entry become unused tokens.

    Raises UserError, naming what it is, for a tokenizer that llama.cpp would not follow.
    """
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = definition["model"], {token["id"]: token for token in definition["added_tokens"]}
    pre = _pre(definition, model, added.values())
    entries = {i: token for token, i in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    tokens, kinds = [], []
    for i in range(vocab_size):
        tokens.append(entries.get(i, f"[unused {i}]"))  # with a space, which no byte-level entry has
        kind = TokenType.NORMAL if i in entries else TokenType.UNUSED
        if i in added:
            kind = TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED
        kinds.append(int(kind))
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "add_bos_token": False,
    }
    for name, attribute in _SPECIAL.items():
        if (id_ := getattr(tokenizer, f"{attribute}_id")) is not None:
            keys[f"{name}_token_id"] = id_
    template = {"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | template


def _pre(definition: Mapping[str, Any], model: Mapping[str, Any], added: Any) -> str:
    """llama.cpp's name for how this tokenizer cuts texts into words."""
    refusal = "GGUF export: llama.cpp would make other tokens than this tokenizer, {}; export to another format"
    if model["type"] != "BPE":
        raise UserError(refusal.format(f"whose model is {shown(model['type'])}"))
    for key, values in _WITHOUT_EFFECT.items():
        if model.get(key) not in values:
            raise UserError(refusal.format(f"whose {key} is {shown(model[key])}"))
    if definition["normalizer"] is not None:
        raise UserError(refusal.format(f"whose normalizer is {shown(definition['normalizer'].get('type'))}"))
    for token in added:
        if not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise UserError(refusal.format(f"whose entry {shown(token['content'])} depends on what stands beside it"))
    if not model["merges"]:
        raise UserError("GGUF export: the tokenizer has no merges, and llama.cpp reads none without; export otherwise")
    given = definition["pre_tokenizer"] or {"type": None}
    steps = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in given.get("pretokenizers", [given])
    ]
    for name, known in _PRE.items():
        if steps == known:
            return name
    types = ", ".join(str(step["type"]) for step in steps)
    raise UserError(refusal.format(f"whose pre-tokenizer ({shown(types)}) is none of {', '.join(_PRE)}"))


def tokenizer_of_keys(keys: Mapping[str, Any], vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file describes, in which unused entries are none. Raises ValueError, naming the key."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def value(name: str, default: Any = None) -> Any:
        return keys.get(f"tokenizer.ggml.{name}", default)

    for name, known in (("model", ["gpt2"]), ("pre", list(_PRE))):
        if value(name) not in known:
            raise ValueError(f"tokenizer.ggml.{name} is {shown(value(name))}, here it is {' or '.join(known)}")
    tokens, merges = value("tokens"), value("merges", [])
    if not isinstance(tokens, list) or len(tokens) != vocab_size:
        size = len(tokens) if isinstance(tokens, list) else "no"
        raise ValueError(f"tokenizer.ggml.tokens: {size} entries, the model has {vocab_size}")
    kinds = _kinds(value("token_type"), vocab_size)
    entries = {i: token for i, token in enumerate(tokens) if kinds[i] != TokenType.UNUSED}
    vocab = {token: i for i, token in entries.items()}
    if len(vocab) < len(entries):
        twice = next(token for i, token in entries.items() if vocab[token] != i)
        raise ValueError(f"tokenizer.ggml.tokens: {shown(twice)} stands there twice")
    if not isinstance(merges, list) or any(merge.count(" ") != 1 for merge in merges):
        raise ValueError("tokenizer.ggml.merges: not a list of pairs")
    try:
        backend = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
    except Exception as error:  # the Rust library's own, for a merge of what is no entry
        raise ValueError(f"tokenizer.ggml.merges: {one_line(error)}") from None
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if _DIGITS in _PRE[value("pre")]:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if steps[1:] else steps[0]
    backend.decoder = decoders.ByteLevel()
    for kind, special in ((TokenType.CONTROL, True), (TokenType.USER_DEFINED, False)):
        these = [token for i, token in entries.items() if kinds[i] == kind]
        backend.add_tokens([AddedToken(token, special=special, normalized=False) for token in these])
    names = {}
    for name, attribute in _SPECIAL.items():
        if (id_ := value(f"{name}_token_id")) is not None:
            if id_ not in entries:
                raise ValueError(f"tokenizer.ggml.{name}_token_id is {shown(id_)}, which is no entry")
            names[attribute] = entries[id_]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    if isinstance(template := keys.get("tokenizer.chat_template"), str):
        tokenizer.chat_template = template
    assert vocabulary_size(tokenizer) <= vocab_size
    return tokenizer


def _kinds(given: Any, vocab_size: int) -> list[int]:
    if given is None:
        return [TokenType.NORMAL] * vocab_size
    kinds: list[int] = given.tolist() if isinstance(given, np.ndarray) else []
    if len(kinds) != vocab_size:
        raise ValueError(f"tokenizer.ggml.token_type: {len(kinds)} entries, the model has {vocab_size}")
    known = (TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
    if other := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"tokenizer.ggml.token_type holds {shown(other[0])}, which byte-level BPE has not")
    return kinds
