"""Carries out a page: checks its formulas, runs its examples, plants its mistakes."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

from torch import Tensor

from book import code, scalars, tensors
from book.expressions import FormulaError
from book.page import Block, blocks_of
from book.planting import Verdict, finite_difference_errors, model_errors, planted
from book.tensors import deviation

AGREEMENT = 1e-12  # of the largest element
Namespace = dict[str, Any]


class Page:
    """A page that was carried out, from its first block to its last; blocks that failed have an `error`."""

    def __init__(self, text: str):
        self.blocks = blocks_of(text)
        namespace = code.namespace()
        for block in self.blocks:
            try:
                carry_out(block, namespace)
            except Exception as error:  # whatever a page's code raises is reported with the block's line
                block.error = f"{type(error).__name__}: {error}"

    @classmethod
    def of(cls, path: Path) -> Page:
        return cls(path.read_text("utf-8"))

    @property
    def errors(self) -> list[str]:
        return [f"line {block.line}: {block.kind} {block.name}: {block.error}" for block in self.blocks if block.error]

    def find(self, kind: str, name: str, text: str) -> Block:
        return next(b for b in self.blocks if (b.kind, b.name, b.text.strip()) == (kind, name, text.strip()))


def carry_out(block: Block, namespace: Namespace) -> None:
    """Fills the block's output. namespace: of the page's examples. Raises whatever is wrong with the block."""
    STEPS[block.kind](block, namespace)


def _nothing(block: Block, namespace: Namespace) -> None:
    pass


def _definition(block: Block, namespace: Namespace) -> None:
    if block.derivation.symbols:
        tensors.check_equal(block.sides, block.derivation.tensors)


def _identity(block: Block, namespace: Namespace) -> None:
    tensors.check_equal(block.sides, block.derivation.tensors)


def _scalar(block: Block, namespace: Namespace) -> None:
    scalars.check_equal(block.sides, scalars.Scalars(block.derivation.definitions))


def _formula_in_text(block: Block, namespace: Namespace) -> None:
    if len(block.sides) > 1:
        raise FormulaError("an equation stands in a block of its own, where it is checked")


def _agreement(block: Block, namespace: Namespace) -> None:
    """Every name to which the code gives a value must have the derivation's, if the derivation has one."""
    known = block.derivation.tensors
    for name, value in _run_agreement(block.text, known.values | known.seeds).items():
        expected = known.gradient(name)
        if expected is None and name in known.definitions:
            expected = known.values[name]
        if expected is None:
            continue
        if not (off := deviation(value, expected)) < AGREEMENT:
            raise FormulaError(f"the code's {name} is off by {off:.2g} of the largest element")
        block.output.append(name)
    if not block.output:
        raise FormulaError("there is nothing to compare")


def _run_agreement(text: str, values: dict[str, Tensor], **modules: Any) -> dict[str, Tensor]:
    """The names to which the code gives a value. modules: that stand in for the project's."""
    namespace = code.namespace() | values | modules
    before = dict(namespace)
    exec(_compiled(text), namespace)
    return {name: x for name, x in namespace.items() if isinstance(x, Tensor) and x is not before.get(name)}


@functools.cache
def _compiled(text: str) -> CodeType:
    return compile(text, "agreement", "exec")


def _mistake(block: Block, namespace: Namespace) -> None:
    """The derivation's agreement, run with the changed function."""
    known, agreement = block.derivation.tensors, block.derivation.agreement
    changed = planted(block.name, block.text)

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        return _run_agreement(agreement, known.values | known.seeds | inputs, **changed)

    if known.seeds:
        block.output = finite_difference_errors(run, known)
    else:
        found = run()
        names = [name for name in known.definitions if name in found]
        block.output = [Verdict(name, deviation(found[name], known.values[name])) for name in names]
    _must_be_noticed(block)


def _model_mistake(block: Block, namespace: Namespace) -> None:
    block.output = model_errors(block.name, planted(block.name, block.text))
    _must_be_noticed(block)


def _must_be_noticed(block: Block) -> None:
    if all(verdict.ok for verdict in block.output):
        raise FormulaError("the check does not notice the mistake")


def _run(block: Block, namespace: Namespace) -> None:
    namespace["show"] = lambda **shown: block.output.append(shown)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, f"line {block.line}", "exec"), namespace)
    if printed.getvalue():
        block.output.insert(0, printed.getvalue())


def _value(block: Block, namespace: Namespace) -> None:
    block.output = [str(eval(block.text, namespace)).replace("-", "−")]


def _source(block: Block, namespace: Namespace) -> None:
    block.output = [code.source(block.name)]


STEPS: dict[str, Callable[[Block, Namespace], None]] = {
    "symbols": _nothing,
    "definition": _definition,
    "identity": _identity,
    "scalar": _scalar,
    "m": _formula_in_text,
    "agreement": _agreement,
    "mistake": _mistake,
    "model_mistake": _model_mistake,
    "run": _run,
    "value": _value,
    "source": _source,
}
