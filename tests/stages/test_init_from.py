"""Training that begins from a checkpoint: one taken over from transformers, by the stage's own functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from custom_transformer import CustomTransformer
from custom_transformer.config import Params, load_params, validated
from custom_transformer.errors import UserError
from custom_transformer.interchange.imported import import_huggingface
from custom_transformer.maths.engine import READABLE
from custom_transformer.paths import CHECKPOINTS, METRICS
from custom_transformer.plain_yaml import load_yaml
from custom_transformer.runs.assembly import build_model, build_trainer
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.runs.work_folder import WorkFolder
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokens import load_tokens
from stages.train import fingerprint_of, resume, run_to_end, write_outputs
from tests.helpers import ROOT
from tests.text.making import make

CPU = torch.device("cpu")
SECTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2", "bias": True},
    "llama": {"architecture": "llama", "n_kv_heads": 1, "rope_base": 500.0, "norm_eps": 1e-6},
}
SIZES = {"d_model": 24, "n_blocks": 2, "n_heads": 2, "d_ffn": 28, "max_seq_len": 32, "tie_embeddings": True}
EXTRA = 5  # entries of the models' vocabularies that the tokenizer has not


def theirs_of(kind: str, vocab_size: int) -> GPT2LMHeadModel | LlamaForCausalLM:
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_inner": 28}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes)).eval()
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 28, "max_position_embeddings": 32}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = LlamaConfig(
        vocab_size=vocab_size, rms_norm_eps=1e-6, rope_parameters=rope, tie_word_embeddings=True, **sizes
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPT-2 and a Llama taken over from transformers, and tokens made with their tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    make(folder / "first")
    tokenizer = load_tokenizer(folder / "first/tokenizer")
    for kind in SECTIONS:
        theirs = theirs_of(kind, len(tokenizer) + EXTRA)
        theirs.save_pretrained(folder / "source" / kind)
        tokenizer.backend_tokenizer.enable_truncation(7)  # as in files of others; it is no part of the vocabulary
        tokenizer.save_pretrained(folder / "source" / kind)
        import_huggingface(folder / "source" / kind, folder / "models" / kind)
    make(folder / "data", tokenizer=str(folder / "models/llama/tokenizer"))
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, in which models/ and data/ are the world's."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("models", "data"):
        (tmp_path / name).symlink_to(world / name)
    return tmp_path


def params(kind: str = "llama", **changes: Any) -> Params:
    content = load_params(ROOT / "configs/smoke.yaml").model_dump(mode="json")
    content["data"]["max_length"] = 16
    content["model"] = SECTIONS[kind] | SIZES | {"dropout": 0.0}
    content["training"] |= {"init_from": f"models/{kind}/model.pt", "batch_size": 4, "max_steps": 12, "save_every": 3}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        content[section][key] = value
    return validated(Params, content, "test")


class Unlogged:
    """A run that logs nothing, and ends like a killed process at a step, if one is given."""

    def __init__(self, killed_at: int | None = None):
        self.killed_at = killed_at

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if step == self.killed_at:
            raise KeyboardInterrupt

    def flush(self) -> None:
        pass


def train(given: Params, run: Any = None) -> tuple[CustomTransformer, Any]:
    """What the stage does, but for MLflow."""
    splits = [load_tokens("data/tokens", split) for split in ("train", "validation")]
    meta = splits[0].meta
    model, begun_from = build_model(given, meta["tokenizer"], READABLE, CPU)
    with WorkFolder(Path("work"), fingerprint_of(given, meta | begun_from, READABLE, CPU)) as folder:
        trainer = build_trainer(given, model, begun_from, splits[0], splits[1], folder.checkpoints, folder.keep)
        resume(trainer, folder)
        run_to_end(trainer, folder, run or Unlogged())
        write_outputs(trainer, folder)
        folder.remove()
    return model, trainer


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_model_of_others_goes_on_learning(kind: str, world: Path) -> None:
    tokens, labels = load_tokens("data/tokens", "train").windows([0, 1], 16)
    theirs = type(theirs_of(kind, 1)).from_pretrained(world / "source" / kind)
    with torch.no_grad():
        before = F.cross_entropy(theirs(tokens).logits.flatten(0, 1), labels.flatten()).item()
    model, _ = build_model(params(kind), load_tokens("data/tokens", "train").meta["tokenizer"], READABLE, CPU)
    assert model.config.vocab_size == theirs.config.vocab_size
    assert model.loss(tokens, labels).item() == pytest.approx(before, rel=1e-5)

    trained, trainer = train(params(kind, model__dropout=0.1, training__recompute=True))
    assert trained.loss(tokens, labels).item() < before - 0.1
    assert trainer.optimizer.state["t"]["t"] == trainer.progress.step == 12
    assert trainer.progress.curve[0]["epoch"] == 1
    best = load_checkpoint(CHECKPOINTS / "best.pt")
    assert best.metadata["tokenizer"] == load_checkpoint(f"models/{kind}/model.pt").metadata["tokenizer"]
    assert best.metadata["init_from"] == trainer.origin["init_from"]


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in (CHECKPOINTS, METRICS) for path in (folder / name).glob("*.*")}


@pytest.mark.parametrize("killed_at", [2, 5, 12])
def test_a_killed_training_goes_on_from_where_it_was(here: Path, killed_at: int) -> None:
    train(params())
    undisturbed = results(here)
    with pytest.raises(KeyboardInterrupt):
        train(params(), Unlogged(killed_at))
    assert len(list(here.glob("work/*/state-*.pt"))) == min((killed_at - 1) // 3, 2)
    train(params())
    assert results(here) == undisturbed


def key(given: Params) -> str:
    meta = load_tokens("data/tokens", "train").meta
    _, begun_from = build_model(given, meta["tokenizer"], READABLE, CPU)
    return WorkFolder(Path("work"), fingerprint_of(given, meta | begun_from, READABLE, CPU)).path.name


def copied(change: Callable[[dict[str, Any]], object]) -> str:
    """The name of a copy of the Llama's checkpoint, changed."""
    content = torch.load("models/llama/model.pt", weights_only=True)
    change(content)
    Path("copy").mkdir(exist_ok=True)
    torch.save(content, "copy/model.pt")
    return "copy/model.pt"


def test_another_content_of_the_file_is_another_run() -> None:
    copied(lambda content: None)
    given = params(training__init_from="copy/model.pt")
    first = key(given)
    copied(lambda content: None)
    assert key(given) == first
    copied(lambda content: content["state_dict"]["final_norm.weight"].add_(1e-3))
    assert key(given) != first


def test_a_checkpoint_is_found_from_a_temporary_copy(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key(params())
    (here / "temporary").mkdir()
    (here / "temporary/data").symlink_to(here / "data")
    monkeypatch.setenv("DVC_ROOT", str(here))
    monkeypatch.chdir(here / "temporary")
    assert key(params()) == first


def test_the_projects_own_checkpoint_serves_too(here: Path) -> None:
    train(params())
    (CHECKPOINTS / "best.pt").rename("best.pt")
    model, begun_from = build_model(
        params(training__init_from="best.pt", training__precision="bfloat16"),
        load_tokens("data/tokens", "train").meta["tokenizer"], READABLE, CPU,
    )  # fmt: skip
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model.parameters["final_norm.weight"], load_checkpoint("best.pt").state_dict["final_norm.weight"]
    )
    assert begun_from.keys() == {"init_from"}


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "missing": (lambda: {"training__init_from": "none.pt"}, "training.init_from none.pt: no such file"),
    "folder": (lambda: {"training__init_from": "models/llama"}, "models/llama: not a regular file"),
    "size": (lambda: {"model__d_ffn": 30}, "models/llama/model.pt: its d_ffn is 28, model.d_ffn is 30; write model: {"),
    "heads": (lambda: {"model__n_kv_heads": 2}, "its n_kv_heads is 1, model.n_kv_heads is 2"),
    "default": (lambda: {"model__norm_eps": 1e-5}, "its norm_eps is 1e-06, model.norm_eps is 1e-05"),
    "architecture": (
        lambda: {"training__init_from": "models/gpt2/model.pt"},
        "its architecture is gpt2, model.architecture is llama",
    ),
    "not a number": (
        lambda: {"training__init_from": copied(lambda c: c["state_dict"]["final_norm.weight"].fill_(torch.nan))},
        "copy/model.pt: final_norm.weight holds NaN",
    ),
    "tokenizer": (
        lambda: {"training__init_from": copied(lambda c: c["metadata"].update(tokenizer="0" * 64))},
        "copy/model.pt: has another tokenizer than data/tokens; set data.tokenizer to the one it was trained with",
    ),
    "vocabulary": (
        lambda: {"training__init_from": copied(lambda c: c["metadata"].pop("tokenizer"))},
        "the tokenizer of data/tokens has 315; set data.tokenizer to the one",
    ),
    "own output": (
        lambda: {"training__init_from": "checkpoints/best.pt"},
        "training.init_from checkpoints/best.pt: the training would replace it",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_left(kind: str, here: Path) -> None:
    CHECKPOINTS.mkdir()
    (CHECKPOINTS / "best.pt").touch()
    changes, words = WRONG[kind]
    given = params(**changes())
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError) as refused:
        train(given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(here.rglob("*")) == before


def test_a_damaged_file_is_named() -> None:
    content = Path("models/llama/model.pt").read_bytes()
    Path("cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.pt: damaged"):
        train(params(training__init_from="cut.pt"))


def test_the_tokenizer_beside_the_checkpoint_is_named(here: Path) -> None:
    make(here / "other", vocab_size=300)
    (here / "data").unlink()
    (here / "other").rename(here / "data")
    with pytest.raises(UserError, match=r"set data\.tokenizer to models/llama/tokenizer$"):
        train(params())


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_section_that_the_refusal_writes_fits(kind: str) -> None:
    with pytest.raises(UserError) as refused:
        train(params(kind, model__d_model=8, model__n_blocks=1, model__dropout=0.25))
    section = load_yaml(str(refused.value).partition("write ")[2])["model"]
    assert section == SECTIONS[kind] | SIZES | {"dropout": 0.25}
    content = params(kind).model_dump(mode="json") | {"model": section}
    build_model(
        validated(Params, content, "test"), load_tokens("data/tokens", "train").meta["tokenizer"], READABLE, CPU
    )
