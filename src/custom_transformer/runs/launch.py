"""A stage that starts itself several times, by torchrun."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

import psutil
import torch

from custom_transformer.errors import UserError, shown
from custom_transformer.runs.processes import AGAIN, LOST, PATIENCE, PROCESSES, STARTED_BY, started_by_torchrun
from custom_transformer.runs.shards import run_length


def wanted_processes(shards: int) -> int:
    """How many processes are asked for and have yet to be started; 0 if none.

    Raises UserError for a variable that is no such number.
    """
    asked = os.environ.get(PROCESSES, "")
    if not asked or started_by_torchrun():
        return 0
    if not asked.isdecimal() or not 0 < int(asked) < 2**16:
        raise UserError(f"{PROCESSES}: {shown(asked)} is not a number of processes")
    run_length(shards, int(asked))
    return int(asked) if int(asked) > 1 else 0


def launch(module: str, count: int) -> None:
    """Runs `module` in `count` processes on this machine, with this one's command line, until all have ended.

    Each gets its share of the processors, unless OMP_NUM_THREADS is set. Raises UserError if one is killed; if one
    fails, which then has said why, this process exits with its status.
    """
    # Most processes start no others and have no use for these.
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ[STARTED_BY] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.disable(logging.CRITICAL)  # the libraries log much and explain less
    try:
        backend = f"--rdzv-backend={_on_loopback()}"
        torchrun.run(torchrun.parse_args([backend, f"--nproc-per-node={count}", "-m", module, *sys.argv[1:]]))
    except SignalException as ended:
        if ended.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + ended.sigval)
    except ChildFailedError as error:
        statuses = {rank: failure.exitcode for rank, failure in error.failures.items()}
    else:
        return
    if said := [status for status in statuses.values() if status > 0 and status != LOST]:
        sys.exit(said[0])
    if killed := [(rank, signal.Signals(-status).name) for rank, status in statuses.items() if status < 0]:
        rank, name = killed[0]
        raise UserError(f"process {rank} of {count} was ended by {name}, and then the others: {AGAIN}")
    raise UserError(
        f"a process of {count} has not answered for {PATIENCE.seconds} seconds, and all were ended: {AGAIN}"
    )


def _on_loopback() -> str:
    """The name of a meeting place for torchrun that only this machine can reach, as can what gloo listens at.

    torchrun's own, --standalone included, listens at every address.
    """
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
    from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

    host, name = "127.0.0.1", "loopback"

    class OnLoopback(RendezvousHandler):
        """One host, which meets nobody else; see RendezvousHandler for the methods."""

        use_agent_store = True

        def __init__(self, parameters: RendezvousParameters):
            self.run_id, self.closed = parameters.run_id, False
            with socket.create_server((host, 0)) as server:
                self.port = server.getsockname()[1]
                self.store = TCPStore(
                    host, self.port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
                )

        def get_backend(self) -> str:
            return name

        def next_rendezvous(self) -> RendezvousInfo:
            return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo(host, self.port))

        def is_closed(self) -> bool:
            return self.closed

        def set_closed(self) -> None:
            self.closed = True

        def num_nodes_waiting(self) -> int:
            return 0

        def get_run_id(self) -> str:
            return self.run_id

        def shutdown(self) -> bool:
            self.closed = True
            return True

    registry.register(name, OnLoopback)
    addresses = psutil.net_if_addrs().items()
    for interface in (name for name, of_it in addresses if any(address.address == host for address in of_it)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return name
