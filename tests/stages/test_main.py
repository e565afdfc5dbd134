"""The command line: the summary adds up, the gradients are proved, and bad input gets one line."""

from __future__ import annotations

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
from custom_transformer.maths.gradcheck import check_gradients, reduced
from custom_transformer.maths.model import CustomTransformer, parameter_table
from custom_transformer.pages.report import PICTURES
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.runs.summary import flops_per_token, memory_bytes
from tests.helpers import SIZES, random_model

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


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


def test_summary_shows_every_tensor(tmp_path: Path) -> None:
    done = run("custom_transformer", "summary", "--config", config_file(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = parameter_table(CustomTransformerConfig(**SIZES))
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

    (_, _, (blocks, _)), _ = model._saved
    collect(blocks)
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


def test_gradcheck_passes_and_catches(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CustomTransformerConfig(**SIZES)
    assert all(check.ok for check in check_gradients(config, 1))
    from custom_transformer.maths import ops

    right = ops.gelu_backward
    monkeypatch.setattr(ops, "gelu_backward", lambda dy, saved: right(dy, saved) * 1.0001)
    wrong = [check.name for check in check_gradients(config, 1) if not check.ok]
    assert "blocks.0.up.weight" in wrong
    assert "final_norm.weight" not in wrong


@pytest.mark.parametrize(
    "changes", [{"d_model": 64, "n_heads": 1}, {"d_model": 8, "n_heads": 8}, {"d_model": 1, "n_heads": 1}]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck_measures_well_at_any_size(changes: dict[str, int], seed: int) -> None:
    config = reduced(CustomTransformerConfig(**(SIZES | changes)))
    assert [check.name for check in check_gradients(config, seed) if not check.ok] == []


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


@pytest.mark.parametrize("module", ["stages.evaluate", "stages.train", "custom_transformer"])
def test_a_wrong_command_line_gets_one_line(tmp_path: Path, module: str) -> None:
    one_line(run(module, "--nonsense", cwd=tmp_path), "--help")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("tokenize", "run dvc repro download"),
        ("train", "run dvc repro tokenize"),
        ("evaluate", "no such checkpoint"),
        ("generate", "no such checkpoint"),
        ("report", "no such checkpoint"),
        ("show", "run dvc repro first"),
    ],
)
def test_a_stage_without_its_input_says_which_stage_to_run(tmp_path: Path, stage: str, words: str) -> None:
    arguments = () if stage == "show" else ("--config", config_file(tmp_path))
    one_line(run(f"stages.{stage}", *arguments, cwd=tmp_path), words)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "config.yaml") in ([], ["work"])


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_stage_by_a_configuration_file(tmp_path: Path) -> None:
    """All six, in a folder of their own; then any checkpoint, with samples; then one that does not fit."""
    config = config_file(tmp_path, training__max_steps=8, training__eval_every=4, tracking__registered_model="tested")
    for stage in ("download", "tokenize", "train", "evaluate", "generate", "report"):
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
        "loss_by_position.csv",
        "report.html",
        *(f"plots/{name}.png" for name in PICTURES),
    }
    assert list((tmp_path / "work").glob("*/*/")) == []
    version = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_model_version_by_alias("tested", "best")
    assert float(version.tags["bits_per_byte"]) == json.loads(metrics["eval.json"])["bits_per_byte"]
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
