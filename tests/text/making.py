"""Parameters of data, and texts made into tokens by them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from custom_transformer.config import DataParams, load_params
from custom_transformer.files import write_json
from custom_transformer.text.datasets import download
from custom_transformer.text.packing import tokenize
from tests.helpers import ROOT

TEXTS = {
    "train": [f"The {i}th text, naïve and 素朴, ends here." for i in range(300)] + ["it says <|endoftext|> itself"],
    "validation": ["A short one.", "\n\n  spaces  \n"],
}


def data(**changes: Any) -> DataParams:
    """All of the text, but for these changes."""
    everything = load_params(ROOT / "params.yaml").data.model_dump() | {"subset_size": None, "val_subset_size": None}
    return DataParams.model_validate(everything | changes)


def make(
    folder: Path,
    texts: dict[str, list[str]] = TEXTS,
    columns: Mapping[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The tokens of `texts`, each with the values of `columns`, from a source that says `source` of itself."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, rows in texts.items():
        others = {name: [value] * len(rows) for name, value in (columns or {}).items()}
        pq.write_table(pa.table({"text": rows} | others), raw / f"{split}.parquet")
    if source is not None:
        write_json(raw / "source.json", source)
    params = data(**({"vocab_size": 400} | changes))
    return tokenize(params, raw, folder / "tokenizer", folder / "tokens", folder / "work")


def made(out: Path, **changes: Any) -> dict[str, Any]:
    """What download and tokenize make of a dataset."""
    wanted = data(**{"vocab_size": 300, "val_subset_size": 8, "val_fraction": 0.1, **changes})
    download(wanted, 0, out / "raw")
    return tokenize(wanted, out / "raw", out / "tokenizer", out / "tokens", out / "work")


def parquet(**columns: Sequence[Any]) -> bytes:
    """A parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def card(**paths: str) -> bytes:
    """The card of a dataset on the Hub that says which files make up each split."""
    files = "".join(f"  - {{split: {split}, path: {path}}}\n" for split, path in paths.items())
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n".encode()
