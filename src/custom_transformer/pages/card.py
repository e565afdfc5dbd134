"""The model card of an exported model: what it is, what it reached, where it comes from, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from custom_transformer.config import CustomTransformerConfig, Params
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import count
from custom_transformer.pages.markdown import cell
from custom_transformer.pages.report import MEANINGS, shown

_CARD = Template("""\
---
library_name: transformers
pipeline_tag: text-generation
$tags---

# $architecture with $parameters parameters$by_hand

$n_blocks blocks, width $d_model, $n_heads heads, a context of $window tokens, a vocabulary of $vocabulary entries.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("$folder")
model = AutoModelForCausalLM.from_pretrained("$folder")
ids = tokenizer(tokenizer.eos_token + "Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0]))
```

The end token comes first, because the model was trained on texts behind one.
$run
## Where it comes from

| | |
|---|---|
$origin

`SHA256SUMS` has the digests of the files here: `sha256sum -c SHA256SUMS` checks them.

## Limits

It has learned to continue texts like those it was trained on, and nothing else. It states what is false as easily as
what is true. Its context is $window tokens, prompt and continuation together; it has nothing beyond.
""")

_RUN = Template("""
## Results

On the validation texts$part:

| | | |
|---|---:|---|
$results

[lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) measures the same, by the tasks in
`lm_eval_tasks/`$precision:

```
$command
```

## Data

| | texts | tokens | bytes | SHA-256 of the texts |
|---|---:|---:|---:|---|
$splits

$source

## Training

$steps steps on $tokens tokens, a loss of $train_loss nats per token at the end. Its digests, SHA-256:

| | |
|---|---|
$digests

`metrics/digests.csv` has those of every so many steps before, and `python -m custom_transformer verify` in the
repository computes the run again and compares them.

The parameters:

| | |
|---|---|
$settings
""")


@dataclass(frozen=True)
class RunFacts:
    """What is known of the run that a checkpoint came from."""

    params: Params
    tokens: Mapping[str, Any]  # data/tokens/meta.json, with the validation split's entries at the top level
    train: Mapping[str, Any]  # metrics/train.json
    digests: Mapping[str, str]  # of the run at its end and of metrics/digests.csv, by what each is of
    result: Mapping[str, Any]  # metrics/eval.json
    harness_command: str  # that measures the model with lm-evaluation-harness


def model_card(
    config: CustomTransformerConfig, origin: Mapping[str, Any], folder: Path, run: RunFacts | None = None
) -> str:
    """The card as Markdown. origin: facts by their names; folder: of the model; run: None where it is not known."""
    return _CARD.substitute(
        architecture={"gpt2": "GPT-2", "llama": "Llama"}.get(config.architecture, config.architecture),
        by_hand=", trained by hand-derived gradients" if "step" in origin else "",
        parameters=f"{count(architecture_of(config).parameters(config)):,}",
        n_blocks=config.n_blocks,
        d_model=config.d_model,
        n_heads=config.n_heads,
        window=f"{config.max_seq_len:,}",
        vocabulary=f"{config.vocab_size:,}",
        folder=folder,
        tags="" if run is None else _tags(run.tokens["source"]),
        run="" if run is None else _run_sections(run),
        origin="\n".join(f"| {name} | {cell(str(value))} |" for name, value in origin.items()),
    )


def _run_sections(run: RunFacts) -> str:
    of_all = run.result["tokens"] >= run.tokens["tokens"] - 1 - run.tokens["documents"]
    return _RUN.substitute(
        part="" if of_all else f", of which the first {run.result['tokens']:,} tokens were read",
        results="\n".join(
            f"| `{name}` | {shown(value)} | {MEANINGS.get(name, '')} |" for name, value in run.result.items()
        ),
        precision=" (in float32; here products were rounded to bfloat16)"
        if run.params.training.precision == "bfloat16"
        else "",
        command=run.harness_command,
        splits="\n".join(
            f"| {name} | {split['documents']:,} | {split['tokens'] - 1 - split['documents']:,} | {split['bytes']:,} | "
            f"`{split['text_sha256']}` |"
            for name, split in run.tokens["splits"].items()
        ),
        source=_source(run.tokens["source"]),
        steps=f"{run.train['steps']:,}",
        tokens=f"{run.train['tokens']:,}",
        train_loss=shown(run.train["train_loss"]),
        digests="\n".join(f"| {name} | `{digest}` |" for name, digest in run.digests.items()),
        settings="\n".join(_settings(run.params)),
    )


def _tags(source: Mapping[str, Any]) -> str:
    return f"datasets:\n- {json.dumps(source['id'])}\n" if source.get("kind") == "hub" else ""


def _source(source: Mapping[str, Any]) -> str:
    """A sentence on where the texts come from, and on their licence."""
    kind = source.get("kind")
    if kind == "primer":
        return f"The texts are drawn from this project's own grammar, by the seed {source['seed']}."
    if kind == "hub":
        name, commit = str(source["id"]), str(source["commit"])
        return (
            f"The texts are those of [{name}](https://huggingface.co/datasets/{name}) at the commit `{commit}`. "
            "Its card names their licence."
        )
    return "The texts come from local files."


def _settings(params: Params) -> Iterator[str]:
    """A row for each parameter that decides the training."""
    deciding = params.model_dump(mode="json", include={"seed": True, "data": True, "model": True, "training": True})
    yield f"| `seed` | `{deciding.pop('seed')}` |"
    for section, values in deciding.items():
        for name, value in values.items():
            yield f"| `{section}.{name}` | {cell(json.dumps(value, ensure_ascii=False))} |"
