"""Tasks for lm-evaluation-harness beside an exported model, by which it measures what evaluation here measures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

    from custom_transformer.text.primer import Cloze

TASKS = "lm_eval_tasks"  # the folder, beside the weights
TEXTS, QUESTIONS = "validation_texts", "held_out_questions"  # the names of the tasks

# The harness resolves the paths in a task's description against the folder that it was started in. A function's own
# path does not depend on that.
_DATA = '''\
"""Reads a task's texts or questions, wherever lm_eval is started."""

import json
from pathlib import Path

from datasets import Dataset


def load(file, **_):
    with (Path(__file__).parent / file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}
'''

_COMMON = """\
task: {task}
custom_dataset: !function data.load
dataset_kwargs:
  file: {task}.jsonl
test_split: test
"""

_TEXTS_TASK = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
metadata:
  version: 1
"""

# Each choice is a whole statement: behind nothing, the harness reads it behind the token that begins texts, as here.
_QUESTIONS_TASK = """\
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: statements
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
metadata:
  version: 1
"""


def write_tasks(folder: Path, texts: Iterable[str], questions: Sequence[Cloze]) -> None:
    """Writes to `folder` the task TEXTS, for bits per byte, and if there are `questions` QUESTIONS, for accuracy."""
    folder.mkdir()
    (folder / "data.py").write_text(_DATA, "utf-8")
    _write_task(folder, TEXTS, _TEXTS_TASK, ({"text": text} for text in texts))
    if questions:
        rows = ({"statements": [q.prompt + choice for choice in q.choices], "answer": q.answer} for q in questions)
        _write_task(folder, QUESTIONS, _QUESTIONS_TASK, rows)


def _write_task(folder: Path, task: str, description: str, rows: Iterable[Mapping[str, Any]]) -> None:
    (folder / f"{task}.yaml").write_text(_COMMON.format(task=task) + description, "utf-8")
    with (folder / f"{task}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def harness_command(folder: Path, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[str]) -> str:
    """The command by which the harness reads texts as here, behind the end token and with nothing added; three lines.

    It has to be told so if the tokenizer has another token for the beginning of texts, or adds tokens by itself.
    """
    arguments = f"pretrained={folder},dtype=float32"
    adds = tokenizer.encode("a") != tokenizer.encode("a", add_special_tokens=False)
    if adds or tokenizer.bos_token_id not in (None, tokenizer.eos_token_id):
        arguments += f",add_bos_token=False,prefix_token_id={tokenizer.eos_token_id}"
    return (
        f"lm_eval --model hf --model_args {arguments} \\\n"
        f"  --device cpu --batch_size 1 --include_path {folder / TASKS} \\\n"
        f"  --tasks {','.join(tasks)}"
    )
