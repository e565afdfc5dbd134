"""However many processes train, they leave the same bytes; whichever is killed, all end and the next run goes on."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from custom_transformer.errors import UserError
from custom_transformer.runs.processes import LOST, PROCESSES, Processes, joined
from custom_transformer.runs.seeds import seed_of
from custom_transformer.runs.shards import Sums, run_length
from tests.processes import ENVIRONMENT, Group, Process
from tests.runs import together

COUNTS = (1, 2, 4, 8)


class Store:
    """`add` counts, or fails, or waits as if the store's host were silent."""

    def __init__(self, add: Callable[[], int]):
        self._add = add

    def add(self, key: str, amount: int) -> int:
        return self._add()


def test_the_first_that_fails_speaks_and_one_whose_store_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom_transformer.runs.processes.ASKING", 0.1)
    failed, never = itertools.count(1), threading.Event()
    store = Store(lambda: next(failed))
    assert [Processes(rank, 3, store).may_speak() for rank in (2, 0, 1)] == [True, False, False]
    assert Processes(1, 3, Store(lambda: int(never.wait()))).may_speak()

    def gone() -> int:
        raise RuntimeError("connection reset")

    assert Processes(1, 3, Store(gone)).may_speak()
    never.set()


# ------------------------------------------------------------------------------------------------------- the shards


def names_added(count: int) -> str:
    """The order in which the sum of `count` shards is made."""

    class Term(str):
        def add_(self, other: str) -> Term:
            return Term(f"({self}+{other})")

    sums = Sums(count)
    for sums.shard in range(count):
        assert not sums
        sums["g"] = Term(sums.shard)  # type: ignore[assignment]
    return str(sums["g"])


def test_shards_are_added_in_a_tree_whose_nodes_are_the_aligned_runs() -> None:
    assert [names_added(count) for count in (1, 2, 3)] == ["0", "(0+1)", "((0+1)+2)"]
    assert names_added(4) == "((0+1)+(2+3))"
    assert names_added(7) == "(((0+1)+(2+3))+((4+5)+6))"
    for shards in range(1, 40):
        tree = names_added(shards)
        for processes in range(1, shards + 1):
            try:
                length = run_length(shards, processes)
            except UserError:
                continue
            parts = [range(i, min(i + length, shards)) for i in range(0, shards, length)]
            assert len(parts) == processes
            for part in parts:  # its sum stands in the tree of all
                of_part = re.sub(r"\d+", lambda found, part=part: str(part[int(found[0])]), names_added(len(part)))
                assert of_part in tree


@pytest.mark.parametrize(
    ("shards", "processes", "which"),
    [(1, 2, "1 process,"), (4, 3, "1, 2 or 4 processes"), (6, 4, "1, 2, 3 or 6 processes"), (8, 16, "1, 2, 4 or 8")],
)
def test_a_number_of_processes_that_does_not_fit_is_refused_with_those_that_do(
    shards: int, processes: int, which: str
) -> None:
    with pytest.raises(UserError, match=f"^{processes} processes .*grad_accumulation = {shards}.*{which}"):
        run_length(shards, processes)


def test_a_rank_that_torchrun_has_not_given_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="RANK is set, but not as torchrun does"), joined():
        pass


def test_each_shard_of_each_step_has_its_own_masks_by_the_seed() -> None:
    """A generator on the CPU reads the lowest 32 bits of its seed only."""
    places = [(seed, step, shard) for seed in (0, 7, 2**31) for step in range(30) for shard in range(30)]
    assert len({seed_of(*place) & 0xFFFFFFFF for place in places}) == len(places)
    generator = torch.Generator()
    draws = {torch.randint(2**62, (), generator=generator.manual_seed(seed_of(*p))).item() for p in places[::97]}
    assert len(draws) == len(places[::97])


# -------------------------------------------------------------------------------------------------------- the bytes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What each of the runs leaves, by the number of processes. Those of several go on from states of one."""
    folder, found = tmp_path_factory.mktemp("together"), {}
    groups = []
    for count in COUNTS:
        groups.append(Group(count, "-m", "tests.runs.together", folder / str(count), folder / "1"))
        for process in groups[-1] if count == 1 else ():
            assert process.wait().returncode == 0, process.wait().stderr
    for count, group in zip(COUNTS, groups, strict=True):
        for process in group:
            done = process.wait()
            assert done.returncode == 0, done.stderr
        found[count] = json.loads((folder / str(count) / "results.json").read_text("utf-8"))
    return found


@pytest.mark.processes
@pytest.mark.parametrize(("count", "case"), [(count, case) for count in COUNTS[1:] for case in together.cases(count)])
def test_any_number_of_processes_leaves_the_same_bytes(count: int, case: str, results: dict[int, Any]) -> None:
    """Also in the middle, where the state that is saved is whole, so that any other number may go on from it."""
    alone = results[1][case]
    assert alone["steps"] == alone["digests.csv"][-1]["step"] == (14 if "seven" in case else 12)
    assert {"best.pt", "custom_transformer_epoch_2.pt", "half-way.pt"} <= alone["files"].keys()
    assert (alone["nan_steps"], "kept.pt" in alone["files"]) == ((2, True) if "NaN" in case else (0, False))
    assert results[count][case] == alone


# -------------------------------------------------------------------------------------------------------- the kills


@pytest.fixture(scope="module")
def repository(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With four shards per update, and a training of some hundred short steps."""
    folder = tmp_path_factory.mktemp("ranks") / "repository"
    shutil.copytree(prepared, folder, symlinks=True)
    params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    params["training"] |= {"batch_size": 2, "grad_accumulation": 4, "max_steps": 120, "num_epochs": 9, "save_every": 10}
    params["model"] |= {"dropout": 0.1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    return folder


def states(folder: Path) -> list[Path]:
    return sorted(folder.glob("work/train/*/state-*.pt"))


def outputs(folder: Path) -> dict[str, bytes]:
    """All that the training has left; the folders are emptied, as DVC does before the next."""
    paths = [path for name in ("checkpoints", "metrics") for path in sorted((folder / name).glob("[!.]*.*"))]
    content = {path.name: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    return content


def errors(ended: list[subprocess.CompletedProcess[str]]) -> list[str]:
    """The lines in which they say why; PyTorch's own library has written warnings before them."""
    lines = [line for done in ended for line in done.stderr.splitlines()]
    assert not any("Traceback" in line for line in lines)
    return [line for line in lines if line.startswith("error:")]


def wait_for_another_state(repository: Path, before: list[Path], processes: list[Process]) -> None:
    while states(repository) == before and all(process.poll() is None for process in processes):
        time.sleep(0.01)


@pytest.mark.processes
def test_whichever_process_is_killed_all_end_with_one_line_and_the_next_run_goes_on(repository: Path) -> None:
    """First of two that a test has started, the first one; then of two that the stage has started, the second one."""
    whole = Process("-m", "stages.train", cwd=repository, env=ENVIRONMENT).wait()
    assert whole.returncode == 0, whole.stderr
    undisturbed = outputs(repository)
    assert "digests.csv" in undisturbed
    again = "run the same command again, which goes on from the last saved state"

    group = Group(2, "-m", "stages.train", cwd=repository)
    wait_for_another_state(repository, [], group)
    group[0].kill()
    ended = [process.wait(60) for process in group]
    assert [done.returncode for done in ended] == [-signal.SIGKILL, 1]
    assert errors(ended) == [f"error: another process of this training has ended: {again}"]

    before = states(repository)
    stage = Process("-m", "stages.train", cwd=repository, env=ENVIRONMENT | {PROCESSES: "2"})
    wait_for_another_state(repository, before, [stage])
    started = {child.environ()["RANK"]: child for child in psutil.Process(stage.pid).children()}
    members = [psutil.Process(stage.pid), *started.values()]
    listening = [c for member in members for c in member.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    started["1"].kill()
    done = stage.wait(60)
    assert done.returncode == 1
    assert done.stderr == f"error: process 1 of 2 was ended by SIGKILL, and then the others: {again}\n"
    assert not psutil.wait_procs(started.values(), timeout=10)[1]

    last = Process("-m", "stages.train", cwd=repository, env=ENVIRONMENT).wait()
    assert "going on after step" in last.stdout
    assert outputs(repository) == undisturbed


# Two that have met; then the second one is sent a signal.
MET = """
import os, sys, torch
from custom_transformer.errors import run_main
from custom_transformer.runs.processes import joined

def main():
    with joined() as processes:
        processes.connect(torch.device("cpu"))
        processes.of_each("")
        if processes.rank == 1:
            os.kill(os.getpid(), int(sys.argv[1]))
        processes.of_each("")

run_main(main)
"""


@pytest.mark.processes
def test_a_lost_process_is_reported_by_another_if_no_stage_has_started_them() -> None:
    """Even if the variable that a stage would read is set: torchrun called by hand starts no such stage."""
    ended = [
        process.wait() for process in Group(2, "-c", MET, signal.SIGKILL.value, env=ENVIRONMENT | {PROCESSES: "2"})
    ]
    assert [done.returncode for done in ended] == [1, -signal.SIGKILL]
    assert len(errors(ended)) == 1
    assert "another process of this training has ended" in errors(ended)[0]


@pytest.mark.processes
def test_a_process_that_torchrun_ends_says_why() -> None:
    """torchrun sends SIGTERM as soon as another one has ended, often before anybody else could notice that."""
    ended = [process.wait() for process in Group(2, "-c", MET, signal.SIGTERM.value)]
    assert [done.returncode for done in ended] == [LOST, 1]
    assert len(errors(ended)) == 1
    assert "ended by SIGTERM, which schedulers send, and torchrun once another process has ended" in errors(ended)[0]


@pytest.mark.processes
def test_a_hung_process_is_noticed(repository: Path) -> None:
    patience = "from custom_transformer.runs import processes; from datetime import timedelta; import runpy, sys; "
    patience += "processes.PATIENCE = timedelta(seconds=3); sys.argv = ['stages/train.py']; "
    group = Group(2, "-c", patience + "runpy.run_module('stages.train', run_name='__main__')", cwd=repository)
    wait_for_another_state(repository, [], group)
    os.kill(group[1].pid, signal.SIGSTOP)
    done = group[0].wait(60)
    group[1].kill()
    assert errors([done]) == [
        "error: another process of this training has not answered for 3 seconds: run the same command again, which "
        "goes on from the last saved state"
    ]


def test_what_differs_between_processes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, processes = {"code": "1", "data": "2"}, Processes(0, 3)
    monkeypatch.setattr(processes, "of_each", lambda own: [own, own, own | {"data": "3"}])
    with pytest.raises(UserError, match="process 2 has another data than process 0"):
        processes.check_same(facts)
