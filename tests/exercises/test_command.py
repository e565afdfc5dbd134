"""python -m exercises: the list, files that are made and kept, progress, hints, one line for what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from custom_transformer.errors import UserError
from exercises import __main__ as program
from exercises.all import EXERCISES, GROUPS
from exercises.work_folder import WorkFolder
from tests.exercises.solutions import block, repaired
from tests.helpers import ROOT
from tests.processes import run

SOLVED = "def product_backward(dy, saved):\n    x, weight = saved\n    return dy @ weight.T, x.T @ dy\n"


class Learner:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]):
        self.folder, self.monkeypatch, self.output = folder, monkeypatch, output

    def run(self, *arguments: str) -> tuple[int, str]:
        """What the command exits with, and what it prints."""
        self.monkeypatch.setattr(sys, "argv", ["exercises", *arguments])
        try:
            program.main()
        except SystemExit as end:
            return int(end.code or 0), self.output.readouterr().out
        return 0, self.output.readouterr().out

    @property
    def progress(self) -> dict[str, object]:
        return dict(json.loads((self.folder / "progress.json").read_text("utf-8"))["exercises"])


@pytest.fixture
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Learner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "WORK", tmp_path / "work")
    return Learner(tmp_path / "work", monkeypatch, capsys)


def test_a_first_visit_is_told_what_to_do(learner: Learner) -> None:
    code, text = learner.run()
    assert code == 0
    assert text.startswith("46 exercises in backpropagation")
    assert all(f"[ ] {name} " in text for name in EXERCISES)
    assert text.endswith("Next: python -m exercises product (0 of 46 solved)\n")
    assert not learner.folder.exists()


def test_an_exercise_from_its_first_use_to_its_solution(learner: Learner) -> None:
    code, text = learner.run("product")
    assert code == 1
    assert EXERCISES["product"].task in text
    assert "Your file: work/product.py." in text
    assert "work/product.py, line 18: here your code is still missing" in text

    file = learner.folder / "product.py"
    file.write_text(SOLVED.replace(".T, x.T @ dy", ".T, x"))
    code, text = learner.run("product")
    assert code == 1
    assert text.startswith("work/product.py: dweight has the shape (3, 4), it has to have (4, 2): yours is x.")
    assert text.endswith("A hint: python -m exercises product --hint (4 left)\n")
    assert file.read_text() == SOLVED.replace(".T, x.T @ dy", ".T, x")

    file.write_text(SOLVED)
    code, text = learner.run("product")
    assert code == 0
    assert text == (
        "Right. To compare: docs/teaching.md#product\nNext: python -m exercises multiply (1 of 46 solved)\n"
    )
    assert learner.progress == {"product": {"solved": True, "hints": 0}}
    _, text = learner.run()
    assert text.startswith("1 Products and sums, 1 of 7 solved\n  [x] product ")


def test_hints_come_one_by_one_and_end_with_the_place_of_the_solution(learner: Learner) -> None:
    for shown in range(1, 5):
        _, text = learner.run("gelu", "--hint")
        assert len(text.splitlines()) == shown
        assert text.splitlines()[-1].startswith(f"{shown} of 4: ")
    _, text = learner.run("--hint", "gelu")
    assert text.startswith(
        "These are all the hints. The solution: gelu_backward in src/custom_transformer/maths/ops.py, "
    )
    assert learner.progress == {"gelu": {"solved": False, "hints": 4}}


def test_a_reset_keeps_what_was_written(learner: Learner) -> None:
    learner.run("product")
    for number in (1, 2):
        (learner.folder / "product.py").write_text(f"# try {number}\n")
        code, text = learner.run("--reset", "product")
        assert code == 0
        assert f"work/product.old{number}.py" in text
        assert (learner.folder / f"product.old{number}.py").read_text() == f"# try {number}\n"
        assert (learner.folder / "product.py").read_text("utf-8") == EXERCISES["product"].template.read_text("utf-8")


def test_what_is_solved_stays_solved_until_a_reset(learner: Learner) -> None:
    learner.folder.mkdir()
    (learner.folder / "product.py").write_text(SOLVED)
    learner.run("product")
    (learner.folder / "product.py").write_text("")
    assert learner.run("product")[0] == 1
    assert learner.progress == {"product": {"solved": True, "hints": 0}}
    learner.run("product", "--reset")
    assert learner.progress == {}


def test_all_exercises_can_be_solved(learner: Learner) -> None:
    for exercise in EXERCISES.values():
        learner.folder.mkdir(exist_ok=True)
        text = exercise.template.read_text("utf-8")
        if exercise.kind == "repair":
            text = repaired(exercise)
        elif None in exercise.answers.values():
            text += f"\n\nimport torch, math\n{block(exercise.name, 'python')}"
        else:
            imports = {answer.__module__: answer for answer in exercise.answers.values() if answer}
            names = ", ".join(f"{a.__name__} as {n}" for n, a in exercise.answers.items() if a)
            text += f"\n\nfrom {next(iter(imports))} import {names}\n"
        WorkFolder(learner.folder).file(exercise).write_text(text, "utf-8")
        assert learner.run(exercise.name)[0] == 0, exercise.name
    assert learner.run()[1].endswith("All exercises are solved.\n")


REFUSED = {
    "an unknown name": (
        ["produkt"],
        r"no exercise is called 'produkt'; did you mean product\? python -m exercises lists",
    ),
    "a path": (["../product"], "no exercise is called '../product'"),
    "a hint of nothing": (["--hint"], r"which exercise\? python -m exercises NAME --hint"),
    "a reset of nothing": (["--reset"], r"which exercise\? python -m exercises NAME --reset"),
    "both": (["product", "--hint", "--reset"], "not allowed with"),
    "an unknown option": (["product", "--solve"], "unrecognized arguments: --solve; see python -m exercises --help"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(what: str, learner: Learner) -> None:
    arguments, message = REFUSED[what]
    with pytest.raises(UserError, match=message):
        learner.run(*arguments)
    assert not learner.folder.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"exercises": {"product": {"solved": 1}}}', '{"x": 1}', "\x00"])
def test_progress_of_something_else_is_refused_and_kept(content: str, learner: Learner) -> None:
    learner.folder.mkdir()
    file = learner.folder / "progress.json"
    file.write_text(content)
    for arguments in ([], ["product"], ["product", "--hint"]):
        with pytest.raises(
            UserError, match=r"work/progress.json: not progress as this program writes it; move it away"
        ):
            learner.run(*arguments)
    assert file.read_text() == content


def test_a_folder_in_the_place_of_a_file_is_refused(learner: Learner) -> None:
    (learner.folder / "product.py").mkdir(parents=True)
    with pytest.raises(UserError, match=r"work/product\.py: not a regular file"):
        learner.run("product")


def test_every_exercise_is_whole() -> None:
    """A task with forward and backward, three or four hints, no file without an exercise."""
    assert {path.stem for path in (ROOT / "exercises/templates").glob("*.py")} == set(EXERCISES)
    for exercise in EXERCISES.values():
        assert 3 <= len(exercise.hints) <= 4, exercise.name
        assert len(exercise.title) < 80
        assert exercise.answer_is_at
    assert sum(len(group.exercises) for group in GROUPS) == len(EXERCISES)


@pytest.mark.parametrize(
    ("name", "page"), [("repair_cross_entropy", "README.md"), ("repair_layer_norm", "docs/teaching.md")]
)
def test_a_transcript_in_the_documentation_is_what_is_printed(name: str, page: str, learner: Learner) -> None:
    learner.run(name)
    _, text = learner.run(name)
    transcript = f"$ python -m exercises {name}\nexercises/{text}```\n"
    assert transcript in (ROOT / page).read_text("utf-8")


@pytest.mark.processes
def test_the_command_answers_in_one_line() -> None:
    done = run("-m", "exercises", "produkt", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == (
        "error: no exercise is called 'produkt'; did you mean product? python -m exercises lists all of them\n"
    )


def test_the_documentation_has_every_exercise_and_their_number() -> None:
    guide = (ROOT / "docs/teaching.md").read_text("utf-8")
    assert f"has {len(EXERCISES)} small exercises" in guide
    assert f"gives {len(EXERCISES)} small exercises" in (ROOT / "README.md").read_text("utf-8")
    for exercise in EXERCISES.values():
        if None in exercise.answers.values():
            assert f"### {exercise.name}\n" in guide
