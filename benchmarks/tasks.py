"""What the race's contestants learn: the primer as the default run has it, or a text in bytes or a BPE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.racer import Task
from custom_transformer.config import Params
from custom_transformer.errors import UserError
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.runs.evaluation import LOG_2
from custom_transformer.text.datasets import download
from custom_transformer.text.document_windows import document_windows
from custom_transformer.text.packing import tokenize
from custom_transformer.text.tokens import load_tokens

ABOVE_FLOOR = 0.02  # bits per byte: the loss that the primer's contestants are to reach
VALIDATION_TOKENS = 32_768  # of a text

# nanoGPT's: 4 blocks of width 128, windows of 64, 12 at a time; and about 2 million parameters over a BPE of 2,048.
SIZES: dict[str, dict[str, Any]] = {
    "bytes": {"d_model": 128, "n_blocks": 4, "n_heads": 4, "d_ffn": 512, "max_seq_len": 64},
    "bpe": {"d_model": 160, "n_blocks": 6, "n_heads": 5, "d_ffn": 640, "max_seq_len": 256, "vocab_size": 2048},
}
BATCH = {"bytes": 12, "bpe": 4}


def task_of_text(text: Path, vocabulary: str, folder: Path) -> Task:
    """The first nine tenths of the text to train on, the last to validate, as nanoGPT divides it. Validation takes the
    first VALIDATION_TOKENS of that last tenth, in windows that do not overlap."""
    content = text.read_bytes()
    if len(content) < 10_000:
        raise UserError(f"{text}: {len(content)} bytes are too few for a race; give a text of 100 kB or more")
    parts = {"train": content[: len(content) * 9 // 10], "validation": content[len(content) * 9 // 10 :]}
    sizes = dict(SIZES[vocabulary])
    length = sizes["max_seq_len"]
    if vocabulary == "bytes":
        used = np.unique(np.frombuffer(content, np.uint8))
        ids = {name: np.searchsorted(used, np.frombuffer(part, np.uint8)) for name, part in parts.items()}
        sizes["vocab_size"] = len(used)
    else:
        ids = _bpe(parts, sizes["vocab_size"])
    if min(map(len, ids.values())) <= length:
        raise UserError(f"{text}: its last tenth has not one window of {length} tokens; give a longer text")
    validation = torch.from_numpy(ids["validation"].astype(np.int64))
    count = min(VALIDATION_TOKENS, len(validation) - 1) // length
    windows = [validation[i : i + count * length].view(count, length) for i in (0, 1)]
    return _task(text.name, folder, ids["train"], windows, sizes, BATCH[vocabulary])


def _bpe(parts: dict[str, bytes], vocab_size: int) -> dict[str, np.ndarray]:
    from tokenizers import ByteLevelBPETokenizer

    texts = {name: part.decode("utf-8", "replace") for name, part in parts.items()}
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts["train"].splitlines(keepends=True), vocab_size, show_progress=False)
    return {name: np.array(tokenizer.encode(text).ids) for name, text in texts.items()}


def task_of_primer(params: Params, folder: Path) -> Task:
    """The primer with the sizes of `params`, validated text by text as the stage `evaluate` does. Its goal is a loss
    above that of a model that knows the primer's grammar."""
    data = params.data.model_copy(update={"dataset": "primer", "tokenizer": "bpe", "streaming": False})
    download(data, params.seed, folder / "raw")
    tokenize(data, folder / "raw", folder / "tokenizer", folder / "tokens", folder / "work")
    train, validation = (load_tokens(folder / "tokens", split) for split in ("train", "validation"))
    sizes = {key: getattr(params.model, key) for key in ("d_model", "n_blocks", "n_heads", "d_ffn", "max_seq_len")}
    sizes["vocab_size"], length = train.meta["tokenizer"]["vocab_size"], params.model.max_seq_len
    parts: list[tuple[Tensor, Tensor]] = []
    for input_ids, labels in document_windows(validation, length, params.evaluation.batch_size):
        labels = labels.masked_fill(labels == validation.end_id, IGNORE_INDEX)
        padding = (0, length - input_ids.shape[1])
        parts.append((pad(input_ids, padding), pad(labels, padding, value=IGNORE_INDEX)))
    windows = [torch.cat(column) for column in zip(*parts, strict=True)]
    bytes_per_token = validation.meta["bytes"] / validation.n_text_tokens
    floor = -validation.meta["log2_prob"] / validation.meta["bytes"]
    goals = {f"{ABOVE_FLOOR} bits per byte above the floor": (floor + ABOVE_FLOOR) * bytes_per_token * LOG_2}
    return _task("primer", folder, train.tokens[:], windows, sizes, params.training.batch_size, goals)


def _task(
    name: str,
    folder: Path,
    train: np.ndarray,
    windows: Sequence[Tensor],
    sizes: dict[str, Any],
    batch: int,
    goals: dict[str, float] | None = None,
) -> Task:
    input_ids, labels = (part.numpy() for part in windows)
    file = folder / "tokens.npz"
    np.savez(file, train=train, input_ids=input_ids, labels=labels)
    return Task(name, str(file), sizes, batch, goals or {})
