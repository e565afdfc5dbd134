"""A study asks DVC for what MLflow lacks and no more, and leaves other people's experiments alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest

from custom_transformer.config import Params, load_params
from custom_transformer.errors import UserError
from custom_transformer.tracking import SweepRun, flat_params
from studies import queue, scaling
from studies.scaling import Point, arguments, default_sweep, grid, run_missing, with_changes

PARAMS = load_params("params.yaml")
STATUS = """\
Task     Name                   Created    Status
{rows}

Worker status: {active} active, 0 idle
"""


class FakeDvc:
    """The queue as `dvc queue` shows it; workers, once started, finish whatever waits."""

    def __init__(self, states: dict[str, str] | None = None, active: int = 0, made: Sequence[str] = ()):
        self.states, self.active, self.made = dict(states or {}), active, list(made)
        self.calls: list[tuple[str, ...]] = []

    def command(self, *args: str) -> CompletedProcess[str]:
        return CompletedProcess(args, 0, self.answer(*args), "")

    def answer(self, *args: str) -> str:
        if args == ("queue", "status"):
            rows = "\n".join(f"9db77ff  {name}  08:57 PM   {state}" for name, state in self.states.items())
            return STATUS.format(rows=rows, active=self.active)
        if args == ("exp", "list", "--name-only"):
            return "".join(f"{name}\n" for name in self.made)
        self.calls.append(args)
        match args:
            case ("queue", "kill", *names):
                self.states |= dict.fromkeys(names, "Failed")
            case ("queue", "remove", *names):
                for name in names:
                    del self.states[name]
            case ("exp", "remove", name):
                self.made.remove(name)
            case ("exp", "run", "--queue", "--name", name, *_):
                assert name not in self.states  # DVC would refuse these
                assert name not in self.made
                self.states[name] = "Queued"
        return ""

    def start_workers(self, jobs: int) -> None:
        self.calls.append(("start", str(jobs)))
        self.states = {name: "Success" if state == "Queued" else state for name, state in self.states.items()}

    def queued(self) -> list[str]:
        return [args[4] for args in self.calls if args[:3] == ("exp", "run", "--queue")]


@pytest.fixture
def points() -> list[Point]:
    return list(grid(PARAMS, {}, 1_000_000, [16, 32], 2, "s"))


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs what is missing of `points`, with this queue and with the results of `done` in MLflow."""

    def run(dvc: FakeDvc, points: Sequence[Point], done: Sequence[Point] = ()) -> FakeDvc:
        spool = [result(point.params) for point in done]
        mlflow: list[SweepRun] = []
        monkeypatch.setattr(queue, "run_dvc", dvc.command)
        monkeypatch.setattr(queue, "start_workers", dvc.start_workers)
        monkeypatch.setattr(queue.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(scaling, "sync", lambda: mlflow.extend(spool))
        monkeypatch.setattr(scaling, "sweep_runs", lambda tracking: mlflow)
        run_missing(PARAMS, points, 2)
        return dvc

    return run


def result(params: Params) -> SweepRun:
    return SweepRun(
        "id", "name", dict(flat_params(params.model_dump(mode="json"))), {"eval_loss": 1.0, "eval_end_loss": 0.1}
    )


def test_what_mlflow_has_or_the_spool_holds_is_not_run_again(study: Any, points: list[Point]) -> None:
    assert study(FakeDvc(), points, points).calls == []
    dvc = study(FakeDvc({points[1].name: "Queued"}), points, points[:1])
    assert dvc.queued() == [point.name for point in points[2:]]
    assert dvc.calls[-1] == ("start", "2")


def test_what_failed_or_is_in_mlflow_no_more_is_run_again(study: Any, points: list[Point]) -> None:
    failed, lost, *_ = (point.name for point in points)
    dvc = study(FakeDvc({failed: "Failed", lost: "Success"}, made=[lost]), points[:2])
    assert ("queue", "remove", failed) in dvc.calls
    assert ("exp", "remove", lost) in dvc.calls
    assert dvc.queued() == [failed, lost]


def test_the_dead_are_killed_and_queued_again_and_others_left_alone(study: Any, points: list[Point]) -> None:
    dead = points[0].name
    dvc = study(FakeDvc({dead: "Running", "another's": "Running"}), points[:1])
    assert dvc.calls[:2] == [("queue", "kill", dead), ("queue", "remove", dead)]
    assert dvc.queued() == [dead]
    assert dvc.states == {"another's": "Running", dead: "Success"}


def test_while_a_worker_is_active_nothing_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = FakeDvc({"a": "Running"})
    looks: list[float] = []

    def sleep(seconds: float) -> None:  # the first look fell between two experiments
        looks.append(seconds)
        dvc.active = 1

    monkeypatch.setattr(queue, "run_dvc", dvc.command)
    monkeypatch.setattr(queue.time, "sleep", sleep)
    queue.kill_dead(["a"])
    assert len(looks) == 1
    assert dvc.calls == []


def test_waiting_ends_when_the_workers_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc = FakeDvc({"a": "Running", "b": "Queued", "c": "Success"})
    monkeypatch.setattr(queue, "run_dvc", dvc.command)
    monkeypatch.setattr(queue, "start_workers", dvc.start_workers)
    monkeypatch.setattr(queue.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="1 experiments failed; dvc queue logs a "):
        queue.wait_for(["a", "b", "c"], 2)
    assert dvc.calls == [("queue", "kill", "a"), ("start", "2")]


def test_ctrl_c_stops_the_studys_experiments_only(
    study: Any, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, waiting = (point.name for point in points[:2])

    def interrupted(names: Any, jobs: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "wait_for", interrupted)
    others = {"another's": "Running", "one more": "Queued"}
    dvc = FakeDvc({running: "Running", waiting: "Queued"} | others, active=2)
    monkeypatch.setattr(dvc, "start_workers", lambda jobs: None)
    with pytest.raises(KeyboardInterrupt):
        study(dvc, points[:2])
    assert dvc.calls == [("queue", "remove", waiting), ("queue", "kill", running)]


def test_a_name_tells_the_parameters_that_decide(points: list[Point]) -> None:
    def name(**changes: Any) -> str:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return Point({}, with_changes(points[0].params, changes)).name

    assert points[0].name == name(generation__temperature=0.9)
    others = [name(seed=5), name(training__learning_rate=1e-4), name(evaluation__max_batches=2)]
    assert len({points[0].name, *others}) == 4
    assert all(other.startswith("s-d32-s976-") for other in others)


def test_each_text_has_a_study_of_its_own() -> None:
    long = "folder/" * 30
    texts = ["a/*.txt", "a.txt", f"{long}a.txt", f"{long}b.txt", "тексты/*.txt", None]
    names = [default_sweep(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert names[1].startswith("scaling-a-txt-")
    for name in names:
        with_changes(PARAMS, {"tracking.sweep": name})  # Name in config.py takes them


@pytest.mark.parametrize("given", [["--widths", "16", "32", "32"], ["--budgets", "2"], ["--jobs", "0"]])
def test_a_grid_without_a_fit_is_refused(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", *given])
    with pytest.raises(UserError, match=given[0]):
        arguments()
