"""The work folder: the newest whole state with its checkpoints, one process at a time, the same conditions."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from custom_transformer.config import Params, load_params
from custom_transformer.errors import UserError
from custom_transformer.fast.choose import NATIVE
from custom_transformer.files import atomic_write
from custom_transformer.maths.engine import READABLE
from custom_transformer.runs.fingerprint import run_key, tags
from custom_transformer.runs.kept_states import KEEP, KeptStates, states_in
from custom_transformer.runs.work_folder import RESUME, WorkFolder
from stages.train import fingerprint_of

HERE = {"code": "c", "params": "p", "data": "d", "threads": "2"}


def work(root: Path, **changes: str) -> WorkFolder:
    return WorkFolder(root, HERE | changes)


def save(folder: WorkFolder, step: int) -> None:
    """A state, and a checkpoint of the same step."""
    with atomic_write(folder.checkpoints / "best.pt", "w") as file:
        file.write(f"best of {step}")
    folder.save(step, {"x": torch.full((300,), float(step)), "step": step})


def loaded(folder: WorkFolder) -> dict[str, Any]:
    state = folder.load()
    assert state is not None
    assert (folder.checkpoints / "best.pt").read_text() == f"best of {state['step']}"
    return state


def test_the_newest_state_comes_back_with_its_checkpoints(tmp_path: Path) -> None:
    with work(tmp_path) as folder:
        assert folder.load() is None
        for step in (5, 10, 15):
            save(folder, step)
        with atomic_write(folder.checkpoints / "best.pt", "w") as file:  # by the steps that a kill then took back
            file.write("best of 17")
        (folder.checkpoints / "custom_transformer_epoch_2.pt").write_text("as well")
    with work(tmp_path) as folder:
        assert loaded(folder)["step"] == 15
        assert [path.name for path in folder.checkpoints.iterdir()] == ["best.pt"]
        assert len(list(folder.path.glob("state-*.pt"))) == 2
        save(folder, 20)
        assert len(list((folder.path / "by-digest").iterdir())) == 2


def test_a_kill_between_saving_a_state_and_keeping_it_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEEP, "all")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with work(tmp_path / "work") as folder:
        save(folder, 5)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(KeptStates, "take", killed)
            save(folder, 10)
    with work(tmp_path / "work") as folder:
        assert loaded(folder)["step"] == 10
        save(folder, 15)
    assert list(states_in(folder.kept_states.folder)) == [5, 10, 15]


@pytest.mark.parametrize("damage", ["cut", "flipped", "a checkpoint", "a lost checkpoint"])
def test_a_damaged_state_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with work(tmp_path) as folder:
        for step in (5, 10):
            save(folder, step)
        newest = max(folder.path.glob("state-*.pt"))
        content = newest.read_bytes()
        middle = len(content) // 2
        (best,) = [path for path in (folder.path / "by-digest").iterdir() if path.read_text() == "best of 10"]
        match damage:
            case "cut":
                newest.write_bytes(content[:middle])
            case "flipped":
                newest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            case "a checkpoint":
                best.write_text("best of 11")
            case "a lost checkpoint":
                best.unlink()
    with work(tmp_path) as folder:
        assert loaded(folder)["step"] == 5
        assert f"{newest}: damaged" in capsys.readouterr().out
        save(folder, 10)
        assert loaded(folder)["step"] == 10


def test_with_no_whole_state_it_starts_afresh(tmp_path: Path) -> None:
    with work(tmp_path) as folder:
        save(folder, 5)
        (state,) = folder.path.glob("state-*.pt")
        state.write_bytes(b"")
        (folder.path / ".state-000000010-0.pt.1.tmp").write_bytes(b"half of it")
    with work(tmp_path) as folder:
        assert folder.load() is None
        assert not list(folder.checkpoints.iterdir())
        assert not list(folder.path.glob(".*"))


def test_other_conditions_are_refused_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESUME, raising=False)
    with work(tmp_path) as folder:
        save(folder, 5)
    with work(tmp_path, threads="4") as folder:
        with pytest.raises(UserError, match=r"threads was 2 and is 4.*CUSTOM_TRANSFORMER_RESUME=anyway.*rm -r"):
            folder.load()
        monkeypatch.setenv(RESUME, "anyway")
        assert loaded(folder)["step"] == 5


@pytest.mark.processes
@pytest.mark.parametrize("between", [[], ["/bin/sh", "-c"], ["/bin/bash", "--norc", "-c"]])
def test_a_stage_notices_that_its_dvc_has_ended(between: list[str]) -> None:
    """Whatever shell stands between the two."""
    stage = "from custom_transformer.runs.dvc_parent import orphaned; print(orphaned()); input(); print(orphaned())"
    command = [sys.executable, "-c", stage]
    dvc = (
        "import os, subprocess, sys; "
        "stage = subprocess.Popen(sys.argv[1:], env=os.environ | {'DVC_STAGE': 'train'}); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", dvc, *([*between, shlex.join(command)] if between else command)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "False\n"
        process.kill()
        process.wait()
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True\n"


def test_a_second_process_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom_transformer.runs.work_folder._LOCK_SECONDS", 0.2)
    with work(tmp_path), pytest.raises(UserError, match="is running"), work(tmp_path):
        pass


def test_a_second_experiment_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom_transformer.runs.work_folder._LOCK_SECONDS", 0.0)
    monkeypatch.setenv("DVC_EXP_NAME", "second")
    holds, ends = threading.Event(), threading.Event()

    def first() -> None:
        with work(tmp_path):
            holds.set()
            ends.wait(0.5)
            ends.set()

    threading.Thread(target=first).start()
    holds.wait()
    with work(tmp_path):
        assert ends.is_set()


def test_publishing_replaces_an_earlier_runs_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "custom_transformer_epoch_9.pt").write_bytes(b"old")
    with work(tmp_path / "work") as folder:
        save(folder, 5)
        folder.publish(out)
        folder.remove()
        assert not folder.path.exists()
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("best.pt", "best of 5")]


def test_a_checkpoint_changed_underneath_is_not_published(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "best.pt").write_bytes(b"old")
    with work(tmp_path / "work") as folder:
        save(folder, 5)
        with (folder.checkpoints / "best.pt").open("r+") as file:
            file.write("BEST")
        with pytest.raises(UserError, match=r"damaged since best\.pt was written"):
            folder.publish(out)
    assert (out / "best.pt").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("section", "key", "value", "decides"),
    [
        (None, "seed", 8, True),
        ("data", "max_length", 32, True),
        ("model", "d_ffn", 65, True),
        ("training", "learning_rate", 0.5, True),
        ("generation", "temperature", 0.5, False),
        ("tracking", "experiment", "other", False),
    ],
)
def test_what_decides_a_result_decides_its_key(section: str | None, key: str, value: object, decides: bool) -> None:
    params = load_params("configs/smoke.yaml")
    content = params.model_dump()
    (content[section] if section else content)[key] = value
    other = Params.model_validate(content)
    tokens = {"splits": {"train": {"sha256": "0"}}}

    def key(params: Params, tokens: dict[str, Any]) -> str:
        return run_key(fingerprint_of(params, tokens, READABLE, torch.device("cpu")))

    assert (key(other, tokens) != key(params, tokens)) is decides
    assert key(params, tokens) != key(params, {})


def test_what_computes_is_in_the_fingerprint_not_in_the_key() -> None:
    params = load_params("configs/smoke.yaml")
    eager, native = (fingerprint_of(params, {}, engine, torch.device("cpu")) for engine in (READABLE, NATIVE))
    assert run_key(eager) == run_key(native)
    assert tags(eager)["fingerprint"] != tags(native)["fingerprint"]
    assert set(eager) >= {"code", "params", "data", "torch", "cpu_capability", "threads", "engine"}
