"""python -m tests.runs.together FOLDER STATES: trains CASES, by as many processes as torchrun's variables say.

FOLDER/results.json then has what each run left: the digests of its files, its curves, and its state half-way. The runs
go on from the states in STATES, the FOLDER of these or other processes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from custom_transformer.config import TrainingParams, load_params
from custom_transformer.fast.choose import NATIVE
from custom_transformer.maths.engine import READABLE
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs import distributed
from custom_transformer.runs.checkpoint import write_tensors
from custom_transformer.runs.processes import Processes, joined
from custom_transformer.runs.training import Trainer
from custom_transformer.text.tokens import TokenSplit
from tests.helpers import LLAMA, MODERN

# Some tensors of several blocks of numbers, some of less than one.
SIZES = {"vocab_size": 301, "max_seq_len": 12, "n_blocks": 2, "n_heads": 3, "d_model": 48, "d_ffn": 100}
LENGTH, HALF_WAY = 9, 7
FOUR = {"batch_size": 2, "grad_accumulation": 4}
EIGHT = {"batch_size": 1, "grad_accumulation": 8}
BF16 = torch.bfloat16
SMOKE = load_params("configs/smoke.yaml")

# Engine, dtype, and what is otherwise of the model and of the training.
CASES: dict[str, tuple[Any, torch.dtype, dict[str, Any], dict[str, Any]]] = {
    "native": (NATIVE, torch.float32, {"dropout": 0.1}, EIGHT),
    "native, bfloat16, untied, SGD": (NATIVE, BF16, {"tie_embeddings": False}, FOUR | {"optimizer": "sgd"}),
    "native, bfloat16, Muon": (NATIVE, BF16, MODERN, EIGHT | {"optimizer": "muon", "max_grad_norm": None}),
    "native, Llama, seven shards": (NATIVE, torch.float32, LLAMA, {"batch_size": 1, "grad_accumulation": 7}),
    "native, steps with NaN": (NATIVE, torch.float32, {}, FOUR | {"max_nan_steps": 9}),
    "readable, untied": (READABLE, torch.float32, {"tie_embeddings": False, "dropout": 0.1}, FOUR),
    "readable, bfloat16, SGD": (READABLE, BF16, {"dropout": 0.1}, EIGHT | {"optimizer": "sgd"}),
}


def cases(count: int) -> list[str]:
    """Those whose shards can be dealt to so many processes."""
    return [name for name, (*_, training) in CASES.items() if count <= training["grad_accumulation"]]


def split(n_tokens: int, seed: int) -> TokenSplit:
    generator = np.random.default_rng(seed)
    tokens = (np.arange(n_tokens) + (generator.random(n_tokens) < 0.1)) % SIZES["vocab_size"]
    return TokenSplit(tokens.astype("<u2"), {"tokenizer": {"sha256": "0", "vocab_size": 301}, "bytes": 3 * n_tokens})


def trainer(name: str, folder: Path, processes: Processes) -> Trainer:
    """43 windows, of which an epoch's last step has three: fewer shards than others, and some processes have none."""
    engine, dtype, model_changes, changes = CASES[name]
    settings = {"num_epochs": 2, "max_steps": None, "eval_every": 5, "save_every": 4, "log_every": 3} | changes
    params = TrainingParams.model_validate(SMOKE.training.model_dump() | settings)
    model = CustomTransformer({**SIZES, **model_changes}, dtype=dtype, seed=3, engine=engine)
    t = Trainer(
        model, params, split(390, 0), split(150, 1), max_length=LENGTH, seed=5, checkpoints=folder,
        keep_state=lambda step, state: write(folder / "kept.pt", state), processes=processes,
    )  # fmt: skip
    if "NaN" in name:
        spoil(t)
    return t


def spoil(t: Trainer) -> None:
    """Makes the loss of some shards NaN, and the gradient of others infinite, whoever computes them."""
    loss, backward, seen = t.model.loss, t.model.loss_backward, []

    def spoilt_loss(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen[:] = [t.progress.step, int(tokens.sum()) % 2]
        return loss(tokens, labels) * (torch.nan if seen == [3, 0] else 1)

    def spoilt_backward(share: float, gradients: Any) -> None:
        backward(torch.tensor(torch.inf) if seen == [6, 1] else share, gradients)

    t.model.loss, t.model.loss_backward = spoilt_loss, spoilt_backward  # type: ignore[assignment, method-assign]


def write(path: Path, state: dict[str, Any]) -> Path:
    with path.open("wb") as file:
        write_tensors(state, file)
    return Path(path.name)  # the same in all folders


def train(name: str, folder: Path, states: Path, processes: Processes) -> dict[str, Any]:
    """Half of a run, then the other half from the state in `states`; what all that has left."""
    folder.mkdir(parents=True, exist_ok=True)
    first = trainer(name, folder, processes)
    for m in first.run():
        if m.step == HALF_WAY:
            state = first.state()
            break
    if processes.first:
        write(folder / "half-way.pt", state)
        state = torch.load(states / name / "half-way.pt", weights_only=True)
    second = trainer(name, folder, processes)
    second.restore(state if processes.first else None)
    list(second.run())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.pt"))}
    curves = {curve: [dict(row) for row in rows] for curve, rows in second.curves().items()}
    return {"files": digests, **curves, **second.summary()}


def main(folder: Path, states: Path) -> None:
    distributed.BUCKET = 2**13  # several buckets of these small models
    with joined() as processes:
        processes.connect(torch.device("cpu"))
        found = {name: train(name, folder / name, states, processes) for name in cases(processes.count)}
        if processes.first:
            (folder / "results.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
