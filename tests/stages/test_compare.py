"""A change beside its base: DVC's tables and plots as one report, and one line where there is nothing to compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from custom_transformer.errors import UserError
from stages.compare import main
from tests.helpers import PIPELINE_ENVIRONMENT
from tests.processes import quick_python, run

pytestmark = pytest.mark.processes

PIPELINE = """\
stages:
  train:
    cmd: python train.py
    deps: [train.py]
    params: [rate, prompt]
    outs: [curve.csv]
  evaluate:
    cmd: python evaluate.py
    deps: [evaluate.py, curve.csv]
    outs:
      - eval.json: {cache: false}
metrics: [eval.json]
plots:
  - "Loss: training":
      x: step
      y: {curve.csv: loss}
"""
PARAMS = "rate: 0.1\nprompt: The\n"
TRAIN = """\
rate = float(open("params.yaml").read().split()[1])
open("curve.csv", "w").write("step,loss\\n" + "".join(f"{step},{1 - rate * step}\\n" for step in range(5)))
"""
EVALUATE = 'open("eval.json", "w").write("{\\"loss\\": %s}" % open("curve.csv").read().split(",")[-1])\n'


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def dvc(*arguments: str) -> None:
    done = run("-m", "dvc", *arguments, cwd=Path.cwd(), env=PIPELINE_ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of two quick stages: run and committed on main, run again with another rate."""
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet", "--initial-branch", "main")
    dvc("init", "--quiet")
    files = {"dvc.yaml": PIPELINE, "params.yaml": PARAMS, "train.py": TRAIN, "evaluate.py": EVALUATE}
    for name, content in files.items():
        Path(name).write_text(content)
    dvc("repro", "--quiet")
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "--quiet", "--message", "first")
    Path("params.yaml").write_text("rate: 0.2\nprompt: 'a | b <!-- **c**'\n")
    dvc("repro", "--quiet")
    return tmp_path


def compare(monkeypatch: pytest.MonkeyPatch, base: str) -> str:
    monkeypatch.setattr(sys, "argv", ["compare", base])
    monkeypatch.setattr(sys, "executable", str(quick_python()))
    main()
    return Path("comparison/report.md").read_text()


def test_a_change_beside_its_base(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = compare(monkeypatch, "main")
    rows = [line.replace(" ", "") for line in report.splitlines()]
    assert "|eval.json|loss|0.6|0.2|-0.4|" in rows
    assert "|params.yaml|rate|0.1|0.2|" in rows
    assert "| params.yaml | prompt | `The` | `a \\| b <!-- **c**` |" in report.splitlines()
    assert '<img alt="Loss: training" src="loss-training.png" width="420">' in report
    assert (project / "comparison/loss-training.png").read_bytes().startswith(b"\x89PNG")
    assert "of main:" not in report

    dvc("gc", "--workspace", "--force")
    report = compare(monkeypatch, "main")
    assert "| 0.6" in report
    assert "- curve.csv of main: not in git, nor in DVC's cache or a remote" in report.splitlines()

    with pytest.raises(UserError, match="unknown Git revision 'nowhere'"):
        compare(monkeypatch, "nowhere")
