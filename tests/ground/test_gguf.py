"""GGUF there and back: the same tensors, tokens and logits; the same bytes; and what is refused by name."""

from __future__ import annotations

import json
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from custom_transformer import CustomTransformer
from custom_transformer.__main__ import main
from custom_transformer.errors import UserError
from custom_transformer.files import StorageError
from custom_transformer.interchange import to_huggingface
from custom_transformer.interchange.gguf_files import FILE, export_gguf, import_gguf
from custom_transformer.interchange.gguf_header import read_header
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER
from custom_transformer.runs.checkpoint import load_checkpoint, save_checkpoint
from custom_transformer.text.saved_tokenizer import load_tokenizer
from tests.helpers import largest_file, random_model, random_tokens
from tests.text.making import make

LLAMA = {"architecture": "llama", "n_heads": 6, "d_model": 36, "rope_base": 100.0, "norm_eps": 1e-6}
VARIANTS = {
    "gpt2": {},
    "gpt2-untied-without-biases": {"tie_embeddings": False, "bias": False},
    "llama-groups": LLAMA | {"n_kv_heads": 2},
    "llama-untied": LLAMA | {"tie_embeddings": False},
}
TEXTS = [
    "The 3rd of 1,234 texts: it's ours, they'll see, I'd say WE'RE done.",
    "  two spaces,\ttab\n\n\nthree lines \r\n and trailing   ",
    "naïve café, 素朴な文, שלום, 🙂👩‍👩‍👧 e\u0301 \u00a0\u3000\u200b ½ ² ٣",
    "it says <|endoftext|> and <fact> itself",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("made")
    make(folder)
    return load_tokenizer(folder / "tokenizer")


def model_of(tokenizer: Any, **changes: Any) -> CustomTransformer:
    return random_model(torch.float32, **{"vocab_size": len(tokenizer), "max_seq_len": 24, **changes})


@pytest.fixture(scope="module")
def exported(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with groups and a head of its own."""
    folder = tmp_path_factory.mktemp("models") / "gguf"
    export_gguf(model_of(tokenizer, **LLAMA, n_kv_heads=2, tie_embeddings=False), tokenizer, folder)
    return folder / FILE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back(changes: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    model = model_of(tokenizer, **changes)
    export_gguf(model, tokenizer, tmp_path / "gguf")
    again = import_gguf(tmp_path / "gguf" / FILE, tmp_path / "here")
    explicit = {"bias": True, "n_kv_heads": model.config.kv_heads if "architecture" in changes else None}
    assert again.config == model.config.model_copy(update=explicit)
    for name, parameter in again.parameters.items():
        assert torch.equal(parameter, model.parameters.get(name, torch.zeros_like(parameter))), name
    checkpoint = load_checkpoint(tmp_path / "here" / CHECKPOINT)
    tokens = random_tokens(vocab_size=len(tokenizer))
    torch.testing.assert_close(checkpoint.build_model().forward(tokens), model.forward(tokens))
    ours = load_tokenizer(tmp_path / "here" / TOKENIZER, checkpoint.metadata["tokenizer"])
    assert [ours.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS
    assert (ours.eos_token_id, ours.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_gguf_s_own_reader_finds_llama_cpp_s_names_and_layouts(
    changes: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    """By the package's own table of names, and the order of rows in convert_hf_to_gguf.py of llama.cpp."""
    model = model_of(tokenizer, **changes)
    export_gguf(model, tokenizer, tmp_path / "gguf")
    reader = gguf.GGUFReader(tmp_path / "gguf" / FILE)
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    llama = "architecture" in changes
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if llama else gguf.MODEL_ARCH.GPT2, model.config.n_blocks)
    expected = {}
    for name, tensor in to_huggingface(model).state_dict().items():
        if name == "lm_head.weight" and model.config.tie_embeddings:
            continue
        rows = tensor.numpy()
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            rows = rows.T
        for part, heads in (("q_proj", model.config.n_heads), ("k_proj", model.config.kv_heads)):
            if part in name:
                rows = rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
        expected[names.get_name(name, (".weight", ".bias"))] = rows
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert np.array_equal(found[name], rows), name
    keys = {name: field.contents() for name, field in reader.fields.items()}
    kind = keys["general.architecture"]
    assert kind == ("llama" if llama else "gpt2")
    assert keys[f"{kind}.context_length"] == 24
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert keys["tokenizer.ggml.token_type"][tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    if llama:
        assert keys["llama.rope.freq_base"] == 100.0
        assert keys["llama.attention.head_count_kv"] == model.config.kv_heads


def test_equal_models_give_equal_bytes_and_replace_older_ones(exported: Path, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "old").touch()
    export_gguf(model_of(tokenizer, **LLAMA, n_kv_heads=2, tie_embeddings=False), tokenizer, folder)
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert (folder / FILE).read_bytes() == exported.read_bytes()


def test_the_command_line_writes_and_reads_the_file(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (Path(__file__).parents[2] / "params.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(Path("checkpoints/tokenizer"))
    save_checkpoint("checkpoints/best.pt", model := model_of(tokenizer), {})
    for arguments in (
        ("export", "--format", "gguf", "--config", str(params)),
        ("import", f"models/gguf/{FILE}", "--to", "taken_over"),
    ):
        monkeypatch.setattr(sys, "argv", ["custom_transformer", *arguments])
        main()
    found = load_checkpoint(Path("taken_over") / CHECKPOINT)
    assert found.config == model.config
    assert found.metadata["source"] == FILE
    assert capsys.readouterr().out.splitlines() == [
        f"{model.count_parameters():,} parameters; models/gguf",
        f"{model.count_parameters():,} parameters; taken_over/model.pt",
    ]


# ------------------------------------------------------------------------------------------------ tokenizers


def test_single_digits_added_words_and_ids_without_an_entry(tokenizer: Any, tmp_path: Path) -> None:
    """As SmolLM2's: digits one by one; a word that is never cut; another token at the beginning than at the end."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.add_tokens([AddedToken("<fact>", normalized=False)])
    backend.add_special_tokens([AddedToken("<|begin|>", special=True)])
    given = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token=tokenizer.eos_token, split_special_tokens=True
    )
    given.chat_template = "{{ messages[0]['content'] }}"
    export_gguf(model_of(given, vocab_size=len(given) + 3), given, tmp_path / "gguf")
    import_gguf(tmp_path / "gguf" / FILE, tmp_path / "here")
    ours = load_tokenizer(tmp_path / "here" / TOKENIZER)
    assert [ours.encode(text) for text in TEXTS] == [given.encode(text) for text in TEXTS]
    assert ours.tokenize("1234") == list("1234")
    assert ours.convert_tokens_to_ids("<fact>") in ours.encode(TEXTS[3])
    assert (ours.bos_token, ours.eos_token) == ("<|begin|>", tokenizer.eos_token)
    assert len(ours) == len(given)
    assert ours.chat_template == given.chat_template


def strip(definition: Any) -> None:
    """Adds an ordinary word that takes the spaces before it."""
    word = definition["added_tokens"][0] | {"id": 1, "special": False, "lstrip": True}
    definition["added_tokens"].append(word)


def other(change: Callable[[Any], object]) -> Callable[[Any], Any]:
    """The tokenizer with its definition changed."""

    def changed(tokenizer: Any) -> Any:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        change(definition)
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(definition)), eos_token=tokenizer.eos_token
        )

    return changed


FOREIGN: list[tuple[Callable[[Any], Any], str]] = [
    (other(lambda it: it["model"].update(ignore_merges=True)), "whose ignore_merges is True"),
    (other(lambda it: it["pre_tokenizer"].update(add_prefix_space=True)), "whose pre-tokenizer ('ByteLevel')"),
    (other(lambda it: it.update(pre_tokenizer={"type": "Whitespace"})), "whose pre-tokenizer ('Whitespace')"),
    (other(lambda it: it.update(normalizer={"type": "NFC"})), "whose normalizer is 'NFC'"),
    (other(lambda it: it["model"].update(merges=[])), "has no merges"),
    (other(strip), "depends on what stands beside it"),
]


@pytest.mark.parametrize(("change", "words"), FOREIGN, ids=[words[:30] for _, words in FOREIGN])
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(
    change: Callable[[Any], Any], words: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        export_gguf(model_of(tokenizer), change(tokenizer), tmp_path / "gguf")
    assert words in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_tokenizer_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "<|end|>": 1}, unk_token="a"))
    backend.normalizer = normalizers.Lowercase()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    with pytest.raises(UserError, match="whose model is 'WordLevel'"):
        export_gguf(model_of(words), words, tmp_path / "gguf")
    with pytest.raises(UserError, match=r"the tokenizer has \d+ entries, the model 37"):
        export_gguf(random_model(torch.float32), tokenizer, tmp_path / "gguf")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- quantised


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_numbers_in_fewer_bits_are_read(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model = model_of(tokenizer, **LLAMA | {"n_heads": 2, "d_model": 64, "d_ffn": 96})
    export_gguf(model, tokenizer, tmp_path / "gguf")
    quantised, expected = gguf.GGMLQuantizationType[kind], {}

    def stored(name: str, tensor: np.ndarray) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
        if tensor.ndim == 1:
            return tensor, gguf.GGMLQuantizationType.F32
        packed = gguf.quantize(tensor, quantised)
        expected[name] = gguf.dequantize(packed, quantised)
        return packed, quantised

    rewrite(tmp_path / "gguf" / FILE, tmp_path / "small.gguf", stored=stored)
    again = import_gguf(tmp_path / "small.gguf", tmp_path / "here")
    table = again.parameters["token_embedding"]
    assert np.array_equal(table.numpy(), expected["token_embd.weight"])
    down = again.parameters["blocks.1.down.weight"]
    assert np.array_equal(down.T.numpy(), expected["blk.1.ffn_down.weight"])
    assert (down - model.parameters["blocks.1.down.weight"]).abs().max() < 0.1


# --------------------------------------------------------------------------------- what is damaged or unusual


def rewrite(
    source: Path,
    target: Path,
    keys: Callable[[dict[str, Any]], object] = len,
    tensors: Callable[[dict[str, np.ndarray]], object] = len,
    stored: Callable[[str, np.ndarray], tuple[np.ndarray, Any]] = lambda _, tensor: (tensor, None),
) -> None:
    """Writes a GGUF file anew with its keys and tensors changed."""
    with source.open("rb") as file:
        fields, found = read_header(file)
        arrays = {name: tensor.read(file) for name, tensor in found.items()}
    keys(fields)
    tensors(arrays)
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture", ""))
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in fields.items():
        if type(value) in add:
            add[type(value)](key, value)
        else:
            writer.add_array(key, value if isinstance(value, list) else value.tolist())
    for name, array in arrays.items():
        data, kind = stored(name, np.ascontiguousarray(array))
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def keyed(**changes: Any) -> dict[str, Callable[[dict[str, Any]], object]]:
    """Keys changed, `__` for a dot; None: left out."""

    def change(fields: dict[str, Any]) -> None:
        for name, value in changes.items():
            fields[name.replace("__", ".")] = value
            if value is None:
                del fields[name.replace("__", ".")]

    return {"keys": change}


def listed(name: str, change: Callable[[Any], object]) -> dict[str, Callable[[dict[str, Any]], object]]:
    """A list of the tokenizer changed."""
    return {"keys": lambda fields: change(fields[f"tokenizer.ggml.{name}"])}


def held(change: Callable[[dict[str, np.ndarray]], object]) -> dict[str, Any]:
    return {"tensors": change}


def fill(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.attn_k.weight"] = np.full_like(tensors["blk.1.attn_k.weight"], np.nan)


WRONG: list[tuple[dict[str, Any], str]] = [
    (keyed(general__architecture="qwen2"), "general.architecture is 'qwen2'"),
    (keyed(general__type="adapter"), "general.type is 'adapter'"),
    (keyed(split__count=2), "split.count is 2"),
    (keyed(llama__rope__scaling__type="linear"), "llama.rope.scaling.type is 'linear', here it is 'none'"),
    (keyed(llama__rope__scaling__factor=2.0), "llama.rope.scaling.factor is 2.0, which this project has not"),
    (keyed(llama__attention__sliding_window=8), "llama.attention.sliding_window is 8, which this project has not"),
    (keyed(llama__expert_count=4), "llama.expert_count is 4"),
    (keyed(llama__attention__key_length=8), "llama.attention.key_length is 8, here it is 6"),
    (keyed(llama__rope__dimension_count=4), "llama.rope.dimension_count is 4, here it is 6"),
    (keyed(llama__vocab_size=7), "llama.vocab_size is 7"),
    (keyed(llama__attention__layer_norm_rms_epsilon=None), "llama.attention.layer_norm_rms_epsilon is missing"),
    (keyed(llama__block_count=None), "llama.block_count is missing"),
    (keyed(llama__block_count="2"), "n_blocks"),
    (keyed(llama__block_count=0), "n_blocks"),
    (keyed(llama__block_count=2_000_000_000), "its keys name 2000000000 blocks, it holds 21 tensors"),
    (keyed(llama__block_count=3), "blk.2.attn_norm.weight is missing"),
    (keyed(llama__block_count=1), "'blk.1.attn_norm.weight' is no tensor of llama (9 are not)"),
    (keyed(llama__attention__head_count=5), "d_model (36) must be a multiple of n_heads (5)"),
    (keyed(llama__attention__head_count_kv=4), "n_heads (6) must be a multiple of n_kv_heads (4)"),
    (keyed(llama__attention__head_count_kv=3), "blk.0.attn_k.weight is of the shape (12, 36), its keys ask"),
    (keyed(llama__feed_forward_length=23), "blk.0.ffn_gate.weight is of the shape (22, 36), its keys ask for (23, 36)"),
    (keyed(general__alignment=3), "general.alignment is 3, no power of two"),
    (keyed(tokenizer__ggml__model="llama"), "tokenizer.ggml.model is 'llama', here it is gpt2"),
    (keyed(tokenizer__ggml__pre="llama-bpe"), "tokenizer.ggml.pre is 'llama-bpe', here it is gpt-2 or smollm"),
    (keyed(tokenizer__ggml__pre=None), "tokenizer.ggml.pre is None"),
    (keyed(tokenizer__ggml__eos_token_id=None), "tokenizer.ggml.eos_token_id is missing"),
    (keyed(tokenizer__ggml__eos_token_id=4000), "tokenizer.ggml.eos_token_id is 4000, which is no entry"),
    (keyed(tokenizer__ggml__merges="a b"), "tokenizer.ggml.merges: not a list of pairs"),
    (listed("tokens", list.pop), "entries, the model has"),
    (listed("tokens", lambda tokens: tokens.__setitem__(5, tokens[6])), "stands there twice"),
    (listed("merges", lambda merges: merges.append("absent never")), "tokenizer.ggml.merges: "),
    (keyed(tokenizer__ggml__token_type=np.ones(3, np.int32)), "tokenizer.ggml.token_type: 3 entries, the model has"),
    (held(fill), "blk.1.attn_k.weight holds NaN or infinity"),
    (held(lambda tensors: tensors.pop("output_norm.weight")), "output_norm.weight is missing"),
    (held(lambda tensors: tensors.pop("token_embd.weight")), "token_embd.weight is missing"),
    (held(lambda tensors: tensors.update({"rope_freqs.weight": np.ones(3, np.float32)})), "'rope_freqs.weight' is no"),
    (held(lambda tensors: tensors.update({"blk.0.attn_q.bias": np.ones(36, np.float32)})), "'blk.0.attn_q.bias' is no"),
]


def refusal(source: Path, folder: Path) -> str:
    """The one line; nothing may be left where the model would be."""
    with pytest.raises(UserError) as refused:
        import_gguf(source, folder)
    assert str(refused.value).startswith(f"{source}: ")
    assert "\n" not in str(refused.value)
    assert not folder.exists()
    return str(refused.value)


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[f"{i}-{words[:30]}" for i, (_, words) in enumerate(WRONG)])
def test_what_is_unusual_or_damaged_is_named(
    exported: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    rewrite(exported, tmp_path / FILE, **changes)
    assert words in refusal(tmp_path / FILE, tmp_path / "here")


def test_a_gpt2_with_another_epsilon_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    export_gguf(model_of(tokenizer), tokenizer, tmp_path / "gguf")
    rewrite(tmp_path / "gguf" / FILE, tmp_path / FILE, **keyed(gpt2__attention__layer_norm_epsilon=1e-6))
    words = "gpt2.attention.layer_norm_epsilon is 1e-06, here it is 1e-05"
    assert words in refusal(tmp_path / FILE, tmp_path / "here")


def test_a_tied_head_that_is_repeated_stays_tied(tokenizer: Any, tmp_path: Path) -> None:
    export_gguf(model_of(tokenizer), tokenizer, tmp_path / "gguf")
    rewrite(
        tmp_path / "gguf" / FILE,
        tmp_path / FILE,
        tensors=lambda tensors: tensors.update({"output.weight": tensors["token_embd.weight"]}),
    )
    assert import_gguf(tmp_path / FILE, tmp_path / "here").config.tie_embeddings


def test_a_file_cut_short_anywhere_is_refused(exported: Path, tmp_path: Path) -> None:
    content, path = exported.read_bytes(), tmp_path / FILE
    for length in (0, 3, 4, 8, 20, 24, 30, 100, *range(1000, len(content), len(content) // 30), len(content) - 40):
        path.write_bytes(content[:length])
        assert "cut short" in refusal(path, tmp_path / "here")


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


HUGE = 2**62
HOSTILE: dict[str, tuple[bytes, str]] = {
    "another magic": (b"GGML" + bytes(60), "does not begin as a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "huge counts": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, HUGE) + bytes(60), "stands there twice"),
    "huge number of tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "cut short"),
    "huge text": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + bytes(60), "cut short"),
    "huge list of numbers": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 5, HUGE) + bytes(60),
        "cut short",
    ),
    "huge list of texts": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, HUGE) + bytes(60),
        "cut short",
    ),
    "list of lists": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 4) * 20,
        "a value of type 9",
    ),
    "unknown type": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 77), "a value of type 77"),
    "huge dimensions": (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0) + bytes(60),
        "cut short: 'a' ends after byte",
    ),
    "many dimensions": (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<I", 2**31) + bytes(60),
        "2147483648 dimensions",
    ),
    "unknown kind of numbers": (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<IQIQ", 1, 1, 999, 0) + bytes(60),
        "stored as type 999",
    ),
    "rows that no block fits": (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99),
        "rows of 33 numbers cannot be stored as Q8_0",
    ),
    "tensors in one place": (
        b"GGUF"
        + struct.pack("<IQQ", 3, 99, 0)
        + b"".join(text(f"{i:02}") + struct.pack("<IQIQ", 1, 256, 0, 0) for i in range(99))
        + bytes(2000),
        "declare more bytes than the file holds",
    ),
    "not text": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(9), "utf-8"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_takes_no_memory(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    tracemalloc.start()
    assert words in refusal(path, tmp_path / "here")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_no_space_and_foreign_targets_leave_what_was_there(exported: Path, tokenizer: Any, tmp_path: Path) -> None:
    model, full = model_of(tokenizer), tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    for write in (lambda: export_gguf(model, tokenizer, full), lambda: import_gguf(exported, tmp_path / "here")):
        with largest_file(20_000), pytest.raises(StorageError, match="raise the limit"):
            write()
    with pytest.raises(UserError, match="name another folder with --to"):
        import_gguf(exported, full)
    assert [path.name for path in full.iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["full"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="File exists; move it away"):
        export_gguf(model, tokenizer, tmp_path / "file" / "gguf")
