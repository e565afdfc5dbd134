"""A checkpoint as an MLflow model: raw tensors, the tokenizer and this package's code, in a folder that needs no more.

MLflow loads it by `_load_pyfunc` below, found in the copy of the package that lies in the folder; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from custom_transformer.config import GenerationParams, TrackingParams
from custom_transformer.errors import UserError, shown
from custom_transformer.files import link_or_copy, sha256_file
from custom_transformer.runs.serving import CHECKPOINT, TOKENIZER, TextModel
from custom_transformer.tracking.store import as_default, cause, import_mlflow, store_uri, without_password

# What the package imports to serve a model, and MLflow itself.
REQUIREMENTS = "filelock mlflow numpy psutil pyarrow pydantic rich ruamel.yaml tokenizers torch transformers".split()


def save_model(folder: Path, checkpoint: Path, tokenizer: Path, defaults: GenerationParams) -> str:
    """Writes the model to `folder`, which must not exist; `defaults` hold where a request sets nothing.

    Returns a digest of its content, which is the same for the same checkpoint, tokenizer, code and settings. Raises
    OSError, and what MLflow raises.
    """
    import mlflow.pyfunc
    import pandas as pd

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        data = Path(scratch) / "data"
        (data / TOKENIZER).mkdir(parents=True)
        link_or_copy(checkpoint, data / CHECKPOINT)
        for file in tokenizer.iterdir():
            link_or_copy(file, data / TOKENIZER / file.name)
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=data,
            code_paths=[str(Path(__file__).parents[1])],
            signature=_signature(defaults),
            input_example=(pd.DataFrame({"prompt": defaults.prompts[:1]}), {"max_new_tokens": 10, "seed": 0}),
            # A version such as 2.13.0+cpu names a build, which no index but PyTorch's own has.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        )
    return _content_digest(folder)


@contextlib.contextmanager
def registered_files(uri: str, tracking: TrackingParams) -> Iterator[Path]:
    """The folder of the checkpoint and the tokenizer of a model such as models:/NAME@best, for as long as the block
    lasts. Raises UserError if the store has no such model or does not answer. The model's code is not run."""
    store = store_uri(tracking)
    import_mlflow()
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as scratch:
        try:
            with as_default(store):
                folder = download_artifacts(artifact_uri=uri, dst_path=scratch, tracking_uri=store)
        except Exception as error:
            raise UserError(
                f"{shown(uri)}: not found in {without_password(store)} ({cause(error)}); see the models in make ui"
            ) from None
        yield Path(folder) / "data" / "data"


def _signature(defaults: GenerationParams) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    settings = {
        "max_new_tokens": ("long", defaults.max_new_tokens),
        "temperature": ("double", defaults.temperature),
        "top_k": ("long", defaults.top_k),
        "top_p": ("double", defaults.top_p),
        "seed": ("long", None),
    }
    answer: dict[str, Any] = {"prompt": "string", "continuation": "string", "finish_reason": "string"}
    answer |= {"tokens": Array("string"), "log_probabilities": Array("double")}
    answer |= {"prompt_tokens": Array("string"), "prompt_log_probabilities": Array("double")}
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec(kind, name) for name, kind in answer.items()]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in settings.items()]),
    )


def _content_digest(folder: Path) -> str:
    """MLmodel is left out: it names the others, and the time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "MLmodel")
    lines = (f"{sha256_file(path)}  {path.relative_to(folder)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _load_pyfunc(data_path: str) -> _PyFunc:
    return _PyFunc(TextModel(Path(data_path)))


class _PyFunc:
    """What MLflow calls: a column of prompts in, each with what the model makes of it out."""

    def __init__(self, model: TextModel):
        self._model = model

    def predict(self, model_input: Any, params: dict[str, Any]) -> Any:
        """model_input and result are data frames of pandas, with the same rows."""
        from mlflow.exceptions import MlflowException

        try:
            completions = [asdict(c) for c in self._model.complete(model_input["prompt"], params)]
        except UserError as error:  # the server shows the text of no other exception
            raise MlflowException.invalid_parameter_value(str(error)) from None
        columns = {name: [c[name] for c in completions] for name in completions[0]} if completions else {}
        return model_input.assign(**columns)
