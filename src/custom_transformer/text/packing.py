"""Text packed into shards of tokens: by several processes, so that neither their number nor a kill changes a byte.

What is done stays in a work folder, whose name follows from everything that decides the result, until all is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, ReadWriteLock, Timeout

from custom_transformer.config import DataParams, validated
from custom_transformer.errors import UserError, shown
from custom_transformer.files import atomic_write, link_or_copy, sha256_file, staged_folders, write_json, writing
from custom_transformer.progress import ProgressBar
from custom_transformer.text.documents import document_count, log2_prob_sum, read_pieces
from custom_transformer.text.manifest import META, SPLITS, token_dtype
from custom_transformer.text.parts import Encoded, Encoding, Part, Stored, encode, encoded, parts_of, tokens_file
from custom_transformer.text.round_trip import Losses, added
from custom_transformer.text.rows import TOKENIZER_BYTES
from custom_transformer.text.saved_tokenizer import load_tokenizer, vocabulary_size
from custom_transformer.text.sources import Recorded, reading_of, streamed_files
from custom_transformer.text.streaming import Streamed
from custom_transformer.text.tokenization import build_tokenizer
from custom_transformer.text.tokenizer_files import local_tokenizer
from custom_transformer.text.workers import shared_out

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

_DECIDING_PACKAGES = ("tokenizers", "transformers", "datasets", "pyarrow")


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the parts, counted from 0."""

    index: int
    count: int

    @classmethod
    def of(cls, text: str) -> Share:
        """From "3/64"; raises UserError for anything else."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count) < 2**31):
            raise UserError(f"--share: {shown(text)} is no share; write 0/4, 1/4, 2/4 or 3/4 for the quarters")
        return cls(int(index), int(count))

    def among(self, parts: Sequence[Part]) -> Sequence[Part]:
        first, end = (i * len(parts) // self.count for i in (self.index, self.index + 1))
        return parts[first:end]


def tokenize(data: DataParams, raw: Path, tokenizer_out: Path, tokens_out: Path, work: Path) -> dict[str, Any]:
    """Makes a tokenizer and packed tokens of the text in `raw` (train.parquet, validation.parquet, source.json).

    Writes the tokenizer's files, and in `tokens_out` the shards and meta.json, whose content it returns. Both folders
    are moved into place when everything is written. Memory use does not grow with the text, except that one document
    is read whole. work: the folder of work folders. Raises UserError on damaged input, on a split without text, and on
    a tokenizer that loses text unless data.allow_lossy_tokenizer is set.
    """
    text = _Text(data, raw, work)
    with text.locked(alone=True):
        with staged_folders(tokenizer_out, tokens_out) as (tokenizer_folder, tokens_folder):
            tokenizer, made = text.tokenizer()
            done = text.encode(tokenizer, made, text.parts)
            shutil.copytree(text.tokenizer_folder, tokenizer_folder, dirs_exist_ok=True)
            splits = {split: _collected(split, done, made, tokens_folder) for split in SPLITS}
            meta = text.manifest(tokenizer, splits, added(facts.losses for facts in done.values()))
            write_json(tokens_folder / META, meta)
        shutil.rmtree(text.folder, ignore_errors=True)
    return meta


def tokenize_share(data: DataParams, raw: Path, work: Path, share: Share) -> tuple[int, int]:
    """Encodes one share of the text into its work folder, where `tokenize` finds it; returns the number of the share's
    parts, and of all. Raises UserError as `tokenize`."""
    text = _Text(data, raw, work)
    own = share.among(text.parts)
    with text.locked(alone=False):
        text.encode(*text.tokenizer(), own)
    return len(own), len(text.parts)


class _Text:
    """The text in `raw`, its parts, and the work folder of what is made of it."""

    def __init__(self, data: DataParams, raw: Path, work: Path):
        self._data, self.source = data, _source(raw / "source.json")
        self.paths = {split: raw / f"{split}.parquet" for split in SPLITS}
        for path in self.paths.values():
            document_count(path)  # finds a missing file before a tokenizer is trained
        # What is validated on is whole, so that the digest of its text does not depend on how the file is cut.
        validation = Part("validation", 0, Stored(self.paths["validation"], None))
        self.parts = [*self._training_parts(), validation]
        self.folder = work / self._key()
        self.tokenizer_folder = self.folder / "tokenizer"

    def _training_parts(self) -> list[Part]:
        if "streamed" not in self.source:
            return parts_of("train", self.paths["train"])
        source = Recorded.model_validate(self.source)
        reading = reading_of(self._data, len(source.files))
        column, alone, below = reading.column, reading.alone, source.validation_below
        texts = [Streamed(file, column, alone, below) for file in streamed_files(self._data, source)]
        return [Part("train", number, text) for number, text in enumerate(texts)]

    def _key(self) -> str:
        """Of everything that decides the result, except the content of a tokenizer that is not trained here."""
        deciding = {
            "code": [sha256_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))],
            "versions": [version(package) for package in _DECIDING_PACKAGES],
            "data": self._data.model_dump(mode="json"),
            "source": self.source,
            "text": [sha256_file(path) for path in self.paths.values()],
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def locked(self, alone: bool) -> Iterator[None]:
        """Shares work at the same time. A run that collects and removes the folder waits until it is alone."""
        with writing(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = ReadWriteLock(self.folder.with_suffix(".lock"))
        acquire = lock.acquire_write if alone else lock.acquire_read
        try:
            acquire(blocking=False)
        except Timeout:
            print("another process encodes the same text: waiting for its end", flush=True)
            acquire()
        try:
            yield
        finally:
            lock.release()

    def tokenizer(self) -> tuple[PreTrainedTokenizerFast, Path]:
        """The tokenizer, and the folder of the parts that it encodes, named by its digest and with its tokenizer.json.

        It is that of an earlier process, if it is one that is trained here and is whole; else a new one.
        """
        folder, digest_file = self.tokenizer_folder, self.folder / "tokenizer.sha256"
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # shares of one text begin at the same time
            definition = folder / "tokenizer.json"
            if self._data.tokenizer != "bpe" or not _is(definition, digest_file):
                with staged_folders(folder) as (made,), writing(made):
                    build_tokenizer(self._data, self._training_texts()).save_pretrained(made)
                with atomic_write(digest_file, "w") as file:
                    file.write(sha256_file(definition))
            parts = self.folder / sha256_file(definition)[:16]
            with writing(parts):
                parts.mkdir(exist_ok=True)
            link_or_copy(definition, parts / definition.name)
            return load_tokenizer(folder), parts

    def _training_texts(self) -> Iterator[str]:
        path = self.paths["train"]
        documents = n_bytes = 0
        with ProgressBar("read for the tokenizer", document_count(path), "documents") as progress:
            for piece in read_pieces(path):
                yield piece.text
                n_bytes += piece.n_bytes
                documents += piece.ends_document
                if piece.ends_document and n_bytes >= TOKENIZER_BYTES:
                    break
                if documents % 1000 == 0:
                    progress.update(documents)
            progress.update(documents)

    def encode(self, tokenizer: PreTrainedTokenizerFast, folder: Path, parts: Sequence[Part]) -> dict[Part, Encoded]:
        """What is in `folder` of these parts: what an earlier process has left, and the rest, encoded now."""
        encoding = Encoding(
            folder / "tokenizer.json",
            self._data.tokenizer,
            tokenizer.eos_token,
            tokenizer.eos_token_id,
            token_dtype(vocabulary_size(tokenizer)).str,
            self._data.allow_lossy_tokenizer,
        )
        done = {part: facts for part in parts if (facts := encoded(part, folder)) is not None}
        if done:
            print(f"{len(done):,} of {len(parts):,} parts of the text are there from before")
        rest = [part for part in parts if part not in done]
        n_bytes = 0
        with ProgressBar("tokenize", len(rest), "parts") as progress:
            for number, (part, facts) in enumerate(shared_out(partial(_encoded, encoding, folder), rest), 1):
                done[part] = facts
                n_bytes += facts.bytes
                progress.update(number, f"{n_bytes / 1e6:,.0f} MB")
        return done

    def manifest(
        self, tokenizer: PreTrainedTokenizerFast, splits: dict[str, dict[str, Any]], losses: Losses
    ) -> dict[str, Any]:
        """The content of meta.json; splits: what `_collected` returns for each."""
        name, trained = self._data.tokenizer, self._data.tokenizer == "bpe"
        if self.source.get("kind") == "primer":  # a column of the same name in other text may hold anything
            splits = {split: facts | {"log2_prob": log2_prob_sum(self.paths[split])} for split, facts in splits.items()}
        meta: dict[str, Any] = {
            "tokenizer": {
                "name": Path(name).name if local_tokenizer(name) else name,
                "sha256": sha256_file(self.tokenizer_folder / "tokenizer.json"),
                "vocab_size": vocabulary_size(tokenizer),
                "requested_vocab_size": self._data.vocab_size if trained else None,
                "end_token": tokenizer.eos_token,
                "end_token_id": tokenizer.eos_token_id,
            },
            "dtype": token_dtype(vocabulary_size(tokenizer)).name,
            "splits": splits,
            "source": self.source,
        }
        return meta if losses.of_all is None else meta | {"lost": losses.of_all}


def _is(file: Path, digest_file: Path) -> bool:
    """Whether the file is the one whose digest was written."""
    try:
        return sha256_file(file) == digest_file.read_text("utf-8")
    except (OSError, ValueError):
        return False


def _encoded(encoding: Encoding, folder: Path, part: Part) -> tuple[Part, Encoded]:
    return part, encode(part, encoding, folder)


def _collected(split: str, done: Mapping[Part, Encoded], folder: Path, out: Path) -> dict[str, Any]:
    """Puts those parts of a split that hold tokens into `out` as shards; returns the split's entries in meta.json."""
    shards: list[dict[str, Any]] = []
    for part in sorted((part for part in done if part.split == split), key=lambda part: part.number):
        facts = asdict(done[part])
        del facts["losses"]
        if facts["tokens"]:
            name = f"{split}-{len(shards):05}.bin"
            link_or_copy(tokens_file(part, folder), out / name)
            shards.append({"name": name, **facts})
    sums = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes")}
    if sums["bytes"] == 0:
        raise UserError(f"the {split} split has {sums['documents']} documents and no text in them; give it some text")
    digests = {key: _digest([shard[key] for shard in shards]) for key in ("sha256", "text_sha256")}
    return {**sums, **digests, "shards": shards}


def _digest(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


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
    if "streamed" in source:
        validated(Recorded, source, f"{path}: damaged, run dvc repro --force download")
    return source
