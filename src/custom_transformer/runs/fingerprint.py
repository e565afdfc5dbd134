"""What the bits of a training's result depend on: code, parameters and data, and what computes with them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from custom_transformer.fast.choose import NATIVE, NATIVE_WITH_LIBRARIES
from custom_transformer.fast.kernels import kernels_name
from custom_transformer.files import sha256_file

DECIDING = ("code", "params", "data")  # these say what is computed, the others what computes it

_DECIDING_PACKAGES = ("torch", "numpy", "tokenizers", "pyarrow")

# Settings by which the libraries of matrix products choose their instructions.
_SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)


def fingerprint(
    params: dict[str, Any], data: dict[str, Any], stage: Path, engine: str, device: torch.device
) -> dict[str, str]:
    """Everything by name, as text. params and data are plain values: those that decide the result; stage is the
    program that trains. The portable kernels' bits depend on nothing of the machine."""
    facts = {
        "code": _digest(_sources() | {stage.name: sha256_file(stage)}),
        "params": _digest(params),
        "data": _digest(data),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": _release("torch"),
        "numpy": _release("numpy"),
    }
    if engine == NATIVE.name:
        return facts | {"engine": f"{engine}, portable"}
    return facts | {
        "engine": f"{engine}, {kernels_name()}" if engine == NATIVE_WITH_LIBRARIES.name else engine,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "settings": " ".join(f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ),
    }


def other_versions(constraints: Path) -> list[str]:
    """What is installed in another version than `constraints` pins, of the packages whose versions may decide bytes:
    'torch is 2.14.1, not 2.13.0'. Without that file, nothing."""
    lines = constraints.read_text("utf-8").splitlines() if constraints.exists() else []
    pinned = dict(line.split("==") for line in lines if line.count("==") == 1)
    installed = {name: _release(name) for name in _DECIDING_PACKAGES}
    return [
        f"{name} is {here}, not {pinned[name]}" for name, here in installed.items() if pinned.get(name, here) != here
    ]


def _release(package: str) -> str:
    """The installed version; 2.13.0 for 2.13.0+cpu, as the build is called that another machine has."""
    return version(package).split("+")[0]


def run_key(fingerprint: dict[str, str]) -> str:
    """The name of the run that code, parameters and data decide: 16 hexadecimal digits."""
    return _digest([fingerprint[name] for name in DECIDING])


def tags(fingerprint: dict[str, str]) -> dict[str, str]:
    """For MLflow: each part, and one digest of all, equal for runs that must give equal bits."""
    return {"fingerprint": _digest(fingerprint)} | {f"fingerprint.{name}": value for name, value in fingerprint.items()}


def differences(before: dict[str, str], here: dict[str, str]) -> list[str]:
    """What is not the same, as 'threads was 4 and is 2'."""
    return [
        f"{name} was {before.get(name)} and is {value}" for name, value in here.items() if before.get(name) != value
    ]


def _sources() -> dict[str, str]:
    room = Path(__file__).parents[1]
    sources = sorted(path for path in room.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    return {str(path.relative_to(room)): sha256_file(path) for path in sources}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
