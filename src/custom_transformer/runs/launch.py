"""A stage that starts itself several times, with the variables that torchrun would set, and waits for all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil
import torch
from torch.distributed import TCPStore

from custom_transformer.errors import UserError, shown
from custom_transformer.runs.processes import AGAIN, LOST, PATIENCE, PROCESSES, STARTED_BY, started_by_torchrun
from custom_transformer.runs.shards import run_length

HOST = "127.0.0.1"  # nobody else can reach the processes
GRACE = 10.0  # seconds in which the others may end by themselves, once one has ended or all have been interrupted


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
    with socket.create_server((HOST, 0)) as server:  # the store's own would listen at every address
        port = server.getsockname()[1]
        _store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    command, environment = [sys.executable, "-m", module, *sys.argv[1:]], _environment(count, port)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in map(str, range(count)):
            own = environment | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, start_new_session=True))
        while None in (statuses := [process.poll() for process in processes]) and not any(statuses):
            time.sleep(0.05)
        psutil.wait_procs(processes, GRACE)
        statuses = [process.poll() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.send_signal(signal.SIGINT)
        psutil.wait_procs(processes, GRACE)
        raise
    finally:
        for process in processes:
            process.kill()
            process.wait()
    _check(statuses)


def _environment(count: int, port: int) -> dict[str, str]:
    addresses = psutil.net_if_addrs().items()
    defaults = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # the libraries log much and explain less
        "GLOO_SOCKET_IFNAME": next(name for name, of_it in addresses if any(a.address == HOST for a in of_it)),
    }
    of_torchrun = {"MASTER_ADDR": HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    of_torchrun |= {"TORCHELASTIC_RUN_ID": "stage", "TORCHELASTIC_RESTART_COUNT": "0"}
    of_torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": "True", STARTED_BY: str(os.getpid())}
    return defaults | os.environ | of_torchrun


def _check(statuses: Sequence[int | None]) -> None:
    """Whether all have ended well. A negative status is a signal's; None is that of a process that did not end."""
    if said := [status for status in statuses if status and status > 0 and status != LOST]:
        sys.exit(said[0])
    for rank, status in enumerate(statuses):
        if status and status < 0:
            name = signal.Signals(-status).name
            raise UserError(f"process {rank} of {len(statuses)} was ended by {name}, and then the others: {AGAIN}")
    if any(status != 0 for status in statuses):
        silent = f"a process of {len(statuses)} has not answered for {PATIENCE.seconds} seconds, and all were ended"
        raise UserError(f"{silent}: {AGAIN}")
