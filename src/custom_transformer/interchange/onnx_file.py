"""Models as ONNX files, which onnxruntime and other runtimes compute: by the transformers library's own classes.

It needs the packages onnx and onnxscript: pip install -e '.[onnx]' -c constraints.txt
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from custom_transformer.errors import UserError
from custom_transformer.files import staged_folders, writing
from custom_transformer.interchange import check_vocabulary, save_tokenizer, to_huggingface
from custom_transformer.maths.model import CustomTransformer

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

FILE = "model.onnx"  # the name in the folder of an exported model
MAX_BYTES = 2**31 - 2**24  # of weights in the file itself, which protobuf limits; those of larger models are beside it
NEEDED = ("onnx", "onnxscript")


class _Logits(nn.Module):
    """input_ids (B, T) int64 -> logits (B, T, V), without keys and values kept for later."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def export_onnx(model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes `folder`/model.onnx, input_ids (batch, time) int64 -> logits (batch, time, V), and the tokenizer's files.

    batch is any number, time any up to the model's max_seq_len. An older folder is replaced once the new one is whole.
    Raises UserError where a package is missing and for a tokenizer of another vocabulary, StorageError for a folder
    that cannot be written.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX export needs {', '.join(missing)}: pip install -e '.[onnx]' -c constraints.txt")
    check_vocabulary(tokenizer, model.config)
    wrapped = _Logits(to_huggingface(model, tokenizer.eos_token_id)).eval()
    # Of one row or one token, torch.export would take the number for a constant.
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", max=model.config.max_seq_len)}
    tokens = torch.zeros(2, min(3, model.config.max_seq_len), dtype=torch.int64)
    with staged_folders(folder) as (staged,), writing(folder, staged), _silent():
        program: Any = torch.onnx.export(
            wrapped,
            (tokens,),
            dynamo=True,
            dynamic_shapes=(sizes,),
            input_names=["input_ids"],
            output_names=["logits"],
            verbose=False,
        )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # the lines of code it comes from, with the paths of this machine
        program.save(staged / FILE, external_data=4 * model.count_parameters() > MAX_BYTES)
        save_tokenizer(tokenizer, staged, model.config.max_seq_len)


@contextlib.contextmanager
def _silent() -> Any:
    """Without the exporter's progress and its advice on its own options."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
