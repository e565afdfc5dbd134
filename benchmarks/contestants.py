"""Who is timed: each builds, from a workload, a function that does one whole training step and returns its loss.

All start from the same parameters and do forward, backward, clipping at a global norm of 1, and the update. Only the
peers use autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import Workload
from custom_transformer import CustomTransformer, CustomTransformerConfig
from custom_transformer.fast import head, native, products
from custom_transformer.fast.choose import FUSED, NATIVE, choose_engine
from custom_transformer.fast.kernels import library
from custom_transformer.fast.memory import keep_freed_memory
from custom_transformer.maths import ops
from custom_transformer.maths.architecture import GPT2
from custom_transformer.maths.engine import READABLE_RULES, Engine
from custom_transformer.maths.optim import SGD, AdamW
from custom_transformer.maths.parameters import initial
from custom_transformer.runs.training import training_step

Step = Callable[[], float]
LEARNING_RATE = 1e-4


# --------------------------------------------------------------------------------------------------- ours


def ours_eager(workload: Workload) -> Step:
    return _ours(workload, choose_engine(False, torch.device("cpu"), 0))


def ours_fast(workload: Workload) -> Step:
    library()  # without a compiler this is no contestant
    return _ours(workload, choose_engine(True, torch.device("cpu"), 0))


def ours_without_compiler(workload: Workload) -> Step:
    keep_freed_memory()
    return _ours(workload, FUSED)


def _ours(workload: Workload, engine: Engine) -> Step:
    model = CustomTransformer(workload.config, dtype=getattr(torch, workload.precision), engine=engine)
    model.training = True
    if workload.optimizer == "sgd":
        optimizer: Any = SGD({}, engine.rules.sgd)
    else:
        optimizer = AdamW(model.parameters, (0.9, 0.999), {}, rule=engine.rules.adamw)
    batch = workload.batch()
    return lambda: training_step(model, optimizer, [batch], LEARNING_RATE, 1.0).loss


# ours, fast, with one of its techniques left out


def without_kept_memory(workload: Workload) -> Step:
    library()
    return _ours(workload, NATIVE)


def without_onednn(workload: Workload) -> Step:
    products.onednn_computes_float32 = lambda: False  # type: ignore[assignment]
    return ours_fast(workload)


def without_query_tiles(workload: Workload) -> Step:
    native.QUERY_BYTES = 1 << 30
    return ours_fast(workload)


def without_vocabulary_tiles(workload: Workload) -> Step:
    head.TILE = 1 << 30
    return ours_fast(workload)


def _without(**readable: Any) -> Callable[[Workload], Step]:
    def contestant(workload: Workload) -> Step:
        keep_freed_memory()
        return _ours(workload, replace(NATIVE, **readable))

    return contestant


# -------------------------------------------------------------------------------------------------- peers


class Block(nn.Module):
    def __init__(self, config: CustomTransformerConfig):
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.projection = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, config.d_ffn), nn.Linear(config.d_ffn, d)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, d = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, time, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(a.transpose(1, 2).reshape(batch, time, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Twin(nn.Module):
    """The same architecture, written plainly with PyTorch's own layers."""

    def __init__(self, config: CustomTransformerConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.final_norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._take_over(initial(GPT2.parameters(config), config.n_blocks, seed=0))
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
        x = self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def twin_eager(workload: Workload) -> Step:
    return _autograd_step(Twin(workload.config), workload)


def twin_compiled(workload: Workload, fused_adamw: bool = False) -> Step:
    return _autograd_step(torch.compile(Twin(workload.config)), workload, fused_adamw)


def gpt2(workload: Workload) -> Step:
    return _autograd_step(_Gpt2Loss(workload.config), workload)


class _Gpt2Loss(nn.Module):
    def __init__(self, config: CustomTransformerConfig):
        super().__init__()
        self.model = gpt2_of(config, initial(GPT2.parameters(config), config.n_blocks, seed=0))

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(input_ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def gpt2_of(config: CustomTransformerConfig, ours: Mapping[str, Tensor]) -> Any:
    """transformers' GPT2LMHeadModel of these sizes, with our parameters under its names for them."""
    from transformers import GPT2Config, GPT2LMHeadModel  # takes a second to import

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.d_model,
            n_layer=config.n_blocks,
            n_head=config.n_heads,
            n_inner=config.d_ffn,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs = {
        "token_embedding": "transformer.wte.weight",
        "position_embedding": "transformer.wpe.weight",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        "blocks": "transformer.h",
        "norm_1": "ln_1",
        "qkv": "attn.c_attn",
        "projection": "attn.c_proj",
        "norm_2": "ln_2",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    renamed = {".".join(theirs.get(part, part) for part in name.split(".")): p for name, p in ours.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model


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


# -------------------------------------------------------------------------------------------------- floor


def floor(workload: Workload) -> Step:
    """Only the step's matrix products, at their shapes, in their best layout, into allocated memory."""
    config, n = workload.config, workload.tokens
    d, f, time = config.d_model, config.d_ffn, config.max_seq_len
    dtype = getattr(torch, workload.precision)
    linears = [(d, 3 * d), (d, d), (d, f), (f, d)] * config.n_blocks + [(d, config.vocab_size)]

    def operands(k: int, m: int) -> tuple[Callable[[], Any], ...]:
        x, weight, dy = (torch.randn(shape, dtype=dtype) for shape in ((n, k), (k, m), (n, m)))
        y, dx, dweight = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(weight)
        transposed = weight.T.contiguous()
        return (
            lambda: torch.mm(x, weight, out=y),
            lambda: torch.mm(dy, transposed, out=dx),
            lambda: torch.mm(x.T, dy, out=dweight),
        )

    pairs = workload.batch_size * config.n_heads
    q, v = (torch.randn(pairs, time, config.head_size, dtype=dtype) for _ in range(2))
    scores, y = torch.randn(pairs, time, time, dtype=dtype), torch.empty_like(v)
    products = [product for shape in set(linears) for product in operands(*shape) for _ in range(linears.count(shape))]
    # Causal attention needs half of each of its six products: the scores and their gradient, and four like v.
    halves = [lambda: torch.bmm(q, v.transpose(1, 2), out=scores)] + 2 * [lambda: torch.bmm(scores, v, out=y)]
    products += halves * config.n_blocks

    def step() -> float:
        for product in products:
            product()
        return 0.0

    return step


ABLATIONS: dict[str, Callable[[Workload], Step]] = {
    "without kept memory": without_kept_memory,
    "without oneDNN for float32": without_onednn,
    "without the head's kernel": _without(head=NATIVE.head._replace(loss=FUSED.head.loss)),
    "without tiles of the vocabulary": without_vocabulary_tiles,
    "without the blocks' kernels": _without(stacks={}),
    "without tiles of queries": without_query_tiles,
    "without the update's kernels": _without(rules=READABLE_RULES),
    "without the tied table's sum in place": _without(
        equals={op: equal for op, equal in NATIVE.equals.items() if op is not ops.lookup}
    ),
}

PEERS: dict[str, Callable[[Workload], Step]] = {
    "twin, compiled": twin_compiled,
    "twin, eager": twin_eager,
    "GPT2LMHeadModel": gpt2,
}

# Peers that need a change of code in addition to the settings; timed tuned only.
FUSED_PEERS: dict[str, Callable[[Workload], Step]] = {
    "twin, compiled, fused AdamW": partial(twin_compiled, fused_adamw=True)
}

OURS: dict[str, Callable[[Workload], Step]] = {
    "ours, fast": ours_fast,
    "ours, no compiler": ours_without_compiler,
    "ours, eager": ours_eager,
    **ABLATIONS,
}


def build(name: str, workload: Workload, tuned: bool) -> Step:
    """The step of contestant `name`, or the floor's.

    tuned, for a peer: freed memory is kept, and float32 products use the faster of PyTorch's two libraries. Anyone can
    set both without touching the model.
    """
    torch.manual_seed(0)
    if name in OURS:
        return OURS[name](workload)
    if tuned or name == "floor":
        keep_freed_memory()
        torch.set_float32_matmul_precision("medium")
    return floor(workload) if name == "floor" else (PEERS | FUSED_PEERS)[name](workload)
