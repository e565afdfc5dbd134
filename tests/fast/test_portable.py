"""The kernels' bits: the same for every set of instructions, number of threads and ATen capability, and as defined."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from custom_transformer.fast.choose import NATIVE
from custom_transformer.fast.kernels import MARCH, kernel
from custom_transformer.fast.products import matmul, weight_gradient
from tests.processes import run

# Instructions by g++'s name for them, threads, ATen's capability if it is not to choose itself.
ANY = [("native", 1, "default"), ("native", 5, "")]
X86_64 = [("x86-64", 2, "default")]  # no fused multiply-add
AVX512 = [("x86-64-v4", 3, "avx512"), ("x86-64-v3", 2, "avx2")]  # without bfloat16's instruction; as without AVX-512
AVX512_BF16 = [("cooperlake", 2, "")]  # with that instruction, which a processor with AMX does without


def digests(march: str, threads: int, capability: str) -> tuple[str, dict[str, str]]:
    """The kernels' name, and what the program finds by them, in a fork that heeds all of these."""
    environment = {MARCH: march, "OMP_NUM_THREADS": str(threads)}
    environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    done = run("-m", "tests.fast.digests", env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (kernels, *setting), found = json.loads(done.stdout)
    assert setting == [threads, capability.upper() or torch.backends.cpu.get_cpu_capability()]  # type: ignore[no-untyped-call]
    return kernels, found


@pytest.mark.processes
def test_every_processor_and_number_of_threads_computes_the_same_bits() -> None:
    """Products, rows, attention, updates, and twenty steps of training, in float32, bfloat16 and float64."""
    settings = ANY + (X86_64 if os.uname().machine == "x86_64" else [])
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # type: ignore[no-untyped-call]
        settings += AVX512
    if torch.cpu._is_avx512_bf16_supported():
        settings += AVX512_BF16
    names, (first, *others) = zip(*(digests(*setting) for setting in settings), strict=True)
    assert len(set(names)) == len({march for march, *_ in settings})
    assert len(first) > 10
    for (march, threads, _), found in zip(settings[1:], others, strict=True):
        different = [name for name in first if found[name] != first[name]]
        assert different == [], f"{march}, {threads} threads"


def chain(a: list[float], b: list[float]) -> Iterator[Fraction]:
    """The exact value before each rounding of a product's chain, and its rounding to float32 sent back."""
    total = Fraction(0)
    for x, y in zip(a, b, strict=True):
        exact = Fraction(x) * Fraction(y) + total
        total = Fraction(torch.tensor(nearest(exact), dtype=torch.float32).item())
        yield total


def nearest(exact: Fraction) -> float:
    """The float32 nearest to `exact`, as a Python float: by way of float64 rounded to odd, which rounds only once."""
    approximate = float(exact)
    if Fraction(approximate) != exact:
        (bits,) = struct.unpack("<q", struct.pack("<d", approximate))
        if not bits & 1:
            approximate = math.nextafter(approximate, math.inf if exact > Fraction(approximate) else -math.inf)
    return approximate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_the_chains_of_their_definition(dtype: torch.dtype) -> None:
    """Against exact fractions, over three chunks of 512."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-(2**20), 2**20, shape, generator=generator) / 2**20 for shape in [(2, 1100), (1100, 3)])
    a, b = a.to(dtype), b.to(dtype)
    with NATIVE.products():
        c = matmul(a, b)
    for i in range(2):
        for j in range(3):
            total = torch.tensor(0.0)
            for start in range(0, 1100, 512):
                pair = a[i, start : start + 512].tolist(), b[start : start + 512, j].tolist()
                *_, last = chain(*pair)
                total = total + torch.tensor(float(last))
            assert torch.equal(c[i, j], total.to(dtype))


def test_tiny_bfloat16_operands_count_as_zero() -> None:
    tiny, small = torch.tensor([[2.0**-56]]).bfloat16(), torch.tensor([[2.0**-55]]).bfloat16()
    one = torch.ones(1, 1).bfloat16()
    with NATIVE.products():
        assert matmul(tiny, one).item() == 0
        assert matmul(small, one).item() == 2.0**-55


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_logit_that_is_not_a_number_makes_a_loss_that_is_none(dtype: torch.dtype, sign: float) -> None:
    """Whichever sign the NaN has: the invalid operation's is negative on x86-64 and positive on Arm."""
    x, labels = torch.ones(1, 3, 4, dtype=torch.promote_types(dtype, torch.float32)), torch.tensor([[0, 1, 2]])
    weight = torch.ones(5, 4)
    weight[3, 0] = math.copysign(math.nan, sign)
    with NATIVE.products():
        losses, _ = NATIVE.head.scores(x, weight.to(dtype), labels)
        loss, _ = NATIVE.head.loss.forward(x, weight.to(dtype), labels)
    assert losses.isnan().all()
    assert loss.isnan()


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes", [(1600, 40, 1100), (1300, 800, 1100), (90, 100, 50_000), (100, 90, 50_000), (4110, 4100, 8)]
)
def test_an_element_is_the_same_in_a_product_of_any_size(
    sizes: tuple[int, int, int], dtype: torch.dtype, transposed: tuple[bool, bool]
) -> None:
    """Tasks have rows or columns; strips are several with sums in C and without; chunks are packed at once or not."""
    m, n, k = sizes
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(m, k, generator=generator).to(dtype), torch.randn(k, n, generator=generator).to(dtype)
    rows, columns = [0, 11, 12, m // 2, m - 1], [0, 31, 32, n // 2, n - 1]
    with NATIVE.products():
        few = weight_gradient(a[rows].T, b[:, columns])
        a, b = (x.T.contiguous().T if turned else x for x, turned in zip((a, b), transposed, strict=True))
        assert torch.equal(weight_gradient(a.T, b)[rows][:, columns], few)
        assert torch.equal(matmul(a, b)[rows][:, columns], few.to(dtype))


@pytest.mark.parametrize(("m", "k", "n"), [(0, 4, 2), (3, 4, 0), (3, 0, 2)])
def test_an_empty_product_is_zeros(m: int, k: int, n: int) -> None:
    with NATIVE.products():
        assert torch.equal(matmul(torch.ones(m, k), torch.ones(k, n)), torch.zeros(m, n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_right_to_two_units_in_the_last_place(dtype: torch.dtype) -> None:
    """Of two logits that lie d apart it is ln (1 + e⁻ᵈ): an exponential and a logarithm."""
    d = torch.linspace(0, 60, 20_001, dtype=torch.float64).to(dtype)
    logits, labels = torch.stack([torch.zeros_like(d), -d], 1), torch.zeros(len(d), dtype=torch.int64)
    losses, predicted = torch.empty_like(d), torch.empty_like(labels)
    kernel("score_rows", dtype)(logits, labels, *logits.shape, losses, predicted)
    right = torch.log1p(torch.exp(-d.double()))
    assert ((losses.double() - right).abs() <= 2 * torch.finfo(dtype).eps * right.clamp(min=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_is_right_to_some_units_in_the_last_place(dtype: torch.dtype) -> None:
    """½ x (1 + tanh u) = x σ(2 u), which loses no digits where tanh u is near −1."""
    x = torch.linspace(-4, 4, 20_001, dtype=torch.float64).to(dtype)
    y = torch.empty_like(x)
    kernel("gelu_forward", dtype)(x, None, 1, len(x), y)
    u = math.sqrt(2 / math.pi) * (x.double() + 0.044715 * x.double() ** 3)
    right: Tensor = x.double() * torch.sigmoid(2 * u)
    assert ((y.double() - right).abs() <= 32 * torch.finfo(dtype).eps * right.abs()).all()
