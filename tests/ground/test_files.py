"""Writing files: all of the new content or all of the old; programs that end in one line."""

from __future__ import annotations

import ast
import errno
import io
import math
import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from custom_transformer.errors import UserError, run_main
from custom_transformer.files import StorageError, atomic_write, sha256_file, staged_folders, write_csv, write_json
from custom_transformer.paths import project_root
from tests.helpers import ROOT, largest_file
from tests.processes import run

# Every program that people start; the worker of a benchmark talks to its parent in JSON.
PROGRAMS = [
    path.relative_to(ROOT)
    for folder in ("src", "stages", "studies", "benchmarks", "book")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__name__ ==" in path.read_text("utf-8") and path.name != "worker.py"
]


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [10, 100_000], ids=["when it is closed", "when it is written"])
def test_a_failed_write_leaves_the_old_content_and_names_the_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(StorageError) as error, largest_file(5), atomic_write(path) as file:
        file.write(bytes(size))
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert str(error.value.strerror).endswith("and run the same command again")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(StorageError, match="free some space"), monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, full)
        with atomic_write(path, "w") as file:
            file.write("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error, atomic_write(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "Permission denied", "source")
    assert error.value.filename == "source"


@pytest.mark.processes
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a[1].pt"
    program = f"""
import os, signal
from custom_transformer.files import atomic_write
with atomic_write({str(path)!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run("-c", program)
    assert len(list(tmp_path.iterdir())) == 1
    of_the_living = tmp_path / f".a[1].pt.{os.getppid()}.tmp"
    of_the_living.touch()
    with atomic_write(path) as file:
        file.write(b"new")
    assert set(tmp_path.iterdir()) == {path, of_the_living}


def test_a_file_in_a_folders_place_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "metrics").touch()
    with pytest.raises(StorageError, match="move it away"), atomic_write(tmp_path / "metrics" / "eval.json"):
        pass
    (tmp_path / "best.pt").mkdir()
    with pytest.raises(StorageError, match="move the folder away"), atomic_write(tmp_path / "best.pt"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "metrics"]


def put(folders: list[Path], text: str) -> None:
    for folder in folders:
        (folder / "file").write_text(text)


def files(folder: Path) -> dict[str, str]:
    """What is there by name, but for locks."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_folders_change_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with staged_folders(one, two) as folders:
        put(folders, "old")
    old = {"one/file": "old", "two/file": "old"}
    assert files(tmp_path) == old

    with pytest.raises(StorageError) as error, staged_folders(one, two) as folders:
        put(folders, "new")
        with atomic_write(folders[1] / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(two / "file"), "people know the folder, not its staging"
    assert files(tmp_path) == old

    replace = Path.replace
    for moved in (one, two, tmp_path / ".one.tmp", tmp_path / ".two.tmp"):

        def busy(path: Path, target: Path, moved: Path = moved) -> Path:
            if path == moved and not target.name.endswith(".tmp"):
                raise OSError(errno.EBUSY, "Device or resource busy", str(path))
            return replace(path, target)

        with pytest.raises(OSError, match="busy"), monkeypatch.context() as patch:
            patch.setattr(Path, "replace", busy)
            with staged_folders(one, two) as folders:
                put(folders, "new")
        assert files(tmp_path) == old

    with staged_folders(one, two) as folders:
        put(folders, "new")
    assert files(tmp_path) == {"one/file": "new", "two/file": "new"}


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_killed_between_two_renames_nothing_old_stands_beside_the_new(tmp_path: Path, renames: int) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with staged_folders(one, two) as folders:
        put(folders, "old")
    replace, done = Path.replace, []

    def killing(path: Path, target: Path) -> Path:
        if len(done) == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(path)
        return replace(path, target)

    child = os.fork()
    if child == 0:
        Path.replace = killing  # type: ignore[method-assign]
        with staged_folders(one, two) as folders:
            put(folders, "new")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len({folder / "file" for folder in (one, two) if folder.exists()}) == [2, 1, 0, 1][renames]
    assert len({(folder / "file").read_text() for folder in (one, two) if folder.exists()}) <= 1

    with staged_folders(one, two) as folders:
        put(folders, "new")
    assert files(tmp_path) == {"one/file": "new", "two/file": "new"}


@pytest.mark.processes
def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from custom_transformer.errors import run_main
from custom_transformer.files import staged_folders
def main():
    with staged_folders(Path({str(tmp_path / "raw")!r})) as (folder,):
        (folder / "file").write_text("the second's")
run_main(main)
"""
    with staged_folders(tmp_path / "raw") as folders:
        put(folders, "the first's")
        done = run("-c", program)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "another process is writing it" in done.stderr
    assert files(tmp_path) == {"raw/file": "the first's"}
    assert run("-c", program).returncode == 0
    with pytest.raises(UserError), staged_folders(tmp_path / "raw"):
        raise UserError("a later failure")
    assert files(tmp_path) == {"raw/file": "the second's"}


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


@pytest.mark.processes
@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise UserError('bad\\nvalue \\x1b[31m')", 1, "error: bad value \\x1b[31m\n"),
        ("raise OSError(28, 'No space left on device', 'x.bin')", 1, "error: x.bin: No space left on device\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("pass", 0, ""),
    ],
)
def test_programs_end_in_one_line(body: str, code: int, message: str) -> None:
    program = f"from custom_transformer.errors import UserError, run_main\ndef main():\n    {body}\nrun_main(main)"
    done = run("-c", program)
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8", "shift_jis"])
def test_what_an_encoding_lacks_is_printed_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    text = "naïve … × 第 🚀 \ud800"
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def main() -> None:
        print(text)
        Console(width=100).print(text)
        raise UserError("第")

    with pytest.raises(SystemExit):
        run_main(main)
    printed = {}
    for name, stream in streams.items():
        stream.flush()
        printed[name] = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert printed["stdout"] == 2 * f"{text}\n".encode(encoding, "backslashreplace")
    assert printed["stderr"] == "error: 第\n".encode(encoding, "backslashreplace")


@pytest.mark.parametrize("module", PROGRAMS, ids=str)
def test_every_program_runs_by_run_main(module: Path) -> None:
    """In which one place its output and its errors are made fit for every terminal."""
    *_, last = ast.parse(module.read_text("utf-8")).body
    assert ast.unparse(last) == "if __name__ == '__main__':\n    run_main(main)"
