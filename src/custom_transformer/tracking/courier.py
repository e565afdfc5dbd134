"""Sends the spools to their stores: by a background thread during a run, and by `sync` afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from custom_transformer.errors import UserError, one_line
from custom_transformer.paths import REFUSED, project_root
from custom_transformer.tracking.addresses import database_of, is_local
from custom_transformer.tracking.delivery import Delivery, Undeliverable, concerns_one_run
from custom_transformer.tracking.spool import Header, Spool, spool_root, unattended
from custom_transformer.tracking.store import cause, open_store, usual_store_uri, without_password

_SECONDS_BETWEEN = 3.0  # deliveries; after a failure twice as long each time, up to the next figure
_LONGEST_PAUSE = 60.0
_OPENING_SECONDS = 3.0  # that a run waits for its store before it begins its work beside it
_CLOSING_SECONDS = 5.0  # that a run waits at its end for a server to take the rest
_CLOSING_SECONDS_OF_A_FILE = 20.0  # and for a SQLite store, into which checkpoints are copied


def deliver_unattended(uri: str | None = None) -> Iterator[tuple[Header, Exception | None]]:
    """Brings the spools of processes that have ended to their stores, oldest first: all of them, or those for `uri`.

    Yields each spool's header and what kept it from being delivered whole. A delivered spool is removed, unless its
    run can still go on; one that no store will ever take is set aside, so that it is told of once.
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
            if not concerns_one_run(error):
                failed[store] = error
            if isinstance(error, Undeliverable):
                spool.set_aside()
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
        self.undeliverable = False  # whether no store will ever take the run
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
        self.join(_CLOSING_SECONDS_OF_A_FILE if is_local(self._uri) else _CLOSING_SECONDS)
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
                    if error and not concerns_one_run(error):
                        raise error
                    if error:
                        self._warn(cause(error), _outcome(error))
                self._caught_up = True
            self._delivery.send()
        except Exception as error:
            self.undeliverable = isinstance(error, Undeliverable)
            self._warn(cause(error), _outcome(error))
            return False
        if reason := self._delivery.refused:
            self._warn(reason, "MLflow takes the rest, and this part never")
        return True

    def _warn(self, reason: str, outcome: str | None = None) -> None:
        if not self._warned:
            self._warned = True
            waits = (
                f"what is not delivered waits in {spool_root()} for the next run or python -m custom_transformer sync"
            )
            message = (
                f"MLflow tracking: {without_password(self._uri)}: {reason}; the work goes on, and {outcome or waits}"
            )
            print(f"warning: {one_line(message)}", file=sys.stderr)


def _outcome(error: Exception) -> str | None:
    """What becomes of what was not delivered, if it does not wait."""
    if isinstance(error, Undeliverable):
        return f"MLflow never takes this run; correct what is named, and look for its log in {project_root() / REFUSED}"
    return None


@dataclass(frozen=True)
class SyncResult:
    """What `sync` did: runs delivered whole, and for the others their name and what kept them back.

    refused: those that no store will ever take, which were set aside.
    """

    delivered: int
    waiting: list[tuple[str, str]]
    refused: list[tuple[str, str]]


def sync() -> SyncResult:
    """Delivers what ended runs left in the spool; and a SQLite store that was moved finds its artifacts again.

    Raises UserError for a malformed address, or if a SQLite store cannot be opened.
    """
    uri = usual_store_uri()
    if is_local(uri) and database_of(uri).exists():
        try:
            open_store(uri)
        except Exception as closed:
            raise UserError(f"MLflow tracking: {uri}: {cause(closed)}; mend it, then sync again") from None
    result = SyncResult(0, [], [])
    for header, error in deliver_unattended():
        if error:
            kept = result.refused if isinstance(error, Undeliverable) else result.waiting
            kept.append((header.name, f"{without_password(header.uri)}: {cause(error)}"))
        else:
            result = replace(result, delivered=result.delivered + 1)
    return result
