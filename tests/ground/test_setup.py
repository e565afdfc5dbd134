"""The set-up takes PyTorch's CPU build where that is enough, and loses no time where it cannot be had."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        sys.platform != "linux" or Path("/proc/driver/nvidia").exists() or bool(shutil.which("nvidia-smi")),
        reason="the CUDA build is taken",
    ),
]
# As if nobody had told pip of another index, or anything else.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | {
    "PIP_CONFIG_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
PIN = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
TORCH = PIN.replace("==", "-") + "+cpu"
WHEEL = f"{TORCH}-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index with an empty PyTorch."""
    folder = tmp_path / "index/torch"
    folder.mkdir(parents=True)
    info = f"{TORCH}.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {TORCH.partition('-')[2]}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{WHEEL.replace("+", "%2B")}">{WHEEL}</a>')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "index"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """That of an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    return tmp_path / "venv/bin/python"


def start(python: Path, index: str, path: str = os.environ["PATH"]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", ".ci/cpu-torch", python, index],
        cwd=ROOT, env=ENVIRONMENT | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def installed(python: Path) -> list[str]:
    return [path.name for path in python.parents[1].glob("lib/python*/site-packages/torch*")]


def test_the_cpu_build_is_taken_where_its_index_answers(
    tmp_path: Path, python: Path, index: str, free_port: int
) -> None:
    driver = tmp_path / "bin/nvidia-smi"
    driver.parent.mkdir()
    driver.touch(0o755)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nothing = [
            start(python, index, f"{driver.parent}{os.pathsep}{os.environ['PATH']}"),
            start(python, f"http://127.0.0.1:{free_port}"),
            start(python, f"http://127.0.0.1:{silent.getsockname()[1]}"),
        ]
        for process in nothing:
            assert process.communicate(timeout=60)[0] == ""
            assert process.returncode == 0
    assert installed(python) == []
    process = start(python, index)
    assert (process.communicate(timeout=300)[0], process.returncode) == ("", 0)
    assert installed(python) == [f"{TORCH}.dist-info"]
    pinned = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--no-index", "torch", "-c", "constraints.txt"]
    subprocess.run(pinned, cwd=ROOT, env=ENVIRONMENT, check=True)  # what the set-up asks for next is there
