"""What several tests share: a small model of odd sizes with non-trivial weights, what lives, a repository, limits."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from custom_transformer import CustomTransformer
from custom_transformer.maths.engine import READABLE, Engine

ROOT = Path(__file__).resolve().parents[1]
# Stage commands begin with `python`: the one that runs these tests.
PIPELINE_ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
SIZES = {"vocab_size": 37, "max_seq_len": 13, "n_blocks": 2, "n_heads": 3, "d_model": 15, "d_ffn": 22}
# A Llama's of the same sizes but for its heads, which turn pairs and share keys and values in threes.
LLAMA = {"architecture": "llama", "n_heads": 6, "d_model": 36, "n_kv_heads": 2, "rope_base": 100.0}
MODERN = LLAMA | {"architecture": "modern"}


def random_model(
    dtype: torch.dtype = torch.float64, seed: int = 0, engine: Engine = READABLE, **changes: object
) -> CustomTransformer:
    """Norms are not 1 and biases not 0, so that a missing factor or term shows."""
    model = CustomTransformer({**SIZES, **changes}, dtype=dtype, seed=seed, engine=engine)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters.values():
        p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu").to(p.dtype))
    return model


def checkpoint_content() -> dict[str, Any]:
    """What is in a checkpoint of the small model."""
    model = random_model(torch.float32)
    config = {**model.config.model_dump(), "dtype": "float32"}
    return {"state_dict": model.state_dict(), "config": config, "metadata": {}}


def random_tokens(batch: int = 3, time: int = 11, vocab_size: int = 37, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


class Held(TorchDispatchMode):
    """The most bytes that live at once in tensors made while this is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given | self.storages:
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.storages.add(key)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.bytes -= size


def copy_repository(folder: Path) -> Path:
    """The files that git would clone, but for results, with the smoke configuration as its parameters."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        result = name == "dvc.lock" or (name.startswith("metrics/") and not name.endswith(".gitignore"))
        if (ROOT / name).is_file() and not result:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "configs/smoke.yaml", folder / "params.yaml")
    return folder


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: a disk that fills up, as far as one write can tell."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
