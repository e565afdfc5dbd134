"""What the spools hold, brought to their stores: by a thread beside a run, and by `sync` afterwards.

Everything is sent at least once and kept once: a store keeps equal points (name, step, time, value) as one, a run is
looked for by its spool's name before it is made, tags and artifacts replace themselves.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from custom_transformer.errors import one_line
from custom_transformer.tracking.spool import Event, Header, Progress, Spool, now, spool_root, unattended
from custom_transformer.tracking.store import cause, experiment_id, is_local, open_store, patience, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own limits for one request.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_DATASET_DIGEST_LENGTH = 36

_SECONDS_BETWEEN = 3.0  # deliveries; after a failure twice as long each time, up to the next figure
_LONGEST_PAUSE = 60.0
_OPENING_SECONDS = 3.0  # that a run waits for its store before it begins its work beside it
_CLOSING_SECONDS = 5.0  # that a run waits at its end for a server to take the rest

SPOOL_TAG = "spool"
_UNKNOWN_RUN = "RESOURCE_DOES_NOT_EXIST"
_IMPOSSIBLE = "INVALID_PARAMETER_VALUE"  # the store will never take the event; any other answer may change


class Delivery:
    """One spool on its way to one store. Its methods raise whatever the store's client raises."""

    def __init__(self, spool: Spool):
        self.spool = spool
        self.header: Header = spool.header()
        self.progress: Progress = spool.progress()
        self.refused: str | None = None  # why the store will never take some event
        self._client: MlflowClient | None = None
        self._anew = False  # everything is sent once more

    def send(self) -> None:
        """Everything that the spool holds and the store has not."""
        if self._client is None:
            self._client = open_store(self.header.uri)
        if self.progress.run_id is None:
            run_id, own = self._find_or_make()
            self._note(run_id=run_id, described=not own)
        if not self.progress.described:
            self._describe()
            self._note(described=True)
        for events, offset in _batches(self.spool.events(self.progress.offset)):
            try:
                self._send(events)
            except Exception as error:
                code = getattr(error, "error_code", None)
                if code == _UNKNOWN_RUN and not self._anew:
                    break
                if code not in (_UNKNOWN_RUN, _IMPOSSIBLE):
                    raise
                self.refused = cause(error)
            self._note(offset=offset, closed="end" in events[-1])
        else:
            return
        # The store has been replaced by an empty one; the spool still has it all.
        self._anew = True
        self._note(run_id=None, described=False, offset=0, closed=False)
        self.send()

    def close_for_the_dead(self) -> None:
        """Ends a run whose process died without a word."""
        if not self.progress.closed:
            self._client_call("set_terminated", self.progress.run_id, "KILLED", now())
            self._note(closed=True)

    def _note(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self.spool.save_progress(self.progress)

    def _client_call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._client, method)(*args, **kwargs)

    @property
    def complete(self) -> bool:
        """Whether the store has all of it, its end too."""
        return self.progress.closed and self.progress.offset == self.spool.size()

    # -- the run

    def _find_or_make(self) -> tuple[str, bool]:
        """MLflow's id of the run, and whether it is the spool's own, not one that it adds to."""
        assert self._client is not None
        experiment = experiment_id(self._client, self.header.experiment, self.header.uri)
        if found := self._search(experiment, f"tags.{SPOOL_TAG} = '{self.spool.name}'"):
            return found[0].info.run_id, True
        if digest := self.header.checkpoint:
            found = self._search(experiment, f"tags.checkpoints LIKE '%{digest}%'")
            wanted = self.header.tags.get("DVC_EXP_NAME")
            found.sort(key=lambda run: run.data.tags.get("DVC_EXP_NAME") != wanted)  # the same experiment's first
            if found:
                return found[0].info.run_id, False
        made = self._client_call(
            "create_run",
            experiment,
            start_time=self.header.started,
            run_name=self.header.name,
            tags=self.header.tags | {SPOOL_TAG: self.spool.name},
        )
        return made.info.run_id, True

    def _search(self, experiment: str, condition: str) -> list[Any]:
        newest_first = ["attributes.start_time DESC"]
        return list(self._client_call("search_runs", [experiment], condition, order_by=newest_first, max_results=50))

    def _describe(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

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
        elif "artifact" in first:
            kept = self.spool.path / "artifacts" / first["artifact"]
            with patience():
                if kept.is_dir():
                    folder = "/".join(filter(None, (first["folder"], kept.name)))
                    self._client_call("log_artifacts", run_id, str(kept), folder)
                else:
                    self._client_call("log_artifact", run_id, str(kept), first["folder"])
        elif "resumed" in first:
            self._client_call("update_run", run_id, "RUNNING", first["resumed"])
        elif "end" in first:
            self._client_call("set_terminated", run_id, first["end"], first["time"])


def _batches(events: Iterator[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Events by requests: as many metrics as one takes, everything else alone; each with the offset behind it."""
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


def deliver_unattended(uri: str | None = None) -> Iterator[tuple[Header, Exception | None]]:
    """Brings the spools of processes that have ended to their stores, oldest first: all of them, or those for `uri`.

    Yields each spool's header and what kept it from being delivered whole. A delivered spool is removed, unless its
    run can still go on.
    """
    failed: dict[str, Exception] = {}  # stores, which are not asked again for their other runs
    for spool in unattended():
        try:
            delivery = Delivery(spool)
        except FileNotFoundError:  # the folder was delivered and removed meanwhile, and only the lock made it again
            spool.remove()
            continue
        except (OSError, ValueError, TypeError):  # a damaged disk; left for a person to look at
            continue
        store = delivery.header.uri
        if uri not in (None, store) or (delivery.complete and spool.can_go_on()):
            continue
        try:
            if store in failed:
                raise failed[store]
            delivery.send()
            delivery.close_for_the_dead()
        except Exception as error:
            failed[store] = error
            yield delivery.header, error
            continue
        if not spool.can_go_on():
            spool.remove()
        yield delivery.header, None


class Courier(threading.Thread):
    """Delivers a spool while it is being written, and before it what earlier runs left for the same store.

    The first failure prints one line; nothing is raised.
    """

    def __init__(self, spool: Spool):
        super().__init__(name="tracking", daemon=True)  # a request under way does not keep the process alive
        self._delivery = Delivery(spool)
        self._uri = self._delivery.header.uri
        self._warned, self._caught_up = False, False
        self._opened, self._ending = threading.Event(), threading.Event()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once the store has told it."""
        return self._delivery.progress.run_id

    def begin(self) -> None:
        self.start()
        self._opened.wait(_OPENING_SECONDS)

    def end(self) -> bool:
        """Sends the rest, waiting for a server no longer than _CLOSING_SECONDS; whether all was delivered."""
        self._ending.set()
        self.join(None if is_local(self._uri) else _CLOSING_SECONDS)
        if self.is_alive():
            self._warn("it takes too long")
        return not self.is_alive() and self._delivery.progress.closed

    def run(self) -> None:
        pause = _SECONDS_BETWEEN
        ending = False
        while not ending:
            ending = self._ending.is_set()  # read before sending: what was written until then is sent
            delivered = self._attempt()
            self._opened.set()
            pause = _SECONDS_BETWEEN if delivered else min(2 * pause, _LONGEST_PAUSE)
            if not ending:
                self._ending.wait(pause)

    def _attempt(self) -> bool:
        try:
            if not self._caught_up:
                for _, error in deliver_unattended(self._uri):
                    if error:
                        raise error
                self._caught_up = True
            self._delivery.send()
        except Exception as error:
            self._warn(cause(error))
            return False
        if reason := self._delivery.refused:
            self._warn(f"it refuses a part for good: {reason}")
        return True

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            message = (
                f"MLflow tracking: {without_password(self._uri)}: {reason}; the work goes on, and what is not "
                f"delivered waits in {spool_root()} for the next run or python -m custom_transformer sync"
            )
            print(f"warning: {one_line(message)}", file=sys.stderr)


@dataclass(frozen=True)
class SyncResult:
    """What `sync` did: runs delivered whole, and for the others their name and what kept them back."""

    delivered: int
    waiting: list[tuple[str, str]]


def sync() -> SyncResult:
    """Delivers what ended runs left in the spool."""
    delivered, waiting = 0, []
    for header, error in deliver_unattended():
        if error:
            waiting.append((header.name, f"{without_password(header.uri)}: {cause(error)}"))
        else:
            delivered += 1
    return SyncResult(delivered, waiting)
