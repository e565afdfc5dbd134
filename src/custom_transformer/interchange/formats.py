"""The formats of an exported checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from custom_transformer.config import Params
from custom_transformer.interchange import check_target
from custom_transformer.interchange.export import export_checkpoint, with_tokenizer
from custom_transformer.interchange.gguf_files import export_gguf
from custom_transformer.interchange.onnx_file import export_onnx
from custom_transformer.maths.model import CustomTransformer

Format = Literal["huggingface", "gguf", "onnx"]


def export_as(form: Format, path: Path, folder: Path, params: Params) -> CustomTransformer:
    """Writes the model in the checkpoint `path` to `folder`; returns it.

    Equal inputs give equal bytes. Raises UserError for a missing or damaged input, for a `folder` that holds something
    else, and for what the format does not have; then nothing is written.
    """
    if form == "huggingface":
        return export_checkpoint(path, folder, params)
    write, written = {"gguf": (export_gguf, ("model.gguf",)), "onnx": (export_onnx, ("model.onnx", "tokenizer.json"))}[
        form
    ]
    check_target(folder, written, path)
    checkpoint, tokenizer = with_tokenizer(path)
    model = checkpoint.build_model()
    write(model, tokenizer, folder)
    return model
