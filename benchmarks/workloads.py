"""The workloads: the sizes, the precision and the update that all contestants of one comparison share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from custom_transformer import CustomTransformerConfig

SIZES = {  # name: (vocab_size, d_model, n_blocks, n_heads, d_ffn, window, batch)
    "small-50k": (50257, 256, 4, 4, 512, 256, 8),
    "10m": (4096, 288, 8, 4, 1152, 256, 16),
    "gpt2": (50257, 768, 12, 12, 3072, 256, 4),
}


@dataclass(frozen=True)
class Workload:
    """One comparison. precision: "float32", or "bfloat16" for its products; clipping is at a global norm of 1."""

    name: str
    precision: str
    optimizer: str  # "sgd" or "adamw"
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
        vocab_size, d_model, n_blocks, n_heads, d_ffn, window, _ = SIZES[self.name]
        return CustomTransformerConfig(
            vocab_size=vocab_size,
            max_seq_len=window,
            n_blocks=n_blocks,
            n_heads=n_heads,
            d_model=d_model,
            d_ffn=d_ffn,
            tie_embeddings=self.tied,
        )

    @property
    def batch_size(self) -> int:
        return SIZES[self.name][-1]

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
