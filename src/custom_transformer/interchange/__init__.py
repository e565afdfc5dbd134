"""Models to the transformers library and from it: the same tensors under other names, and the same choices.

What this project has no word for is refused by name, so that a model that was taken over computes what it computed
before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import UserError, shown
from custom_transformer.files import sha256_file, staged_folders, writing
from custom_transformer.interchange.forms import FORMS
from custom_transformer.maths.architecture import ARCHITECTURES
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.checkpoint import DTYPES
from custom_transformer.text.saved_tokenizer import vocabulary_size

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM, PreTrainedTokenizerFast


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


def from_huggingface(
    theirs: GPT2LMHeadModel | LlamaForCausalLM | MistralForCausalLM, dtype: torch.dtype | None = None
) -> CustomTransformer:
    """The same model here, in evaluation mode. dtype: of its products; None: that of its parameters, at least float32.

    Raises ValueError, naming what it is, for a model that has something that this project has not.
    """
    dtype = dtype or torch.promote_types(theirs.dtype, torch.float32)
    if dtype not in DTYPES.values():
        raise ValueError(f"a model in {dtype}; this project has {', '.join(DTYPES)}")
    config = config_of(theirs.config.to_dict())
    form, state = FORMS[theirs.config.model_type], theirs.state_dict()
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


def config_of(theirs: Mapping[str, Any]) -> CustomTransformerConfig:
    """Ours for the content of a config.json. Raises ValueError, naming what this project has not."""
    kind = theirs.get("model_type")
    if kind not in FORMS:
        raise ValueError(f"a model of the type {shown(kind)}; this project has {', '.join(FORMS)}")
    form = FORMS[kind]
    for key, allowed in form.only.items():
        if theirs[key] not in allowed:
            raise ValueError(f"{key} is {shown(theirs[key])}, here it is {' or '.join(map(repr, allowed))}")
    return CustomTransformerConfig(
        architecture=form.architecture,
        vocab_size=theirs["vocab_size"],
        tie_embeddings=theirs["tie_word_embeddings"],
        **{our: theirs[their] for our, their in form.keys.items()} | form.config(theirs),
    )


def quiet() -> None:
    """No warnings and no progress bars of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def export_huggingface(
    model: CustomTransformer,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    card: str,
    add_files: Callable[[Path], None] | None = None,
) -> None:
    """Writes `folder` as from_pretrained reads it: configuration, safetensors, tokenizer, and `card` as README.md.

    SHA256SUMS has the digest of every file, as `sha256sum -c` reads them. add_files: writes further files into the
    folder that it is given, which takes the place of an older one once it is whole. Equal models give equal bytes. In
    the written tokenizer the words of the end token are the end token, as other tools expect; here a text that says
    them goes on.

    Raises UserError for a tokenizer of another vocabulary, StorageError for a folder that cannot be written.
    """
    check_vocabulary(tokenizer, model.config)
    quiet()
    theirs = to_huggingface(model, tokenizer.eos_token_id)
    with staged_folders(folder) as (staged,), writing(folder, staged):
        theirs.save_pretrained(staged)
        save_tokenizer(tokenizer, staged, model.config.max_seq_len)
        (staged / "README.md").write_text(card, "utf-8")
        if add_files is not None:
            add_files(staged)
        files = sorted(file for file in staged.rglob("*") if file.is_file())
        sums = "".join(f"{sha256_file(file)}  {file.relative_to(staged).as_posix()}\n" for file in files)
        (staged / "SHA256SUMS").write_text(sums, "utf-8")
        for file in (*files, staged / "SHA256SUMS"):
            file.chmod(0o644)  # safetensors makes a file that only its owner reads


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, max_seq_len: int) -> None:
    """Writes the tokenizer as other tools expect it: the words of the end token are the end token."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.split_special_tokens = False
    tokenizer.model_max_length = max_seq_len
    for key in ("is_local", "local_files_only"):  # say where it was loaded from here
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: CustomTransformerConfig) -> None:
    """Raises UserError for a tokenizer with more entries than a model of `config` has."""
    if (size := vocabulary_size(tokenizer)) > config.vocab_size:
        raise UserError(f"the tokenizer has {size} entries, the model {config.vocab_size}; give the model's own")


def check_target(folder: Path, written: Sequence[str], source: Path | None = None) -> None:
    """Raises UserError where writing `folder` anew would lose what is no older result of the same command: a file, a
    folder without the names in `written`, or one that holds `source`."""
    if source is not None and source.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: holds {source}, which would be lost; name another folder with --to")
    if folder.is_dir() and (not any(folder.iterdir()) or all((folder / name).exists() for name in written)):
        return
    if folder.exists():
        raise UserError(f"{folder}: exists, and is not what this command writes; name another folder with --to")
