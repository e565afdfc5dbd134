"""Models as GGUF files, which llama.cpp and the programs built on it run: names, layouts and keys, there and back.

The names of keys and tensors are those of gguf-py/gguf/constants.py in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gguf import GGUFWriter
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.files import check_regular, staged_folders, writing
from custom_transformer.interchange import check_target, check_vocabulary
from custom_transformer.interchange.gguf_header import StoredTensor, read_header
from custom_transformer.interchange.gguf_tokenizer import tokenizer_keys, tokenizer_of_keys
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER, write_imported
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.model import CustomTransformer

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

FILE = "model.gguf"  # the name in the folder of an exported model

# Keys of sizes and settings behind "gpt2." or "llama.", and ours for them.
_KEYS = {
    "context_length": "max_seq_len",
    "embedding_length": "d_model",
    "block_count": "n_blocks",
    "feed_forward_length": "d_ffn",
    "attention.head_count": "n_heads",
}
_LLAMA_KEYS = {
    "attention.head_count_kv": "n_kv_heads",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_base",
}
_GPT2_EPS = "attention.layer_norm_epsilon"
_LEFT_OUT = {"attention.head_count_kv": None, "rope.freq_base": 10_000.0}  # what it means that a key is not there


class _Part(NamedTuple):
    """One tensor of a file. width: how many columns of the parameter it has. turned: heads whose rows alternate."""

    name: str
    width: int
    turned: int = 0


def _parts(name: str, config: CustomTransformerConfig) -> list[_Part]:
    """The tensors that a parameter of ours is in a file; more than one stand side by side here."""
    whole = {"token_embedding": "token_embd.weight", "position_embedding": "position_embd.weight"}
    if name in whole:
        return [_Part(whole[name], config.d_model)]
    *block, layer, kind = name.split(".")
    d, f, kv = config.d_model, config.d_ffn, config.kv_heads * config.head_size
    layers = {
        "norm_1": [_Part("attn_norm", d)],
        "qkv": [_Part("attn_qkv", 3 * d)],
        "projection": [_Part("attn_output", d)],
        "norm_2": [_Part("ffn_norm", d)],
        "up": [_Part("ffn_up", f)],
        "gate_up": [_Part("ffn_gate", f), _Part("ffn_up", f)],
        "down": [_Part("ffn_down", d)],
        "final_norm": [_Part("output_norm", d)],
        "head": [_Part("output", d)],
    }
    if config.architecture == "llama":
        layers["qkv"] = [_Part("attn_q", d, config.n_heads), _Part("attn_k", kv, config.kv_heads), _Part("attn_v", kv)]
    prefix = f"blk.{block[1]}." if block else ""
    return [part._replace(name=f"{prefix}{part.name}.{kind}") for part in layers[layer]]


def _is_block_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is (D_in, D_out) here, and so (D_out, D_in) in a file."""
    return name.startswith("blocks.") and len(shape) == 2


# --------------------------------------------------------------------------------------------------- there


def export_gguf(model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes `folder`/model.gguf: the model in float32, with its tokenizer.

    An older folder is replaced once the new one is whole. Equal models give equal bytes. GPT-2's absent biases are
    zeros. Raises UserError for a tokenizer of another vocabulary or one that llama.cpp would not follow, StorageError
    for a folder that cannot be written.
    """
    config, name = model.config, model.architecture.name
    check_vocabulary(tokenizer, config)
    keys = {f"{name}.{key}": value for key, value in _settings(config).items()}
    keys |= tokenizer_keys(tokenizer, config.vocab_size)
    with staged_folders(folder) as (staged,), writing(folder, staged / FILE):
        writer = GGUFWriter(staged / FILE, name)
        try:
            writer.add_type("model")
            writer.add_file_type(0)  # all tensors in float32
            for key, value in keys.items():
                _add(writer, key, value)
            for tensor_name, tensor in _tensors(model.parameters, config):
                writer.add_tensor(tensor_name, tensor.view(_Written))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


class _Written(np.ndarray):
    def tofile(self, file: Any, *_: Any) -> None:
        """By Python, whose error for a full disk has the system's number; NumPy's has not."""
        file.write(self.data)


def _settings(config: CustomTransformerConfig) -> dict[str, Any]:
    settings = {key: getattr(config, ours) for key, ours in _KEYS.items()}
    if config.architecture == "gpt2":
        return settings | {_GPT2_EPS: 1e-5}
    settings |= {key: getattr(config, ours) for key, ours in _LLAMA_KEYS.items()}
    return settings | {"attention.head_count_kv": config.kv_heads, "rope.dimension_count": config.head_size}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def _tensors(parameters: Mapping[str, Tensor], config: CustomTransformerConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The file's tensors with their names."""
    with_biases = {"bias": True} if config.architecture == "gpt2" else {}
    for name, (shape, _) in architecture_of(config).parameters(config.model_copy(update=with_biases)).items():
        parameter = parameters.get(name, torch.zeros(shape)).detach().to("cpu", torch.float32)
        parts = _parts(name, config)
        for part, columns in zip(parts, parameter.split([part.width for part in parts], -1), strict=True):
            rows = columns.T if _is_block_matrix(name, shape) else columns
            yield part.name, np.ascontiguousarray(_turned(rows, part.turned).numpy())


def _turned(rows: Tensor, n_heads: int) -> Tensor:
    """The rows (heads · K, D) of each head as llama.cpp turns them, in neighbouring pairs; here row i is turned with
    row i + K / 2. Unchanged for `n_heads` 0."""
    if not n_heads:
        return rows
    return rows.reshape(n_heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _turned_back(rows: Tensor, n_heads: int) -> Tensor:
    if not n_heads:
        return rows
    return rows.reshape(n_heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


# ---------------------------------------------------------------------------------------------------- back


def import_gguf(source: Path, folder: Path) -> CustomTransformer:
    """Writes the model and the tokenizer in the GGUF file `source` as `folder`/model.pt and `folder`/tokenizer/.

    Numbers stored in fewer bits become float32. Raises UserError, naming the file and what is wrong, for what is
    damaged, missing or unusual.
    """
    check_target(folder, (CHECKPOINT, TOKENIZER), source)
    check_regular(source)
    try:
        with source.open("rb") as file:
            keys, stored = read_header(file)
            config = _config(keys, stored)
            parameters = _parameters(file, stored, config)
        tokenizer = tokenizer_of_keys(keys, config.vocab_size)
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer.ggml.eos_token_id is missing, and texts end with that token here")
    except ValueError as error:
        raise UserError(f"{source}: {one_line(error)[:200]}") from None
    head = parameters.get("head.weight")
    if head is not None and torch.equal(head, parameters["token_embedding"]):  # a tied head, as old files repeat it
        config = config.model_copy(update={"tie_embeddings": True})
        del parameters["head.weight"]
    model = CustomTransformer(config)
    model.load_state_dict(parameters)
    write_imported(folder, model, tokenizer, source, source.name)
    return model


def _config(keys: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> CustomTransformerConfig:
    name = keys.get("general.architecture")
    if name not in ("gpt2", "llama"):
        raise ValueError(f"general.architecture is {shown(name)}; this project has gpt2 and llama")
    if (kind := keys.get("general.type", "model")) != "model":
        raise ValueError(f"general.type is {shown(kind)}, here it is 'model'")
    if (files := keys.get("split.count", 1)) != 1:
        raise ValueError(f"split.count is {shown(files)}: a part of a model; merge the parts (llama-gguf-split)")
    given = {key.removeprefix(f"{name}."): _rounded(value) for key, value in keys.items() if key.startswith(f"{name}.")}
    names = _KEYS if name == "gpt2" else _KEYS | _LLAMA_KEYS
    fields = {}
    for key, ours in names.items():
        if key not in given and key not in _LEFT_OUT:
            raise ValueError(f"{name}.{key} is missing")
        fields[ours] = given.pop(key, _LEFT_OUT.get(key))
    if "token_embd.weight" not in stored:
        raise ValueError("token_embd.weight is missing")
    fields |= {"vocab_size": stored["token_embd.weight"].shape[0], "tie_embeddings": "output.weight" not in stored}
    try:
        config = CustomTransformerConfig.from_mapping({"architecture": name} | fields, "its keys")
    except UserError as error:
        raise ValueError(str(error)) from None
    only = _follows(config)
    if name == "gpt2" and _GPT2_EPS not in given:
        raise ValueError(f"{name}.{_GPT2_EPS} is missing")
    for key, value in given.items():
        if key not in only:
            raise ValueError(f"{name}.{key} is {shown(value)}, which this project has not")
        if value != only[key]:
            raise ValueError(f"{name}.{key} is {shown(value)}, here it is {only[key]!r}")
    return config


def _follows(config: CustomTransformerConfig) -> dict[str, Any]:
    """Further keys that a file may have, and the values that they must have for this configuration."""
    heads = {"attention.key_length": config.head_size, "attention.value_length": config.head_size}
    follows = heads | {"vocab_size": config.vocab_size, "attention.causal": True}
    if config.architecture == "gpt2":
        return follows | {_GPT2_EPS: 1e-5, "attention.head_count_kv": config.n_heads}
    return follows | {"rope.dimension_count": config.head_size, "rope.scaling.type": "none"}


def _rounded(value: Any) -> Any:
    """A float32 as the shortest decimal number that is stored so: 1e-5 is there as 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _parameters(
    file: IO[bytes], stored: Mapping[str, StoredTensor], config: CustomTransformerConfig
) -> dict[str, Tensor]:
    if config.n_blocks > len(stored):  # before a table of so many is made
        raise ValueError(f"its keys name {config.n_blocks} blocks, it holds {len(stored)} tensors")
    table = architecture_of(config).parameters(config)
    places = {name: _parts(name, config) for name in table}
    for name, parts in places.items():
        for part in parts:
            _check(part, stored, name, table[name].shape)
    known = {part.name for parts in places.values() for part in parts}
    if extra := [name for name in stored if name not in known]:
        raise ValueError(f"{shown(extra[0])} is no tensor of {config.architecture} ({len(extra)} are not)")
    parameters = {}
    for name, parts in places.items():
        columns = []
        for part in parts:
            rows = torch.from_numpy(np.array(stored[part.name].read(file), np.float32))
            if not rows.isfinite().all():
                raise ValueError(f"{part.name} holds NaN or infinity")
            rows = _turned_back(rows, part.turned)
            columns.append(rows.T if _is_block_matrix(name, table[name].shape) else rows)
        parameters[name] = torch.cat(columns, -1).contiguous()
    return parameters


def _check(part: _Part, stored: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...]) -> None:
    if part.name not in stored:
        raise ValueError(f"{part.name} is missing")
    expected = (part.width, shape[0]) if _is_block_matrix(name, shape) else shape
    if stored[part.name].shape != expected:
        raise ValueError(f"{part.name} is of the shape {stored[part.name].shape}, its keys ask for {expected}")
