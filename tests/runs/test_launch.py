"""A stage that starts itself several times leaves none behind, lets the first close its run, and says which ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from custom_transformer.errors import UserError
from custom_transformer.runs import launch, processes
from custom_transformer.runs.processes import AGAIN, LOST, PATIENCE, PROCESSES
from custom_transformer.tracking import courier
from tests.processes import ENVIRONMENT, Process

# A stage that gives the first process an hour, and others next to nothing; what each does stands on the command line.
STAGE = """
import signal
from custom_transformer.errors import run_main
from custom_transformer.runs import launch

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had ignored
launch.GRACE, launch.GRACE_OF_OTHERS = 3600.0, 0.1
run_main(lambda: launch.launch("member", 2))
"""
MEMBER = """
import os, signal, subprocess, sys, time
from pathlib import Path

exec(sys.argv[1 + int(os.environ["RANK"])])
"""
FIRST = """
subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # as a compiler
try:
    Path("first").touch()
    time.sleep(600)
except KeyboardInterrupt:
    Path("closing").touch()
    {closes}
    sys.exit(130)
"""
DEAF = 'signal.signal(signal.SIGINT, signal.SIG_IGN); Path("second").touch(); time.sleep(600)'


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("x", "'x' is not a number of processes"),
        ("0", "'0' is not"),
        ("-1", "'-1' is not"),
        ("99999", "'99999' is not"),
        ("3", "3 processes cannot share .*take 1, 2 or 4"),
    ],
)
def test_a_variable_that_asks_for_impossible_processes_is_refused(
    asked: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROCESSES, asked)
    with pytest.raises(UserError, match=words):
        launch.wanted_processes(4)


def stage(folder: Path, *programs: str) -> Process:
    (folder / "member.py").write_text(MEMBER, "utf-8")
    return Process("-c", STAGE, *programs, cwd=folder, env=ENVIRONMENT)


def wait_for(*files: Path) -> None:
    while not all(file.exists() for file in files):
        time.sleep(0.01)


def left(found: Sequence[psutil.Process]) -> bool:
    """Whether one of these still runs; one that nobody has waited for does not."""
    return any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in found)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("signals", "closes", "status", "says"),
    [
        ([signal.SIGTERM], "", 143, ""),
        ([signal.SIGINT], "", 130, "interrupted\n"),
        ([signal.SIGINT, signal.SIGTERM], "time.sleep(600)", 143, ""),
    ],
)
def test_a_signal_to_the_stage_ends_all(
    signals: list[signal.Signals], closes: str, status: int, says: str, tmp_path: Path
) -> None:
    """Ctrl-C lets the first one close its run, unless another signal follows; the second one hears nothing."""
    started = stage(tmp_path, FIRST.format(closes=closes), DEAF)
    wait_for(tmp_path / "first", tmp_path / "second")
    found = psutil.Process(started.pid).children(recursive=True)
    assert len(found) == 3
    os.kill(started.pid, signals[0])
    if len(signals) > 1:
        wait_for(tmp_path / "closing")
        os.kill(started.pid, signals[1])
    done = started.wait(60)
    assert (done.returncode, done.stderr) == (status, says)
    assert (tmp_path / "closing").exists() == (signal.SIGINT in signals)
    until = time.monotonic() + 60
    while left(found) and time.monotonic() < until:  # SIGKILL takes a moment
        time.sleep(0.01)
    assert not left(found)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("programs", "status", "says"),
    [
        (('sys.exit("error: why")', DEAF), 1, "error: why\n"),
        (("time.sleep(1); Path('closed').touch(); sys.exit(3)", 'sys.exit("error: why")'), 1, "error: why\n"),
        (("sys.exit(3)", DEAF), 1, f"error: a process of 2 has not answered for {PATIENCE.seconds} seconds, and all "),
    ],
    ids=["the first fails", "the second fails", "the second hangs"],
)
def test_once_one_has_failed_only_the_first_is_waited_for(
    programs: tuple[str, str], status: int, says: str, tmp_path: Path
) -> None:
    done = stage(tmp_path, *programs).wait(60)
    assert done.returncode == status
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "closed").exists() == ("closed" in programs[0])


def test_the_first_process_has_the_time_to_close_its_run() -> None:
    closing = max(courier._CLOSING_SECONDS, courier._CLOSING_SECONDS_OF_A_FILE)
    assert closing + processes.LAST_WORD + 5 <= launch.GRACE


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ([LOST, None], f"a process of 2 has not answered for {PATIENCE.seconds} seconds, and all were ended"),
        ([0, -9], "process 1 of 2 was ended by SIGKILL, and then the others"),
        ([-9, None], "process 0 of 2 was ended by SIGKILL, and then the others"),
        ([LOST, 130], "process 1 of 2 was ended by SIGINT, and then the others"),
        ([130, None], "process 0 of 2 was ended by SIGINT, and then the others"),
    ],
)
def test_what_ended_first_is_said(statuses: list[int | None], words: str) -> None:
    with pytest.raises(UserError) as raised:
        launch._check(statuses)
    assert str(raised.value) == f"{words}: {AGAIN}"


@pytest.mark.parametrize(("statuses", "status"), [([1, LOST], 1), ([LOST, 2], 2), ([1, 130], 1)])
def test_one_that_has_said_why_gives_its_status(statuses: list[int | None], status: int) -> None:
    with pytest.raises(SystemExit) as raised:
        launch._check(statuses)
    assert raised.value.code == status


def test_nothing_is_said_if_all_ended_well() -> None:
    launch._check([0, 0])


def test_gloo_gets_the_loopback_interface_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "GLOO_SOCKET_IFNAME"
    monkeypatch.delenv(name, raising=False)
    assert launch._environment(2, 1)[name] in psutil.net_if_addrs()
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    assert name not in launch._environment(2, 1)
    monkeypatch.setenv(name, "eth1")
    assert launch._environment(2, 1)[name] == "eth1"
