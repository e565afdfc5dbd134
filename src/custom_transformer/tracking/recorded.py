"""What an MLflow run records of its training: parameters, conditions, digests."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom_transformer.config import TrackingParams
from custom_transformer.errors import UserError, shown
from custom_transformer.paths import DIGESTS
from custom_transformer.tracking.store import cause, open_store, store_uri, without_password

_CONDITION = "fingerprint."  # how the tags of the parts of a fingerprint begin


@dataclass(frozen=True)
class RecordedTraining:
    """digests: a copy of its digests.csv. params: seed, data.max_length, model and training. conditions: of its
    fingerprint, by their names. commit: of its code, if it was in git."""

    digests: Path
    params: Mapping[str, Any]
    conditions: Mapping[str, str]
    commit: str | None


@contextlib.contextmanager
def recorded_training(run_id: str, tracking: TrackingParams) -> Iterator[RecordedTraining]:
    """The record of a run for as long as the block lasts. Raises UserError if the store has no such training or does
    not answer."""
    store = store_uri(tracking)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            client = open_store(store)
            run = client.get_run(run_id)
            digests = Path(client.download_artifacts(run_id, str(DIGESTS), scratch))
        except Exception as error:
            raise UserError(
                f"run {shown(run_id)}: no {DIGESTS} of it in {without_password(store)} ({cause(error)}); see make ui"
            ) from None
        tags = run.data.tags
        conditions = {name.removeprefix(_CONDITION): tags[name] for name in tags if name.startswith(_CONDITION)}
        yield RecordedTraining(digests, _deciding(run.data.params), conditions, tags.get("mlflow.source.git.commit"))


def _deciding(flat: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that decide a training's result, from text as `flat_params` writes it."""
    values = {name: _value(text) for name, text in flat.items()}
    sections = {
        section: {name.removeprefix(f"{section}."): v for name, v in values.items() if name.startswith(f"{section}.")}
        for section in ("model", "training")
    }
    return sections | {name: values.get(name) for name in ("seed", "data.max_length")}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
