"""What is whole, before a test damages it: a checkpoint's bytes, a folder of tokens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

FACTS = {"documents": 1, "tokens": 10, "bytes": 30, "sha256": "0" * 64, "text_sha256": "0" * 64}
SPLITS = {split: FACTS | {"shards": [{"name": f"{split}-00000.bin", **FACTS}]} for split in ("train", "validation")}
META = {
    "tokenizer": {
        "name": "bpe",
        "sha256": "0" * 64,
        "vocab_size": 300,
        "requested_vocab_size": 300,
        "end_token": "<|endoftext|>",
        "end_token_id": 0,
    },
    "dtype": "uint16",
    "splits": SPLITS,
    "source": {},
}
TOKENS = np.arange(10, dtype="<u2").tobytes()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
