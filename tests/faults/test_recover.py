"""DVC's own files, cut off by a kill or a full disk: mended, and never otherwise touched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from custom_transformer.errors import UserError
from stages.recover import mend_pipeline_lock, mend_process_lock

LOCK = """schema: '2.0'
stages:
  train:
    cmd: python -m stages.train
    outs:
    - path: checkpoints
      md5: 4a1f.dir
      size: 12
"""


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


def test_wherever_it_was_cut_off_dvc_can_read_it_again(repository: Path) -> None:
    path = repository / "dvc.lock"
    mended = 0
    for length in range(len(LOCK)):
        path.write_text(LOCK[:length])
        mended += mend_pipeline_lock(repository) is not None
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(path.read_bytes()))
    assert mended > len(LOCK) // 2


def test_a_list_of_processes_that_was_cut_off_goes(repository: Path) -> None:
    (repository / ".dvc/tmp/rwlock").write_text('{"read": {')
    assert "removed" in str(mend_process_lock(repository))
    assert not (repository / ".dvc/tmp/rwlock").exists()


def test_without_git_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("")
    with pytest.raises(UserError, match="remove it"):
        mend_pipeline_lock(tmp_path)
    assert mend_process_lock(tmp_path) is None
