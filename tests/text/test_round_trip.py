"""Tokenizers that do not give text back: what is refused, how much is lost, and what is no loss."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from custom_transformer.errors import UserError
from custom_transformer.text.round_trip import RoundTrip, in_common
from custom_transformer.text.tokens import load_tokens
from tests.text.making import make

PROSE = ["The cat sat on the mat.\nIt said: “Déjà vu!”", "the end  of 12 lines"] * 20
PLAIN = ["the cat sat on the mat", "a dog and a cat sat"] * 20  # lower case, single spaces


def trained(tokenizer: Tokenizer, trainer: Any, texts: list[str] = PROSE + PLAIN) -> Tokenizer:
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def all_unknown() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def lower_case() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False))


def characters(without: str = "", unknown: str | None = None) -> Tokenizer:
    """A character a token; those of `without` are dropped, or become `unknown`."""
    entries = sorted(set("".join(PROSE + PLAIN)) - set(without))
    vocabulary = {entry: i for i, entry in enumerate([*entries, *([unknown] if unknown else [])])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def one_space() -> Tokenizer:
    """Runs of white space become one space, as T5 has it."""
    tokenizer = characters()
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    return tokenizer


def no_accents() -> Tokenizer:
    tokenizer = characters()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    return tokenizer


LOSSY: dict[str, Callable[[], Tokenizer]] = {
    "all unknown": all_unknown,
    "lower case": lower_case,
    "rare characters dropped": lambda: characters("à"),
    "rare characters unknown": lambda: characters("à", "?"),
    "spaces dropped": lambda: characters(" "),
    "white space normalised": one_space,
    "accents stripped": no_accents,
}


def file_of(tokenizer: Tokenizer, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


@pytest.mark.parametrize("kind", LOSSY)
def test_a_tokenizer_that_loses_text_is_refused_and_what_was_there_stays(tmp_path: Path, kind: str) -> None:
    before = make(tmp_path, {"train": PROSE, "validation": PROSE})
    with pytest.raises(
        UserError, match=r"data\.tokenizer .*: .* comes back as .* lost; .*allow_lossy_tokenizer"
    ) as error:
        make(tmp_path, {"train": PROSE, "validation": PROSE}, tokenizer=file_of(LOSSY[kind](), tmp_path / "t"))
    assert "\n" not in str(error.value)
    assert json.loads((tmp_path / "tokens/meta.json").read_text()) == before


@pytest.mark.parametrize("kind", LOSSY)
def test_where_it_is_allowed_the_loss_is_stated(tmp_path: Path, kind: str) -> None:
    texts = {"train": PROSE, "validation": PLAIN}
    meta = make(tmp_path, texts, tokenizer=file_of(LOSSY[kind](), tmp_path / "t"), allow_lossy_tokenizer=True)
    assert 0 < meta["lost"] < 1
    for split in texts:  # it is the tokenizer's, also where a split happens to come back
        assert load_tokens(tmp_path / "tokens", split).meta["lost"] == meta["lost"]


@pytest.mark.parametrize("rare", ["train", "validation"])
def test_one_character_in_many_texts_is_found(tmp_path: Path, rare: str) -> None:
    texts = {"train": PLAIN * 200, "validation": PLAIN * 200}
    texts[rare] = [*texts[rare], "the mat: à la carte".replace(":", "")]
    with pytest.raises(UserError, match=r"à la cart.* comes back as"):
        make(tmp_path, texts, tokenizer=file_of(characters("à"), tmp_path / "t"))


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=150, show_progress=False))


def spaced_bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))


@pytest.mark.parametrize("tokenizer", [characters, metaspace, spaced_bytes])
def test_one_that_loses_nothing_is_taken(tmp_path: Path, tokenizer: Callable[[], Tokenizer]) -> None:
    long = " ".join(PROSE * 200)  # cut in several pieces
    meta = make(
        tmp_path, {"train": [*PROSE, long], "validation": PLAIN}, tokenizer=file_of(tokenizer(), tmp_path / "t")
    )
    assert "lost" not in meta


def test_the_share_is_that_of_the_bytes_that_come_back() -> None:
    round_trip = RoundTrip(characters("t"))
    texts = ["that", "a cat"]
    round_trip.add(texts, [round_trip._tokenizer.encode(text).ids for text in texts])
    assert round_trip.losses.of_all == 3 / 9
    assert round_trip.example == "'that' comes back as 'ha'"


def test_of_much_text_a_part_is_measured() -> None:
    tokenizer = characters("t")
    round_trip = RoundTrip(tokenizer)
    texts = ["that " * 2000] * 100
    round_trip.add(texts, [encoding.ids for encoding in tokenizer.encode_batch(texts)])
    assert round_trip.losses.of_all == pytest.approx(2 / 5)


def test_what_two_sequences_have_in_common() -> None:
    def by_table(a: bytes, b: bytes) -> int:
        row = [0] * (len(b) + 1)
        for x in a:
            before, row = row, [0]
            for j, y in enumerate(b):
                row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
        return row[-1]

    draw = random.Random(0)
    for _ in range(300):
        a, b = (bytes(draw.choices(b"abcd", k=draw.randrange(70))) for _ in range(2))
        assert in_common(a, b) == by_table(a, b)
