"""Real stages on disks that are full or read-only, or killed half-way: one line, nothing lost, the same end."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import Process

pytestmark = pytest.mark.processes
OUTPUTS = ("data", "checkpoints", "metrics")
FULL = "File too large; raise the limit on a file's size (ulimit -f) and run the same command again"


def start(folder: Path, stage: str, *arguments: str, largest: int | None = None) -> Process:
    return Process("-m", f"stages.{stage}", *arguments, cwd=folder, largest=largest)


def succeeds(folder: Path, stage: str) -> None:
    done = start(folder, stage).wait()
    assert done.returncode == 0, done.stderr


def fails(folder: Path, stage: str, line: str, largest: int | None = None) -> None:
    """Ends with `line`, the one error, and leaves all outputs as they were."""
    before = outputs(folder)
    done = start(folder, stage, largest=largest).wait()
    assert done.returncode == 1
    assert done.stderr.endswith(f"error: {line}\n")
    assert "Traceback" not in done.stderr
    assert [text for text in done.stderr.splitlines() if text.startswith("error")] == [f"error: {line}"]
    assert outputs(folder) == before


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file of the stages, hidden and temporary ones too, but for locks and what only DVC reads."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in OUTPUTS
        for path in (folder / name).rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def killed(folder: Path, stage: str, *arguments: str, when: Callable[[], bool]) -> None:
    process = start(folder, stage, *arguments)
    while process.poll() is None and not when():
        time.sleep(0.002)
    process.kill()
    assert process.wait().returncode == -signal.SIGKILL, "it ended before it was killed"


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the stages up to training have run undisturbed."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("finished") / "repository")
    succeeds(folder, "train")
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "repository")


def test_download_on_a_full_disk_and_killed(finished: Path, workspace: Path) -> None:
    fails(workspace, "download", f"data/raw/train.parquet: {FULL}", largest=1000)

    parameters = workspace / "params.yaml"
    more = parameters.read_text().replace("subset_size: 400", "subset_size: 40000")
    (workspace / "more.yaml").write_text(more)
    staged = workspace / "data/.raw.tmp/train.parquet"
    killed(workspace, "download", "--config", "more.yaml", when=staged.exists)
    assert staged.exists()
    staged_files = {f"data/.raw.tmp/{path.name}" for path in staged.parent.iterdir()}
    assert outputs(workspace).keys() - staged_files == outputs(finished).keys()
    succeeds(workspace, "download")
    assert outputs(workspace) == outputs(finished)


def test_tokenize_on_a_full_disk_and_killed(finished: Path, workspace: Path) -> None:
    for name, largest in (("tokenizer", 300), ("train-00000.bin", 50_000)):
        before = outputs(workspace)
        done = start(workspace, "tokenize", largest=largest).wait()
        *_, line = done.stderr.splitlines()
        assert line.startswith(f"error: {workspace.resolve()}/work/tokens/")
        assert line.endswith(f"/{name}: {FULL}")
        assert "Traceback" not in done.stderr
        assert done.returncode == 1
        assert outputs(workspace) == before

    killed(workspace, "tokenize", when=lambda: any(workspace.glob("work/tokens/*/*/train-00000.json")))
    succeeds(workspace, "tokenize")
    assert outputs(workspace) == outputs(finished)
    assert not [path for path in workspace.glob("work/tokens/*") if path.is_dir()]


def test_training_on_a_disk_too_full_for_its_state(finished: Path, workspace: Path) -> None:
    before = outputs(workspace)
    done = start(workspace, "train", largest=200_000).wait()
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f".pt: {FULL}")
    assert "work/" in line
    assert "state-" in line
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert outputs(workspace) == before
    assert not list(workspace.rglob("*.tmp"))

    (workspace / "metrics/train.json").unlink()
    succeeds(workspace, "train")
    assert outputs(workspace) == outputs(finished)


def test_evaluation_on_a_full_disk(workspace: Path) -> None:
    fails(workspace, "evaluate", f"metrics/eval.json: {FULL}", largest=100)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A copy of `folder` in memory over it, mounted with `options`."""
    content = shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"))
    mount = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mount.returncode != 0:
        pytest.skip(f"needs a file system of its own, and mounting is refused here: {mount.stderr.strip()}")
    try:
        shutil.copytree(content, folder, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_read_only_folders(workspace: Path) -> None:
    read_only = "Read-only file system; make it writable and run the same command again"
    with mounted(workspace / "data", "ro"):
        fails(workspace, "download", f"data/raw: {read_only}")
    with mounted(workspace / "metrics", "ro"):
        fails(workspace, "generate", f"metrics/samples.jsonl: {read_only}")
