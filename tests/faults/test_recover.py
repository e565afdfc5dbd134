"""DVC's own files, cut off by a kill or a full disk: mended, and never otherwise touched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from custom_transformer.errors import UserError
from stages.recover import mend_pipeline_lock, mend_process_lock

LOCK = "schema: '2.0'\nstages:\n  train:\n    cmd: python -m stages.train\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text('{"read": {}, "write": {}}')
    for command in (
        ["init", "--quiet"],
        ["add", "dvc.lock"],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "lock"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_what_is_whole_stays(repository: Path) -> None:
    (repository / "dvc.lock").write_text(LOCK + "  evaluate:\n    cmd: python -m stages.evaluate\n")
    before = {path: path.read_bytes() for path in repository.rglob("*lock")}
    assert mend_process_lock(repository) is None
    assert mend_pipeline_lock(repository) is None
    assert {path: path.read_bytes() for path in repository.rglob("*lock")} == before


@pytest.mark.parametrize("rest", ["", "schema: '2.", "stages:\n  tra"])
def test_what_was_cut_off_is_mended(repository: Path, rest: str) -> None:
    (repository / "dvc.lock").write_text(rest)
    (repository / ".dvc/tmp/rwlock").write_text(rest)
    assert "restored from git" in str(mend_pipeline_lock(repository))
    assert "removed" in str(mend_process_lock(repository))
    assert (repository / "dvc.lock").read_text() == LOCK
    assert not (repository / ".dvc/tmp/rwlock").exists()


def test_without_git_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("")
    with pytest.raises(UserError, match="remove it"):
        mend_pipeline_lock(tmp_path)
    assert mend_process_lock(tmp_path) is None
