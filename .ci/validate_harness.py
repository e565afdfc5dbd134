"""Exported models in lm-evaluation-harness: python .ci/validate_harness.py export FOLDER, here, and then run FOLDER,
where lm_eval is.

`export` runs the pipeline up to its export on small configurations; `run` measures each result by the command on its
card, from another folder, and compares what the harness finds with metrics/eval.json.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

BOUND = 1e-4
STAGES = ("download", "tokenize", "train", "evaluate", "export")
LLAMA = {"architecture": "llama", "d_model": 36, "n_blocks": 2, "n_heads": 6, "d_ffn": 50, "max_seq_len": 24}
# Of texts: shorter and longer than the context and empty of words, and what templates might take for something else.
TEXTS = ["[1, 2]", "{{ text }}", "7", " ", "\n\n", "naïve 素朴 🙂", "  two spaces "]
TEXTS += ["One. " * 40, "a " * 23, "b " * 24, "x" * 99]
VARIANTS: dict[str, dict[str, Any]] = {
    "primer": {},
    "llama": {"model": LLAMA, "data": {"max_length": 24}},
    "texts": {
        "model": LLAMA,
        "data": {"max_length": 24, "dataset": "texts.jsonl", "tokenizer": "tokenizer", "val_fraction": 0.5},
    },
}


def export(folder: Path) -> None:
    import yaml

    smoke = yaml.safe_load(Path("configs/smoke.yaml").read_text("utf-8"))
    for name, changes in VARIANTS.items():
        place = folder / name
        place.mkdir()
        config = {
            section: values | changes[section] if section in changes else values for section, values in smoke.items()
        }
        if "model" in changes:  # keys of GPT-2 are no keys of Llama
            config["model"] = {"dropout": 0.0, "tie_embeddings": True, **changes["model"]}
        if "dataset" in changes.get("data", {}):
            config["data"] |= {"val_split": None, "subset_size": None, "val_subset_size": None}
            write_texts(place)
        (place / "params.yaml").write_text(yaml.safe_dump(config))
        for stage in STAGES:
            subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=place, stdout=subprocess.DEVNULL, check=True)


def write_texts(place: Path) -> None:
    """Texts, and a tokenizer that begins each text with a token of its own and ends it with another."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from custom_transformer.text.tokenization import build_tokenizer
    from tests.text.making import data

    lines = [json.dumps({"text": f"{text}{i or ''}"}) for text in TEXTS for i in range(20)]
    (place / "texts.jsonl").write_text("\n".join(lines), "utf-8")
    backend = build_tokenizer(data(vocab_size=400), TEXTS).backend_tokenizer
    backend.add_special_tokens(["<begin>", "<end>"])
    ids = [(token, backend.token_to_id(token)) for token in ("<begin>", "<end>")]
    backend.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=ids)
    names = {"bos_token": "<begin>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(place / "tokenizer")


def run(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder)}
    off = []
    for name in VARIANTS:
        model, out = folder / name / "models/huggingface", folder / f"{name}-results"
        card = (model / "README.md").read_text("utf-8")
        command = re.search(r"```\n(lm_eval .*?)```", card, re.DOTALL)[1].replace("\\\n", "")  # type: ignore[index]
        command = command.replace("models/huggingface", shlex.quote(str(model)))
        subprocess.run(
            f"{command.strip()} --output_path {shlex.quote(str(out))}", shell=True, cwd="/", env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        (results,) = out.rglob("results_*.json")
        found = json.loads(results.read_text("utf-8"))["results"]
        ours = json.loads((folder / name / "metrics/eval.json").read_text("utf-8"))
        pairs = {"bits_per_byte": ("validation_texts", "bits_per_byte,none")}
        if "held_out_accuracy" in ours:
            pairs["held_out_accuracy"] = ("held_out_questions", "acc,none")
        for figure, (task, key) in pairs.items():
            theirs = found[task][key]
            print(f"{name:8} {figure:18} here {ours[figure]:.6f}  lm_eval {theirs:.6f}")
            if not abs(ours[figure] - theirs) <= BOUND:
                off.append(f"{name} {figure}")
    if off:
        sys.exit(f"off by more than {BOUND:g}: {', '.join(off)}")


if __name__ == "__main__":
    {"export": export, "run": run}[sys.argv[1]](Path(sys.argv[2]).resolve())
