"""A parameter's role decides everything that depends on what it is for, and no role is forgotten."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from custom_transformer.maths import parameters
from custom_transformer.maths.parameters import Parameter, Role, decays, initial

ROLES: tuple[Role, ...] = get_args(Role)
ONE_EACH = {role: Parameter((300, 200) if role in ("table", "matrix", "into_stream") else (200,), role) for role in ROLES}


@pytest.mark.parametrize("name", ["DECAYS", "IN_PRODUCTS"])
def test_every_role_has_a_row_in_every_table(name: str) -> None:
    assert getattr(parameters, name).keys() == set(ROLES)


def test_a_role_decides_how_a_parameter_begins() -> None:
    begun = initial(ONE_EACH, n_blocks=8, seed=1)
    assert begun.keys() == set(ROLES)
    for name, std in {"table": 0.02, "matrix": 0.02, "into_stream": 0.02 / math.sqrt(16)}.items():
        assert begun[name].std().item() == pytest.approx(std, rel=0.02)
    assert torch.equal(begun["gain"], torch.ones(200))
    assert torch.equal(begun["bias"], torch.zeros(200))


def test_a_role_decides_decay_and_the_dtype_in_products() -> None:
    assert decays(ONE_EACH, 0.1) == {"table": 0.1, "matrix": 0.1, "into_stream": 0.1, "gain": 0.0, "bias": 0.0}
    read = parameters.InProducts(initial(ONE_EACH, 1, 0), ONE_EACH, torch.bfloat16)
    assert {role for role in ROLES if read[role].dtype == torch.bfloat16} == {"matrix", "into_stream"}
    assert list(read) == list(ROLES)
