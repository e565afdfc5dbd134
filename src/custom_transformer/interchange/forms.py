"""GPT-2, Llama and Mistral as the transformers library has them: keys of configurations, tensors' names and layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.errors import shown
from custom_transformer.maths.architecture import architecture_of

State = dict[str, Tensor]

# In the library's names {i} is the number of a block.
_GPT2 = {
    "token_embedding": "transformer.wte.weight",
    "position_embedding": "transformer.wpe.weight",
    "blocks.{i}.norm_1": "transformer.h.{i}.ln_1",
    "blocks.{i}.qkv": "transformer.h.{i}.attn.c_attn",
    "blocks.{i}.projection": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.norm_2": "transformer.h.{i}.ln_2",
    "blocks.{i}.up": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.down": "transformer.h.{i}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head.weight": "lm_head.weight",
}
# One matrix here is several there: those are side by side here, and stand as (D_out, D_in) there.
_LLAMA = {
    "token_embedding": ("model.embed_tokens.weight",),
    "blocks.{i}.norm_1.weight": ("model.layers.{i}.input_layernorm.weight",),
    "blocks.{i}.qkv.weight": tuple(f"model.layers.{{i}}.self_attn.{part}_proj.weight" for part in "qkv"),
    "blocks.{i}.projection.weight": ("model.layers.{i}.self_attn.o_proj.weight",),
    "blocks.{i}.norm_2.weight": ("model.layers.{i}.post_attention_layernorm.weight",),
    "blocks.{i}.gate_up.weight": tuple(f"model.layers.{{i}}.mlp.{part}_proj.weight" for part in ("gate", "up")),
    "blocks.{i}.down.weight": ("model.layers.{i}.mlp.down_proj.weight",),
    "final_norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}


@dataclass(frozen=True)
class Form:
    """One architecture there.

    architecture: ours that computes the same
    model_class: the library's name of it
    only: keys of its configuration that change the mathematics, and the only values that this project computes
    keys: our keys of sizes and settings, and the library's for them
    settings: what else the library's configuration has for one of ours
    config: what else ours has for the library's, whose keys are all there; raises ValueError for what is not here
    state: the library's tensors of ours, new ones; those of a tied head are the token table's
    parameters: ours of the library's; raises KeyError with the name of a missing one
    ignored: ends of names that files may hold besides
    """

    architecture: Literal["gpt2", "llama"]
    model_class: str
    only: Mapping[str, tuple[Any, ...]]
    keys: Mapping[str, str]
    settings: Callable[[CustomTransformerConfig], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    state: Callable[[Mapping[str, Tensor], CustomTransformerConfig], State]
    parameters: Callable[[Mapping[str, Tensor], CustomTransformerConfig], State]
    ignored: tuple[str, ...] = ()


def _numbered(name: str) -> tuple[str, str]:
    """blocks.3.qkv.weight -> blocks.{i}.qkv.weight, 3"""
    if not name.startswith("blocks."):
        return name, ""
    _, i, rest = name.split(".", 2)
    return f"blocks.{{i}}.{rest}", i


# ----------------------------------------------------------------------------------------------------- GPT-2


def _gpt2_name(name: str) -> str:
    general, i = _numbered(name)
    if general in _GPT2:
        return _GPT2[general].format(i=i)
    layer, _, kind = general.rpartition(".")
    return f"{_GPT2[layer].format(i=i)}.{kind}"


def _gpt2_settings(config: CustomTransformerConfig) -> dict[str, Any]:
    return {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }


def _gpt2_config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    if theirs["n_embd"] % theirs["n_head"]:
        raise ValueError(f"n_embd ({theirs['n_embd']}) is no multiple of n_head ({theirs['n_head']})")
    dropouts = {theirs[key] for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return {
        "d_ffn": theirs["n_inner"] or 4 * theirs["n_embd"],
        "dropout": float(dropouts.pop()) if len(dropouts) == 1 else 0.0,
    }


def _gpt2_state(parameters: Mapping[str, Tensor], config: CustomTransformerConfig) -> State:
    """Biases that the model does not have are zeros, since the library's always has them."""
    table = architecture_of(config).parameters(config.model_copy(update={"bias": True}))
    dtype = parameters["token_embedding"].dtype
    state = {
        _gpt2_name(name): parameters.get(name, torch.zeros(shape)).to("cpu", dtype, copy=True)
        for name, (shape, _) in table.items()
    }
    return state | ({"lm_head.weight": state[_GPT2["token_embedding"]]} if config.tie_embeddings else {})


def _gpt2_parameters(state: Mapping[str, Tensor], config: CustomTransformerConfig) -> State:
    return {name: state[_gpt2_name(name)] for name in architecture_of(config).parameters(config)}


# ----------------------------------------------------------------------------------------------------- Llama


def _llama_settings(config: CustomTransformerConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_dropout": config.dropout,
    }


def _llama_config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    if (size := theirs.get("head_dim")) and size * heads != width:
        raise ValueError(f"head_dim ({size}) times num_attention_heads ({heads}) is not hidden_size ({width})")
    # Older files have rope_theta and rope_scaling instead.
    turns = theirs.get("rope_parameters") or {}
    scaling = theirs.get("rope_scaling") or {}
    kind = turns.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        raise ValueError(f"rope_type is {shown(kind)}, here it is 'default'")
    return {
        "n_kv_heads": theirs["num_key_value_heads"],
        "dropout": float(theirs["attention_dropout"]),
        "rope_base": float(turns.get("rope_theta") or theirs.get("rope_theta") or 10_000.0),
    }


def _llama_names(name: str) -> list[str]:
    general, i = _numbered(name)
    return [part.format(i=i) for part in _LLAMA[general]]


def _llama_state(parameters: Mapping[str, Tensor], config: CustomTransformerConfig) -> State:
    d, f, kv = config.d_model, config.d_ffn, config.kv_heads * config.head_size
    sizes = {"qkv": [d, kv, kv], "gate_up": [f, f]}
    state: State = {}
    for name, parameter in parameters.items():
        theirs, tensor = _llama_names(name), parameter.detach().cpu()
        if name.startswith("blocks.") and tensor.ndim == 2:
            layer = name.split(".")[2]
            parts = tensor.split(sizes[layer], 1) if layer in sizes else (tensor,)
            state |= {their: part.T.clone() for their, part in zip(theirs, parts, strict=True)}
        else:
            state[theirs[0]] = tensor.clone()
    return state | ({"lm_head.weight": state[_LLAMA["token_embedding"][0]]} if config.tie_embeddings else {})


def _llama_parameters(state: Mapping[str, Tensor], config: CustomTransformerConfig) -> State:
    ours: State = {}
    for name, (shape, _) in architecture_of(config).parameters(config).items():
        parts = [state[their] for their in _llama_names(name)]
        matrix = name.startswith("blocks.") and len(shape) == 2
        ours[name] = torch.cat([part.T for part in parts], 1) if matrix else parts[0]
    return ours


FORMS = {
    "gpt2": Form(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        {
            "max_seq_len": "n_positions",
            "n_blocks": "n_layer",
            "n_heads": "n_head",
            "d_model": "n_embd",
            "d_ffn": "n_inner",
        },
        _gpt2_settings,
        _gpt2_config,
        _gpt2_state,
        _gpt2_parameters,
        # Old files hold the causal mask of each block, and the tied head again.
        (".attn.bias", ".attn.masked_bias", "lm_head.weight"),
    ),
    "llama": Form(
        "llama",
        "LlamaForCausalLM",
        {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
        {
            "max_seq_len": "max_position_embeddings",
            "n_blocks": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "d_model": "hidden_size",
            "d_ffn": "intermediate_size",
            "norm_eps": "rms_norm_eps",
        },
        _llama_settings,
        _llama_config,
        _llama_state,
        _llama_parameters,
        (".rotary_emb.inv_freq", "lm_head.weight"),
    ),
}

# Mistral is Llama, unless attention sees a window of the last positions only.
FORMS["mistral"] = replace(
    FORMS["llama"], model_class="MistralForCausalLM", only={"hidden_act": ("silu",), "sliding_window": (None,)}
)
