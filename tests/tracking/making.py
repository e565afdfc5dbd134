"""A small training's run, as processes of their own make it too."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from custom_transformer.config import Params, load_params
from custom_transformer.tracking import DatasetVersion, Run, training_run

PARAMS = load_params("params.yaml")
DATASETS = {"train": DatasetVersion("primer", "ab" * 32, "primer")}


def params(uri: str | None = None, **changes: object) -> Params:
    """The default parameters, tracked at `uri`."""
    return PARAMS.model_copy(update={"tracking": PARAMS.tracking.model_copy(update={"uri": uri, **changes})})


def training(folder: Path, uri: str | None = None, **changes: object) -> AbstractContextManager[Run]:
    work = folder / "work" / "train" / "k"
    work.mkdir(parents=True, exist_ok=True)
    return training_run(params(uri, **changes), datasets=DATASETS, work=work, tags={"fingerprint": "f"})
