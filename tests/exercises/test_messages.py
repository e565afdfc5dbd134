"""What a learner is told: which element, in what way, which line; and never a traceback of the grader's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exercises import learner
from exercises.__main__ import grade
from exercises.all import EXERCISES
from exercises.cases import Wrong

PRODUCT = "import torch\n\n\ndef product_backward(dy, saved):\n    x, weight = saved\n"


def told(name: str, text: str, folder: Path) -> str:
    path = folder / "answer.py"
    path.write_text(text, "utf-8")
    with pytest.raises(Wrong) as wrong:
        grade(EXERCISES[name], path)
    return str(wrong.value).replace(str(path), "FILE")


def changed(name: str, old: str, new: str) -> str:
    text = EXERCISES[name].template.read_text("utf-8")
    assert text.count(old) == 1
    return text.replace(old, new)


NOT_PYTHON = {
    "a syntax error": ("def f(:\n", "FILE, line 1: SyntaxError: invalid syntax\n    def f(:"),
    "an indentation": (f"{PRODUCT}  return 1\n", "FILE, line 6: IndentationError: unindent does not match"),
    "a null byte": ("x = 1\0\n", "null bytes"),
    "no function": ("x = 1\n", "FILE has no function product_backward"),
    "no function but a value": ("product_backward = 1\n", "FILE has no function product_backward"),
    "an unknown module": ("import nothing_like_it\n", "FILE, line 1: ModuleNotFoundError: No module named"),
    "an unknown name": (f"{PRODUCT}    return dy @ wieght.T, x\n", "FILE, line 6: NameError: name 'wieght'"),
    "an empty file": ("", "FILE has no function"),
    "an end of Python": (f"{PRODUCT}    exit()\n", "FILE, line 6: ends Python"),
    "no end": (f"{PRODUCT}    return product_backward(dy, saved)\n", "FILE, line 6: calls itself without end"),
    "an exception with lines": (
        f"{PRODUCT}    raise ValueError('a\\nb\\x1b')\n",
        "FILE, line 6: ValueError: a b\\x1b\n",
    ),
    "other arguments": ("def product_backward(dy):\n    return dy\n", "FILE: TypeError: product_backward() takes 1"),
    "a shape": (f"{PRODUCT}    return dy @ weight, x\n", "FILE, line 6: RuntimeError: mat1 and mat2 shapes"),
}


@pytest.mark.parametrize("what", NOT_PYTHON)
def test_a_file_that_fails_is_told_with_its_line(what: str, tmp_path: Path) -> None:
    text, expected = NOT_PYTHON[what]
    assert expected in told("product", text, tmp_path)


def test_a_failure_tells_what_was_given(tmp_path: Path) -> None:
    message = told("product", f"{PRODUCT}    return dy @ weight, x\n", tmp_path)
    assert message.endswith("Given: dy (3, 2), x (3, 4), weight (4, 2).")


LOOPS = ["pass", "try:\n            x @ weight\n        except Exception:\n            pass"]


@pytest.mark.parametrize("inside", LOOPS)
def test_an_endless_loop_is_stopped(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "SECONDS", 0.2)
    message = told("product", f"{PRODUCT}    while True:\n        {inside}\n", tmp_path)
    assert re.match(r"FILE, line \d: still running after 0\.2 seconds", message)


def test_other_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answer.py"
    path.write_bytes(b"x = '\xff'\n")
    with pytest.raises(Wrong, match="save it as UTF-8"):
        grade(EXERCISES["product"], path)


RETURNED = {
    "nothing": ("", "product_backward returns nothing"),
    "too few": ("return dy", "product_backward returns 1 value, it has to return dx, dweight, in this order"),
    "too many": ("return dy, dy, dy", "returns 3 values"),
    "None": ("return None, x.T @ dy", "dx is None, it has to be a tensor of shape (3, 4)"),
    "a number": ("return 1.5, x.T @ dy", "dx is 1.5, it has to be a tensor of shape (3, 4)"),
    "the transpose": ("return dy @ weight.T, dy.T @ x", "it has to have (4, 2): yours is its transpose."),
    "the wrong order": ("return x.T @ dy, dy @ weight.T", "it has to have (3, 4): yours is dweight."),
    "another dtype": ("return (dy @ weight.T).float(), x.T @ dy", "dx is torch.float32, it has to be torch.float64"),
    "less precise": ("return (dy @ weight.T).float().double(), x.T @ dy", "something seems to be computed in float32"),
    "what was given": ("return x, x.T @ dy", "All 12 elements of dx are off.\nRight: dweight."),
    "what cannot be compared": ("return torch.empty(3, 4, dtype=x.dtype, device='meta'), x.T @ dy", "FILE: "),
    "the sign": ("return -dy @ weight.T, x.T @ dy", "the sign is the wrong way round, and so"),
    "twice": ("return 2 * dy @ weight.T, x.T @ dy", "twice too large"),
    "half": ("return dy @ weight.T, x.T @ dy / 2", "half of it"),
    "two thirds": ("return dy @ weight.T, x.T @ dy * 2 / 3", "2/3 of it"),
    "zero": ("return 0 * x, x.T @ dy", "yours is zero wherever it is off"),
    "not a number": ("return dy @ weight.T * float('nan'), x.T @ dy", "is nan, finite"),
    "one element": ("dx = dy @ weight.T\n    dx[1, 2] = 0\n    return dx, x.T @ dy", "dx[1, 2] is 0, finite"),
    "one row": ("dx = dy @ weight.T\n    dx[1] += x[1]\n    return dx, x.T @ dy", "all in dx[i, :] with i = 1."),
    "written into": ("dy *= 2\n    return dy @ weight.T / 2, x.T @ dy / 2", "your code writes into dy"),
    "a row's sum": ("dx = dy @ weight.T\n    return dx + dx.sum(-1, keepdim=True), x.T @ dy", "off by the same amount"),
}


@pytest.mark.parametrize("what", RETURNED)
def test_what_is_off_is_told(what: str, tmp_path: Path) -> None:
    body, expected = RETURNED[what]
    assert expected in told("product", f"{PRODUCT}    {body}\n", tmp_path)


def test_writing_into_one_of_several_gradients_is_told(tmp_path: Path) -> None:
    body = "return sum(g.square_().sum() for g in gradients.values()) ** 0.5"
    text = EXERCISES["clip"].template.read_text("utf-8").replace("raise NotImplementedError", body, 1)
    assert "your code writes into gradients" in told("clip", text, tmp_path)


def test_an_update_that_changed_nothing_is_told(tmp_path: Path) -> None:
    body = "parameter = parameter - lr * scale * gradient"
    assert "it is as it was" in told("sgd", changed("sgd", "raise NotImplementedError", body), tmp_path)


def test_a_block_names_the_first_gradient_that_is_off(tmp_path: Path) -> None:
    message = told("repair_block", EXERCISES["repair_block"].template.read_text("utf-8"), tmp_path)
    assert message.startswith("d projection.bias[")
    assert "Right: d down.bias, d down.weight, d up.bias, d up.weight, d norm_2.bias, d norm_2.weight." in message


def test_what_is_still_missing_is_told_with_its_line(tmp_path: Path) -> None:
    text = EXERCISES["softmax"].template.read_text("utf-8")
    line = text[: text.index("    raise NotImplementedError")].count("\n") + 1
    assert told("softmax", text, tmp_path).startswith(f"FILE, line {line}: here your code is still missing")


def test_messages_are_of_text_that_a_terminal_can_show(tmp_path: Path) -> None:
    for exercise in EXERCISES.values():
        message = told(exercise.name, exercise.template.read_text("utf-8"), tmp_path)
        assert "Traceback" not in message
        assert "torch/" not in message
        assert len(message.splitlines()) <= 4
