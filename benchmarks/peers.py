"""The contestants that use autograd: the same architectures written plainly with PyTorch's own layers, and
transformers'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import Workload
from custom_transformer import CustomTransformer, CustomTransformerConfig
from custom_transformer.interchange import to_huggingface
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import initial

Step = Callable[[], float]
ARCHITECTURES = ("gpt2", "llama")  # that these contestants have
LEARNING_RATE = 1e-4


class Gpt2Block(nn.Module):
    def __init__(self, config: CustomTransformerConfig):
        super().__init__()
        d, bias = config.d_model, config.bias
        self.n_heads = config.n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(d, bias=bias), nn.LayerNorm(d, bias=bias)
        self.qkv, self.projection = nn.Linear(d, 3 * d, bias), nn.Linear(d, d, bias)
        self.up, self.down = nn.Linear(d, config.d_ffn, bias), nn.Linear(config.d_ffn, d, bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, d = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, time, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(a.transpose(1, 2).reshape(batch, time, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class LlamaBlock(nn.Module):
    turns: Tensor

    def __init__(self, config: CustomTransformerConfig):
        super().__init__()
        d, f, size = config.d_model, config.d_ffn, config.head_size
        self.heads = [config.n_heads, config.kv_heads, config.kv_heads]
        self.norm_1, self.norm_2 = (nn.RMSNorm(d, config.norm_eps) for _ in range(2))
        self.qkv, self.projection = nn.Linear(d, sum(self.heads) * size, bias=False), nn.Linear(d, d, bias=False)
        self.gate_up, self.down = nn.Linear(d, 2 * f, bias=False), nn.Linear(f, d, bias=False)
        rates = config.rope_base ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(config.max_seq_len), rates)
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()]))

    def turned(self, x: Tensor) -> Tensor:
        cos, sin = self.turns[:, : x.shape[2]].to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, d = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, time, sum(self.heads), -1).transpose(1, 2)
        q, k, v = heads.split(self.heads, 1)
        a = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True, enable_gqa=True)
        x = x + self.projection(a.transpose(1, 2).reshape(batch, time, d))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Twin(nn.Module):
    """The same architecture, written plainly with PyTorch's own layers."""

    def __init__(self, config: CustomTransformerConfig, seed: int = 0):
        super().__init__()
        d, is_llama = config.d_model, config.architecture == "llama"
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.position_embedding = None if is_llama else nn.Embedding(config.max_seq_len, d)
        self.blocks = nn.ModuleList((LlamaBlock if is_llama else Gpt2Block)(config) for _ in range(config.n_blocks))
        self.final_norm = nn.RMSNorm(d, config.norm_eps) if is_llama else nn.LayerNorm(d, bias=config.bias)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self._take_over(initial(architecture_of(config).parameters(config), config.n_blocks, seed))
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    @torch.no_grad()
    def _take_over(self, ours: Mapping[str, Tensor]) -> None:
        for name, module in self.named_modules():
            for kind, parameter in module.named_parameters(recurse=False):
                known = ours[name] if isinstance(module, nn.Embedding) else ours.get(f"{name}.{kind}")
                if known is not None:  # a tied head has no separate parameter
                    transposed = isinstance(module, nn.Linear) and parameter.ndim == 2 and name != "head"
                    parameter.copy_(known.T if transposed else known)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.token_embedding(input_ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class TransformersLoss(nn.Module):
    """GPT2LMHeadModel or LlamaForCausalLM."""

    def __init__(self, config: CustomTransformerConfig):
        super().__init__()
        self.model = to_huggingface(CustomTransformer(config)).train()

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(input_ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def twin_eager(workload: Workload) -> Step:
    return _autograd_step(Twin(workload.config), workload)


def twin_compiled(workload: Workload, fused_adamw: bool = False) -> Step:
    return _autograd_step(torch.compile(Twin(workload.config)), workload, fused_adamw)


def transformers_eager(workload: Workload) -> Step:
    return _autograd_step(TransformersLoss(workload.config), workload)


def _autograd_step(model: Any, workload: Workload, fused_adamw: bool = False) -> Step:
    parameters = list(model.parameters())
    if workload.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, LEARNING_RATE)
    else:
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0, fused=fused_adamw)
    input_ids, labels = workload.batch()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=workload.precision == "bfloat16"):
            loss = model(input_ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


PEERS: dict[str, Callable[[Workload], Step]] = {
    "twin, compiled": twin_compiled,
    "twin, eager": twin_eager,
    "transformers": transformers_eager,
}

# Peers that need a change of code in addition to the settings; timed tuned only.
FUSED_PEERS: dict[str, Callable[[Workload], Step]] = {
    "twin, compiled, fused AdamW": partial(twin_compiled, fused_adamw=True)
}
