"""Tokenizers, trained or loaded, as the pipeline uses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from custom_transformer.config import MAX_VOCAB_SIZE, DataParams
from custom_transformer.errors import UserError, brief
from custom_transformer.files import check_regular
from custom_transformer.text.hub import Repository, Unreachable, offline
from custom_transformer.text.tokenizer_files import TOKENIZER_FILES, local_tokenizer

if TYPE_CHECKING:  # transformers takes seconds to import
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_TOKEN = "<|endoftext|>"
MAX_DEFINITION_BYTES = 128 << 20  # of a tokenizer.json


def build_tokenizer(data: DataParams, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that `data.tokenizer` names; `texts` are read only to train "bpe".

    A name other than "bpe" is a local folder or tokenizer.json file, or else a Hub id; the result is `plain`.
    Raises UserError if nothing has that name, or it is not a fast tokenizer.
    """
    if data.tokenizer == "bpe":
        return _trained(data.vocab_size, texts)
    return _loaded(data.tokenizer)


def plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same vocabulary and the same splitting, as the pipeline uses and saves it, whatever its own settings are.

    It neither truncates nor pads, and reads a special token that is spelt out in a text as text. Its eos_token ends a
    document: the tokenizer's own, else its sep_token, else <|endoftext|>, added if there is no such entry.
    """
    names = tokenizer.special_tokens_map
    end = names.get("eos_token") or names.get("sep_token") or END_TOKEN
    return _wrapped(tokenizer.backend_tokenizer, names | {"eos_token": end})


def _trained(vocab_size: int, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's pattern (Radford et al. 2019): the entries of the 256 bytes cover any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    entries = backend.get_vocab_size()
    if entries < vocab_size:
        print(f"data.vocab_size: the training split gives a vocabulary of {entries:,} entries, not {vocab_size:,}")
    return _wrapped(backend, {"bos_token": END_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN})


def _wrapped(backend: Tokenizer, special_tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the generic class, saved as `backend` and a few names, without paths or another model's limits.

    It sets no model_max_length: that belongs to a model, not to a vocabulary.
    """
    from transformers import PreTrainedTokenizerFast

    backend.no_truncation()
    backend.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, split_special_tokens=True, clean_up_tokenization_spaces=False, **special_tokens
    )


def _loaded(name: str) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = local_tokenizer(name) or _fetched(name)
    definition = path / "tokenizer.json" if path.is_dir() else path
    try:
        if definition.exists():
            _check_definition(definition)
        tokenizer = (
            PreTrainedTokenizerFast(tokenizer_file=str(path))
            if path.is_file()
            else AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        )
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"data.tokenizer: {name!r} is no fast tokenizer: it needs a tokenizer.json; choose another")
        return plain(tokenizer)
    except UserError:
        raise
    except Exception as error:  # the libraries' various errors for missing, damaged or foreign files
        raise UserError(
            f"data.tokenizer: no fast tokenizer can be loaded from {name!r}, its tokenizer.json is missing or damaged "
            f"({brief(error)})"
        ) from None


def _check_definition(path: Path) -> None:
    """Refuses a definition for which transformers would fill the memory with a list as long as the largest id."""
    from tokenizers import Tokenizer

    check_regular(path)
    if path.stat().st_size > MAX_DEFINITION_BYTES:
        raise UserError(f"{path}: larger than {MAX_DEFINITION_BYTES >> 20} MiB; choose another tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    entries = tokenizer.get_vocab(with_added_tokens=False)
    if len(set(entries.values())) < len(entries):  # a copy of such a tokenizer fails, or ends the process
        raise UserError(f"{path}: damaged, two entries have the same id; fetch or make it anew")
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= MAX_VOCAB_SIZE:
        raise UserError(f"{path}: has ids up to {largest:,}, beyond {MAX_VOCAB_SIZE:,}; choose another tokenizer")


def _fetched(name: str) -> Path:
    """The folder in the Hub's cache with a repository's tokenizer files, verified; those of an earlier run where the
    Hub cannot be reached."""
    repository = Repository("model", name, None, "data.tokenizer", "try again, or use bpe")
    try:
        commit, names = repository.listing()
        paths = repository.files(commit, [file for file in names if "/" not in file and _is_wanted(file)])
    except Unreachable:
        if (folder := repository.cached(None, list(TOKENIZER_FILES))) is None:
            raise
        for path in folder.iterdir():
            if _is_wanted(path.name):
                repository.intact(path)
        if not offline():
            print(f"data.tokenizer {name}: the Hub cannot be reached; its files in the cache are used")
        return folder
    if not paths:
        raise UserError(f"data.tokenizer {name}: has no tokenizer's files on the Hub; choose another")
    repository.remember(commit)
    return paths[0].parent


def _is_wanted(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in TOKENIZER_FILES)
