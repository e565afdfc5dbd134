"""What several tests share: a small model of odd sizes with non-trivial weights, a copy of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from custom_transformer import CustomTransformer
from custom_transformer.fast.engine import EAGER, Engine

ROOT = Path(__file__).resolve().parents[1]
# Stage commands begin with `python`: the one that runs these tests.
PIPELINE_ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
SIZES = {"vocab_size": 37, "max_seq_len": 13, "n_blocks": 2, "n_heads": 3, "d_model": 15, "d_ffn": 22}


def random_model(
    dtype: torch.dtype = torch.float64, seed: int = 0, engine: Engine = EAGER, **changes: object
) -> CustomTransformer:
    """Norms are not 1 and biases not 0, so that a missing factor or term shows."""
    model = CustomTransformer({**SIZES, **changes}, dtype=dtype, seed=seed, engine=engine)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters.values():
        p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return model


def random_tokens(batch: int = 3, time: int = 11, vocab_size: int = 37, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def copy_repository(folder: Path) -> None:
    """What git would clone into `folder`, with the smoke configuration as its parameters, committed."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "configs/smoke.yaml", folder / "params.yaml")
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
