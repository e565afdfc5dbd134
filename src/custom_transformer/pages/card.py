"""The model card of an exported model: what it is, where it comes from, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import one_line
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import count

_CARD = Template("""\
---
library_name: transformers
pipeline_tag: text-generation
---

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

| where it comes from | |
|---|---|
$origin

It has learned to continue texts like those it was trained on, and nothing else. It states what is false as easily as
what is true.
""")


def model_card(config: CustomTransformerConfig, origin: Mapping[str, Any], folder: Path) -> str:
    """The card as Markdown. origin: facts by their names; folder: of the model."""
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
        origin="\n".join(f"| {name} | `{one_line(value)}` |" for name, value in origin.items()),
    )
