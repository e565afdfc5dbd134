"""Models to the transformers library and from it: the same tensors under other names, and the same choices.

What this project has no word for is refused by name, so that a model that was taken over computes what it computed
before.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.files import sha256_file, staged_folders
from custom_transformer.interchange.forms import FORMS
from custom_transformer.maths.architecture import ARCHITECTURES
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.checkpoint import DTYPES, save_checkpoint
from custom_transformer.text.tokenization import plain, vocabulary_size

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

CHECKPOINT, TOKENIZER = "model.pt", "tokenizer"  # the names in the folder of an imported model


def to_huggingface(model: CustomTransformer, eos_token_id: int | None = None) -> GPT2LMHeadModel | LlamaForCausalLM:
    """The same model as transformers' class, in evaluation mode: equal logits, parameters of equal dtype, copied.

    eos_token_id: begins and ends a text. GPT-2's absent biases are zeros. Raises ValueError for an architecture that is
    not in ARCHITECTURES.
    """
    import transformers

    name, config = model.architecture.name, model.config
    if model.architecture is not ARCHITECTURES.get(name) or name not in FORMS:
        raise ValueError(f"transformers has no class here for the architecture {name}")
    form = FORMS[name]
    model_class: Any = getattr(transformers, form.model_class)
    settings: dict[str, Any] = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}
    settings |= {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id, "dtype": model.parameter_dtype}
    settings |= {their: getattr(config, our) for our, their in form.keys.items()} | form.settings(config)
    theirs = model_class(model_class.config_class(**settings)).to(model.parameter_dtype)
    theirs.load_state_dict(form.state(model.parameters, config))
    return theirs.eval()


def from_huggingface(theirs: GPT2LMHeadModel | LlamaForCausalLM, dtype: torch.dtype | None = None) -> CustomTransformer:
    """The same model here, in evaluation mode. dtype: of its products; None: that of its parameters, at least float32.

    Raises ValueError, naming what it is, for a model that has something that this project has not.
    """
    dtype = dtype or torch.promote_types(theirs.dtype, torch.float32)
    if dtype not in DTYPES.values():
        raise ValueError(f"a model in {dtype}; this project has {', '.join(DTYPES)}")
    config = _config(theirs.config.to_dict())
    form, state = FORMS[config.architecture], theirs.state_dict()
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")
    try:
        parameters = form.parameters(state, config)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None
    known = form.state(parameters, config)
    if extra := [name for name in state if name not in known and not name.endswith(form.ignored)]:
        raise ValueError(f"{shown(extra[0])} is no parameter of {config.architecture} ({len(extra)} are not)")
    model = CustomTransformer(config, dtype=dtype)
    model.load_state_dict(parameters)
    return model


def _config(theirs: Mapping[str, Any]) -> CustomTransformerConfig:
    kind = theirs.get("model_type")
    if kind not in FORMS:
        raise ValueError(f"a model of the type {shown(kind)}; this project has {', '.join(FORMS)}")
    form = FORMS[kind]
    for key, allowed in form.only.items():
        if theirs[key] not in allowed:
            raise ValueError(f"{key} is {shown(theirs[key])}, here it is {' or '.join(map(repr, allowed))}")
    return CustomTransformerConfig(
        architecture=kind,
        vocab_size=theirs["vocab_size"],
        tie_embeddings=theirs["tie_word_embeddings"],
        **{our: theirs[their] for our, their in form.keys.items()} | form.config(theirs),
    )


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


def check_target(folder: Path, written: Sequence[str], source: Path) -> None:
    """Raises UserError where writing `folder` anew would lose what is no older result of the same command: a file, a
    folder without the names in `written`, or one that holds `source`."""
    if source.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: holds {source}, which would be lost; name another folder with --to")
    if folder.is_dir() and (not any(folder.iterdir()) or all((folder / name).exists() for name in written)):
        return
    if folder.exists():
        raise UserError(f"{folder}: exists, and is not what this command writes; name another folder with --to")


def import_huggingface(source: Path, folder: Path) -> CustomTransformer:
    """Writes the model and the tokenizer in the folder `source` as `folder`/model.pt and `folder`/tokenizer/.

    Raises UserError, naming the file and what is wrong, for what is damaged, missing or unusual.
    """
    import transformers

    if not source.is_dir():
        raise UserError(f"{source}: no such folder; a model on the Hub must be downloaded first (hf download)")
    check_target(folder, (CHECKPOINT, TOKENIZER), source)
    _quiet()
    try:
        given = json.loads((source / "config.json").read_text("utf-8"))
        if not isinstance(given, dict):
            raise ValueError("it holds no object")
        # What is not there has the library's defaults, some of which follow from what is.
        known = given.get("model_type") in FORMS
        complete = type(transformers.AutoConfig.for_model(given["model_type"])).from_dict(given) if known else None
        config = _config(given if complete is None else complete.to_dict())
    except FileNotFoundError:
        raise UserError(f"{source}: no config.json there; give a folder that save_pretrained wrote") from None
    except Exception as error:  # values of any kind may stand there
        raise UserError(f"{source / 'config.json'}: {one_line(error)[:200]}") from None
    form = FORMS[config.architecture]
    try:
        theirs, info = getattr(transformers, form.model_class).from_pretrained(
            source, local_files_only=True, output_loading_info=True, dtype="auto", ignore_mismatched_sizes=True
        )
        borne = {"missing_keys": ("lm_head.weight",) if config.tie_embeddings else (), "unexpected_keys": form.ignored}
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if keys := sorted(str(key) for key in info[what] if not str(key).endswith(borne.get(what, ()))):
                raise ValueError(f"{what.replace('_', ' ')}: {keys[0]}")
        model = from_huggingface(theirs)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{source}: no weights that could be read ({one_line(error)[:200]})") from None
    try:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise UserError(f"{source}: no tokenizer that could be read ({one_line(error)[:200]})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{source}: its tokenizer has no end token; name one as eos_token in tokenizer_config.json")
    if (size := vocabulary_size(tokenizer)) > model.config.vocab_size:
        raise UserError(f"{source}: the tokenizer has {size} entries, the model {model.config.vocab_size}")
    tokenizer = plain(tokenizer)  # the very file that the pipeline makes of it, by whose digest the two are compared
    with staged_folders(folder) as (staged,):
        tokenizer.save_pretrained(staged / TOKENIZER)
        digest = sha256_file(staged / TOKENIZER / "tokenizer.json")
        save_checkpoint(staged / CHECKPOINT, model, {"source": source.resolve().name, "tokenizer": digest})
    return model
