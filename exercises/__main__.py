"""python -m exercises [NAME] [--hint | --reset]

Without a name: all exercises, and which one is next. With a name: your file is checked; the first time, it is made.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from functools import partial
from pathlib import Path

import torch

from custom_transformer.errors import ArgumentParser, UserError, lines_only, run_main, shown
from exercises.all import EXERCISES, GROUPS
from exercises.cases import Draw, Wrong
from exercises.catalogue import GUIDE, Exercise
from exercises.learner import blamed, load, shown_path
from exercises.verdict import check, described
from exercises.work_folder import WORK, Progress, WorkFolder

SEED = 0
COMMAND = "python -m exercises"


def main() -> None:
    parser = ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="an exercise; without: all of them, and your progress")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--hint", action="store_true", help="shows the next hint")
    choice.add_argument("--reset", action="store_true", help="begins again from the task; your file stays beside it")
    arguments = parser.parse_args()
    work = WorkFolder(WORK)
    progress = work.progress()
    if arguments.name is None:
        if arguments.hint or arguments.reset:
            raise UserError(f"which exercise? {COMMAND} NAME {'--hint' if arguments.hint else '--reset'}")
        print_all(work, progress)
        return
    exercise = named(arguments.name)
    if arguments.hint:
        print_hint(exercise, work, progress)
    elif arguments.reset:
        reset(exercise, work, progress)
    elif not try_answer(exercise, work, progress):
        sys.exit(1)


def named(name: str) -> Exercise:
    """Raises UserError for a name that no exercise has."""
    if name in EXERCISES:
        return EXERCISES[name]
    close = difflib.get_close_matches(name, EXERCISES, 1)
    close_one = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no exercise is called {shown(name)}; {close_one}{COMMAND} lists all of them")


def grade(exercise: Exercise, path: Path) -> None:
    """Raises Wrong, with what is wrong in words, unless the file is a right answer."""
    functions = load(path, list(exercise.answers))
    with torch.no_grad():
        cases = exercise.cases(Draw(SEED))
        check(cases, functions, lambda case: blamed(path, about=partial(described, case)))


def try_answer(exercise: Exercise, work: WorkFolder, progress: Progress) -> bool:
    """Checks the learner's file, which is made first if it is missing; returns whether it is right."""
    path = work.file(exercise)
    if begun := work.begin(exercise):
        print(f"{exercise.task}\n")
        todo = "Write what is missing" if exercise.kind == "write" else "Find the mistake"
        print(f"Your file: {shown_path(path)}. {todo}, then run the same command again. What you print is shown.\n")
    try:
        grade(exercise, path)
    except Wrong as wrong:
        message, file = lines_only(str(wrong)), shown_path(path)
        print(message if message.startswith(file) else f"{file}: {message}")
        left = len(exercise.hints) - progress.of(exercise.name).hints
        if left and not begun:
            print(f"A hint: {COMMAND} {exercise.name} --hint ({left} left)")
        return False
    standing = progress.of(exercise.name)
    standing.solved = True
    work.save(progress)
    print(f"Right. To compare: {exercise.answer_is_at}")
    print(next_words(progress))
    return True


def print_hint(exercise: Exercise, work: WorkFolder, progress: Progress) -> None:
    """Shows all hints up to the next one, which counts as shown from then on."""
    standing, hints = progress.of(exercise.name), exercise.hints
    if standing.hints >= len(hints):
        print(f"These are all the hints. The solution: {exercise.answer_is_at}")
    standing.hints = min(standing.hints + 1, len(hints))
    work.save(progress)
    for number, hint in enumerate(hints[: standing.hints], 1):
        print(f"{number} of {len(hints)}: {hint}")


def reset(exercise: Exercise, work: WorkFolder, progress: Progress) -> None:
    old = work.reset(exercise)
    progress.exercises.pop(exercise.name, None)
    work.save(progress)
    kept = f"; what you had is in {shown_path(old)}" if old else ""
    print(f"{shown_path(work.file(exercise))} is as at the beginning{kept}")


def print_all(work: WorkFolder, progress: Progress) -> None:
    if not progress.exercises:
        print(
            f"{len(EXERCISES)} exercises in backpropagation, from y = x W to a block and its update.\n"
            "Each one gives you a small Python file: a backward to write, or one with a mistake to repair. What you\n"
            "write is checked at once against finite differences, which need no derivation. Nothing is sent anywhere.\n"
            "In the list below, - marks an exercise with a file, and x one that is solved.\n"
            f"\n    {COMMAND} product            makes your file, shows the task, and checks what is in the file"
            f"\n    {COMMAND} product --hint     the next hint, of three or four"
            f"\n    {COMMAND} product --reset    begins again\n"
            f"\nTeachers: {GUIDE}.\n"
        )
    width = max(map(len, EXERCISES))
    for number, group in enumerate(GROUPS, 1):
        solved = sum(progress.of(exercise.name).solved for exercise in group.exercises)
        print(f"{number} {group.title}, {solved} of {len(group.exercises)} solved")
        for exercise in group.exercises:
            mark = "x" if progress.of(exercise.name).solved else "-" if work.file(exercise).exists() else " "
            print(f"  [{mark}] {exercise.name:{width}}  {exercise.title}")
    print(next_words(progress))


def next_words(progress: Progress) -> str:
    left = [name for name in EXERCISES if not progress.of(name).solved]
    if not left:
        return "All exercises are solved."
    return f"Next: {COMMAND} {left[0]} ({len(EXERCISES) - len(left)} of {len(EXERCISES)} solved)"


if __name__ == "__main__":
    run_main(main)
