"""Windows of single documents, each read from its start, as evaluation needs them.

Shapes: B batch, T time (the longest window of a batch), N windows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.text.tokens import TokenSplit


def document_windows(
    split: TokenSplit, length: int, batch_size: int, max_batches: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every token of every document, and each document's end, as a label exactly once.

    Yields input_ids and labels, each (B, T) int64. The context of a document is the end token in front of it, and never
    another document. Its tokens are predicted `length` at a time, the last of them in a window that is moved left until
    it is full: the rolling windows of lm-evaluation-harness (`get_rolling_token_windows`, context_len 1). The end token
    behind it is predicted from as many of the tokens before it as fit.

    Windows of similar length share a batch of at most batch_size · length tokens, the longest first; the rest of a row
    is token 0. Labels that do not count are IGNORE_INDEX. max_batches: only the first batch_size · max_batches windows
    of the split.
    """
    starts, n_inputs, n_labels = _windows_of_documents(split.ends(), length)
    order = np.argsort(-n_inputs[: None if max_batches is None else batch_size * max_batches], kind="stable")
    first = 0
    while first < len(order):
        longest = int(n_inputs[order[first]])
        rows = order[first : first + batch_size * length // longest]
        first += len(rows)
        columns, width = np.arange(longest), n_inputs[rows, None]
        places = np.minimum(starts[rows, None] + np.arange(longest + 1), split.n_tokens - 1)
        tokens = split.tokens[places].astype(np.int64)
        counted = (columns >= width - n_labels[rows, None]) & (columns < width)
        input_ids, labels = np.where(columns < width, tokens[:, :-1], 0), np.where(counted, tokens[:, 1:], IGNORE_INDEX)
        yield torch.from_numpy(input_ids), torch.from_numpy(labels)


def _windows_of_documents(ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The place of each window's first input, its number of inputs, and how many of its last labels count: (N,) int64.

    A document that is shorter than `length` has one window, its end included. A longer one has as many as its tokens
    need, and one more for its end, since there is no room for another input in a full window.
    """
    sizes = np.diff(ends) - 1
    full = sizes >= length
    n_windows = np.where(full, -(-sizes // length) + 1, 1)
    document = np.repeat(np.arange(len(sizes)), n_windows)
    number = np.arange(len(document)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)  # within the document
    end = ends[1:][document]
    only_end = full[document] & (number == n_windows[document] - 1)
    first_label = np.where(only_end, end, ends[:-1][document] + 1 + number * length)
    after_labels = np.where(only_end | ~full[document], end + 1, np.minimum(first_label + length, end))
    starts = np.maximum(ends[:-1][document], after_labels - 1 - length)
    return starts, after_labels - 1 - starts, after_labels - first_label
