"""The switch of the process by which float32 products go to the faster library is put back by whoever used it."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from custom_transformer.fast import products
from custom_transformer.fast.choose import NATIVE
from tests.helpers import random_model, random_tokens

matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def before(monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting as it was, on a processor where it may be switched."""
    monkeypatch.setattr(products, "onednn_computes_float32", lambda: True)
    return matmul.fp32_precision


def test_threads_leave_the_precision_of_products_as_it_was(before: str) -> None:
    """Two that overlap: the second comes in before the first goes out, and goes out last."""
    inside, out = threading.Event(), threading.Event()

    def second() -> None:
        with products.fast_products():
            inside.set()
            out.wait(60)

    thread = threading.Thread(target=second)
    with products.fast_products():
        thread.start()
        assert inside.wait(60)
    assert matmul.fp32_precision == "bf16"  # the second is still inside
    out.set()
    thread.join()
    assert matmul.fp32_precision == before


def test_an_error_inside_leaves_it_as_it_was_too(before: str) -> None:
    with pytest.raises(ValueError, match="label"):
        random_model(torch.float32, engine=NATIVE).loss(random_tokens(), random_tokens() + 99)
    with pytest.raises(KeyError), products.fast_products(), products.fast_products():
        raise KeyError
    assert matmul.fp32_precision == before


@pytest.mark.processes
def test_the_child_of_a_fork_starts_without_the_switch(before: str) -> None:
    with products.fast_products():
        child = os.fork()
        if not child:
            right = False
            try:
                with products.fast_products():
                    right = matmul.fp32_precision == "bf16"
                right &= matmul.fp32_precision == before
            finally:
                os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert matmul.fp32_precision == before
