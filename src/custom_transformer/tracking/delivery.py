"""One spool on its way to its store.

Everything is sent at least once and stored once: a store keeps equal points (name, step, time, value) as one, a run is
searched by its spool's name before it is created, and sending a tag or artifact again overwrites it. Models:
registry.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from custom_transformer.tracking.provenance import CHECKOUT_TAG
from custom_transformer.tracking.registry import deliver_model
from custom_transformer.tracking.spool import Event, Header, Progress, Spool, now
from custom_transformer.tracking.store import (
    IMPOSSIBLE,
    cause,
    experiment_id,
    open_store,
    patience,
    run_is_gone,
    unless_gone,
)
from custom_transformer.tracking.sweep import SWEEP_TAG, join_sweep

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# MLflow's own limits for one request.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_DATASET_DIGEST_LENGTH = 36


SPOOL_TAG = "spool"
ORIGINAL_TAG = "original_run_id"
# Answers that concern one run, not the store.
_OF_ONE_RUN = (IMPOSSIBLE, "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "BAD_REQUEST")


class Delivery:
    """One spool on its way to one store. Its methods raise whatever the store's client raises."""

    def __init__(self, spool: Spool):
        self.spool = spool
        self.header: Header = spool.header()
        self.progress: Progress = spool.progress()
        if self.progress.offset > spool.size():  # a power cut has taken the newest events back
            self._note(offset=0, closed=False)
        self.refused: str | None = None  # why the store will never take some event
        self._client: MlflowClient | None = None

    def send(self) -> None:
        """Sends everything in the spool that the store does not have yet.

        If the store no longer has the run, because the run was deleted or the store replaced by an empty one, the run
        is recreated: the spool still has all of it.
        """
        try:
            self._send_all()
        except Exception as error:
            if not run_is_gone(error):
                raise
            self._note(run_id=None, described=False, offset=0, closed=False)
            self._send_all()

    def _send_all(self) -> None:
        if self._client is None:
            self._client = open_store(self.header.uri)
        if self.progress.run_id is None:
            try:
                run_id, own = self._find_or_make()
            except Exception as error:
                if getattr(error, "error_code", None) == IMPOSSIBLE and not run_is_gone(error):
                    raise Undeliverable from error
                raise
            self._note(run_id=run_id, described=not own)
        if not self.progress.described:
            with self._refusals():
                self._describe()
            self._note(described=True)
        for events, offset in _requests(self.spool.events(self.progress.offset)):
            with self._refusals():
                self._send(events)
            self._note(offset=offset, closed="end" in events[-1])

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Gives up events that the store will never take, such as a name that MLflow does not allow, and continues."""
        try:
            yield
        except Exception as error:
            if getattr(error, "error_code", None) != IMPOSSIBLE or run_is_gone(error):
                raise
            self.refused = cause(error)

    def close_for_the_dead(self) -> None:
        """Ends a run whose process died without ending it."""
        if self.progress.closed:
            return
        with unless_gone():
            self._client_call("set_terminated", self.progress.run_id, "KILLED", now())
        self._note(closed=True)

    def _note(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self.spool.save_progress(self.progress)

    def _client_call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._client, method)(*args, **kwargs)

    @property
    def complete(self) -> bool:
        """Whether the store has all of it, including its end."""
        return self.progress.closed and self.progress.offset == self.spool.size()

    # -- the run

    def _find_or_make(self) -> tuple[str, bool]:
        """MLflow's id of the run, and whether it is the spool's own, not one that it adds to.

        A checkpoint's run is added to by the experiment of DVC's that made it, and by those who are in none. Another
        experiment, to which DVC gave the checkpoint without training, has a run of its own that names the original.
        """
        if found := self._search(f"tags.{SPOOL_TAG} = '{self.spool.name}'"):
            return found[0].info.run_id, True
        tags = self.header.tags | {SPOOL_TAG: self.spool.name}
        if self.header.checkpoint:
            here, wanted = tags.get(CHECKOUT_TAG), _dvc_experiment(tags)
            found = self._search(f"tags.checkpoints LIKE '%{self.header.checkpoint}%'")

            # Runs that trained it before those that only got it, and of clones that share a store this one's first.
            def distance(run: Run) -> tuple[bool, bool, bool]:
                theirs = run.data.tags
                return ORIGINAL_TAG in theirs, theirs.get(CHECKOUT_TAG) != here, _dvc_experiment(theirs) is not None

            found.sort(key=distance)
            eligible = found[:1] if wanted is None else [r for r in found if _dvc_experiment(r.data.tags) == wanted]
            for run in eligible:
                if run.data.tags.get(CHECKOUT_TAG) == here:
                    return run.info.run_id, False
            if self.spool.others_with(self.header.checkpoint):
                raise EarlierPartUnderway
            if found and wanted is None:
                return found[0].info.run_id, False
            if found:
                tags |= _pointing_to(found[0])
        made = self._client_call(
            "create_run", self._experiment(), start_time=self.header.started, run_name=self.header.name, tags=tags
        )
        return made.info.run_id, True

    def _experiment(self) -> str:
        assert self._client is not None
        return experiment_id(self._client, self.header.experiment, self.header.uri)

    def _search(self, condition: str) -> list[Run]:
        newest_first = ["attributes.start_time DESC"]
        return list(
            self._client_call("search_runs", [self._experiment()], condition, order_by=newest_first, max_results=1000)
        )

    def _describe(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self._join(self.header.tags)
        if self.header.checkpoint:
            with unless_gone():
                self._copy_results()
        params = [Param(*item) for item in self.header.params.items()]
        for i in range(0, len(params), _PARAMS_A_BATCH):
            self._client_call("log_batch", self.progress.run_id, params=params[i : i + _PARAMS_A_BATCH])
        inputs = []
        for data in self.header.datasets:
            web = data["source"].startswith(("http://", "https://"))
            source = json.dumps({"url" if web else "uri": data["source"]})
            digest = data["digest"][:_DATASET_DIGEST_LENGTH]
            dataset = Dataset(data["name"], digest, source_type="http" if web else "local", source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", data["context"])]))
        if inputs:
            self._client_call("log_inputs", self.progress.run_id, inputs)

    def _copy_results(self) -> None:
        """The newest value of each metric of the original, so that its experiments compare in one table."""
        from mlflow.entities import Metric

        tags = self._client_call("get_run", self.progress.run_id).data.tags
        if original := tags.get(ORIGINAL_TAG):
            newest = map(Metric.from_proto, self._client_call("get_run", original).data.to_proto().metrics)
            metrics = [metric for metric in newest if not metric.key.startswith("system/")]
            self._client_call("log_batch", self.progress.run_id, metrics=metrics)

    def _join(self, tags: Mapping[str, str]) -> None:
        if sweep := tags.get(SWEEP_TAG):
            assert self._client is not None
            assert self.progress.run_id is not None
            join_sweep(self._client, self.header.uri, self._experiment(), self.progress.run_id, sweep)

    # -- events

    def _send(self, events: list[Event]) -> None:
        """One request: the metrics of several events, or one event of another kind."""
        from mlflow.entities import Metric, RunTag

        run_id, first = self.progress.run_id, events[0]
        if "metrics" in first:
            metrics = [
                # MLflow would store infinity as 1.8e308; NaN it charts as a gap.
                Metric(name, value if math.isfinite(value) else math.nan, event["time"], event["step"])
                for event in events
                for name, value in event["metrics"].items()
            ]
            self._client_call("log_batch", run_id, metrics=metrics)
        elif "tags" in first:
            self._client_call("log_batch", run_id, tags=[RunTag(*item) for item in first["tags"].items()])
            self._join(first["tags"])
        elif "artifact" in first:
            kept = self.spool.path / "artifacts" / first["artifact"]
            with patience():
                if kept.is_dir():
                    folder = "/".join(filter(None, (first["folder"], kept.name)))
                    self._client_call("log_artifacts", run_id, str(kept), folder)
                else:
                    self._client_call("log_artifact", run_id, str(kept), first["folder"])
        elif "model" in first:
            assert self._client is not None
            folder = self.spool.path / "artifacts" / first["model"]["path"]
            with patience():
                deliver_model(self._client, self.header, str(run_id), folder, first["model"])
        elif "resumed" in first:
            self._client_call("update_run", run_id, "RUNNING", first["resumed"])
        elif "end" in first:
            self._client_call("set_terminated", run_id, first["end"], first["time"])


class Undeliverable(Exception):
    """No store will ever have the run: its cause says which of the run's properties MLflow does not allow."""


class EarlierPartUnderway(Exception):
    """The run that a checkpoint came from, or an earlier stage's part of this one, is not delivered yet."""

    def __init__(self) -> None:
        super().__init__("another process is delivering an earlier part of this run")


def _dvc_experiment(tags: Mapping[str, str]) -> tuple[str, str | None] | None:
    """Identifies a DVC experiment: two at different commits may have the same name."""
    name = tags.get("DVC_EXP_NAME")
    return (name, tags.get("DVC_EXP_BASELINE_REV")) if name else None


def _pointing_to(original: Run) -> dict[str, str]:
    """Tags of a run whose training was another; MLflow shows the note, with its link, on the run's page."""
    info = original.info
    name = re.sub(r"([][\\`*_<>&|~])", r"\\\1", str(info.run_name))  # text, whatever Markdown it looks like
    link = f"[{name}](#/experiments/{info.experiment_id}/runs/{info.run_id})"
    conditions = {name: value for name, value in original.data.tags.items() if name.startswith("fingerprint")}
    note = f"Not trained again: DVC has restored what {link} made. Its curves and checkpoints are there."
    return conditions | {ORIGINAL_TAG: info.run_id, "mlflow.note.content": note}


def concerns_one_run(error: Exception) -> bool:
    code = getattr(error, "error_code", "")
    return isinstance(error, (EarlierPartUnderway, Undeliverable, FileNotFoundError)) or code in _OF_ONE_RUN


def _requests(events: Iterator[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """The events of each request, with the offset behind them: as many metrics as one takes; other events alone."""
    batch: list[Event] = []
    size = behind = 0
    for event, offset in events:
        count = len(event.get("metrics", ()))
        if batch and (count == 0 or size + count > _METRICS_A_BATCH):
            yield batch, behind
            batch, size = [], 0
        if count == 0:
            yield [event], offset
            continue
        batch.append(event)
        size, behind = size + count, offset
    if batch:
        yield batch, behind
