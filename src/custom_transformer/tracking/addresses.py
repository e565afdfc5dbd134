"""A SQLite store's addresses: its own as a URL, and those of its artifacts, which lie beside it and follow it.

MLflow writes each artifact's absolute address into the database. A clone that is moved, renamed or copied has its
database with all the old ones: new artifacts would go to the old folder, made anew, and registered models would be
looked for there.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ARTIFACTS = "mlartifacts"
# Where MLflow keeps addresses of artifacts, and whether what lies there already must be found there.
_COLUMNS = (
    ("experiments", "artifact_location", False),  # of runs to come
    ("runs", "artifact_uri", True),
    ("logged_models", "artifact_location", True),
    ("model_versions", "storage_location", True),
)


def is_local(uri: str) -> bool:
    return uri.startswith("sqlite:")


def sqlite_uri(database: Path) -> str:
    """The URL of a database file. In its path % would begin an escape, and ? a query."""
    return "sqlite:///" + str(database).replace("%", "%25").replace("?", "%3F")


def database_of(uri: str) -> Path:
    """The file that a SQLite URL names."""
    return Path(unquote(uri.removeprefix("sqlite:///")))


def for_mlflow(uri: str) -> str:
    """The same address, and if its path has escapes with the driver named: else MLflow makes a folder of them."""
    return uri.replace("sqlite:", "sqlite+pysqlite:", 1) if is_local(uri) and "%" in uri else uri


def artifacts_of(database: Path) -> str:
    """The address of the folder for a database's artifacts."""
    return (database.parent / _ARTIFACTS).as_uri()


def bring_along(connection: sqlite3.Connection, database: Path) -> None:
    """Makes the addresses in the database those of the artifacts beside it.

    An address stays if its files are where it says and not beside the database: those of a store that several clones
    share may lie in one of them.
    """
    here = artifacts_of(database)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    with connection:
        for table, column, existing in _COLUMNS:
            if table not in tables:
                continue
            foreign = f"{column} LIKE 'file:%/{_ARTIFACTS}%' AND {column} != ? AND substr({column}, 1, ?) != ?"
            query = f"SELECT DISTINCT {column} FROM {table} WHERE {foreign}"
            for (old,) in connection.execute(query, (here, len(here) + 1, f"{here}/")).fetchall():
                _, found, rest = old.rpartition(f"/{_ARTIFACTS}")
                new = here + rest
                if not found or (rest and not rest.startswith("/")):
                    continue
                if existing and _exists(old) and not _exists(new):
                    continue
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))


def _exists(address: str) -> bool:
    return Path(unquote(urlsplit(address).path)).exists()
