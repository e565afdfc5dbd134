"""The exported folder of a run: its card, its digests, its tasks for the harness, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file, write_csv, write_json
from custom_transformer.interchange.export import export_checkpoint
from custom_transformer.interchange.harness import QUESTIONS, TASKS, TEXTS, harness_command
from custom_transformer.paths import BEST, DIGESTS, EXPORTED, METRICS, RAW, TOKENIZER, TOKENS
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.runs.digests import digest_row, read_digests
from custom_transformer.runs.evaluation import evaluate
from custom_transformer.text.primer import held_out_questions
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokens import load_tokens
from tests.helpers import ROOT, random_model
from tests.text.making import make

PARAMS = load_params(ROOT / "params.yaml")  # of the primer, whose questions it has
DOCUMENTS = ["[1, 2]", "{{ text }}", "7", " ", "two\nlines\u2028and \u00e9", '"quoted" \\ text', "word " * 60]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages before `export` write, of a small random model."""
    monkeypatch.chdir(tmp_path)
    texts = {"train": ["Some text to train on."] * 20, "validation": DOCUMENTS}
    make(tmp_path / "data", texts, source={"kind": "hub", "id": "somebody/texts", "commit": "c0ffee"})
    split = load_tokens(TOKENS, "validation")
    model = random_model(torch.float32, vocab_size=split.meta["tokenizer"]["vocab_size"], max_seq_len=24)
    facts = {"step": 9, "tokenizer": split.meta["tokenizer"]["sha256"]}
    save_checkpoint(BEST, model, facts)
    write_json(METRICS / "train.json", {"steps": 9, "tokens": 1234, "train_loss": 1.25})
    write_csv(DIGESTS, [digest_row(9, model.parameters, {}, [], ["a0b1"] * 9)])
    write_json(METRICS / "eval.json", evaluate(model, split, 4)[0])
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_card_tells_data_training_results_and_digests(run: Path) -> None:
    export_checkpoint(BEST, EXPORTED, PARAMS)
    card = (EXPORTED / "README.md").read_text("utf-8")
    result = json.loads((METRICS / "eval.json").read_text("utf-8"))
    meta = load_tokens(TOKENS, "validation").meta
    (digests,) = read_digests(DIGESTS)
    for words in (
        'datasets:\n- "somebody/texts"\n',
        "[somebody/texts](https://huggingface.co/datasets/somebody/texts) at the commit `c0ffee`",
        f"| `bits_per_byte` | {result['bits_per_byte']:.4f} |",
        f"| validation | {len(DOCUMENTS)} | {result['tokens']} | {meta['bytes']} | `{meta['text_sha256']}` |",
        "9 steps on 1,234 tokens, a loss of 1.2500 nats per token",
        "| `training.learning_rate` | `0.005` |",
        sha256_file(BEST),
        f"| parameters, SHA-256 | `{digests['parameters']}` |",
        f"| parameters after step 9 | `{digests['parameters']}` |",
        f"| `metrics/digests.csv` | `{sha256_file(DIGESTS)}` |",
        sha256_file(TOKENIZER / "tokenizer.json"),
        "Its context is 24 tokens",
    ):
        assert words in card
    assert "of which the first" not in card


def test_every_file_is_in_sha256sums_and_a_second_run_gives_equal_bytes(run: Path) -> None:
    export_checkpoint(BEST, EXPORTED, PARAMS)
    first = files(EXPORTED)
    lines = first.pop("SHA256SUMS").decode().splitlines()
    assert lines == [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in sorted(first.items())]
    assert {path.stat().st_mode & 0o777 for path in EXPORTED.rglob("*") if path.is_file()} == {0o644}
    export_checkpoint(BEST, EXPORTED, PARAMS)
    again = files(EXPORTED)
    del again["SHA256SUMS"]
    assert again == first


def load_task(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task's description, and its rows by the function that the description names, as the harness reads them."""
    yaml = YAML(typ="safe")
    yaml.constructor.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((EXPORTED / TASKS / f"{name}.yaml").read_text("utf-8"))
    module, function = task["custom_dataset"].split(".")
    spec = importlib.util.spec_from_file_location(module, EXPORTED / TASKS / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    rows = getattr(loaded, function)(**task["metadata"], **task["dataset_kwargs"])[task["test_split"]]
    return task, list(rows)


def test_the_tasks_hold_the_texts_and_the_questions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts as they are, whatever they look like, and read from any folder."""
    export_checkpoint(BEST, run / EXPORTED, PARAMS)
    monkeypatch.setattr(f"{__name__}.EXPORTED", run / EXPORTED)
    monkeypatch.chdir("/")
    task, rows = load_task(TEXTS)
    assert (task["task"], task["output_type"], task["doc_to_target"]) == (TEXTS, "loglikelihood_rolling", "text")
    assert rows == [{"text": text} for text in DOCUMENTS]
    task, rows = load_task(QUESTIONS)
    assert (task["output_type"], task["doc_to_text"], task["target_delimiter"]) == ("multiple_choice", "", "")
    for row, question in zip(rows, held_out_questions(), strict=True):
        true = row[task["doc_to_choice"]][row[task["doc_to_target"]]]
        assert true == question.prompt + question.choices[question.answer]


def test_other_text_than_the_primer_has_no_questions(run: Path) -> None:
    other = PARAMS.data.model_copy(update={"dataset": "somebody/texts"})
    export_checkpoint(BEST, EXPORTED, PARAMS.model_copy(update={"data": other}))
    assert not list(EXPORTED.rglob(f"{QUESTIONS}*"))
    assert f"--tasks {TEXTS}\n" in (EXPORTED / "README.md").read_text("utf-8")


def test_the_card_says_of_which_part_the_results_are(run: Path) -> None:
    result = json.loads((METRICS / "eval.json").read_text("utf-8"))
    write_json(METRICS / "eval.json", result | {"tokens": 7})
    bfloat16 = PARAMS.model_copy(update={"training": PARAMS.training.model_copy(update={"precision": "bfloat16"})})
    export_checkpoint(BEST, EXPORTED, bfloat16)
    card = (EXPORTED / "README.md").read_text("utf-8")
    assert "On the validation texts, of which the first 7 tokens were read:" in card
    assert "here products were rounded to bfloat16" in card


def test_of_another_checkpoint_nothing_is_told_of_the_run(run: Path) -> None:
    (run / "other.pt").write_bytes(BEST.read_bytes())
    export_checkpoint(run / "other.pt", EXPORTED, PARAMS)
    assert not (EXPORTED / TASKS).exists()
    assert "## Results" not in (EXPORTED / "README.md").read_text("utf-8")


def test_what_is_missing_or_does_not_belong_together_leaves_what_was_there(run: Path) -> None:
    export_checkpoint(BEST, EXPORTED, PARAMS)
    before = files(EXPORTED)
    for path, words in (
        (METRICS / "eval.json", "metrics/eval.json: not there yet"),
        (METRICS / "train.json", "metrics/train.json: not there yet"),
        (DIGESTS, "metrics/digests.csv: no such file"),
        (RAW / "validation.parquet", "validation.parquet: no such file"),
    ):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=words):
            export_checkpoint(BEST, EXPORTED, PARAMS)
        path.write_bytes(content)
    (METRICS / "eval.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        export_checkpoint(BEST, EXPORTED, PARAMS)
    write_json(METRICS / "eval.json", {"tokens": 1})
    (RAW / "validation.parquet").write_bytes((RAW / "train.parquet").read_bytes())
    with pytest.raises(UserError, match="not the text that data/tokens was made of"):
        export_checkpoint(BEST, EXPORTED, PARAMS)
    assert files(EXPORTED) == before


def test_the_command_tells_the_harness_what_begins_a_text(run: Path) -> None:
    tokenizer = load_tokenizer(TOKENIZER)
    assert "pretrained=m,dtype=float32 " in harness_command(Path("m"), tokenizer, [TEXTS])
    backend = tokenizer.backend_tokenizer
    told = f",add_bos_token=False,prefix_token_id={tokenizer.eos_token_id} "
    other = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="!", eos_token=tokenizer.eos_token)
    assert told in harness_command(Path("m"), other, [TEXTS])
    backend.post_processor = TemplateProcessing(single="! $A", special_tokens=[("!", backend.token_to_id("!"))])
    adding = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)
    assert told in harness_command(Path("m"), adding, [TEXTS])
