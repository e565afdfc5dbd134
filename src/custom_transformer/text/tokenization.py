"""Tokenizers, trained or loaded, and text packed with them into flat token arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from custom_transformer.config import MAX_VOCAB_SIZE, DataParams
from custom_transformer.errors import UserError, brief, shown
from custom_transformer.files import atomic_write, check_regular, sha256_file, staged_folders, write_json, writing
from custom_transformer.progress import ProgressBar
from custom_transformer.text.documents import Piece, batches, document_count, log2_prob_sum, read_pieces
from custom_transformer.text.hub import Repository, Unreachable, offline
from custom_transformer.text.round_trip import RoundTrip, share
from custom_transformer.text.saved_tokenizer import load_tokenizer, vocabulary_size
from custom_transformer.text.tokenizer_files import TOKENIZER_FILES, local_tokenizer
from custom_transformer.text.tokens import META, token_dtype

if TYPE_CHECKING:  # transformers takes seconds to import
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_TOKEN = "<|endoftext|>"
SPLITS = ("train", "validation")
MAX_DEFINITION_BYTES = 128 << 20  # of a tokenizer.json
BATCH_PIECES, BATCH_BYTES = 1000, 2**21  # given to the encoder at once


# Tokenizers


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


# Packing


def tokenize(data: DataParams, raw: Path, tokenizer_out: Path, tokens_out: Path) -> dict[str, Any]:
    """Makes a tokenizer and packed tokens of the text in `raw` (train.parquet, validation.parquet, source.json).

    Writes the tokenizer's files, and train.bin, validation.bin and meta.json in `tokens_out`; returns meta.json's
    content. Both folders are moved into place when everything is written. Memory use does not grow with the text,
    except that one document is read whole. Raises UserError on damaged input, on a split without text, and on a
    tokenizer that loses text unless data.allow_lossy_tokenizer is set.
    """
    source = _source(raw / "source.json")
    sources = {split: raw / f"{split}.parquet" for split in SPLITS}
    for path in sources.values():
        document_count(path)  # finds a missing file before a tokenizer is trained
    with staged_folders(tokenizer_out, tokens_out) as (tokenizer_folder, tokens_folder):
        _save(build_tokenizer(data, _training_texts(sources["train"])), tokenizer_folder)
        tokenizer = load_tokenizer(tokenizer_folder)
        dtype = token_dtype(vocabulary_size(tokenizer))
        round_trip = RoundTrip(tokenizer.backend_tokenizer)

        def pack(path: Path, split: str) -> dict[str, Any]:
            return _pack(path, split, tokenizer, dtype, tokens_folder, round_trip, data)

        meta: dict[str, Any] = {
            "tokenizer": {
                "name": Path(data.tokenizer).name if local_tokenizer(data.tokenizer) else data.tokenizer,
                "sha256": sha256_file(tokenizer_folder / "tokenizer.json"),
                "vocab_size": vocabulary_size(tokenizer),
                "requested_vocab_size": data.vocab_size if data.tokenizer == "bpe" else None,
                "end_token": tokenizer.eos_token,
                "end_token_id": tokenizer.eos_token_id,
            },
            "dtype": dtype.name,
            "splits": {split: pack(path, split) for split, path in sources.items()},
            "source": source,
        }
        if source.get("kind") == "primer":  # a column of the same name in other text may hold anything
            for split, path in sources.items():
                meta["splits"][split]["log2_prob"] = log2_prob_sum(path)
        if (lost := round_trip.lost) is not None:
            meta["lost"] = lost
        write_json(tokens_folder / META, meta)
    return meta


def _training_texts(path: Path) -> Iterator[str]:
    documents = 0
    with ProgressBar("read for the tokenizer", document_count(path), "documents") as progress:
        for piece in read_pieces(path):
            yield piece.text
            documents += piece.ends_document
            if documents % BATCH_PIECES == 0:
                progress.update(documents)
        progress.update(documents)


def _pack(
    path: Path,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    dtype: np.dtype[Any],
    out: Path,
    round_trip: RoundTrip,
    data: DataParams,
) -> dict[str, Any]:
    """Writes the stream of one split to `out`; returns its entries in meta.json."""
    end = np.array([tokenizer.eos_token_id], dtype)
    documents = n_tokens = n_bytes = 0
    text = hashlib.sha256()
    target = out / f"{split}.bin"
    with atomic_write(target) as file, ProgressBar(f"tokenize {split}", document_count(path), "documents") as progress:
        file.write(end)
        for batch in batches(read_pieces(path), lambda piece: piece.n_bytes, BATCH_PIECES, BATCH_BYTES):
            for piece, ids in zip(batch, _encoded(tokenizer, batch, dtype, round_trip), strict=True):
                file.write(ids)
                n_bytes += piece.n_bytes
                text.update(piece.text.encode())
                if piece.ends_document:
                    file.write(end)
                    text.update(b"\xff")  # a byte that UTF-8 never contains
                    documents += 1
            if not data.allow_lossy_tokenizer and (lost := round_trip.lost) is not None:
                raise UserError(
                    f"data.tokenizer {data.tokenizer}: {round_trip.example}, {share(lost)} of the bytes so far are "
                    "lost; choose another (bpe and gpt2 lose nothing), or set data.allow_lossy_tokenizer: true"
                )
            progress.update(documents, f"{n_bytes / 1e6:,.0f} MB")
        n_tokens = file.tell() // dtype.itemsize
    if n_bytes == 0:
        raise UserError(f"{path}: {documents} documents and no text in them; give the {split} split some text")
    return {
        "documents": documents,
        "tokens": n_tokens,
        "bytes": n_bytes,
        "sha256": sha256_file(target),
        "text_sha256": text.hexdigest(),  # of the texts alone, not of the tokenizer
    }


def _encoded(
    tokenizer: PreTrainedTokenizerFast, batch: list[Piece], dtype: np.dtype[Any], round_trip: RoundTrip
) -> Iterator[np.ndarray]:
    """The ids of each piece, (n,) of `dtype`; the end token is never among them."""
    texts = [piece.text for piece in batch]
    try:
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        round_trip.add(texts, [encoding.ids for encoding in encodings])
    except Exception as error:  # the Rust library's bare Exception: text that this vocabulary cannot spell
        raise UserError(f"data.tokenizer: cannot encode the text ({brief(error)}); choose another") from None
    for encoding in encodings:
        ids = np.array(encoding.ids, dtype)
        if (ids == tokenizer.eos_token_id).any():
            raise UserError(
                f"data.tokenizer: a text holds {shown(tokenizer.eos_token)}, which this tokenizer cannot tell from the "
                "end of a text; choose another (bpe and gpt2 can)"
            )
        yield ids


def _source(path: Path) -> dict[str, Any]:
    """The download stage's record of the text's origin; empty for text that it did not write."""
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); run dvc repro --force download") from None
    if not isinstance(source, dict):
        raise UserError(f"{path}: not a JSON object; run dvc repro --force download")
    return source


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    with writing(folder):
        tokenizer.save_pretrained(folder)
