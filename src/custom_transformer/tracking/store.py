"""The MLflow store: where it is, and a client for it that never waits long."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from custom_transformer.config import TrackingParams
from custom_transformer.errors import UserError, one_line
from custom_transformer.paths import project_root
from custom_transformer.tracking.addresses import (
    artifacts_of,
    bring_along,
    database_of,
    for_mlflow,
    is_local,
    sqlite_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOCK_SECONDS = 60.0
_UPLOAD_SECONDS = 60  # patience with a server that stores a checkpoint

# MLflow reads these when imported or used; what the user has set stands. The terminal belongs to the training's
# progress. A request is made once and given up after some seconds: what was not delivered is tried again later.
_QUIET_AND_BOUNDED = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}


def store_uri(tracking: TrackingParams) -> str:
    """The store's address: `tracking.uri`, else MLFLOW_TRACKING_URI, else SQLite at the project root.

    A relative SQLite path starts at the project root, not at the working folder, which DVC deletes after a
    temporary experiment. Raises UserError for an address that is neither SQLite nor HTTP.
    """
    return usual_store_uri() if tracking.uri is None else _checked(tracking.uri, "tracking.uri")


def usual_store_uri() -> str:
    """The address where `tracking.uri` sets none. Raises as above."""
    return _checked(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db", "MLFLOW_TRACKING_URI")


def _checked(uri: str, where: str) -> str:
    wrong = UserError(
        f"{where}: {without_password(uri)}: not an MLflow store; give sqlite:///PATH or http(s)://HOST:PORT"
    )
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
    return sqlite_uri(project_root() / unquote(database))


def import_mlflow() -> None:
    """Imports MLflow, with the settings above; some seconds that are better spent before a training than during it."""
    # Nothing goes to the outside; unlike the rest this is not for the environment to overrule.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in _QUIET_AND_BOUNDED.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # warns of each retry
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def open_store(uri: str) -> MlflowClient:
    """A client for the store at `uri`; a SQLite store is made where it is missing, and its artifacts follow it.

    Raises what MLflow, SQLite or the lock raise.
    """
    import_mlflow()
    from mlflow import MlflowClient
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if not is_local(uri):
        return MlflowClient(uri)
    database = database_of(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    # MLflow builds the tables when a client is made, and two that do so at once spoil each other's work.
    with one_at_a_time(uri):
        if not database.exists():
            # Aside and then renamed: a store whose making was killed half-way can never be opened again.
            unfinished = Path(f"{database}.new")
            for leftover in (unfinished, Path(f"{unfinished}-journal")):
                leftover.unlink(missing_ok=True)
            SqlAlchemyStore(for_mlflow(sqlite_uri(unfinished)), artifacts_of(database)).engine.dispose()
            unfinished.rename(database)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")  # fails at once where MLflow would retry for minutes
            with contextlib.suppress(sqlite3.OperationalError):  # busy: it stays as it is, only slower
                connection.execute("PRAGMA journal_mode = WAL")
            bring_along(connection, database)
        return MlflowClient(for_mlflow(uri))


def one_at_a_time(uri: str) -> contextlib.AbstractContextManager[object]:
    """Held by one process at a time, for a SQLite store. A server has no such lock."""
    if not is_local(uri):
        return contextlib.nullcontext()
    return FileLock(f"{database_of(uri)}.lock", timeout=_LOCK_SECONDS)


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The id of the experiment `name`, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        location = artifacts_of(database_of(uri)) if is_local(uri) else None
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made_meanwhile = client.get_experiment_by_name(name)
    assert made_meanwhile is not None
    return made_meanwhile.experiment_id


IMPOSSIBLE = "INVALID_PARAMETER_VALUE"  # the store will never take what was sent; any other answer may change


def run_is_gone(error: Exception) -> bool:
    """Whether the store says that the run was deleted, or that it never had it."""
    code = getattr(error, "error_code", None)
    return code == "RESOURCE_DOES_NOT_EXIST" or (code == IMPOSSIBLE and "must be in the 'active' state" in str(error))


@contextlib.contextmanager
def unless_gone() -> Iterator[None]:
    """What concerns a run that somebody has deleted meanwhile need not be done."""
    try:
        yield
    except Exception as error:
        if not run_is_gone(error):
            raise


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """A longer HTTP timeout for a while; MLflow reads the variable at each request."""
    before = int(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "0"))
    with _environment("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(before, _UPLOAD_SECONDS))):
        yield


def as_default(uri: str) -> contextlib.AbstractContextManager[None]:
    """The store at `uri` is for a while the one that MLflow turns to where no client is at hand."""
    return _environment("MLFLOW_TRACKING_URI", for_mlflow(uri))


_CHANGING = threading.RLock()  # the environment is the whole process's: threads that change it for a while take turns


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    with _CHANGING:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def without_password(uri: str) -> str:
    """The address as it may be shown: a file's whole, else nothing before the last @ but the scheme, and no query."""
    if is_local(uri):
        return uri
    scheme, found, rest = uri.rpartition("://")
    _secret, at, place = rest.rpartition("@")
    return scheme + found + ("***@" if at else "") + place.partition("?")[0]


def cause(error: BaseException) -> str:
    """What lies at the bottom of an exception: MLflow wraps 'Connection refused' in four layers of text."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text or type(error).__name__)[:200]
