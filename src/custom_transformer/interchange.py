"""GPT-2 as the transformers library has it: the same tensors under other names, and the same choices.

Linear weights stand as (D_in, D_out) in both, and queries, keys and values side by side. What this project has no word
for is refused by name, so that a model that was taken over computes what it computed before.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.files import staged_folders
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.checkpoint import DTYPES, save_checkpoint
from custom_transformer.text.tokenization import vocabulary_size

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

CHECKPOINT, TOKENIZER = "model.pt", "tokenizer"  # the names in the folder of an imported model

_NAMES = {
    "token_embedding": "transformer.wte.weight",
    "position_embedding": "transformer.wpe.weight",
    "final_norm": "transformer.ln_f",
    "head.weight": "lm_head.weight",
}
_NAMES_IN_BLOCK = {
    "norm_1": "ln_1",
    "qkv": "attn.c_attn",
    "projection": "attn.c_proj",
    "norm_2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
# What GPT-2's configuration may hold otherwise, and the only values that the mathematics here has.
_ONLY: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Old files hold the causal mask of each block, and the tied head again.
_MASKS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")


def _their_name(name: str) -> str:
    """blocks.0.qkv.weight -> transformer.h.0.attn.c_attn.weight"""
    if name in _NAMES:
        return _NAMES[name]
    if not name.startswith("blocks."):
        layer, _, kind = name.rpartition(".")
        return f"{_NAMES[layer]}.{kind}"
    _, block, layer, kind = name.split(".")
    return f"transformer.h.{block}.{_NAMES_IN_BLOCK[layer]}.{kind}"


def to_huggingface(model: CustomTransformer, eos_token_id: int | None = None) -> GPT2LMHeadModel:
    """The same model as transformers' class, in evaluation mode: equal logits, parameters of equal dtype, copied.

    eos_token_id: begins and ends a text. Absent biases are zeros. Raises ValueError for another architecture.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if model.architecture is not GPT2:
        raise ValueError(f"transformers has no class here for the architecture {model.architecture.name}")
    config = model.config
    theirs: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.d_model,
            n_layer=config.n_blocks,
            n_head=config.n_heads,
            n_inner=config.d_ffn,
            activation_function="gelu_new",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            layer_norm_epsilon=1e-5,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=eos_token_id,
            eos_token_id=eos_token_id,
            dtype=model.parameter_dtype,
        )
    )
    with_biases = GPT2.parameters(config.model_copy(update={"bias": True}))
    theirs = theirs.to(model.parameter_dtype)
    state = {
        _their_name(name): model.parameters.get(name, torch.zeros(shape)).to("cpu", model.parameter_dtype, copy=True)
        for name, (shape, _) in with_biases.items()
    }
    if config.tie_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    theirs.load_state_dict(state)
    return theirs.eval()


def from_huggingface(theirs: GPT2LMHeadModel, dtype: torch.dtype | None = None) -> CustomTransformer:
    """The same model here, in evaluation mode. dtype: of its products; None: that of its parameters.

    Raises ValueError, naming what it is, for a model that has something that this project has not.
    """
    config = _config(theirs.config.to_dict())
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    dtype = dtype or torch.promote_types(theirs.dtype, torch.float32)
    model = CustomTransformer(config, dtype=dtype)
    if model.dtype not in DTYPES.values():
        raise ValueError(f"a model in {dtype}; this project has {', '.join(DTYPES)}")
    model.load_state_dict(_our_state(state, model.table))
    model.training = False
    return model


def _config(theirs: Mapping[str, Any]) -> CustomTransformerConfig:
    if (kind := theirs.get("model_type")) != "gpt2":
        raise ValueError(f"a model of the type {shown(kind)}; this project has gpt2")
    for key, allowed in _ONLY.items():
        if theirs[key] not in allowed:
            raise ValueError(f"{key} is {shown(theirs[key])}, here it is {' or '.join(map(repr, allowed))}")
    if theirs["n_embd"] % theirs["n_head"]:
        raise ValueError(f"n_embd ({theirs['n_embd']}) is no multiple of n_head ({theirs['n_head']})")
    dropouts = {theirs[key] for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return CustomTransformerConfig(
        vocab_size=theirs["vocab_size"],
        max_seq_len=theirs["n_positions"],
        n_blocks=theirs["n_layer"],
        n_heads=theirs["n_head"],
        d_model=theirs["n_embd"],
        d_ffn=theirs["n_inner"] or 4 * theirs["n_embd"],
        dropout=float(dropouts.pop()) if len(dropouts) == 1 else 0.0,
        tie_embeddings=theirs.get("tie_word_embeddings", True),
    )


def _our_state(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Every parameter of ours. Raises ValueError for one that is missing or not finite, and for others' extra heads."""
    ours = {}
    for name in names:
        if (tensor := state.get(_their_name(name))) is None:
            raise ValueError(f"{_their_name(name)} is missing")
        if not tensor.isfinite().all():
            raise ValueError(f"{_their_name(name)} holds NaN or infinity")
        ours[name] = tensor
    taken = {_their_name(name) for name in names}
    if extra := [name for name in state if name not in taken and not name.endswith(_MASKS)]:
        raise ValueError(f"{shown(extra[0])} is no parameter of GPT-2 ({len(extra)} are not)")
    return ours


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def export_huggingface(model: CustomTransformer, tokenizer: PreTrainedTokenizerFast, folder: Path, card: str) -> None:
    """Writes `folder` as from_pretrained reads it: configuration, safetensors, tokenizer, and `card` as README.md.

    An older folder is replaced once the new one is whole. Equal models give equal bytes. In the written tokenizer the
    words of the end token are the end token, as other tools expect; here a text that says them goes on.

    Raises UserError for a tokenizer of another vocabulary, StorageError for a folder that cannot be written.
    """
    if (size := vocabulary_size(tokenizer)) > model.config.vocab_size:
        raise UserError(f"the tokenizer has {size} entries, the model {model.config.vocab_size}; give the model's own")
    _quiet()
    theirs, tokenizer = to_huggingface(model, tokenizer.eos_token_id), copy.deepcopy(tokenizer)
    tokenizer.split_special_tokens = False
    tokenizer.model_max_length = model.config.max_seq_len
    for key in ("is_local", "local_files_only"):  # say where it was loaded from here
        tokenizer.init_kwargs.pop(key, None)
    with staged_folders(folder) as (staged,):
        theirs.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        (staged / "README.md").write_text(card, "utf-8")
        for file in staged.iterdir():
            file.chmod(0o644)  # safetensors makes a file that only its owner reads


def import_huggingface(source: Path, folder: Path) -> CustomTransformer:
    """Writes the model and the tokenizer in the folder `source` as `folder`/model.pt and `folder`/tokenizer/.

    Raises UserError, naming the file and what is wrong, for what is damaged, missing or unusual.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a folder with config.json and model.safetensors")
    try:
        config = json.loads((source / "config.json").read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
        _config(GPT2Config().to_dict() | config)
    except FileNotFoundError:
        raise UserError(f"{source}: no config.json there; give a folder that save_pretrained wrote") from None
    except (ValueError, TypeError) as error:  # pydantic's and JSON's errors are ValueErrors too
        raise UserError(f"{source / 'config.json'}: {one_line(error)}") from None
    _quiet()
    try:
        loaded: Any = GPT2LMHeadModel.from_pretrained(
            source, local_files_only=True, output_loading_info=True, dtype="auto"
        )
        theirs, info = loaded
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(str(key) for key in info[what] if not str(key).endswith(_MASKS)):
                raise ValueError(f"{what.replace('_', ' ')}: {keys[0]}")
        model = from_huggingface(theirs)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{source}: no weights of GPT-2 that could be read ({one_line(error)[:200]})") from None
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise UserError(f"{source}: no tokenizer that could be read ({one_line(error)[:200]})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{source}: its tokenizer has no end token; name one as eos_token in tokenizer_config.json")
    if vocabulary_size(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {vocabulary_size(tokenizer)} entries, the model {model.config.vocab_size}"
        )
    tokenizer.split_special_tokens = True  # a text that says <|endoftext|> does not end there
    with staged_folders(folder) as (staged,):
        tokenizer.save_pretrained(staged / TOKENIZER)
        save_checkpoint(staged / CHECKPOINT, model, {"source": source.name})
    return model
