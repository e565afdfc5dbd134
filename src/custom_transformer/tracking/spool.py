"""The spool: what a run has to tell, kept in files until a store has taken it.

A run writes here and nowhere else, so that no store can hold it up; `courier` reads here and sends. One folder a run:

    run.json         what the run is: its store, parameters, tags and inputs
    events.jsonl     what happened since, a line each: metrics, tags, artifacts, a model, resumption, end
    artifacts/N/     files for the store, as hard links where the file system has them
    delivered.json   how far the store has it all

A folder is locked by the process that writes to it or delivers it, so that both survive any other's death.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from custom_transformer.files import link_or_copy, write_json
from custom_transformer.paths import REFUSED, SPOOLS, project_root
from custom_transformer.tracking.addresses import database_of, is_local, sqlite_uri

Event = dict[str, Any]

SPOOL_NAME = "spool"  # the file in a work folder that names the spool of its run
_LOCK_SECONDS = 30.0  # in which another process that delivers an interrupted run's spool is done with it
_LONGEST_LINE = 1 << 20  # bytes; an event is some hundreds


@dataclass(frozen=True)
class Header:
    """What a run is.

    checkpoint: SHA-256 of the checkpoint whose run this one adds to; None for a run of its own.
    work: the work folder from which an interrupted run goes on; None for one that starts afresh each time.
    """

    uri: str
    experiment: str
    name: str
    started: int  # ms since 1970
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[dict[str, str]] = field(default_factory=list)  # context, name, digest, source
    checkpoint: str | None = None
    work: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a store has a spool."""

    run_id: str | None = None
    described: bool = False  # parameters and inputs were told
    offset: int = 0  # bytes of events.jsonl
    closed: bool = False  # the end was told, or the death of a run that did not tell it


def spool_root() -> Path:
    """Where the spools lie: the same for the workspace, temporary and queued experiments."""
    return project_root() / SPOOLS


def now() -> int:
    return time.time_ns() // 1_000_000


def new_name(header: Header) -> str:
    """A spool's name. Names sort by age: a training is delivered before the evaluation that adds to its run."""
    return f"{header.started:013d}-{secrets.token_hex(4)}"


class Spool:
    """One run's folder, locked while the object is open.

    Metrics may be logged from several threads. A line that cannot be written (a full disk) waits in memory for
    the next one; `broken` then says why.
    """

    def __init__(self, path: Path):
        self.path = path
        self.broken: OSError | None = None
        self._events: IO[bytes] | None = None
        self._unwritten = b""
        self._size = 0  # of the lines that are written whole
        self._writing = threading.Lock()
        self._lock = FileLock(path / "lock")

    @classmethod
    def create(cls, header: Header, name: str) -> Spool:
        """A new spool, open for writing. Raises OSError."""
        root = spool_root()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)  # an address may hold a password
        unfinished = cls(root / f".{name}")  # not seen by `unattended` before it is locked
        unfinished.path.mkdir()
        unfinished._lock.acquire(timeout=0)
        unfinished._save_header(header)
        (unfinished.path / "events.jsonl").touch()
        spool = cls(unfinished.path.rename(root / name))
        spool._lock = unfinished._lock
        spool._open_events()
        return spool

    @classmethod
    def reopen(cls, name: str, uri: str) -> Spool | None:
        """The spool of an interrupted run, open for writing again, for the store at `uri`; None where it is gone."""
        spool = cls(spool_root() / Path(name).name)
        if not spool.path.is_dir():  # FileLock would make it
            return None
        try:
            spool._lock.acquire(timeout=_LOCK_SECONDS)
            header = spool.header()
        except (Timeout, OSError, ValueError, TypeError):
            return None
        if header.uri != uri:  # another store has none of it
            spool._save_header(replace(header, uri=uri))
            spool.save_progress(Progress())
        spool._open_events()
        return spool

    def _open_events(self) -> None:
        self._events = (self.path / "events.jsonl").open("ab", buffering=0)
        # A line that a kill cut short never happened.
        self._size = _whole_lines(self.path / "events.jsonl")
        self._events.truncate(self._size)

    def close(self) -> None:
        if self._events:
            self._events.close()
        self._lock.release()

    @property
    def name(self) -> str:
        return self.path.name

    def header(self) -> Header:
        """Raises OSError, ValueError or TypeError where there is none that can be read."""
        header = Header(**json.loads((self.path / "run.json").read_text("utf-8")))
        if not isinstance(header.uri, str):
            raise TypeError(f"uri: not an address: {header.uri}")
        return _placed(header, lambda path: project_root() / path)

    def _save_header(self, header: Header) -> None:
        """Paths in the repository are written from its root, for it may be moved before the run is delivered."""
        root = project_root()
        from_root = _placed(header, lambda path: path.relative_to(root) if path.is_relative_to(root) else path)
        write_json(self.path / "run.json", asdict(from_root))

    def progress(self) -> Progress:
        try:
            return Progress(**json.loads((self.path / "delivered.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return Progress()  # the store takes everything again, and keeps each point once

    def save_progress(self, progress: Progress) -> None:
        write_json(self.path / "delivered.json", asdict(progress))

    # -- writing

    def append(self, event: Event) -> None:
        """Adds a line; it outlives this process, and after `flush` the machine's power."""
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        with self._writing:
            self._unwritten += line
            self._write()

    def _write(self) -> None:
        assert self._events is not None
        try:
            rest = memoryview(self._unwritten)
            while rest:
                rest = rest[self._events.write(rest) :]
        except OSError as error:
            self.broken = error
            with contextlib.suppress(OSError):
                self._events.truncate(self._size)
        else:
            self.broken = None
            self._size += len(self._unwritten)
            self._unwritten = b""

    def flush(self) -> None:
        """Brings all lines to the disk."""
        with self._writing:
            self._write()
            assert self._events is not None
            with contextlib.suppress(OSError):
                os.fsync(self._events.fileno())

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.append({"time": now(), "step": step, "metrics": dict(metrics)})

    def add_artifact(self, path: Path, folder: str | None) -> None:
        """Keeps what is at `path`, a file or folder, for the store; later changes there do not matter.

        Raises OSError, and then keeps nothing.
        """
        self.append({"artifact": self._kept(path), "folder": folder})

    def add_model(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Keeps an MLflow model's folder for the store, with what registry.py is to know of it. Raises as above."""
        self.append({"model": {"path": self._kept(path), **facts}})

    def _kept(self, path: Path) -> str:
        """Where under artifacts/ the copy lies."""
        place = self.path / "artifacts"
        place.mkdir(exist_ok=True)
        number = 1 + max((int(p.name) for p in place.iterdir() if p.name.isdigit()), default=0)
        kept = place / str(number)
        unfinished = place / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        source = path.resolve()
        if source.is_dir():
            shutil.copytree(source, unfinished / path.name, copy_function=link_or_copy)
        else:
            link_or_copy(source, unfinished / path.name)
        unfinished.rename(kept)
        return f"{number}/{path.name}"

    # -- reading

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """The events from byte `offset` on, each with the offset behind it."""
        with (self.path / "events.jsonl").open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    event = json.loads(line)
                except ValueError:  # a damaged disk: the rest is still worth having
                    continue
                yield event, offset

    def size(self) -> int:
        """Bytes of the events."""
        return (self.path / "events.jsonl").stat().st_size

    def last_step(self) -> int:
        """The highest step that metrics were logged for, system metrics apart; 0 before the first."""
        steps = (
            event["step"] for event, _ in self.events() if "metrics" in event and not _of_the_system(event["metrics"])
        )
        return max(steps, default=0)

    def can_go_on(self) -> bool:
        """Whether an interrupted run of it left a work folder to go on from."""
        work = self.header().work
        try:
            return work is not None and (Path(work) / SPOOL_NAME).read_bytes() == self.name.encode()
        except OSError:
            return False

    def others_with(self, digest: str) -> bool:
        """Whether another spool for the same store tells of the checkpoint with this SHA-256: of its training, or an
        older one of something that adds to the same run."""
        mine = self.header()
        for other in (Spool(path) for path in spool_root().glob("[!.]*") if path != self.path):
            try:
                header = other.header()
                events = (other.path / "events.jsonl").read_text("utf-8", errors="replace")
            except (OSError, ValueError, TypeError):
                continue
            earlier = header.checkpoint == digest and header.name == mine.name and other.name < self.name
            if header.uri == mine.uri and (earlier or digest in events):
                return True
        return False

    def set_aside(self) -> Path:
        """Moves the run to where nobody tries to deliver it; returns its folder there. Needs the lock."""
        aside = project_root() / REFUSED / self.name
        aside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(aside, ignore_errors=True)
        self.path = self.path.rename(aside)
        return aside

    def remove(self) -> None:
        """Forgets the run. Needs the lock."""
        shutil.rmtree(self.path, ignore_errors=True)


def unattended() -> Iterator[Spool]:
    """The spools that no living process holds, oldest first, each locked while it is the current one."""
    root = spool_root()
    for path in sorted(root.glob("[!.]*")):
        spool = Spool(path)
        try:
            spool._lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue  # a living process's, or just removed by the one that delivered it
        try:
            yield spool
        finally:
            spool._lock.release()


def _placed(header: Header, place: Callable[[Path], Path]) -> Header:
    """With `place` applied to its paths: a SQLite store's and the work folder's."""
    uri = sqlite_uri(place(database_of(header.uri))) if is_local(header.uri) else header.uri
    return replace(header, uri=uri, work=header.work and str(place(Path(header.work))))


def _of_the_system(metrics: Mapping[str, float]) -> bool:
    return any(name.startswith("system/") for name in metrics)


def _whole_lines(path: Path) -> int:
    """The size of a file up to and with its last line end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _LONGEST_LINE)
        file.seek(start)
        return start + file.read().rfind(b"\n") + 1
