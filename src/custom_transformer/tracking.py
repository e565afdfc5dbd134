"""MLflow, here and nowhere else: a training is one run, and evaluation and generation add to that run.

The store is `tracking.uri`, else the variable MLFLOW_TRACKING_URI, else `mlflow.db` at the project root, which
the workspace, `--temp` and queued experiments share. Whatever becomes of the store, the work being tracked goes
on: the first call that fails prints one line and switches the run off.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import math
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from filelock import FileLock

from custom_transformer.config import Params, TrackingParams
from custom_transformer.errors import UserError, one_line
from custom_transformer.files import project_root, sha256_file

if TYPE_CHECKING:
    import mlflow.entities
    from mlflow import MlflowClient

# MLflow's own limits for one request.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_DATASET_DIGEST_LENGTH = 36
_TAG_LENGTH = 8000

_FLUSH_SECONDS = 3.0
_SAMPLE_SECONDS = 2.0  # between system metrics
_LOCK_SECONDS = 60.0
_UPLOAD_SECONDS = 60  # patience with a server that stores a checkpoint

# MLflow reads these when imported or used; what the user has set stands. The terminal belongs to the training's
# progress, and a server that does not answer costs two attempts of two seconds, once a run.
_QUIET_AND_BOUNDED = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}


@dataclass(frozen=True)
class DatasetVersion:
    """Texts that a run reads, as MLflow lists them among the run's inputs."""

    name: str
    digest: str  # MLflow keeps the first 36 characters
    source: str  # a path or a URL


def store_uri(tracking: TrackingParams) -> str:
    """The store's address: `tracking.uri`, else MLFLOW_TRACKING_URI, else SQLite at the project root.

    A relative SQLite path starts at the project root, not at the working folder, which DVC deletes after a
    temporary experiment. Raises UserError for an address that is neither SQLite nor HTTP.
    """
    uri, where = tracking.uri, "tracking.uri"
    if uri is None:
        uri, where = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db", "MLFLOW_TRACKING_URI"
    shown = _without_password(uri)
    wrong = UserError(f"{where}: {shown}: not an MLflow store; give sqlite:///PATH or http(s)://HOST:PORT")
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises where it is no port
    except ValueError:
        raise wrong from None
    if parts.scheme in ("http", "https") and parts.hostname:
        return uri
    database = uri.removeprefix("sqlite:///")
    if database == uri or database in ("", ":memory:") or database.endswith("/") or "?" in database:
        raise wrong
    return f"sqlite:///{project_root() / database}"


class Run:
    """One MLflow run, written in batches by one thread.

    Metrics wait until there are a thousand or the oldest is a few seconds old. The first call that the store
    refuses prints one line on stderr and switches the run off: every later call returns at once, and nothing is
    raised. Leaving the `with` block sends what waits and, if the run is this block's own, ends it as FINISHED,
    FAILED (an exception) or KILLED (Ctrl-C or exit). A run that is only added to keeps its status and times.
    """

    run_id: str | None = None  # None: not tracked

    def __init__(self, tracking: TrackingParams) -> None:
        self.uri = store_uri(tracking)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._own = False
        self._started = 0  # ms since 1970
        self._checkpoints = ""
        self._waiting: deque[tuple[str, float, int, int]] = deque()
        self._sent = time.monotonic()
        try:
            self._client, self._experiment_id = _open(self.uri, tracking.experiment)
        except Exception as error:
            self._switch_off(error)

    def start(self, name: str, params: Params, tags: Mapping[str, str]) -> None:
        """Makes a new run, with every parameter under its dotted name."""
        created = self._call("create_run", self._experiment_id, run_name=name, tags=dict(tags))
        if created is None:
            return
        from mlflow.entities import Param

        self._take(created, own=True)
        flat = [Param(key, value) for key, value in _flatten(params.model_dump(mode="json"))]
        for i in range(0, len(flat), _PARAMS_A_BATCH):
            self._call("log_batch", self.run_id, params=flat[i : i + _PARAMS_A_BATCH])

    def go_on(self, key: str) -> bool:
        """Goes on with the newest unfinished run of this key, as its owner; False where there is none."""
        found = self._search(f"tags.training_key = '{key}' AND attributes.status != 'FINISHED'")
        if found:
            self._take(found[0], own=True)
            self._call("update_run", self.run_id, "RUNNING")
        return bool(found)

    def add_to(self, digest: str) -> bool:
        """Adds to the newest run that logged a checkpoint of this SHA-256, one of the same DVC experiment
        before others; False where there is none."""
        found = self._search(f"tags.checkpoints LIKE '%{digest}%'")
        if found:
            experiment = os.environ.get("DVC_EXP_NAME")
            same = [run for run in found if run.data.tags.get("DVC_EXP_NAME") == experiment]
            self._take((same or found)[0], own=False)
        return bool(found)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Notes values with the time of this call. NaN and infinity both become NaN, which MLflow charts as a
        gap: it would store infinity as 1.8e308."""
        self.note_metrics(metrics, step)
        if len(self._waiting) >= _METRICS_A_BATCH or time.monotonic() - self._sent >= _FLUSH_SECONDS:
            self.flush()

    def note_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """As `log_metrics`, but sends nothing, so that other threads may call it."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            value = float(value)
            self._waiting.append((key, value if math.isfinite(value) else math.nan, now, step))

    def flush(self) -> None:
        """Sends the metrics that wait."""
        while self._waiting:
            from mlflow.entities import Metric

            count = min(len(self._waiting), _METRICS_A_BATCH)
            batch = [Metric(*self._waiting.popleft()) for _ in range(count)]
            self._call("log_batch", self.run_id, metrics=batch)
        self._sent = time.monotonic()

    def set_tags(self, tags: Mapping[str, object]) -> None:
        for key, value in tags.items():
            self._call("set_tag", self.run_id, key, str(value))

    def log_datasets(self, datasets: Mapping[str, DatasetVersion]) -> None:
        """Lists what the run reads; the keys (train, validation) are MLflow's dataset contexts."""
        if self._client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for context, data in datasets.items():
            web = data.source.startswith(("http://", "https://"))
            source = json.dumps({"url" if web else "uri": data.source})
            digest = data.digest[:_DATASET_DIGEST_LENGTH]
            dataset = Dataset(data.name, digest, source_type="http" if web else "local", source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._call("log_inputs", self.run_id, inputs)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copies a file, or a folder with all it holds, into the run's artifacts, under `folder`."""
        self._call("log_artifact", self.run_id, str(path), folder)

    def log_checkpoint(self, path: Path | str) -> None:
        """Copies a checkpoint to the artifacts under `checkpoints` and tags the run with its digest, by which
        `checkpoint_run` finds it; the newest eighty or so digests are kept."""
        self._checkpoints = (self._checkpoints + _checkpoint_line(path))[-_TAG_LENGTH:]
        self.set_tags({"checkpoints": self._checkpoints})
        with _patience(_UPLOAD_SECONDS):
            self.log_artifact(path, "checkpoints")

    def seconds(self) -> int:
        """Whole seconds since the run was made."""
        return int(time.time() - self._started / 1000)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.flush()
        if self._own:
            failure = "FAILED" if kind and issubclass(kind, Exception) else "KILLED"
            self._call("set_terminated", self.run_id, failure if kind else "FINISHED")

    def _take(self, run: mlflow.entities.Run, *, own: bool) -> None:
        self.run_id, self._own, self._started = run.info.run_id, own, run.info.start_time
        self._checkpoints = run.data.tags.get("checkpoints", "")

    def _search(self, condition: str) -> list[mlflow.entities.Run]:
        newest_first = ["attributes.start_time DESC"]
        found = self._call("search_runs", [self._experiment_id], condition, order_by=newest_first, max_results=50)
        return list(found or [])

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The one way to the store: MlflowClient's `method`, or None once the run is off."""
        if self._client is None:
            return None
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except Exception as error:
            self._switch_off(error)
            return None

    def _switch_off(self, error: BaseException) -> None:
        self._client = self.run_id = None
        self._waiting.clear()
        where = _without_password(self.uri)
        message = f"MLflow tracking is off: {where}: {_cause(error)}; the work goes on, nothing more is logged"
        print(f"warning: {one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def training_run(
    params: Params,
    *,
    datasets: Mapping[str, DatasetVersion],
    key: str,
    resumed: bool = False,
    stage: str = "train",
) -> Iterator[Run]:
    """The run of one training: parameters, where the code and the data come from, and the machine's load.

    key: names what decides the training's result; a `resumed` training goes on with the run that an interrupted
    one of the same key left unfinished, and makes a new one where there is none.
    Raises UserError for a malformed `tracking.uri`, and nothing else of its own.
    """
    with Run(params.tracking) as run:
        if not (resumed and run.go_on(key)):
            run.start(_run_name(_describe(params)), params, {**_provenance(stage), "training_key": key})
            run.log_datasets(datasets)
        with _system_metrics(run):
            yield run


@contextlib.contextmanager
def checkpoint_run(params: Params, checkpoint: Path | str, *, stage: str) -> Iterator[Run]:
    """The run that a checkpoint came from, to add what `stage` finds out about it.

    That is the newest run that logged a checkpoint of the same bytes, one of the same DVC experiment before
    others. Where there is none (the file came from elsewhere, or DVC restored it without training), a new run
    is made, which later stages find in turn. Raises UserError for a malformed `tracking.uri`, and nothing else
    of its own.
    """
    line = _checkpoint_line(checkpoint)
    digest = line.split()[0]
    with Run(params.tracking) as run:
        if not run.add_to(digest):
            tags = {**_provenance(stage), "checkpoints": line}
            run.start(_run_name(f"checkpoint-{digest[:12]}"), params, tags)
        yield run


def _checkpoint_line(path: Path | str) -> str:
    return f"{sha256_file(path)}  {Path(path).name}\n"


# --- the store --------------------------------------------------------------------------------------------


def _open(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client for the store, made where it is missing, and the id of the experiment, likewise."""
    # Nothing goes to the outside; unlike the rest this is not for the environment to overrule.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in _QUIET_AND_BOUNDED.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # warns of each retry

    from mlflow import MlflowClient

    if not uri.startswith("sqlite:"):
        client = MlflowClient(uri)
        return client, _experiment_id(client, experiment, None)
    # A second of imports, before the lock so that waiting processes do not queue for them.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database = Path(uri.removeprefix("sqlite:///"))
    artifacts = (project_root() / "mlartifacts").as_uri()
    database.parent.mkdir(parents=True, exist_ok=True)
    # MLflow builds the tables when a client is made, and two that do so at once spoil each other's work.
    with FileLock(f"{database}.lock", timeout=_LOCK_SECONDS):
        if not database.exists():
            # Aside and then renamed: a store whose making was killed half-way can never be opened again.
            unfinished = Path(f"{database}.new")
            for leftover in (unfinished, Path(f"{unfinished}-journal")):
                leftover.unlink(missing_ok=True)
            SqlAlchemyStore(f"sqlite:///{unfinished}", artifacts).engine.dispose()
            unfinished.rename(database)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")  # fails at once where MLflow would retry for minutes
            with contextlib.suppress(sqlite3.OperationalError):  # busy: it stays as it is, only slower
                connection.execute("PRAGMA journal_mode = WAL")
        client = MlflowClient(uri)
        return client, _experiment_id(client, experiment, artifacts)


def _experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made_meanwhile = client.get_experiment_by_name(name)
    assert made_meanwhile is not None
    return made_meanwhile.experiment_id


@contextlib.contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """A longer HTTP timeout for a while; MLflow reads the variable at each request."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name, "0")
    os.environ[name] = str(max(int(before), seconds))
    try:
        yield
    finally:
        os.environ[name] = before


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an exception: MLflow wraps 'Connection refused' in four layers of text."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text or type(error).__name__)[:200]


# --- what a run is told about itself ----------------------------------------------------------------------


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """('model.d_model', '128'), …: text as it is, all else as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _describe(params: Params) -> str:
    model = params.model
    data = PurePosixPath(params.data.dataset).name
    return f"{data}-d{model.d_model}-L{model.n_blocks}-H{model.n_heads}-seed{params.seed}"


def _run_name(otherwise: str) -> str:
    return os.environ.get("DVC_EXP_NAME") or otherwise


def _provenance(stage: str) -> dict[str, str]:
    """Tags: the stage, who ran it from which commit, and DVC's names for the experiment and its inputs."""
    tags = {"stage": stage, "mlflow.source.type": "LOCAL", "mlflow.source.name": f"stages.{stage}"}
    with contextlib.suppress(OSError, KeyError):  # a user without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git("rev-parse", "HEAD"):
        # What the pipeline itself rewrites under git says nothing about the code.
        changes = _git("status", "--porcelain", "--untracked-files=no", ":!dvc.lock", ":!metrics")
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": json.dumps(bool(changes))}
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
        if value := os.environ.get(name):
            tags[name] = value
    return tags | _upstream_stages()


def _git(*args: str) -> str | None:
    """The answer of git about the working folder; None where it has none."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _upstream_stages() -> dict[str, str]:
    """`dvc.stage.NAME`: a short hash of the dvc.lock entry, for each stage that the running one builds upon.

    Equal hashes mean equal commands, parameters, inputs and outputs. Outside a DVC stage the lock need not
    have anything to do with the files in use, so there are no such tags.
    """
    stage = os.environ.get("DVC_STAGE")
    if not stage:
        return {}
    try:
        pipeline, lock = (yaml.safe_load(Path(name).read_text("utf-8")) for name in ("dvc.yaml", "dvc.lock"))
    except (OSError, yaml.YAMLError):
        return {}
    entries: dict[str, Any] = lock["stages"]
    # A dependency in dvc.yaml is a path, or a mapping from the path to its options.
    declared = pipeline["stages"].get(stage, {}).get("deps", [])
    needed = [dep if isinstance(dep, str) else next(iter(dep)) for dep in declared]
    upstream: dict[str, str] = {}
    while needed:
        path = PurePosixPath(needed.pop())
        for name, entry in entries.items():
            outs = [PurePosixPath(out["path"]) for out in entry.get("outs", [])]
            if name not in upstream and any(path.is_relative_to(o) or o.is_relative_to(path) for o in outs):
                content = json.dumps(entry, sort_keys=True).encode()
                upstream[name] = sha256(content).hexdigest()[:16]
                needed += [dep["path"] for dep in entry.get("deps", [])]
    return {f"dvc.stage.{name}": digest for name, digest in upstream.items()}


@contextlib.contextmanager
def _system_metrics(run: Run) -> Iterator[None]:
    """Notes the machine's load every few seconds and at the end, in a thread of its own."""
    stop = threading.Event()
    thread = threading.Thread(target=_sample_system, args=(run, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _sample_system(run: Run, stop: threading.Event) -> None:
    if run.run_id is None:
        return
    # MLflow's collectors, but not its loop: that one asks the server for the run at each sample.
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    with contextlib.suppress(Exception):  # a machine that does not tell its load can still train
        collectors = SystemMetricsMonitor(run.run_id, _SAMPLE_SECONDS, tracking_uri=run.uri)
        collectors.collect_metrics()  # the first CPU share is always 0: it is measured from call to call
        stopped = False
        while not stopped:
            for monitor in collectors.monitors:
                monitor.clear_metrics()
            stopped = stop.wait(collectors.sampling_interval)
            collectors.collect_metrics()
            load = collectors.aggregate_metrics()
            run.note_metrics({f"system/{name}": value for name, value in load.items()}, run.seconds())
