"""The role of a parameter decides: how it begins, whether it decays, in which dtype products read it."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from custom_transformer.maths import gpt2, parameters
from custom_transformer.maths.architecture import ARCHITECTURES
from custom_transformer.maths.parameters import (
    DECAYS,
    DRAWN_AT_ONCE,
    IN_PRODUCTS,
    InProducts,
    Parameter,
    Role,
    count,
    decays,
    initial,
    layer,
    nearly_normal,
)
from tests.helpers import random_model

ROLES = get_args(Role)
ONE_OF_EACH = {f"a.{role}": Parameter((120, 150), role) for role in ROLES}


def test_every_role_has_a_row_in_every_table() -> None:
    tables = {name: value for name, value in vars(parameters).items() if name.isupper() and isinstance(value, dict)}
    assert tables == {"DECAYS": DECAYS, "IN_PRODUCTS": IN_PRODUCTS}
    for name, table in tables.items():
        assert tuple(table) == ROLES, name
    assert initial(ONE_OF_EACH, n_blocks=2, seed=0).keys() == ONE_OF_EACH.keys()
    used = {p.role for a in ARCHITECTURES.values() for p in a.parameters(random_model().config).values()}
    assert used == set(ROLES)


def test_the_role_decides_how_a_parameter_begins() -> None:
    tensors = initial(ONE_OF_EACH, n_blocks=8, seed=0)
    deviations = {"table": 0.02, "matrix": 0.02, "into_heads": 0.02, "into_stream": 0.02 / math.sqrt(2 * 8)}
    for role in ROLES:
        tensor = tensors[f"a.{role}"]
        assert tensor.dtype == torch.float32
        assert tensor.std().item() == pytest.approx(deviations.get(role, 0), rel=0.03), role
        assert tensor.mean().item() == pytest.approx(1.0 if role == "gain" else 0.0, abs=1e-3), role
    assert not torch.equal(tensors["a.table"], tensors["a.matrix"])


def test_a_nearly_normal_number_is_a_sum_of_twelve_integers() -> None:
    count = DRAWN_AT_ONCE + 3
    found = nearly_normal(np.random.PCG64(5), count, 0.02)
    words = np.random.PCG64(5).random_raw(3 * count).tolist()
    for i in (0, 1, DRAWN_AT_ONCE, count - 1):
        total = sum(word >> 16 * part & 0xFFFF for word in words[3 * i : 3 * i + 3] for part in range(4))
        assert found[i] == np.float32((total - 6 * 65535) * (0.02 / math.sqrt(2**32 - 1)))


def test_nearly_normal_numbers_have_the_moments_of_their_formula() -> None:
    x = nearly_normal(np.random.PCG64(0), 10**6, 2.0).double() / 2
    assert x.mean().item() == pytest.approx(0, abs=0.004)
    assert x.var().item() == pytest.approx(1, abs=0.005)
    assert x.pow(4).mean().item() == pytest.approx(2.9, abs=0.03)


def test_the_role_decides_what_decays() -> None:
    assert decays(ONE_OF_EACH, 0.1) == {
        "a.table": 0.1,
        "a.matrix": 0.1,
        "a.into_heads": 0.1,
        "a.into_stream": 0.1,
        "a.zero_into_stream": 0.1,
        "a.gain": 0.0,
        "a.bias": 0.0,
    }


def test_the_role_decides_in_which_dtype_products_read_it_and_no_cast_is_kept() -> None:
    tensors = initial(ONE_OF_EACH, n_blocks=2, seed=0)
    read = InProducts(tensors, ONE_OF_EACH, torch.bfloat16)
    assert [*read] == [*tensors]
    assert len(read) == len(ROLES)
    for role in ROLES:
        tensor = read[f"a.{role}"]
        if role in ("matrix", "into_heads", "into_stream", "zero_into_stream"):
            assert torch.equal(tensor, tensors[f"a.{role}"].bfloat16())
            assert tensor.data_ptr() != read[f"a.{role}"].data_ptr()
        else:
            assert tensor is tensors[f"a.{role}"]
    same = InProducts(tensors, ONE_OF_EACH, torch.float32)
    assert all(same[name] is tensor for name, tensor in tensors.items())


@pytest.mark.parametrize("bias", [True, False])
def test_gpt2s_parameters_have_the_roles_of_their_use(bias: bool) -> None:
    config = random_model(bias=bias, tie_embeddings=False).config
    table = gpt2.parameters(config)
    by_role = {role: {name for name, p in table.items() if p.role == role} for role in ROLES}
    assert by_role["table"] == {"token_embedding", "position_embedding", "head.weight"}
    assert by_role["matrix"] == {f"blocks.{i}.up.weight" for i in (0, 1)}
    assert by_role["into_heads"] == {f"blocks.{i}.qkv.weight" for i in (0, 1)}
    assert by_role["into_stream"] == {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("projection", "down")}
    norms = {"final_norm"} | {f"blocks.{i}.norm_{k}" for i in (0, 1) for k in (1, 2)}
    assert by_role["gain"] == {f"{name}.weight" for name in norms}
    assert by_role["bias"] == {name for name in table if name.endswith(".bias")}
    assert bool(by_role["bias"]) == bias
    assert count(table) == random_model(bias=bias, tie_embeddings=False).count_parameters()


def test_a_layer_has_a_weight_and_a_bias_as_wide_as_its_result() -> None:
    assert layer("up", True, (3, 5), "matrix") == {
        "up.weight": Parameter((3, 5), "matrix"),
        "up.bias": Parameter((5,), "bias"),
    }
    assert layer("up", False, (3, 5), "matrix") == {"up.weight": Parameter((3, 5), "matrix")}
