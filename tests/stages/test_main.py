"""The command line: the summary adds up, each stage runs by itself, and bad input gets one line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import GPT2, flops_per_token
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.pages.report import PICTURES
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.runs.summary import memory_bytes
from tests import processes
from tests.helpers import ROOT, SIZES, copy_repository, random_model

ENVIRONMENT = os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}


def run(module: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return processes.run("-m", module, *arguments, cwd=cwd, env=ENVIRONMENT)


def config_file(folder: Path, **changes: Any) -> Path:
    """The smoke configuration with changes, named section__key."""
    content = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            content[section][key] = value
        else:
            content[section] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.processes
def test_summary_shows_every_tensor(tmp_path: Path) -> None:
    done = run("custom_transformer", "summary", "--config", config_file(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = GPT2.parameters(CustomTransformerConfig(**SIZES))
    for name in table:
        assert name in done.stdout
    model = CustomTransformer(
        {"vocab_size": 512, "max_seq_len": 64, "n_blocks": 2, "n_heads": 2, "d_model": 32, "d_ffn": 64}
    )
    assert f"{model.count_parameters():,}" in done.stdout


def test_the_memory_of_the_summary_is_what_a_step_saves() -> None:
    config = CustomTransformerConfig(**SIZES)
    sizes = memory_bytes(config, 3, 11, torch.float32, "adamw")
    model = random_model(torch.float32)
    assert sizes["parameters"] == sum(p.nbytes for p in model.parameters.values())
    tokens = torch.zeros(3, 11, dtype=torch.int64)
    model.loss(tokens, tokens)
    storages: dict[int, int] = {}

    def collect(saved: Any) -> None:
        if isinstance(saved, torch.Tensor):
            storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        elif isinstance(saved, (tuple, list)):
            for part in saved:
                collect(part)

    assert model._last is not None
    _, at, _ = model._last
    collect([saved for name, saved in (at.saved or {}).items() if name.startswith("blocks.")])
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters.values()}
    assert sizes["activations"] == sum(n for pointer, n in storages.items() if pointer not in parameters)


def test_flops_count_the_products_of_the_step() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = CustomTransformerConfig(**(SIZES | {"n_heads": 5}))
    model = CustomTransformer(config)
    tokens = torch.zeros(3, 11, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        logits = model.forward(tokens)
        model.backward(torch.ones_like(logits))
    # The backward computes the scores Q Kᵀ again: one product of the seven of attention that the formula leaves out.
    again = 2 * config.n_blocks * config.d_model * 11
    assert counter.get_total_flops() == (flops_per_token(config, 11) + again) * 33


BAD_CONFIGS = {
    "unknown key": {"model__d_modle": 3},
    "number as text": {"training__learning_rate": "0.003"},
    "heads do not divide": {"model__n_heads": 3},
    "fraction": {"data__val_fraction": 1.5},
    "optimizer": {"training__optimizer": "adam"},
    "window": {"data__max_length": 65},
    "section": {"generation": None},
    "vocabulary": {"data__vocab_size": 100},
    "seed": {"seed": -1},
}


@pytest.mark.processes
@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_bad_parameters_get_one_line(tmp_path: Path, kind: str) -> None:
    done = run("stages.download", "--config", config_file(tmp_path, **BAD_CONFIGS[kind]), cwd=tmp_path)
    one_line(done, next(iter(BAD_CONFIGS[kind])).rpartition("__")[2])
    assert not (tmp_path / "data").exists()


def one_line(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tokens", 0), "max_new_tokens"),
        (("--temperature", "nan"), "temperature"),
        (("--seed", -1), "--seed"),
        (("--checkpoint", "none.pt"), "none.pt: no such checkpoint"),
        (("--model", "none"), "'none': not found in"),
    ],
)
def test_generate_refuses_in_one_line(tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    config = config_file(tmp_path)
    one_line(run("custom_transformer", "generate", "A", "--config", config, *arguments, cwd=tmp_path), words)


@pytest.mark.processes
@pytest.mark.parametrize("module", ["stages.evaluate", "stages.train", "custom_transformer"])
def test_a_wrong_command_line_gets_one_line(tmp_path: Path, module: str) -> None:
    one_line(run(module, "--nonsense", cwd=tmp_path), "--help")


WITHOUT_INPUT = {
    "tokenize": "run dvc repro download",
    "train": "run dvc repro tokenize",
    "evaluate": "no such checkpoint",
    "generate": "no such checkpoint",
    "report": "no such checkpoint",
    "export": "no such checkpoint",
    "show": "run dvc repro first",
}


@pytest.mark.processes
@pytest.mark.parametrize("stage", WITHOUT_INPUT)
def test_a_stage_without_its_input_says_which_stage_to_run(tmp_path: Path, stage: str) -> None:
    config = config_file(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = () if stage == "show" else ("--config", config)
    one_line(run(f"stages.{stage}", *arguments, cwd=tmp_path / "empty"), WITHOUT_INPUT[stage])
    assert [path.name for path in (tmp_path / "empty").iterdir()] in ([], ["work"])


@pytest.mark.processes
def test_no_import_says_anything() -> None:
    """By python itself, since where stages are forked the libraries have been imported before."""
    program = "from custom_transformer.tracking import store\nstore.import_mlflow()\n"
    program += "".join(f"import stages.{stage}\n" for stage in WITHOUT_INPUT)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.processes
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_results_are_shown_whatever_the_encoding(tmp_path: Path, encoding: str) -> None:
    """By python itself, which alone heeds the variable."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/eval.json").write_text('{"loss": 1.0}')
    sample = {"prompt": "第", "text": "第0章 naïve 🚀", "new_tokens": 3, "ended": False}
    (tmp_path / "metrics/samples.jsonl").write_text(json.dumps(sample))
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.show"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "第0章 naïve 🚀 …".encode(encoding, "backslashreplace") in done.stdout


@pytest.mark.processes
def test_a_copy_of_the_repository_runs_its_own_code(tmp_path: Path) -> None:
    """As DVC's experiments in temporary copies do; by python itself, since a fork has imported the package before."""
    copy_repository(tmp_path)
    program = "import stages, custom_transformer; print(custom_transformer.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'src/custom_transformer/__init__.py'}\n"


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.processes
def test_each_stage_by_a_configuration_file(tmp_path: Path) -> None:
    """All seven, in a folder of their own; then any checkpoint, with samples; then one that does not fit."""
    config = config_file(tmp_path, training__max_steps=8, training__eval_every=4, tracking__registered_model="tested")
    for stage in ("download", "tokenize", "train", "evaluate", "generate", "report", "export"):
        done = run(f"stages.{stage}", "--config", config, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    metrics = files_in(tmp_path / "metrics")
    assert set(metrics) == {
        "train.json",
        "eval.json",
        "samples.md",
        "samples.jsonl",
        "training_curve.csv",
        "validation_curve.csv",
        "gradient_norms.csv",
        "activations.csv",
        "digests.csv",
        "loss_by_position.csv",
        "report.html",
        "explorer.html",
        *(f"plots/{name}.png" for name in PICTURES),
    }
    assert list((tmp_path / "work").glob("*/*/")) == []
    version = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_model_version_by_alias("tested", "best")
    assert float(version.tags["bits_per_byte"]) == json.loads(metrics["eval.json"])["bits_per_byte"]
    text = json.loads((tmp_path / "data/tokens/meta.json").read_text())["splits"]["validation"]["text_sha256"]
    assert version.tags["validation_text"] == f"by-document:{text}"
    ask = ("custom_transformer", "generate", "Four plus", "--config", config, "--seed", 3)
    texts = [run(*ask, *source, cwd=tmp_path) for source in ((), ("--model", "models:/tested@best"))]
    assert texts[0].stdout == texts[1].stdout
    assert texts[0].stdout.startswith("Four plus")
    one_line(run(*ask, "--model", "models:/other@best", cwd=tmp_path), "'models:/other@best': not found in sqlite:")
    exported = files_in(tmp_path / "models/huggingface")
    for arguments in (
        ("export", "--config", config),
        ("import", "models/huggingface", "--to", "taken_over"),
        ("explore", "--text", "Four plus five", "--out", "page.html"),
    ):
        done = run("custom_transformer", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert files_in(tmp_path / "models/huggingface") == exported
    card = (tmp_path / "models/huggingface/README.md").read_text()
    assert hashlib.sha256((tmp_path / "checkpoints/best.pt").read_bytes()).hexdigest() in card
    assert "Four plus five" in (tmp_path / "page.html").read_text("utf-8")
    assert run(*ask, "--checkpoint", "taken_over/model.pt", cwd=tmp_path).stdout == texts[0].stdout
    best = tmp_path / "checkpoints/best.pt"
    done = run("stages.evaluate", "--config", config, "--checkpoint", best, "--generate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "metrics") == metrics
    save_checkpoint(tmp_path / "other.pt", random_model(torch.float32), {})
    done = run("stages.evaluate", "--config", config, "--checkpoint", tmp_path / "other.pt", cwd=tmp_path)
    one_line(done, "the checkpoint's vocabulary has 37 entries")
    tokenizer = tmp_path / "data/tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    for stage in ("evaluate", "generate"):
        one_line(run(f"stages.{stage}", "--config", config, cwd=tmp_path), "not the tokenizer that the checkpoint")
    gpt2 = config_file(tmp_path, data__tokenizer="gpt2")
    assert "vocab_size=50257" in run("custom_transformer", "summary", "--config", gpt2, cwd=tmp_path).stdout
    assert files_in(tmp_path / "metrics") == metrics
