"""What the bits of a result depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from custom_transformer.runs.fingerprint import differences, fingerprint, other_versions

CPU = torch.device("cpu")


def test_another_version_than_the_pinned_one_is_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    assert other_versions(constraints) == []
    assert other_versions(Path("constraints.txt")) == []
    constraints.write_text("# pins\ntorch==1.0\nnumpy>=1\ndvc==3\n")
    here = torch.__version__.split("+")[0]
    assert other_versions(constraints) == [f"torch is {here}, not 1.0"]


def test_only_what_is_not_portable_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an unfinished run with portable kernels goes on elsewhere."""
    engines = ("native", "native with libraries", "readable")
    here = {engine: fingerprint({}, {}, Path(__file__), engine, CPU) for engine in engines}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    for engine in engines:
        changed = differences(here[engine], fingerprint({}, {}, Path(__file__), engine, CPU))
        assert [line.split()[0] for line in changed] == ([] if engine == "native" else ["threads", "settings"])
