"""Writing files: all of the new content or all of the old; programs that end in one line."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from custom_transformer.files import atomic_write, project_root, sha256_file, write_csv, write_json


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_text_is_utf8_with_newlines(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path, "w") as file:
        file.write("é\n")
    assert path.read_bytes() == "é\n".encode()
    assert path.stat().st_mode & 0o044, "readable as any new file is"


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_csv_and_digest(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    assert (tmp_path / "x.csv").read_bytes() == b"step,loss\n1,0.5\n2,0.25\n"
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_the_project_root_is_dvcs_or_found_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert project_root() == Path("/elsewhere")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise UserError('bad\\nvalue \\x1b[31m')", 1, "error: bad value \\x1b[31m\n"),
        (
            "raise OSError(28, 'No space left on device', 'x.bin')",
            1,
            "error: x.bin: No space left on device\n",
        ),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("pass", 0, ""),
    ],
)
def test_programs_end_in_one_line(body: str, code: int, message: str) -> None:
    program = f"from custom_transformer.errors import UserError, run_main\ndef main():\n    {body}\nrun_main(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, message)
