"""What the pipeline computes without kernels has the same bits with any vector instructions and number of threads."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

# What every machine gives; another value is a change of tracked results.
DIGESTS = {
    "scalars": "241c84aae3e64662",
    "arrays": "3c415d5b88247e55",
    "parameters": "c45542b458d96483",
    "masks": "4861a7f6e6851797",
    "order": "03925aa61d2dcc8a",
    "schedule": "6acb1534b35281fe",
    "corrections": "b3efa17df46bf7da",
    "turns": "d1c0b87a4b877275",
    "samples": "17fa06fb5f61a8b1",
    "evaluation": "ba1ffc1b83ed1dc2",
    "validation": "5a496e940d0cdc1b",
    "statistics": "7b855cf30f9d36a9",
    "curve": "9d0b74e9ea215829",
    "lessons": "70f46be4e8febe04",
}
# PyTorch's vector instructions, NumPy's, and those of the system's mathematical functions.
LESS = {
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",
}
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the settings are those of x86-64")


@pytest.mark.parametrize(
    "settings",
    [
        {"OMP_NUM_THREADS": "3"},
        pytest.param({"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2"}, marks=X86),
        pytest.param({"OMP_NUM_THREADS": "1"} | LESS, marks=X86),
    ],
    ids=["as it comes", "avx2", "none"],
)
def test_every_machine_gives_these_values(settings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.runs.portable_values"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == DIGESTS
