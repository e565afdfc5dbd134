"""Checkpoints: files of raw tensors, written atomically, read without running anything from them."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig, TrainingParams
from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.fast.choose import prepare
from custom_transformer.files import atomic_write, check_regular
from custom_transformer.maths.architecture import ARCHITECTURES, GPT2, architecture_of, flops_per_token
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.parameters import count

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
MAX_PICKLE_BYTES = 4 << 20  # of names, shapes and plain values; 2 are enough for a thousand blocks

# What torch.save writes for tensors: the entries of the archive, and what its pickle calls.
_ENTRY = re.compile(r"[^/]+/(data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/.+)")
_CALLS = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, validated: every tensor has the name, shape and dtype that `config` asks for."""

    state_dict: dict[str, Tensor]
    config: CustomTransformerConfig
    dtype: torch.dtype
    metadata: dict[str, Any]

    def build_model(self, device: torch.device | None = None, engine: Engine = READABLE) -> CustomTransformer:
        """A model with these weights."""
        model = CustomTransformer(self.config, device=device, dtype=self.dtype, engine=engine)
        model.load_state_dict(self.state_dict)
        return model

    def model_for(self, training: TrainingParams, tokens: int) -> CustomTransformer:
        """A model with these weights that is about to see `tokens` tokens, on the device that `training` names."""
        flops = flops_per_token(self.config, self.config.max_seq_len) / 3 * tokens
        return self.build_model(*prepare(training, flops))


def save_checkpoint(path: Path | str, model: CustomTransformer, metadata: Mapping[str, Any]) -> None:
    """Writes {"state_dict", "config", "metadata"}; equal contents give equal bytes, whatever the file's name.

    `metadata` takes plain values: str, int, float, bool, None, and lists and dictionaries of them. Raises ValueError
    for any other, and for an architecture that is not in ARCHITECTURES: the file could not be loaded again.
    """
    content = checkpoint_content(model, metadata)
    with atomic_write(path) as file:
        # A file object, since torch.save writes a path's own name into the archive.
        write_tensors(content, file)


def checkpoint_content(model: CustomTransformer, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds, for torch.save; on the CPU the tensors are the model's own. Raises ValueError as
    `save_checkpoint` does."""
    if model.architecture is not ARCHITECTURES.get(model.architecture.name):
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{model.architecture.name} is no architecture of this project ({known}), so no file holds it")
    config = model.config.model_dump()
    if model.architecture is GPT2:
        del config["architecture"]  # files of GPT-2 were written before there were others, and keep their bytes
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "state_dict": {name: p.cpu() for name, p in model.parameters.items()},
        "config": {**config, "dtype": dtype},
        "metadata": _plain("metadata", dict(metadata)),
    }


def write_tensors(content: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, whose error for a failed write is the system's."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # a failed write's, which closing the archive has hidden behind its own
        cause = error.__context__
        raise (cause if isinstance(cause, OSError) else error) from None


def _plain(name: str, value: Any) -> Any:
    """A copy of `value`, each list and dictionary its own; raises ValueError for what is no plain value."""
    if type(value) is dict:
        return {
            _plain(f"the key {shown(key)} in {name}", key): _plain(f"{name}.{key}"[:100], part)
            for key, part in value.items()
        }
    if type(value) is list:
        return [_plain(f"{name}.{i}"[:100], part) for i, part in enumerate(value)]
    if type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"{name} is of type {type(value).__name__}, no plain value; convert it first")
    return value


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Reads and validates a checkpoint; raises UserError naming the file and what is wrong with it."""
    path = Path(path)
    with _refusals(path):
        _check_pickle(_pickled_part(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    parts = ("state_dict", "config", "metadata")
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in parts):
        raise UserError(f"{path}: not a checkpoint of this project (needs state_dict, config and metadata)")
    try:
        fields, metadata = _plain("config", content["config"]), _plain("metadata", content["metadata"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: holds more than tensors and plain values ({one_line(error)[:120]})") from None
    stored = fields.pop("dtype", "float32")
    dtype = DTYPES.get(stored) if isinstance(stored, str) else None
    if dtype is None:
        raise UserError(f"{path}: config.dtype {shown(stored)} is none of {', '.join(DTYPES)}")
    config = CustomTransformerConfig.from_mapping(fields, where=f"{path}: config")
    _check_state(path, content["state_dict"], config, torch.promote_types(dtype, torch.float32))
    return Checkpoint(content["state_dict"], config, dtype, metadata)


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote to `path`: tensors and plain values only, on the CPU. Raises UserError."""
    with _refusals(path):
        _pickled_part(path)
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Whatever the libraries make of a damaged or hostile file becomes one line."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, LookupError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({one_line(error)[:120]})") from None
    except Exception as error:  # weights_only refuses by several exception types, UnpicklingError among them
        if isinstance(error, (UserError, OSError)):
            raise
        raise UserError(
            f"{path}: refused, since it holds more than tensors and plain values ({type(error).__name__})"
        ) from None


def _pickled_part(path: Path) -> bytes:
    """data.pkl of an archive such as torch.save writes, undamaged and with no byte in two entries.

    torch.load looks at neither the checksums nor the sizes, and what does not begin as an archive it reads by other
    rules.
    """
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; train one first (dvc repro) or correct the path")
    check_regular(path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.file_size > entry.compress_size for entry in entries.values()):
            raise UserError(f"{path}: a compressed archive, which torch.save never writes; refused")
        if len(entries) < len(archive.infolist()) or not all(map(_ENTRY.fullmatch, entries)):
            raise UserError(f"{path}: an archive of other files than torch.save writes; refused")
        total = sum(entry.file_size for entry in entries.values())
        if total > path.stat().st_size or min(entry.header_offset for entry in entries.values()) != 0:
            raise UserError(f"{path}: an archive whose parts overlap, or with something before it; refused")
        if damaged := archive.testzip():
            raise UserError(f"{path}: damaged: the checksum of {shown(damaged)} is wrong; use another checkpoint")
        return archive.read(next(entry for name, entry in entries.items() if name.endswith("/data.pkl")))


def _check_pickle(pickled: bytes) -> None:
    """Raises UnpicklingError for a pickle that torch.load would read, but only with the whole memory or for ever.

    weights_only lets through calls that allocate whatever size they are told, and lists and tuples in which each
    holds the one before it twice. Here nothing is called but what makes an ordinary tensor, no list, dictionary or
    tuple stands in two places, and tuples nest no deeper than in a tensor's arguments.
    """
    if len(pickled) > MAX_PICKLE_BYTES:
        raise pickle.UnpicklingError
    stack: list[int] = []  # of each object, how deep tuples nest in it; lists and dictionaries count as 1
    marks: list[int] = []  # places in the stack
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name, before = opcode.name, opcode.stack_before
        if name == "PROTO" and argument != 2:  # which torch.load would warn of
            raise pickle.UnpicklingError
        if name == "MARK":
            marks.append(len(stack))
            continue
        if name.endswith("PUT"):
            memo[argument] = stack[-1]
            continue
        if pickletools.markobject in before:
            start = marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(stack) - len(before)
        if start < 0:
            raise pickle.UnpicklingError
        taken = stack[start:]
        if name.endswith("GET"):
            depth = memo[argument]
        elif "TUPLE" in name:
            depth = 1 + max(taken, default=0)
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            depth = taken[0]
        else:
            depth = int(name in ("EMPTY_LIST", "EMPTY_DICT"))
        if depth > 2 or (name.endswith("GET") and depth) or (name == "GLOBAL" and not _CALLS.fullmatch(str(argument))):
            raise pickle.UnpicklingError
        stack[start:] = [depth] * len(opcode.stack_after)


def _check_state(path: Path, state: dict[Any, Any], config: CustomTransformerConfig, dtype: torch.dtype) -> None:
    # Before the table is built: a hostile config could ask for a billion blocks.
    parameters = architecture_of(config).parameters
    one = parameters(config.model_copy(update={"n_blocks": 1}))
    if config.n_blocks * sum(name.startswith("blocks.") for name in one) > len(state):
        raise UserError(f"{path}: config names {config.n_blocks} blocks, the file holds {len(state)} tensors")
    table = parameters(config)
    if wrong := sorted(set(table) ^ {name if isinstance(name, str) else shown(name) for name in state}):
        side = "missing" if wrong[0] in table else "unknown"
        raise UserError(f"{path}: state_dict does not fit its config: {one_line(wrong[0])[:80]} is {side}")
    for name, (shape, _) in table.items():
        tensor = state[name]
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            found = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{path}: {name} should be {dtype} of shape {shape}, not {found}")
    # A tensor may be a view that repeats few numbers, and several may be views of the same ones.
    if count(table) * dtype.itemsize > path.stat().st_size:
        raise UserError(f"{path}: the tensors declare more numbers than the file holds")
    for name in table:
        if not torch.isfinite(state[name]).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; use an earlier checkpoint")
