"""meta.json in data/tokens, the manifest: what the arrays of tokens there are, and what they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from custom_transformer.config import Count, Section, validated
from custom_transformer.errors import UserError, one_line
from custom_transformer.files import read_text

META = "meta.json"
SPLITS = ("train", "validation")
REMEDY = "run dvc repro --force tokenize"
MAX_META_BYTES = 32 << 20  # it lists the files of a source and the shards, perhaps many thousands

Amount = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TokenizerFacts(Section):
    name: str
    sha256: Digest
    vocab_size: Count
    requested_vocab_size: Count | None
    end_token: str
    end_token_id: Amount


class ShardFacts(Section):
    """A file, an array of tokens. sha256: of the file. text_sha256: of the texts alone, whatever the tokenizer."""

    name: Annotated[str, Field(pattern=r"^(train|validation)-\d{5,}\.bin$")]
    documents: Amount
    tokens: Annotated[int, Field(ge=1, lt=2**63)]
    bytes: Amount
    sha256: Digest
    text_sha256: Digest


class SplitFacts(Section):
    """The sums of its shards' numbers. A digest is that of its only shard, else of all shards' digests in a row."""

    documents: Amount
    tokens: Amount
    bytes: Annotated[int, Field(ge=1, lt=2**63)]
    sha256: Digest
    text_sha256: Digest
    log2_prob: float = 0.0  # may be absent, but not null
    shards: Annotated[list[ShardFacts], Field(min_length=1)]


class Splits(Section):
    train: SplitFacts
    validation: SplitFacts


class Manifest(Section):
    """What `tokenize` writes to meta.json."""

    tokenizer: TokenizerFacts
    dtype: Literal["uint16", "uint32"]
    splits: Splits
    lost: Annotated[float, Field(ge=0, le=1)] = 0.0  # absent where every text comes back from its tokens
    source: dict[str, Any]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The little-endian type that a vocabulary's ids are stored in: uint16 if they fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def read_manifest(path: Path) -> tuple[dict[str, Any], Manifest]:
    """The content of meta.json, as it stands there and checked; raises UserError if it is missing or damaged."""
    try:
        meta = json.loads(read_text(path, MAX_META_BYTES))
        if not isinstance(meta, dict):
            raise ValueError("no JSON object")
        facts = validated(Manifest, meta, f"{path}: damaged, {REMEDY}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run dvc repro tokenize") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)[:100]}); {REMEDY}") from None
    vocab_size = facts.tokenizer.vocab_size
    if facts.dtype != token_dtype(vocab_size).name:
        raise UserError(f"{path}: damaged ({vocab_size} entries are not stored as {facts.dtype}); {REMEDY}")
    return meta, facts
