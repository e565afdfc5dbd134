"""GPT-2 there and here: the same logits, gradients and tokens; the same bytes; and what is refused by name."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from custom_transformer import CustomTransformer
from custom_transformer.errors import UserError
from custom_transformer.interchange import export_huggingface, from_huggingface, to_huggingface
from custom_transformer.interchange.export import with_tokenizer
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER, import_huggingface
from custom_transformer.maths.engine import READABLE
from custom_transformer.runs.checkpoint import load_checkpoint, save_checkpoint
from custom_transformer.runs.generation import generate
from custom_transformer.text.saved_tokenizer import load_tokenizer
from stages import export
from tests.helpers import MODERN, ROOT, random_model, random_tokens
from tests.text.making import make

LLAMA = {"architecture": "llama", "n_heads": 6, "d_model": 36, "rope_base": 100.0, "norm_eps": 1e-6}
VARIANTS = pytest.mark.parametrize(
    "changes",
    [
        {"tie_embeddings": True},
        {"tie_embeddings": True, "bias": False},
        {"tie_embeddings": False},
        {"tie_embeddings": False, "bias": False},
        LLAMA | {"tie_embeddings": True, "n_kv_heads": 2},
        LLAMA | {"tie_embeddings": False, "n_kv_heads": 1},
        LLAMA | {"tie_embeddings": False},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("made")
    make(folder)
    return load_tokenizer(folder / "tokenizer")


def model_of(tokenizer: Any, **changes: Any) -> CustomTransformer:
    return random_model(torch.float32, vocab_size=len(tokenizer), max_seq_len=24, **changes)


@pytest.fixture(scope="module")
def exported(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "huggingface"
    export_huggingface(model_of(tokenizer), tokenizer, folder, "# A card\n")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@VARIANTS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_logits_are_the_same_there_and_back(changes: dict[str, Any], dtype: torch.dtype, bound: float) -> None:
    model, tokens = random_model(dtype, **changes), random_tokens()
    expected = model.forward(tokens)
    theirs = in_float64(to_huggingface(model))
    assert isinstance(theirs, LlamaForCausalLM if "architecture" in changes else GPT2LMHeadModel)
    with torch.no_grad():
        found = theirs(tokens).logits
    assert found.dtype == dtype
    assert (found - expected).abs().max() < bound * expected.abs().max()
    again = from_huggingface(theirs)
    assert again.config == model.config.model_copy(update={"bias": True, "n_kv_heads": again.config.n_kv_heads})
    assert again.config.kv_heads == model.config.kv_heads
    same = with_zero_biases(model) if "bias" in changes else model
    assert torch.equal(again.forward(tokens), same.forward(tokens))


def in_float64(theirs: Any) -> Any:
    """transformers' Llama computes norms and angles in float32 whatever its dtype; here in float64."""
    if isinstance(theirs, LlamaForCausalLM) and theirs.dtype == torch.float64:
        for module in theirs.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = partial(
                    F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=module.variance_epsilon
                )
        size = theirs.config.hidden_size // theirs.config.num_attention_heads
        rates = theirs.config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)

        def turns(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            angles = torch.cat([position_ids[..., None] * rates] * 2, -1)
            return angles.cos(), angles.sin()

        theirs.model.rotary_emb.forward = turns
    return theirs


def with_zero_biases(model: Any) -> Any:
    """The same model with biases of 0, which are what the other library has in place of none."""
    zeros = random_model(model.dtype, tie_embeddings=model.config.tie_embeddings)
    zeros.load_state_dict(
        {name: model.parameters.get(name, torch.zeros(shape)) for name, (shape, _) in zeros.table.items()}
    )
    return zeros


@VARIANTS
def test_gradients_of_a_model_taken_over_are_autograds(changes: dict[str, Any]) -> None:
    theirs = in_float64(to_huggingface(random_model(**changes)))
    model, tokens, labels = from_huggingface(theirs), random_tokens(seed=1), random_tokens(seed=2)
    loss = model.loss(tokens, labels)
    model.loss_backward()
    logits = theirs(tokens).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = from_huggingface_gradients(theirs)
    assert gradients.keys() == model.gradients.keys()
    for name, gradient in model.gradients.items():
        assert (gradient - gradients[name]).abs().max() <= 1e-9 * gradient.abs().max(), name


def from_huggingface_gradients(theirs: Any) -> dict[str, torch.Tensor]:
    """Autograd's gradients under the names of ours, by a model whose weights are those gradients."""
    holder = type(theirs)(theirs.config).double()
    with torch.no_grad():
        for mine, other in zip(holder.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other.grad)
    return from_huggingface(holder).parameters


@pytest.mark.parametrize("changes", [{}, LLAMA | {"n_kv_heads": 3, "tie_embeddings": False}], ids=["gpt2", "llama"])
def test_transformers_loads_the_folder_and_says_the_same(
    changes: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    exported = tmp_path / "exported"
    export_huggingface(model_of(tokenizer, **changes), tokenizer, exported, "# A card\n")
    theirs, theirs_tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    model = from_huggingface(theirs)
    ids = theirs_tokenizer(theirs_tokenizer.eos_token + "The 3", return_tensors="pt").input_ids
    assert ids.tolist() == [[tokenizer.eos_token_id, *tokenizer.encode("The 3")]]
    expected = generate(model, ids, 20, temperature=0, eos_token_id=tokenizer.eos_token_id)
    found = theirs.generate(ids, max_length=20, do_sample=False)
    assert torch.equal(found, expected[:, : found.shape[1]])
    assert theirs_tokenizer.model_max_length == theirs.config.max_position_embeddings == 24
    assert (exported / "README.md").read_text() == "# A card\n"
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o644}


def test_equal_models_give_equal_bytes_and_replace_older_ones(exported: Path, tokenizer: Any, tmp_path: Path) -> None:
    model, folder = model_of(tokenizer), tmp_path / "again"
    folder.mkdir()
    (folder / "old").touch()
    export_huggingface(model, tokenizer, folder, "# A card\n")
    assert files(folder) == files(exported)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["again"]


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_a_folder_is_taken_over_with_its_tokenizer(exported: Path, tokenizer: Any, tmp_path: Path, form: str) -> None:
    source, theirs = tmp_path / "source", AutoModelForCausalLM.from_pretrained(exported)
    AutoTokenizer.from_pretrained(exported).save_pretrained(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["split_special_tokens"]  # which others leave out
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    if form == "bin":  # as old files are: with masks, and the tied head a second time
        theirs.config.save_pretrained(source)
        names = [f"transformer.h.{i}.attn.{name}" for i in (0, 1) for name in ("bias", "masked_bias")]
        masks = dict.fromkeys(names, torch.ones(1, 1, 24, 24))
        torch.save(theirs.state_dict() | masks, source / "pytorch_model.bin")
    else:
        theirs.save_pretrained(source, max_shard_size="20KB" if form == "sharded" else "5GB")
    import_huggingface(source, tmp_path / "here")
    checkpoint = load_checkpoint(tmp_path / "here" / CHECKPOINT)
    tokens = random_tokens(vocab_size=len(tokenizer))
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.build_model(engine=READABLE).forward(tokens), theirs(tokens).logits)
    ours = load_tokenizer(tmp_path / "here" / TOKENIZER)
    text = "The 3rd text says <|endoftext|> itself"
    assert ours.encode(text) == tokenizer.encode(text)


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def changed_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


MARK = "was here"  # what a pickle that is run leaves


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return (self.mark.touch, ())


def hostile(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"transformer.wte.weight": Evil(folder.parent / MARK)}, file, protocol=2)


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: "),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json: "),
    (changed_config(model_type="gpt_neox"), "a model of the type 'gpt_neox'"),
    (changed_config(activation_function="relu"), "activation_function is 'relu'"),
    (changed_config(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
    (changed_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    (changed_config(add_cross_attention=True), "add_cross_attention is True"),
    (changed_config(n_head=4), "n_embd (15) is no multiple of n_head (4)"),
    (changed_config(n_layer=0), "n_blocks"),
    (changed_config(n_embd="x"), "config.json: "),
    (changed_config(n_layer=3), "missing keys: transformer.h.2."),
    (changed_config(n_layer=1), "unexpected keys: transformer.h.1."),
    (changed_config(n_inner=23), "mismatched keys: ('transformer.h."),
    (changed_config(vocab_size=7), "mismatched keys: ('transformer.wte.weight"),
    (changed_config(tie_word_embeddings=False), "missing keys: lm_head.weight"),
    (changed_config(n_head=None), "config.json: "),
    (changed_weights(lambda state: state.pop("transformer.ln_f.bias")), "missing keys: transformer.ln_f.bias"),
    (changed_weights(lambda state: state.update(extra=torch.ones(2))), "unexpected keys: extra"),
    (
        changed_weights(lambda state: state["transformer.ln_f.bias"].fill_(float("nan"))),
        "transformer.ln_f.bias holds NaN",
    ),
    (truncated, "no weights that could be read"),
    (hostile, "no weights that could be read"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no weights that could be read"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer that could be read"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokenizer that could be read"),
]


@pytest.mark.parametrize(("spoil", "words"), WRONG, ids=[f"{i}-{words[:30]}" for i, (_, words) in enumerate(WRONG)])
def test_what_is_unusual_or_damaged_is_named_and_nothing_is_left(
    exported: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files(exported).items():
        (source / name).write_bytes(content)
    spoil(source)
    with pytest.raises(UserError) as refused:
        import_huggingface(source, tmp_path / "here")
    assert words in str(refused.value)
    assert str(source) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # MARK is not there either


LLAMA_THERE: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'linear'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"head_dim": 8}, r"head_dim \(8\) times num_attention_heads \(3\) is not hidden_size \(18\)"),
]


@pytest.mark.parametrize(("changes", "words"), LLAMA_THERE, ids=[words[:20] for _, words in LLAMA_THERE])
def test_a_llama_that_has_more_than_ours_is_refused(changes: dict[str, Any], words: str) -> None:
    sizes = {"hidden_size": 18, "intermediate_size": 22, "num_hidden_layers": 1, "num_attention_heads": 3}
    with pytest.raises(ValueError, match=words):
        from_huggingface(LlamaForCausalLM(LlamaConfig(vocab_size=37, **sizes | changes)))


MISTRAL = {"hidden_size": 18, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 3}


def test_a_mistral_is_a_llama_unless_attention_sees_a_window(tokenizer: Any, tmp_path: Path) -> None:
    sizes = MISTRAL | {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    theirs = MistralForCausalLM(MistralConfig(**sizes, sliding_window=None)).eval()
    model, tokens = from_huggingface(theirs), random_tokens(vocab_size=len(tokenizer))
    assert model.architecture.name == "llama"
    with torch.no_grad():
        torch.testing.assert_close(model.forward(tokens), theirs(tokens).logits)
    source = tmp_path / "source"
    theirs.save_pretrained(source)
    tokenizer.save_pretrained(source)
    import_huggingface(source, tmp_path / "here")
    ours = load_checkpoint(tmp_path / "here" / CHECKPOINT).build_model()
    assert torch.equal(ours.forward(tokens), model.forward(tokens))
    with pytest.raises(ValueError, match="sliding_window is 4096, here it is None"):
        from_huggingface(MistralForCausalLM(MistralConfig(**sizes, sliding_window=4096)))
    # A configuration that does not say means the library's default, which is a window.
    given = json.loads((source / "config.json").read_text())
    del given["sliding_window"]
    (source / "config.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match="sliding_window is 4096"):
        import_huggingface(source, tmp_path / "other")


@pytest.mark.parametrize("key", ["head_dim", "num_key_value_heads", "rope_parameters", "attention_dropout"])
def test_a_llama_s_configuration_may_leave_out_what_follows(key: str, tokenizer: Any, tmp_path: Path) -> None:
    model = model_of(tokenizer, **LLAMA | {"rope_base": 10_000.0})
    source, here = tmp_path / "source", tmp_path / "here"
    export_huggingface(model, tokenizer, source, "")
    path = source / "config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    import_huggingface(source, here)
    tokens = random_tokens(vocab_size=len(tokenizer))
    torch.testing.assert_close(load_checkpoint(here / CHECKPOINT).build_model().forward(tokens), model.forward(tokens))


def test_nothing_but_an_older_result_is_replaced(exported: Path, tmp_path: Path) -> None:
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("mine")
    full.mkdir()
    (full / "mine").touch()
    for folder in (file, full, exported, exported.parent):
        before = files(folder) if folder.is_dir() else {"": folder.read_bytes()}
        with pytest.raises(UserError, match="name another folder with --to"):
            import_huggingface(exported, folder)
        assert (files(folder) if folder.is_dir() else {"": folder.read_bytes()}) == before


def test_a_model_that_has_more_than_ours_is_refused_by_the_python_interface() -> None:
    small = {"n_positions": 13, "n_embd": 15, "n_layer": 2, "n_head": 3, "vocab_size": 37}
    with pytest.raises(ValueError, match="activation_function is 'silu'"):
        from_huggingface(GPT2LMHeadModel(GPT2Config(**small, activation_function="silu")))
    with pytest.raises(ValueError, match="float16"):
        from_huggingface(GPT2LMHeadModel(GPT2Config(**small)), dtype=torch.float16)


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the tokenizer has \d+ entries, the model 37"):
        export_huggingface(random_model(torch.float32), tokenizer, tmp_path / "model", "")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_an_architecture_that_no_other_tool_has_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", random_model(torch.float32, **MODERN), {})
    with pytest.raises(UserError, match="no other tool has the architecture modern; export one of gpt2, llama"):
        with_tokenizer(tmp_path / "best.pt")


def test_the_stage_says_that_it_exports_nothing_of_such_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8").replace("architecture: gpt2", "architecture: modern")
    (tmp_path / "params.yaml").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/export.py"])
    export.main()
    (file,) = (tmp_path / "models" / "huggingface").iterdir()
    assert "no other tool has the architecture modern" in file.read_text("utf-8")
    assert "nothing is exported: no other tool has the architecture modern" in capsys.readouterr().out
