"""How kernels are compiled, found again and called."""

from __future__ import annotations

import ast
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from custom_transformer.fast import kernels
from custom_transformer.fast.decoding import MANY_ROWS, last_logits, product
from tests.processes import run


def test_a_kernel_refuses_tensors_it_would_misread() -> None:
    square, sums = kernels.kernel("sums_of_squares", torch.float32), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        square(torch.ones(3, dtype=torch.float64), 3, sums, 1)
    with pytest.raises(ValueError, match="contiguous"):
        square(torch.ones(3, 2).T, 6, sums, 1)
    with pytest.raises(ValueError, match=r"sums_of_squares: g: .* of 7 elements .* not .*6"):
        square(torch.ones(6), 7, sums, 1)
    with pytest.raises(ValueError, match="NoneType"):
        square(None, 6, sums, 1)


def test_no_kernel_takes_a_tensor_that_is_one_element_short() -> None:
    """Of every kernel, each pointer in turn; a pointer that may be null may also be left out."""
    sizes = dict.fromkeys(["time", "keys", "capacity", "width"], 4) | {"heads": 6, "first": 0, "start": 0}
    dtypes = {"T*": torch.float64, "W*": torch.float64} | kernels._DTYPE_OF
    for name, parameters in kernels._signatures().items():
        index = {p.name: sizes.get(p.name, 2) for p in parameters if p.kind == "Index"}

        def arguments(
            wrong: str = "", add: int = 0, parameters: Any = parameters, index: dict[str, int] = index
        ) -> list[Any]:
            made: list[Any] = []
            for p in parameters:
                count = math.prod(int(size) if size.isdigit() else index[size] for size in p.sizes)
                count += add * (p.name == wrong)
                made.append(torch.ones(count, dtype=dtypes[p.kind]) if p.kind in dtypes else index.get(p.name, 0.5))
            return made

        kernel = kernels.kernel(name, torch.float64)
        if "addresses" not in {p.name for p in parameters}:  # made-up numbers are none
            kernel(*arguments())
        for p in parameters:
            for add in (-1, 1) if p.kind in dtypes else ():
                with pytest.raises(ValueError, match=f"^{name}: {p.name}: .* elements"):
                    kernel(*arguments(p.name, add))


def test_each_exported_kernel_has_a_signature_of_the_types_it_is_called_with() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in kernels._SOURCES)
    exported = set(re.findall(r"EXPORT\w*\((\w+)\)", source))
    signatures = kernels._signatures()
    assert signatures.keys() == exported
    assert len(exported) > 10
    pointers, numbers = {"T*", "W*", *kernels._DTYPE_OF}, {"W", *kernels._NUMBERS}
    for name, parameters in signatures.items():
        assert parameters, name
        sizes = {parameter.name for parameter in parameters if parameter.kind == "Index"}
        for parameter in parameters:
            assert parameter.kind in pointers | numbers, name
            assert bool(parameter.sizes) == (parameter.kind in pointers), f"{name}: the sizes of {parameter.name}"
            assert all(size.isdigit() or size in sizes for size in parameter.sizes), name


def kernel_calls() -> list[tuple[str, list[ast.expr]]]:
    """Each call `kernel("name", dtype)(…)` in the package: the kernel's name and the arguments it is given."""
    calls = []
    for path in kernels._SOURCES[0].parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Call(ast.Name("kernel"), [ast.Constant(str(name)), _]), arguments):
                    calls.append((name, arguments))
    return calls


def could_be(arguments: list[ast.expr], count: int) -> bool:
    """`*x.shape` counts as the two sizes of a matrix; how many any other star stands for shows only when it runs."""
    stars = [a.value for a in arguments if isinstance(a, ast.Starred)]
    known = len(arguments) - len(stars) + 2 * sum(isinstance(star, ast.Attribute) for star in stars)
    return known < count if any(not isinstance(star, ast.Attribute) for star in stars) else known == count


def test_every_call_of_a_kernel_has_as_many_arguments_as_its_signature() -> None:
    calls, signatures = kernel_calls(), kernels._signatures()
    assert {name for name, _ in calls} == signatures.keys()
    assert [name for name, arguments in calls if not could_be(arguments, len(signatures[name]))] == []


@pytest.mark.parametrize("count", [1, 5])
def test_a_wrong_number_of_arguments_is_refused_before_the_kernel_runs(count: int) -> None:
    square = kernels.kernel("sums_of_squares", torch.float32)
    with pytest.raises(ValueError, match="argument"):
        square(torch.ones(3), *[3] * (count - 1))


# ----------------------------------------------------------------------------------------------------- compiling


def choose_in_a_process(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import torch; from custom_transformer.fast.choose import choose_engine\n"
        "print(choose_engine(True, torch.device('cpu'), 0).name)"
    )
    done = run("-c", program, env=os.environ | {"XDG_CACHE_HOME": str(cache)} | environment)
    assert done.returncode == 0, done.stderr
    return done


def test_kernels_are_compiled_once_and_found_again(tmp_path: Path) -> None:
    quick, cache = tmp_path / "c++", tmp_path / "cache"
    quick.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')  # nothing is computed here
    quick.chmod(0o755)
    assert choose_in_a_process(cache, CXX=str(quick)).stdout == "native\n"
    (built,) = (cache / "custom_transformer").iterdir()
    made = built.stat().st_mtime_ns
    assert choose_in_a_process(cache, CXX=str(quick)).stdout == "native\n"
    assert built.stat().st_mtime_ns == made


def test_without_a_compiler_it_is_the_fused_functions_and_one_line_says_so(tmp_path: Path) -> None:
    done = choose_in_a_process(tmp_path, PATH=str(tmp_path))
    assert done.stdout == "fused\n"
    assert done.stderr == "computing without the compiled kernels: no C++ compiler was found\n"


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("#!/bin/sh\necho 'c++: fatal error: no such thing' >&2; exit 1\n", "fatal error: no such thing"),
        ("no program", "Exec format error"),
        (
            "#!/bin/sh\necho 'ld: final link failed: disk full\ncollect2: error: ld returned 1' >&2; exit 1\n",
            "final link failed: disk full",
        ),
    ],
)
def test_with_a_compiler_that_does_not_work_too(compiler: str, message: str, tmp_path: Path) -> None:
    broken, cache = tmp_path / "c++", tmp_path / "cache"
    broken.write_text(compiler)
    broken.chmod(0o755)
    done = choose_in_a_process(cache, CXX=str(broken))
    assert done.stdout == "fused\n"
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_with_a_cache_that_cannot_be_written_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = choose_in_a_process(tmp_path / "file")
    assert done.stdout == "fused\n"
    assert "Not a directory" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", range(1, MANY_ROWS))
@pytest.mark.parametrize(("depth", "width"), [(300, 270), (5, 64), (17, 1100), (1, 1)])
def test_products_of_few_rows_are_products(rows: int, depth: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*n, generator=generator).to(dtype) for n in ((rows, depth), (depth, width)))
    exact = x.double() @ weight.double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float64: 1e-13}[dtype]
    bounds = tolerance * (x.double().abs() @ weight.double().abs())
    for found in (product(x, weight), last_logits(x.unsqueeze(1), weight.T.contiguous())):
        assert ((found - exact).abs() <= bounds).all()
