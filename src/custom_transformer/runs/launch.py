"""A stage that starts itself several times, with the variables that torchrun would set, and waits for all."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil
import torch
from torch.distributed import TCPStore

from custom_transformer.errors import UserError, shown
from custom_transformer.runs.processes import AGAIN, LOST, PATIENCE, PROCESSES, STARTED_BY, one_of_several
from custom_transformer.runs.shards import run_length

HOST = "127.0.0.1"  # no other machine can reach them
# Seconds in which processes may end by themselves, once one has failed or all have been interrupted. The first one
# closes its run in MLflow, for which the tracking's courier may take 20 seconds, and may wait for another's last word
# before. The others write nothing, and do not notice an interrupt while they wait for the first one.
GRACE, GRACE_OF_OTHERS = 30.0, 1.5
_INTERFACE = "GLOO_SOCKET_IFNAME"

Started = subprocess.Popen[bytes]


def wanted_processes(shards: int) -> int:
    """How many processes are asked for and have yet to be started; 0 if none.

    Raises UserError for a variable that is no such number.
    """
    asked = os.environ.get(PROCESSES, "")
    if not asked or one_of_several():
        return 0
    if not asked.isdecimal() or not 0 < int(asked) < 2**16:
        raise UserError(f"{PROCESSES}: {shown(asked)} is not a number of processes")
    run_length(shards, int(asked))
    return int(asked) if int(asked) > 1 else 0


def launch(module: str, count: int) -> None:
    """Runs `module` in `count` processes on this machine, with this one's command line, until all have ended.

    Each gets its share of the processors, unless OMP_NUM_THREADS is set. Raises UserError if one is killed; if one
    fails, which then has said why, this process exits with its status. Ctrl-C interrupts all; SIGTERM kills them.
    """
    with socket.create_server((HOST, 0)) as server:  # the store's own would listen at every address
        port = server.getsockname()[1]
        _store = TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
    told: list[int] = []  # signals, which thus interrupt neither a start nor the end of all
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: told.append(number))
    command, environment = [sys.executable, "-m", module, *sys.argv[1:]], _environment(count, port)
    processes: list[Started] = []
    try:
        for rank in map(str, range(count)):
            own = environment | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, start_new_session=True))
        statuses = _ended(processes, told)
    finally:
        for process in processes:
            if process.returncode is None:
                _send(process, signal.SIGKILL)
        for process in processes:
            process.wait()
    if signal.SIGTERM in told:
        sys.exit(128 + signal.SIGTERM)
    if told:
        raise KeyboardInterrupt
    _check(statuses)


def _environment(count: int, port: int) -> dict[str, str]:
    environment = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # the libraries log much and explain less
    } | os.environ
    if _INTERFACE not in environment:
        addresses = psutil.net_if_addrs().items()
        if loopback := [name for name, of_it in addresses if any(a.address == HOST for a in of_it)]:
            environment[_INTERFACE] = loopback[0]
    of_torchrun = {"MASTER_ADDR": HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    of_torchrun |= {"TORCHELASTIC_RUN_ID": "stage", "TORCHELASTIC_RESTART_COUNT": "0"}
    of_torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": "True", STARTED_BY: str(os.getpid())}
    return environment | of_torchrun


def _ended(processes: Sequence[Started], told: Sequence[int]) -> list[int | None]:
    """The statuses with which they ended by themselves; None for one that has not, and is to be killed."""
    _wait(processes, math.inf, lambda: bool(told) or any(map(_status, processes)))
    if told and signal.SIGTERM not in told:
        for process in processes:
            _send(process, signal.SIGINT)
    before = len(told)
    for some, seconds in ((processes[:1], GRACE), (processes[1:], GRACE_OF_OTHERS)):
        _wait(some, seconds, lambda: len(told) > before or signal.SIGTERM in told)
    return [_status(process) for process in processes]


def _wait(processes: Sequence[Started], seconds: float, enough: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not enough() and None in map(_status, processes) and time.monotonic() < end:
        time.sleep(0.05)


def _status(process: Started) -> int | None:
    """That of a process that has ended, after which nothing that it has started runs any more."""
    if process.returncode is None and psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE:
        _send(process, signal.SIGKILL)  # before wait() sets its number free
        process.wait()
    return process.returncode


def _send(process: Started, number: int) -> None:
    """To a process and all that it has started: its session is one group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS forbids it if all of them have ended
        os.killpg(process.pid, number)


def _check(statuses: Sequence[int | None]) -> None:
    """Whether all have ended well. A negative status is a signal's; None is that of a process that did not end."""
    interrupted = 128 + signal.SIGINT
    if said := [status for status in statuses if status and status > 0 and status not in (LOST, interrupted)]:
        sys.exit(said[0])
    for rank, status in enumerate(statuses):
        if status and (status < 0 or status == interrupted):
            name = signal.Signals(-status if status < 0 else signal.SIGINT).name
            raise UserError(f"process {rank} of {len(statuses)} was ended by {name}, and then the others: {AGAIN}")
    if any(status != 0 for status in statuses):
        silent = f"a process of {len(statuses)} has not answered for {PATIENCE.seconds} seconds, and all were ended"
        raise UserError(f"{silent}: {AGAIN}")
