"""A training is one run, and evaluation and generation add to that run.

A run writes only to its spool, and a courier sends the spool to the store; see spool.py and courier.py. If the store
fails, the work being tracked continues, and nothing that it logged is lost.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from custom_transformer.config import GenerationParams, Params
from custom_transformer.errors import one_line
from custom_transformer.files import atomic_write, sha256_file
from custom_transformer.tracking.courier import Courier
from custom_transformer.tracking.models import save_model
from custom_transformer.tracking.provenance import describe, flat_params, provenance, run_name
from custom_transformer.tracking.spool import SPOOL_NAME, Header, Spool, new_name, now, spool_root
from custom_transformer.tracking.store import cause, import_mlflow, store_uri, without_password
from custom_transformer.tracking.sweep import SWEEP_TAG
from custom_transformer.tracking.system import SystemMetrics

_TAG_LENGTH = 8000  # MLflow's limit


@dataclass(frozen=True)
class DatasetVersion:
    """Texts that a run reads, as MLflow lists them among the run's inputs."""

    name: str
    digest: str  # MLflow keeps the first 36 characters
    source: str  # a path or a URL


class Run:
    """One MLflow run, or what a stage adds to one.

    Nothing here waits for a store, and nothing raises: where the spool cannot be written, one line on stderr says so.
    Leaving the `with` block ends the run as FINISHED, FAILED (an exception) or KILLED (Ctrl-C or exit), and gives the
    courier some seconds for the rest.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self._spool: Spool | None = None
        self._courier: Courier | None = None
        self._last_step = 0  # logged by the process that this one goes on from
        self._warned = False

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None until the store has told it."""
        return self._courier.run_id if self._courier else None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Notes values with the time of this call; those of steps that the interrupted run has logged are left out,
        for they are the same."""
        if step > self._last_step:
            self.note_metrics(metrics, step)

    def note_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """As `log_metrics`, whatever the step."""
        if self._spool:
            self._spool.log_metrics(metrics, step)
            self._check_spool()

    def flush(self) -> None:
        """Brings what was logged to the disk: before a state is saved from which the run can go on."""
        if self._spool:
            self._spool.flush()
            self._check_spool()

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Takes a copy of a file, or of a folder with all it holds, for the run's artifacts, under `folder`."""
        if self._spool:
            try:
                self._spool.add_artifact(Path(path), folder)
            except OSError as error:
                self._warn(error)

    def log_checkpoints(self, paths: list[Path]) -> None:
        """Takes copies of checkpoints for the artifacts, and tags the run with their digests, by which
        `checkpoint_run` finds it; the newest eighty or so fit."""
        if self._spool:
            lines = "".join(map(_checkpoint_line, paths))
            self._spool.append({"tags": {"checkpoints": lines[-_TAG_LENGTH:]}})
            for path in paths:
                self.log_artifact(path, "checkpoints")

    def log_model(
        self,
        checkpoint: Path,
        tokenizer: Path,
        *,
        defaults: GenerationParams,
        metrics: Mapping[str, float],
        step: int,
        validation: str,
        registered_model: str | None,
    ) -> None:
        """Makes an MLflow model of a checkpoint, and notes `metrics` as the run's and the model's.

        defaults: what holds where a request to the model sets nothing.
        validation: a digest of what the metrics were measured on.
        registered_model: gets the model as a version; None registers none.
        """
        if not self._spool:
            return
        measured = {"time": now(), "step": step, "metrics": dict(metrics)}
        self._spool.append(measured)
        self._check_spool()
        try:
            with tempfile.TemporaryDirectory(dir=self._spool.path) as scratch:
                folder = Path(scratch) / "model"
                content = save_model(folder, checkpoint, tokenizer, defaults)
                facts = {"content": content, "validation": validation, "registered_model": registered_model}
                self._spool.add_model(folder, facts | {"measured": measured})
        except Exception as error:  # a full disk, or whatever MLflow raises
            self._warn(error)

    def note_load(self, load: Mapping[str, float]) -> None:
        """Notes the machine's load as system/… metrics; their steps are whole seconds since the run began."""
        seconds = (now() - self._header.started) // 1000
        self.note_metrics({f"system/{name}": value for name, value in load.items()}, seconds)

    def __enter__(self) -> Run:
        import_mlflow()
        try:
            self._spool = self._open_spool()
            self._courier = Courier(self._spool)
        except OSError as error:
            self._warn(error)
        else:
            self._courier.begin()
        return self

    def _open_spool(self) -> Spool:
        """The spool of the interrupted run that this one goes on from, else a new one. Raises OSError."""
        name = new_name(self._header)
        if self._header.work is not None:
            named = Path(self._header.work) / SPOOL_NAME
            # Where its spool is gone, delivered by another process or deleted, a new one of its name finds the run.
            name = Path(named.read_text("utf-8", errors="replace")).name if named.exists() else name
            if spool := Spool.reopen(name, self._header.uri):
                # Under the name and tags of this process: an experiment's name may be another one this time.
                spool.append({"resumed": self._header.name})
                spool.append({"tags": self._header.tags})
                self._header, self._last_step = spool.header(), spool.last_step()
                return spool
            # Named before it is made: a kill between the two leaves no run that nobody goes on with.
            with atomic_write(named, "w") as file:
                file.write(name)
        return Spool.create(self._header, name)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._spool is None or self._courier is None:
            return
        failure = "FAILED" if kind and issubclass(kind, Exception) else "KILLED"
        self._spool.append({"end": failure if kind else "FINISHED", "time": now()})
        self._spool.flush()
        delivered = self._courier.end()
        if self._courier.is_alive():
            return  # it still sends, and holds the spool as long as this process lives: nobody else is to send it too
        if self._courier.undeliverable:
            self._spool.set_aside()
        self._spool.close()
        if delivered and not (kind and self._header.work):
            self._spool.remove()

    def _check_spool(self) -> None:
        if self._spool and self._spool.broken:
            self._warn(self._spool.broken)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            message = f"MLflow tracking: {spool_root()}: {cause(error)}; the work goes on, a part is not logged"
            print(f"warning: {one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def training_run(
    params: Params, *, datasets: Mapping[str, DatasetVersion], work: Path, tags: Mapping[str, str]
) -> Iterator[Run]:
    """The run of one training: parameters, where the code and the data come from, and the machine's load.

    work: the training's work folder; where an interrupted training left it, its run goes on.
    tags: added to those that every run has.
    Raises UserError for a malformed `tracking.uri`, and nothing else of its own.
    """
    inputs = [
        {"context": context, "name": data.name, "digest": data.digest, "source": data.source}
        for context, data in datasets.items()
    ]
    every_tag = provenance("train") | dict(tags)
    header = _header(params, run_name(describe(params)), every_tag, datasets=inputs, work=str(work))
    with Run(header) as run, SystemMetrics(run.note_load):
        yield run


@contextlib.contextmanager
def checkpoint_run(params: Params, checkpoint: Path | str, *, stage: str) -> Iterator[Run]:
    """The run that a checkpoint came from, to add what `stage` finds out about it.

    That is the newest run that logged a checkpoint of the same bytes. Where there is none (the file came from
    elsewhere), or in another DVC experiment only (DVC restored it without training), a new run is made, which names
    the original and which later stages find in turn. Raises UserError for a malformed `tracking.uri`, and nothing else
    of its own.
    """
    line = _checkpoint_line(checkpoint)
    digest = line.split()[0]
    name = run_name(f"checkpoint-{digest[:12]}")
    with Run(_header(params, name, provenance(stage) | {"checkpoints": line}, checkpoint=digest)) as run:
        yield run


def _header(params: Params, name: str, tags: Mapping[str, str], **others: Any) -> Header:
    uri = params.tracking.uri
    uri_shown = {} if uri is None else {"tracking.uri": without_password(uri)}
    return Header(
        uri=store_uri(params.tracking),
        experiment=params.tracking.experiment,
        name=name,
        started=now(),
        params=dict(flat_params(params.model_dump(mode="json"))) | uri_shown,
        tags=dict(tags) | ({SWEEP_TAG: params.tracking.sweep} if params.tracking.sweep else {}),
        **others,
    )


def _checkpoint_line(path: Path | str) -> str:
    return f"{sha256_file(path)}  {Path(path).name}\n"
