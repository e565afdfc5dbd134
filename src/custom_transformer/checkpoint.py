"""Checkpoints: files of raw tensors, written atomically, read without running anything from them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError, one_line
from custom_transformer.files import atomic_write
from custom_transformer.model import CustomTransformer, parameter_table

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, validated: every tensor has the name, shape and dtype that `config` asks for."""

    state_dict: dict[str, Tensor]
    config: CustomTransformerConfig
    dtype: torch.dtype
    metadata: dict[str, Any]

    def build_model(self, device: torch.device | str | None = None) -> CustomTransformer:
        """A model with these weights."""
        model = CustomTransformer(self.config, device=device, dtype=self.dtype)
        model.load_state_dict(self.state_dict)
        return model


def save_checkpoint(path: Path | str, model: CustomTransformer, metadata: Mapping[str, Any]) -> None:
    """Writes {"state_dict", "config", "metadata"}; equal contents give equal bytes, whatever the file's name.

    `metadata` takes plain values: str, int, float, bool, None, and lists and dictionaries of them. Raises ValueError
    for any other, since the file could not be loaded again.
    """
    content = checkpoint_content(model, metadata)
    with atomic_write(path) as file:
        # A file object, since torch.save writes a path's own name into the archive.
        _save(content, file)


def checkpoint_content(model: CustomTransformer, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds, for torch.save; on the CPU the tensors are the model's own. Raises ValueError as
    `save_checkpoint` does."""
    _check_plain("metadata", metadata)
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "state_dict": {name: p.cpu() for name, p in model.parameters.items()},
        "config": {**model.config.model_dump(), "dtype": dtype},
        "metadata": dict(metadata),
    }


def _save(content: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # a failed write's, which closing the archive has hidden behind its own
        cause = error.__context__
        raise (cause if isinstance(cause, OSError) else error) from None


def _check_plain(name: str, value: Any) -> None:
    if type(value) is dict:
        for key, part in value.items():
            _check_plain(f"{name}.{key}", part)
            _check_plain(f"the key {key!r} in {name}", key)
    elif type(value) is list:
        for i, part in enumerate(value):
            _check_plain(f"{name}.{i}", part)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"{name} is of type {type(value).__name__}, no plain value; convert it first")


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Reads and validates a checkpoint; raises UserError naming the file and what is wrong with it."""
    path = Path(path)
    content = read_tensors(path)
    parts = ("state_dict", "config", "metadata")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in parts):
        raise UserError(f"{path}: not a checkpoint of this project (needs state_dict, config and metadata)")
    fields = dict(content["config"])
    dtype = DTYPES.get(str(fields.pop("dtype", "float32")))
    if dtype is None:
        raise UserError(f"{path}: config.dtype {content['config']['dtype']!r} is none of {', '.join(DTYPES)}")
    config = CustomTransformerConfig.from_mapping(fields, where=f"{path}: config")
    _check_state(path, content["state_dict"], config)
    return Checkpoint(content["state_dict"], config, dtype, content["metadata"])


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote to `path`: tensors and plain values only, on the CPU. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; train one first (dvc repro) or correct the path")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > entry.compress_size for entry in archive.infolist()):
                raise UserError(f"{path}: a compressed archive, which torch.save never writes; refused")
            if damaged := archive.testzip():  # torch.load does not look at the checksums
                raise UserError(f"{path}: damaged: the checksum of {damaged} is wrong; use another checkpoint")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({one_line(error)[:120]})") from None
    except Exception as error:  # weights_only refuses by several exception types, UnpicklingError among them
        if isinstance(error, (UserError, OSError)):
            raise
        raise UserError(
            f"{path}: refused, since it holds more than tensors and plain values ({type(error).__name__})"
        ) from None


def _check_state(path: Path, state: dict[Any, Any], config: CustomTransformerConfig) -> None:
    # Before the table is built: a hostile config could ask for a billion blocks.
    if config.n_blocks > len(state):
        raise UserError(f"{path}: config names {config.n_blocks} blocks, the file holds {len(state)} tensors")
    table = parameter_table(config)
    if wrong := sorted(set(table) ^ {str(name) for name in state}):
        side = "missing" if wrong[0] in table else "unknown"
        raise UserError(f"{path}: state_dict does not fit its config: {wrong[0]} is {side}")
    for name, shape in table.items():
        tensor = state[name]
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            found = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{path}: {name} should be floats of shape {shape}, not {found}")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(f"{path}: {name} declares more numbers than the file holds")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; use an earlier checkpoint")
