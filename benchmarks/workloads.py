"""The workloads: the sizes, the precision and the update that all contestants of one comparison share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from custom_transformer import CustomTransformerConfig
from custom_transformer.config import TrainingParams, load_params


class Sizes(NamedTuple):
    architecture: Literal["gpt2", "llama", "modern"]
    vocab_size: int
    d_model: int
    n_blocks: int
    n_heads: int
    d_ffn: int
    window: int
    batch: int


# The Llamas have the sizes of GPT-2's, d_ffn too, so that only the architecture differs. Their feed-forward network has
# three matrices of that size, where GPT-2's has two. Two query heads share one head of keys and values.
# nanogpt has the sizes of nanoGPT's configuration for a CPU.
SIZES = {
    "small-50k": Sizes("gpt2", 50257, 256, 4, 4, 512, 256, 8),
    "10m": Sizes("gpt2", 4096, 288, 8, 4, 1152, 256, 16),
    "gpt2": Sizes("gpt2", 50257, 768, 12, 12, 3072, 256, 4),
    "llama-small-50k": Sizes("llama", 50257, 256, 4, 4, 512, 256, 8),
    "llama-10m": Sizes("llama", 4096, 288, 8, 4, 1152, 256, 16),
    "modern-small-50k": Sizes("modern", 50257, 256, 4, 4, 512, 256, 8),
    "modern-10m": Sizes("modern", 4096, 288, 8, 4, 1152, 256, 16),
    "nanogpt": Sizes("gpt2", 65, 128, 4, 4, 512, 64, 12),
    "modern-nanogpt": Sizes("modern", 65, 128, 4, 4, 512, 64, 12),
}
DEFAULT = ["small-50k", "10m", "gpt2", "llama-small-50k", "llama-10m"]


def training_params(**changes: Any) -> TrainingParams:
    """Those of params.yaml with some keys changed; Muon's own keys, unless given, have their defaults."""
    known = load_params().training.model_dump()
    return TrainingParams(**{key: value for key, value in known.items() if not key.startswith("muon_")} | changes)


@dataclass(frozen=True)
class Workload:
    """One comparison. precision: "float32", or "bfloat16" for its products; clipping is at a global norm of 1."""

    name: str
    precision: str
    optimizer: str  # "sgd", "adamw" or "muon"
    tied: bool

    @classmethod
    def from_json(cls, text: str) -> Workload:
        return cls(**json.loads(text))

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def title(self) -> str:
        return f"{self.name}, {self.precision}, {self.optimizer}, {'tied' if self.tied else 'untied'} head"

    @property
    def config(self) -> CustomTransformerConfig:
        sizes = SIZES[self.name]
        shared: dict[str, Any] = {"n_kv_heads": sizes.n_heads // 2} if sizes.architecture == "llama" else {}
        return CustomTransformerConfig(
            architecture=sizes.architecture,
            vocab_size=sizes.vocab_size,
            max_seq_len=sizes.window,
            n_blocks=sizes.n_blocks,
            n_heads=sizes.n_heads,
            d_model=sizes.d_model,
            d_ffn=sizes.d_ffn,
            tie_embeddings=self.tied,
            **shared,
        )

    @property
    def batch_size(self) -> int:
        return SIZES[self.name].batch

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.config.max_seq_len

    def batch(self) -> tuple[Tensor, Tensor]:
        """input_ids and labels, each (B, T) int64: uniform, the same for every contestant. Time does not depend on
        which tokens they are."""
        shape = (self.batch_size, self.config.max_seq_len + 1)
        tokens = torch.randint(0, self.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
