"""python -m custom_transformer summary | gradcheck | generate | explore | export | import | verify | schema | sync

A configuration looked at, proved; a model asked, explored, exported, imported; a run computed again and compared; the
schema of configurations; tracking delivered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from custom_transformer.config import (
    CustomTransformerConfig,
    DataParams,
    Params,
    SamplingParams,
    load_params,
    validated,
)
from custom_transformer.errors import ArgumentParser, UserError, lines_only, run_main
from custom_transformer.files import atomic_write
from custom_transformer.interchange.imported import CHECKPOINT as IMPORTED
from custom_transformer.interchange.sources import import_model
from custom_transformer.maths.architecture import architecture_of, flops_per_token
from custom_transformer.maths.gradcheck import TOLERANCE, check_gradients, reduced
from custom_transformer.maths.parameters import count
from custom_transformer.pages.continuation import print_continuation
from custom_transformer.pages.explorer import TEXT, explorer_page, run_checkpoints
from custom_transformer.paths import BEST, EXPLORER, EXPORTED, PARAMS, REFUSED, TOKENS, project_root
from custom_transformer.progress import AS_IS
from custom_transformer.runs.checkpoint import DTYPES, load_checkpoint
from custom_transformer.runs.digests import read_digests
from custom_transformer.runs.revision import verify_revision
from custom_transformer.runs.serving import CHECKPOINT
from custom_transformer.runs.summary import memory_bytes
from custom_transformer.runs.verification import Difference, Record
from custom_transformer.runs.verify import Recorded, locked_run, run_of_states, verify, with_deciding
from custom_transformer.schema import params_schema
from custom_transformer.text.manifest import META
from custom_transformer.text.saved_tokenizer import load_tokenizer, tokenizer_of, vocabulary_size
from custom_transformer.text.tokens import load_tokens

GPT2_VOCAB_SIZE = 50257


def main() -> None:
    parser = ArgumentParser(prog="python -m custom_transformer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("summary", "the size of a configuration: parameters, memory, FLOPs"),
        ("gradcheck", "every gradient against finite differences and autograd, in float64"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--config", default=PARAMS, help="parameters (default: %(default)s)")
    about = "continues a text with the trained model, as it is made"
    command = commands.add_parser("generate", help=about, description=about)
    command.add_argument("prompt", help="the beginning of a text; '' lets the model begin one")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, default=BEST, help="default: %(default)s")
    source.add_argument("--model", help="a registered model in its place, such as models:/custom-transformer@best")
    command.add_argument("--tokens", type=int, help="at most (default: generation.max_new_tokens of --config)")
    command.add_argument("--temperature", type=float, help="0: always the likeliest (default: as in --config)")
    command.add_argument("--seed", type=int, help="equal seeds give equal texts (default: another each time)")
    command.add_argument("--logprobs", action="store_true", help="a line per token, with what it was chosen over")
    command.add_argument("--config", default=PARAMS, help="parameters (default: %(default)s)")
    about = "one page in which the model runs forward and backward, to see each gradient and what made it"
    command = commands.add_parser("explore", help=about, description=about)
    command.add_argument("--checkpoint", type=Path, default=BEST, help="default: %(default)s")
    command.add_argument("--text", default=TEXT, help="with which the page begins (default: %(default)s)")
    command.add_argument("--out", type=Path, default=EXPLORER, metavar="FILE.html", help="default: %(default)s")
    about = "writes the trained model as other tools read it"
    command = commands.add_parser("export", help=about, description=about)
    command.add_argument("--checkpoint", type=Path, default=BEST, help="default: %(default)s")
    command.add_argument("--to", type=Path, metavar="FOLDER", help="replaced when it exists (default: models/FORMAT)")
    command.add_argument(
        "--format",
        choices=("huggingface", "gguf", "onnx"),
        default="huggingface",
        help="huggingface (transformers, vLLM, …), gguf (llama.cpp, ollama, …) or onnx (default: %(default)s)",
    )
    command.add_argument("--config", default=PARAMS, help="parameters (default: %(default)s)")
    about = "takes over GPT-2 or Llama weights as FOLDER/model.pt and FOLDER/tokenizer"
    command = commands.add_parser("import", help=about, description=about)
    command.add_argument("source", metavar="PATH_OR_ID", help="folder of save_pretrained, .gguf file, or Hub id")
    command.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="replaced when it exists")
    command.add_argument("--revision", help="branch, tag or commit of a Hub id (default: its main branch)")
    about = "computes a recorded run again, names the first byte that differs, and exits with 1 if one does"
    command = commands.add_parser("verify", help=about, description=about)
    record = command.add_mutually_exclusive_group()
    record.add_argument("--rev", metavar="REVISION", help="of a commit or DVC experiment (default: of dvc.lock)")
    record.add_argument("--run", metavar="RUN_ID", help="of that MLflow run")
    record.add_argument("--states", type=Path, metavar="FOLDER", help="of the states there")
    command.add_argument("--segments", type=int, metavar="N", help="only so many parts of it, from kept states")
    command.add_argument("--config", default=PARAMS, help="parameters (default: %(default)s)")
    for name, about in (
        ("schema", "the JSON Schema of params.yaml, for editors"),
        ("sync", "delivers to the MLflow stores what runs could not; finds a moved store's artifacts again"),
    ):
        commands.add_parser(name, help=about, description=about)
    arguments = parser.parse_args()
    if arguments.command == "schema":
        print(json.dumps(params_schema(), indent=2, ensure_ascii=False))
    elif arguments.command == "sync":
        print_sync()
    elif arguments.command == "verify":
        print_verified(arguments)
    elif arguments.command == "explore":
        explore(arguments.checkpoint, arguments.text, arguments.out)
    elif arguments.command == "import":
        model = import_model(arguments.source, arguments.to, arguments.revision)
        print(f"{model.count_parameters():,} parameters; {arguments.to / IMPORTED}")
    else:
        params = load_params(arguments.config)
        if arguments.command == "generate":
            print_generated(arguments, params)
        elif arguments.command == "export":
            export(arguments, params)
        else:
            {"summary": print_summary, "gradcheck": print_gradcheck}[arguments.command](params)


def model_config(params: Params) -> CustomTransformerConfig:
    """The configured model; its vocabulary is the tokenised data's, or, before there is any, what is asked for."""
    if (tokenized := _tokenized_vocab_size(params.data)) is not None:
        vocab_size = tokenized
    elif params.data.tokenizer == "bpe":
        vocab_size = params.data.vocab_size
    elif params.data.tokenizer == "gpt2":
        vocab_size = GPT2_VOCAB_SIZE
    else:
        raise UserError(
            f"the vocabulary of {params.data.tokenizer} is not known yet: run python -m stages.tokenize first"
        )
    return params.model.with_vocabulary(vocab_size)


def _tokenized_vocab_size(data: DataParams) -> int | None:
    """The size of the vocabulary that data/tokens was made with; None where it is another tokenizer's, or missing."""
    if not (TOKENS / META).exists():
        return None
    made = load_tokens(TOKENS, "train").meta["tokenizer"]
    requested = data.vocab_size if data.tokenizer == "bpe" else None
    same = made["name"] in (data.tokenizer, Path(data.tokenizer).name) and made.get("requested_vocab_size") == requested
    return int(made["vocab_size"]) if same else None


def print_summary(params: Params) -> None:
    config = model_config(params)
    console = Console(**AS_IS)
    console.print("  ".join(f"{name}={value}" for name, value in config.model_dump().items()))

    table = Table("parameter", "shape", "count", "share")
    parameters = architecture_of(config).parameters(config)
    total = count(parameters)
    for name, (shape, _) in parameters.items():
        size = math.prod(shape)
        table.add_row(name, " × ".join(map(str, shape)), f"{size:,}", f"{size / total:.2%}")
    table.add_section()
    table.add_row("all", "", f"{total:,}", "100%")
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)

    training, time = params.training, params.data.max_length
    asked = (config, training.batch_size, time, DTYPES[training.precision], training.optimizer)
    memory, other = (memory_bytes(*asked, recompute) for recompute in (training.recompute, not training.recompute))
    resources = Table("memory", "MiB")
    resources.columns[1].justify = "right"
    for what, size in memory.items():
        resources.add_row(what, f"{size / 2**20:,.1f}")
    resources.add_row("all", f"{sum(memory.values()) / 2**20:,.1f}", end_section=True)
    console.print(resources)
    console.print(
        f"activations: {training.batch_size} × {time} tokens in {training.precision}, without the head's chunks\n"
        f"with training.recompute: {json.dumps(not training.recompute)} they are "
        f"{other['activations'] / 2**20:,.1f} MiB\n"
        f"arithmetic: {flops_per_token(config, time):,} FLOPs per token, forward and backward"
    )


def print_gradcheck(params: Params) -> None:
    full = model_config(params)
    config = reduced(full)
    console = Console(**AS_IS)
    if config != full:
        sizes = {k: v for k, v in config.model_dump().items() if v != getattr(full, k)}
        console.print("reduced to " + " ".join(f"{k}={v}" for k, v in sizes.items()))
    table = Table("parameter", "shape", "finite differences", "autograd", "")
    for column in table.columns[1:4]:
        column.justify = "right"
    checks = []
    for check in check_gradients(config, params.seed):
        checks.append(check)
        table.add_row(
            check.name,
            " × ".join(map(str, check.shape)),
            f"{check.finite_difference_error:.1e}",
            f"{check.autograd_error:.1e}",
            "ok" if check.ok else Text("OFF", style="red"),
        )
    console.print(table)
    wrong = [check.name for check in checks if not check.ok]
    if wrong:
        print(f"{len(wrong)} of {len(checks)} gradients are off: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)
    console.print(f"all {len(checks)} gradients agree within {TOLERANCE:g} of each tensor's largest")


def print_generated(arguments: argparse.Namespace, params: Params) -> None:
    asked = {"max_new_tokens": arguments.tokens, "temperature": arguments.temperature}
    defaults = params.generation.model_dump(include=set(SamplingParams.model_fields))
    changes = {name: value for name, value in asked.items() if value is not None}
    settings = validated(SamplingParams, defaults | changes, "generate")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UserError(f"generate: --seed should be from 0 to 2⁶³ - 1, not {arguments.seed}")
    with contextlib.ExitStack() as files:
        if arguments.model:
            from custom_transformer.tracking import registered_files  # MLflow takes seconds to import

            path = files.enter_context(registered_files(arguments.model, params.tracking)) / CHECKPOINT
        else:
            path = arguments.checkpoint
        tokenizer_folder = tokenizer_of(path)
        checkpoint = load_checkpoint(path)
        tokenizer = load_tokenizer(tokenizer_folder, checkpoint.metadata.get("tokenizer"))
    if (size := vocabulary_size(tokenizer)) > checkpoint.config.vocab_size:
        raise UserError(
            f"{path}: {checkpoint.config.vocab_size} entries, the tokenizer in {tokenizer_folder} has {size}"
        )
    model = checkpoint.model_for(params.training, settings.max_new_tokens)
    print_continuation(model, tokenizer, arguments.prompt, settings, arguments.seed, arguments.logprobs)


def export(arguments: argparse.Namespace, params: Params) -> None:
    from custom_transformer.interchange.formats import export_as  # gguf takes half a second to import

    folder = arguments.to or EXPORTED.with_name(arguments.format)
    model = export_as(arguments.format, arguments.checkpoint, folder, params)
    print(f"{model.count_parameters():,} parameters; {folder}")


def explore(path: Path, text: str, out: Path) -> None:
    checkpoint = load_checkpoint(path)
    tokenizer = load_tokenizer(tokenizer_of(path), checkpoint.metadata.get("tokenizer"))
    page = explorer_page(checkpoint, tokenizer, text, run_checkpoints(path))
    with atomic_write(out, "w") as file:
        file.write(page)
    print(f"{out}: {len(page.encode()):,} bytes; open it in a browser")


def print_verified(arguments: argparse.Namespace) -> None:
    segments, config = arguments.segments, arguments.config
    if segments is not None and segments < 1:
        raise UserError(f"verify: --segments should be at least 1, not {segments}")
    if arguments.rev is not None:
        sys.exit(verify_revision(arguments.rev, [] if segments is None else [f"--segments={segments}"]))
    try:
        if arguments.run is not None:
            from custom_transformer.tracking import recorded_training  # MLflow takes seconds to import

            with recorded_training(arguments.run, load_params(config).tracking) as training:
                name = f"run {arguments.run}"
                params = with_deciding(config, training.params, name)
                record = Record(name, read_digests(training.digests))
                recorded = Recorded(record, params, training.conditions, training.commit)
        else:
            states = arguments.states
            recorded = locked_run(config) if states is None else run_of_states(states, config)
        print(verify(recorded, segments))
    except Difference as difference:
        print(lines_only(f"differs: {difference}"))
        sys.exit(1)


def print_sync() -> None:
    from custom_transformer.tracking import sync  # MLflow takes seconds to import

    result = sync()
    print(f"{result.delivered} run{'' if result.delivered == 1 else 's'} delivered")
    problems = [
        f"{', '.join(names)}: not delivered ({reason}); make the store answer, then sync again"
        for reason, names in _by_reason(result.waiting)
    ]
    problems += [
        f"{', '.join(names)}: never to be delivered ({reason}); correct what is named for other runs, and look for the "
        f"logs of these in {project_root() / REFUSED}"
        for reason, names in _by_reason(result.refused)
    ]
    if problems:
        raise UserError("; ".join(problems))


def _by_reason(kept: list[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Each reason with the names of all runs that it keeps back."""
    for reason in dict.fromkeys(reason for _, reason in kept):
        yield reason, [name for name, why in kept if why == reason]


if __name__ == "__main__":
    run_main(main)
