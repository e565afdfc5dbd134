"""Hostile files and values by name: nothing runs, memory stays bounded, and the user reads one line."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from custom_transformer.config import load_params
from custom_transformer.errors import UserError, one_line
from custom_transformer.pages.samples import samples_markdown
from custom_transformer.runs.checkpoint import load_checkpoint, save_checkpoint
from custom_transformer.runs.generation import Sample
from custom_transformer.text import local_files
from custom_transformer.text.datasets import download
from custom_transformer.text.tokenization import build_tokenizer
from custom_transformer.text.tokens import load_tokens
from tests.faults.originals import META, TOKENS, saved
from tests.helpers import checkpoint_content, random_model
from tests.processes import run
from tests.text.making import data

PARAMS = Path("params.yaml").read_text()
MEMORY = 1 << 30  # that reading any of the files here may take beyond what the process had


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def refused(read: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read()
    line = one_line(error.value)
    assert line.isprintable()
    assert len(line) < 1000


# ------------------------------------------------------------------------------------------- parameters


def bomb(first: str, item: str) -> str:
    """Twenty levels, each of nine times the one before."""
    levels = "".join(f", &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 20))
    return f"[&b0 {first}{levels}, {item}]"


HOSTILE_PARAMS = {
    "an alias bomb": (PARAMS.replace("1337", bomb("[1, 1]", "*b19")), "stands for more than a word"),
    "a merge bomb": (
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20)),
        "stands for more than a word",
    ),
    "a list that holds itself": ("&a [*a]", "stands for more than a word"),
    "a long word a second time": (
        PARAMS.replace("primer  ", "&a " + "x" * 1000).replace("bpe  ", "*a"),
        "write it out",
    ),
    "300 KB": (PARAMS + "#" * 300_000, "larger than 256 KiB"),
    "5,000 digits": (PARAMS.replace("1337", "9" * 5000), "4300 digits"),
    "50,000 hexadecimal digits": (PARAMS.replace("1337", "0x" + "9" * 50_000), "seed: .* too large to show"),
    "a size beyond any memory": (PARAMS.replace("d_model: 128", "d_model: " + "128" * 100), "less than 2147483648"),
    "an integer without digits": (PARAMS.replace("1337", "!!int ''"), "not valid YAML"),
    "a boolean that is none": (PARAMS.replace("1337", "!!bool perhaps"), "not valid YAML"),
    "a time that is none": (PARAMS.replace("1337", "!!timestamp now"), "not valid YAML"),
    "an object": (PARAMS.replace("1337", "!!python/object/apply:os.system ['touch executed']"), "not valid YAML"),
    "a list as a key": ("? [a]\n: 1\n", "unhashable"),
    "a zero byte": ("seed: 1\0", "not valid YAML"),
    "a key of escapes": (PARAMS + '\n"\\e[31m\\ud800": 1\n', "unable to parse"),
}


@pytest.mark.parametrize("case", HOSTILE_PARAMS)
def test_hostile_parameters(tmp_path: Path, case: str) -> None:
    text, words = HOSTILE_PARAMS[case]
    (tmp_path / "params.yaml").write_text(text)
    refused(lambda: load_params(tmp_path / "params.yaml"), words)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "key", ["dataset", "revision", "text_column", "train_split", "val_split", "tokenizer", "experiment", "uri"]
)
@pytest.mark.parametrize("value", [r'"a\e[31mb"', r'"a\nb"', r'"a\0b"', r'"a\ud800"'])
def test_a_name_of_control_characters_or_half_a_character(tmp_path: Path, key: str, value: str) -> None:
    lines = [line.split(":")[0] + f": {value}" if f" {key}:" in line else line for line in PARAMS.splitlines()]
    (tmp_path / "params.yaml").write_text("\n".join(lines))
    refused(lambda: load_params(tmp_path / "params.yaml"), rf"\.{key}: .*(control characters|unable to parse)")


def test_an_alias_may_stand_for_a_number(tmp_path: Path) -> None:
    text = PARAMS.replace("max_length: 128", "max_length: &length 64").replace(
        "max_seq_len: 128", "max_seq_len: *length"
    )
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").model.max_seq_len == 64


# ------------------------------------------------------------------------------------------ checkpoints


def with_pickle(pickled: bytes) -> bytes:
    source, target = zipfile.ZipFile(io.BytesIO(saved(checkpoint_content()))), io.BytesIO()
    with zipfile.ZipFile(target, "w") as out:
        for name in source.namelist():
            out.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()


def with_value(part: str, key: Any, value: Any) -> bytes:
    edited = checkpoint_content()
    edited[part][key] = value
    return saved(edited)


def doubled(levels: int) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def same_storage() -> bytes:
    """A hundred blocks of weights that are one block's."""
    edited = checkpoint_content()
    state = edited["state_dict"]
    first = {name: p for name, p in state.items() if name.startswith("blocks.0.")}
    for i in range(100):
        state |= {name.replace(".0.", f".{i}.", 1): p for name, p in first.items()}
    edited["config"]["n_blocks"] = 100
    return saved(edited)


def old_format_before_an_archive() -> bytes:
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(checkpoint_content(), old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(new, "w") as out:
        out.writestr("archive/data.pkl", b"")
    return old.getvalue() + new.getvalue()


def entry_twice(times: int) -> bytes:
    buffer = io.BytesIO(saved(checkpoint_content()))
    with zipfile.ZipFile(buffer, "a") as out:
        out.filelist += [copy.copy(out.filelist[-1]) for _ in range(times)]
        out.comment = b" "  # so that the list is written again
    return buffer.getvalue()


TEN_BILLION = b"\x8a\x05" + (10**10).to_bytes(5, "little")
HOSTILE_CHECKPOINTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lists that hold one another twice": (lambda: with_value("metadata", "a", doubled(60)), "refused"),
    "the same in the configuration": (lambda: with_value("config", "d_ffn", doubled(60)), "refused"),
    "an array of ten billion bytes": (
        lambda: with_pickle(b"\x80\x02c__builtin__\nbytearray\n" + TEN_BILLION + b"\x85R."),
        "refused",
    ),
    "a key of 400,000 tuples": (lambda: with_pickle(b"\x80\x02})" + b"\x85" * 400_000 + b"K\x01s."), "refused"),
    "lists 300,000 deep": (
        lambda: with_pickle(
            pickle.dumps({"state_dict": {}, "config": {}}, 2)[:-2]
            + b"X\x08\0\0\0metadata}X\x01\0\0\0a"
            + b"]" * 300_000
            + b"a" * 299_999
            + b"su."
        ),
        "plain values|damaged",
    ),
    "five million bytes of pickle": (lambda: with_pickle(b"\x80\x02]" + b"}0" * (5 << 19) + b"."), "refused"),
    "another pickle protocol": (lambda: with_pickle(pickle.dumps({}, 4)), "refused"),
    "a tensor as metadata": (lambda: with_value("metadata", "step", torch.ones(3)), r"metadata\.step"),
    "an ordered dictionary as metadata": (lambda: with_value("metadata", "a", OrderedDict()), r"metadata\.a"),
    "a list as dtype": (lambda: with_value("config", "dtype", [1]), r"config\.dtype \[1\]"),
    "a huge dtype": (lambda: with_value("config", "dtype", "\x1b\ud800" * 10_000), r"config\.dtype"),
    "a truth value as a size": (lambda: with_value("config", "vocab_size", True), "vocab_size"),
    "a size beyond any memory": (lambda: with_value("config", "vocab_size", 10**12), "vocab_size"),
    "NaN in the configuration": (lambda: with_value("config", "dropout", float("nan")), "dropout"),
    "a number as a name": (lambda: with_value("state_dict", 3, torch.ones(1)), "3 is unknown"),
    "a name of escapes": (lambda: with_value("state_dict", "\x1b[31m\ud800" * 1000, torch.ones(1)), "is unknown"),
    "a sparse tensor": (lambda: with_value("state_dict", "final_norm.weight", torch.ones(15).to_sparse()), "refused"),
    "a tensor of no data": (
        lambda: with_value("state_dict", "final_norm.weight", torch.ones(15, device="meta")),
        "refu",
    ),
    "complex numbers": (lambda: with_value("state_dict", "final_norm.weight", torch.ones(15) * 1j), "refused"),
    "8-bit floats": (
        lambda: with_value("state_dict", "final_norm.weight", torch.ones(15).to(torch.float8_e4m3fn)),
        "refused",
    ),
    "half precision": (lambda: with_value("state_dict", "final_norm.weight", torch.ones(15).half()), "torch.float32"),
    "infinity as float32": (
        lambda: with_value("state_dict", "final_norm.weight", torch.full((15,), 1e300, dtype=torch.float64)),
        "torch.float32",
    ),
    "one storage for a hundred blocks": (same_storage, "more numbers than the file holds"),
    "the old format with an archive behind": (old_format_before_an_archive, "refused"),
    "one entry a thousand times": (lambda: entry_twice(1000), "other files than torch.save"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("case", HOSTILE_CHECKPOINTS)
def test_hostile_checkpoints(tmp_path: Path, case: str) -> None:
    make, words = HOSTILE_CHECKPOINTS[case]
    (tmp_path / "model.pt").write_bytes(make())
    refused(lambda: load_checkpoint(tmp_path / "model.pt").build_model(), words)


def test_metadata_that_holds_a_list_twice_can_be_loaded_again(tmp_path: Path) -> None:
    shared = [1, 2]
    save_checkpoint(tmp_path / "model.pt", random_model(), {"a": shared, "b": shared})
    assert load_checkpoint(tmp_path / "model.pt").metadata == {"a": [1, 2], "b": [1, 2]}


# --------------------------------------------------------------------------------------------- tokens

HOSTILE_META = {
    "a negative count": ({"splits": {"train": {"tokens": -1}}}, "tokens"),
    "a fraction": ({"splits": {"train": {"tokens": 10.0}}}, "tokens"),
    "infinity": ({"splits": {"train": {"tokens": float("inf")}}}, "tokens"),
    "text as a count": ({"splits": {"train": {"bytes": "30"}}}, "bytes"),
    "no bytes": ({"splits": {"train": {"bytes": 0}}}, "bytes"),
    "no split": ({"splits": {"train": None}}, "splits.train"),
    "no digest": ({"splits": {"train": {"sha256": None}}}, "sha256"),
    "a probability that is none": ({"splits": {"train": {"log2_prob": None}}}, "log2_prob"),
    "a huge vocabulary": ({"tokenizer": {"vocab_size": 10**30}}, "vocab_size"),
    "a list as a name": ({"tokenizer": {"name": [1]}}, "name"),
    "a list as dtype": ({"dtype": [1]}, "dtype"),
    "escapes as dtype": ({"dtype": "\x1b[31m\ud800"}, "dtype"),
}


def merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: merged(base.get(key), value) for key, value in changes.items()}


@pytest.mark.parametrize("case", HOSTILE_META)
def test_hostile_facts_of_tokens(tmp_path: Path, case: str) -> None:
    changes, words = HOSTILE_META[case]
    (tmp_path / "train-00000.bin").write_bytes(TOKENS)
    (tmp_path / "meta.json").write_text(json.dumps(merged(META, changes)))
    refused(lambda: load_tokens(tmp_path, "train"), f"damaged.*{words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 100_000, "damaged"), ("[]", "damaged"), ("9" * 5000, "damaged"), (" " * (33 << 20), "larger than")],
    ids=["deep", "a list", "5,000 digits", "33 MB"],
)
def test_token_facts_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "meta.json").write_text(text)
    refused(lambda: load_tokens(tmp_path, "train"), words)


# ------------------------------------------------------------------------------------------- tokenizers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    build_tokenizer(data(vocab_size=300), ["hello world"] * 9).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_tokenizer_of_a_huge_id(tokenizer: Path) -> None:
    definition = json.loads((tokenizer / "tokenizer.json").read_text())
    definition["model"]["vocab"]["zzz"] = 2**31
    (tokenizer / "tokenizer.json").write_text(json.dumps(definition))
    refused(lambda: build_tokenizer(data(tokenizer=str(tokenizer)), []), "ids up to 2,147,483,648")


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_that_brings_code(tokenizer: Path, where: str) -> None:
    ran = tokenizer / "ran"
    (tokenizer / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    known = json.loads(path.read_text()) if (path := tokenizer / where).exists() else {"model_type": "evil"}
    auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    path.write_text(json.dumps(known | {"auto_map": auto, "tokenizer_class": "Evil"}))
    try:
        build_tokenizer(data(tokenizer=str(tokenizer)), [])
    except UserError as error:
        assert one_line(error).isprintable()
    assert not ran.exists()


# ------------------------------------------------------------------------------------------ local data


HOSTILE_DATA: dict[str, tuple[str, bytes, str]] = {
    "lists 100,000 deep": ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 100_000, "not JSON"),
    "an open quote": ("a.csv", b'text\n"abc\nd\ne\n', "unexpected end"),
    "a user that does not exist": ("~nobody-of-that-name/a.txt", b"", "no such user"),
}


@pytest.mark.parametrize("case", HOSTILE_DATA)
def test_hostile_data(tmp_path: Path, case: str) -> None:
    name, content, words = HOSTILE_DATA[case]
    path = name if name.startswith("~") else tmp_path / name
    if path != name:
        (tmp_path / name).write_bytes(content)
    refused(lambda: download(data(dataset=str(path)), 0, tmp_path / "raw"), words)
    assert not list(tmp_path.glob("raw/*")) + list(tmp_path.glob("raw/.*"))


def test_a_record_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line break stands between quotes, and no field is long."""
    monkeypatch.setattr(local_files, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.csv").write_bytes(b'text\n"' + b'a\n","' * (1 << 18))
    refused(lambda: download(data(dataset=str(tmp_path / "a.csv")), 0, tmp_path / "raw"), "is a quote open")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_one_line_of_a_gigabyte(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(b"text\n" if name == "a.csv" else b'{"text": "')
        for _ in range(64):
            file.write(b"x" * (16 << 20))
    refused(lambda: download(data(dataset=str(tmp_path / name)), 0, tmp_path / "raw"), "longer than 64 MiB")


def test_a_gigabyte_that_was_compressed_to_a_megabyte(tmp_path: Path) -> None:
    with pa.output_stream(str(tmp_path / "a.txt.gz"), compression="gzip") as file:
        for _ in range(64):
            file.write(b" " * (16 << 20))
    refused(lambda: download(data(dataset=str(tmp_path / "a.txt.gz")), 0, tmp_path / "raw"), "0 document")


@pytest.mark.parametrize("name", ["/dev/zero", "/etc/passwd", "../../../../../../etc/passwd", ".."])
def test_names_that_are_no_text(tmp_path: Path, name: str) -> None:
    refused(lambda: download(data(dataset=name), 0, tmp_path / "raw"), "no such file|cannot be read as text")


# --------------------------------------------------------------------------- what is printed and written


def test_samples_of_control_characters_stay_readable() -> None:
    sample = Sample("a\x1b[2J\n# b", "a\x1b[2J\n# b\r\x85c\x9b31m\u2028d\td", 3, True)
    page = samples_markdown([sample], load_params("params.yaml").generation)
    assert "## `a\\x1b[2J # b`\n" in page
    assert page.endswith("\n```text\na\\x1b[2J\n# b\\r\\x85c\\x9b31m\\u2028d\td\n```\n")


def test_what_is_shown_does_not_disturb_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import show

    monkeypatch.setattr(show, "METRICS", tmp_path)
    monkeypatch.setattr(show, "Console", lambda **kwargs: Console(force_terminal=False, width=300, **kwargs))
    (tmp_path / "eval.json").write_text('{"loss": 1.0}')
    sample = Sample("[red]a\x1b]0;title\x07", "[red]a\x1b]0;title\x07 b\x1b[2J", 3, True)
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample.as_dict()))
    show.main()
    assert "[red]a\\x1b]0;title\\x07 b\\x1b[2J" in capsys.readouterr().out


@pytest.mark.processes
@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "a\udcff", "a" * 5000, ".", "/dev/zero", "pipe"])
@pytest.mark.parametrize("option", ["--config", "--checkpoint"])
def test_a_file_named_oddly_on_the_command_line(tmp_path: Path, option: str, name: str) -> None:
    if name == "pipe":
        name = str(tmp_path / "pipe")
        os.mkfifo(name)
    done = run("-m", "stages.evaluate", option, name)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_a_value_that_many_rows_repeat_stays_one(tmp_path: Path) -> None:
    text = "x" * (20 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int8()), [text])
    pq.write_table(pa.table({"body": ["a"] * 100, "text": repeated}), tmp_path / "a.parquet")
    refused(
        lambda: download(data(dataset=str(tmp_path / "a.parquet"), text_column="none"), 0, tmp_path / "raw"),
        "no such column; there are body, text",
    )
