"""What one clone pushes another one pulls, and then has nothing to compute. Real servers: .ci/validate-sharing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import processes
from tests.helpers import copy_repository

pytestmark = pytest.mark.processes


def run(folder: Path, *command: str) -> str:
    """A command of git; or a module, as `python -m` runs it. Returns what it says."""
    if command[0] == "git":
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    else:
        done = processes.run("-m", *command, cwd=folder, env=processes.quick_environment())
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def ran(folder: Path) -> list[str]:
    """The stages that `dvc repro` runs."""
    return re.findall("^Running stage '(.*)':$", run(folder, "dvc", "repro"), re.M)


def write_outputs(folder: Path, text: str) -> None:
    """Something in the place of each output: what it says does not matter, only where it travels."""
    stages = yaml.safe_load((folder / "dvc.yaml").read_text("utf-8"))["stages"]
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in stages.values() for out in stage["outs"]]
    for path in [folder / out for out in outs] + [folder / "checkpoints/best.pt"]:
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text} {path.name}", "utf-8")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "content").write_text(f"{text} {path.name}", "utf-8")


def contents(folder: Path) -> dict[str, str]:
    made = [path for name in ("data", "checkpoints", "metrics") for path in (folder / name).rglob("*")]
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in made if path.is_file()}


@pytest.fixture
def clones(tmp_path: Path) -> tuple[Path, Path]:
    """One clone, whose pipeline has run and was pushed, and another one, fresh."""
    first = copy_repository(tmp_path / "first")
    run(tmp_path, "git", "init", "--quiet", "--bare", "--initial-branch", "main", "team.git")
    run(first, "git", "init", "--quiet", "--initial-branch", "main")
    run(first, "git", "config", "user.name", "t")
    run(first, "git", "config", "user.email", "t@localhost")
    run(first, "git", "remote", "add", "origin", str(tmp_path / "team.git"))
    write_outputs(first, "of the pipeline")
    run(first, "stages.inputs")  # which runs in every clone
    run(first, "dvc", "commit", "--force")
    run(first, "dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    run(first, "git", "add", "--all")
    run(first, "git", "commit", "--quiet", "--message", "The pipeline's results")
    run(first, "dvc", "push")
    run(first, "git", "push", "--quiet", "origin", "main")
    run(tmp_path, "git", "clone", "--quiet", "team.git", "second")
    return first, tmp_path / "second"


def test_a_clone_has_everything_by_pulling(clones: tuple[Path, Path]) -> None:
    first, second = clones
    run(second, "dvc", "pull")
    assert contents(second) == contents(first)
    assert ran(second) == ["inputs"]
    assert run(second, "git", "status", "--porcelain") == ""
    # An experiment, with the outputs that only it has.
    write_outputs(first, "of an experiment")
    run(first, "stages.inputs")
    run(first, "dvc", "commit", "--force")
    run(first, "dvc", "exp", "save", "--name", "tried")
    run(first, "dvc", "exp", "push", "origin", "tried")
    run(second, "dvc", "exp", "pull", "origin", "tried")
    run(second, "dvc", "exp", "apply", "tried")
    assert contents(second) == contents(first)
    assert contents(second)["checkpoints/best.pt"] == "of an experiment best.pt"
    assert ran(second) == ["inputs"]
