"""The notebook of one training step runs from top to bottom, and prints what is stored in it."""

from __future__ import annotations

import re

from tests.exercises.notebook import code_cells, load, run, stored


def test_every_cell_prints_what_is_stored() -> None:
    notebook = load()
    assert run(notebook) == [stored(cell) for cell in code_cells(notebook)]


def test_nothing_of_a_machine_is_stored() -> None:
    notebook = load()
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    for cell in code_cells(notebook):
        assert {output["output_type"] for output in cell["outputs"]} <= {"stream"}
        assert cell["metadata"] == {}
        assert not re.search(r"/home|/tmp|0x[0-9a-f]|token=", stored(cell))


def test_the_step_lowers_the_loss_and_its_gradients_are_measured() -> None:
    text = "".join(stored(cell) for cell in code_cells(load()))
    before, after = map(float, re.findall(r"loss (\S+) -> (\S+)", text)[0])
    assert after < before
    pairs = re.findall(r"backward +(\S+) +measured +(\S+)", text)
    assert len(pairs) == 3
    assert all(backward == measured for backward, measured in pairs)
    assert "the likeliest next tokens: [[1, 0]] should be [[1, 0]]" in text
