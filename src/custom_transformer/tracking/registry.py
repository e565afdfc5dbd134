"""A run's model on its way to a store: as a logged model of the run, and as a version of a registered model.

Each step first looks for what an interrupted one has left. A registered model's alias `best` points to the version
with the lowest bits_per_byte among those evaluated on the same validation text as the version it points to now, or, if
it points to none, as the newest. A version without that figure, because its tokenizer loses text, never gets the alias.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from custom_transformer.tracking.spool import Header
from custom_transformer.tracking.store import as_default

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "best"
CRITERION = "bits_per_byte"
VALIDATION_TAG = "validation_text"
_NAME = "best-checkpoint"  # of a logged model; its run, which stands beside it, tells it from others
_VERSIONS_TAG = "mlflow.modelVersions"  # by which the UI leads from a logged model to its versions


def deliver_model(client: MlflowClient, header: Header, run_id: str, folder: Path, facts: Mapping[str, Any]) -> None:
    """The model in `folder`, with what Run.log_model noted of it. Raises what the store's client raises."""
    model = _logged_model(client, header, run_id, folder, facts["content"])
    _measure(client, run_id, model, facts["measured"])
    if name := facts["registered_model"]:
        bits = facts["measured"]["metrics"].get(f"eval_{CRITERION}")
        # Without the figure, as where the tokenizer loses text, a version is comparable with no other.
        tags = {} if bits is None else {CRITERION: repr(bits), VALIDATION_TAG: facts["validation"]}
        with as_default(header.uri):  # a SQL store asks MLflow's default one for the model behind a version
            version = _version(client, name, run_id, model, tags)
        _show_version(client, model.model_id, version)
        if bits is not None:
            keep_best(client, version)


def _logged_model(client: MlflowClient, header: Header, run_id: str, folder: Path, content: str) -> LoggedModel:
    """One of each content a run, with its files."""
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND tags.content = '{content}'")
    model = (
        found[0]
        if found
        else client.create_logged_model(experiment, _NAME, run_id, tags={"content": content}, params=header.params)
    )
    if model.status != "READY":
        client.log_model_artifacts(model.model_id, str(folder))
        _say_whose(client, model, folder)
        client.finalize_logged_model(model.model_id, "READY")
    return model


def _say_whose(client: MlflowClient, model: LoggedModel, folder: Path) -> None:
    """An MLmodel file that has the names the store has given, over the one that was written without them."""
    from mlflow.models import Model

    # Not by Model.load, which would unquote the path.
    described = Model.from_dict(yaml.safe_load((folder / "MLmodel").read_text("utf-8")))
    described.model_id, described.run_id = model.model_id, model.source_run_id
    described.artifact_path = model.artifact_location
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        described.save(str(Path(scratch) / "MLmodel"))
        client.log_model_artifact(model.model_id, str(Path(scratch) / "MLmodel"))


def _measure(client: MlflowClient, run_id: str, model: LoggedModel, measured: Mapping[str, Any]) -> None:
    """The model among the run's outputs, and the run's metrics of it as its own."""
    from mlflow.entities import LoggedModelOutput, Metric

    outputs = client.get_run(run_id).outputs
    if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, measured["step"])])
    metrics = [
        Metric(name, value, measured["time"], measured["step"], model_id=model.model_id, run_id=run_id)
        for name, value in measured["metrics"].items()
    ]
    client.log_batch(run_id, metrics)


def _version(client: MlflowClient, name: str, run_id: str, model: LoggedModel, tags: dict[str, str]) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    source = f"models:/{model.model_id}"
    if found := client.search_model_versions(f"name = '{name}' AND source_path = '{source}'"):
        version = found[0].version
        for tag, value in tags.items():  # of the newest evaluation, which may be of more text
            client.set_model_version_tag(name, version, tag, value)
        return client.get_model_version(name, version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, source, run_id, tags, await_creation_for=0, model_id=model.model_id)


def _show_version(client: MlflowClient, model_id: str, version: ModelVersion) -> None:
    """What a server does by itself, and a SQL store leaves to its client."""
    shown = json.loads(client.get_logged_model(model_id).tags.get(_VERSIONS_TAG, "[]"))
    this = {"name": version.name, "version": int(version.version)}
    if this not in [{**other, "version": int(other["version"])} for other in shown]:
        client.set_logged_model_tags(model_id, {_VERSIONS_TAG: json.dumps([*shown, this])})


def keep_best(client: MlflowClient, version: ModelVersion) -> None:
    """Points the alias to the best version, now that there is `version`.

    Each process creates its version before it reads the alias, and reads the alias again after each move. The last
    process to move it has therefore seen every version, so no lock is needed, even on a server.
    """
    while True:
        held = client.get_registered_model(version.name).aliases.get(ALIAS)
        holder = client.get_model_version(version.name, held) if held is not None else version
        rivals = [holder, *_comparable(client, holder)]
        best = min(rivals, key=lambda v: (_bits(v), v.version != held, int(v.version)))
        if best.version == held:
            return
        client.set_registered_model_alias(version.name, ALIAS, best.version)


def _comparable(client: MlflowClient, holder: ModelVersion) -> list[ModelVersion]:
    """The versions whose figure was measured on the same text as the holder's."""
    if validation := holder.tags.get(VALIDATION_TAG):
        return client.search_model_versions(f"name = '{holder.name}' AND tags.{VALIDATION_TAG} = '{validation}'")
    return []


def _bits(version: ModelVersion) -> float:
    """Infinite where somebody has made the tag something else than a number."""
    with contextlib.suppress(KeyError, ValueError):
        bits = float(version.tags[CRITERION])
        return bits if math.isfinite(bits) else math.inf
    return math.inf
