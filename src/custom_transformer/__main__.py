"""python -m custom_transformer summary | gradcheck | schema | sync

A configuration looked at, proved; the schema of configurations; tracking delivered.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from custom_transformer.config import CustomTransformerConfig, DataParams, Params, load_params
from custom_transformer.errors import ArgumentParser, UserError, run_main
from custom_transformer.maths.architecture import GPT2, flops_per_token
from custom_transformer.maths.gradcheck import TOLERANCE, check_gradients, reduced
from custom_transformer.maths.parameters import count
from custom_transformer.paths import PARAMS, REFUSED, TOKENS, project_root
from custom_transformer.runs.checkpoint import DTYPES
from custom_transformer.runs.summary import memory_bytes
from custom_transformer.schema import params_schema
from custom_transformer.text.tokens import META, load_tokens

GPT2_VOCAB_SIZE = 50257


def main() -> None:
    parser = ArgumentParser(prog="python -m custom_transformer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (
        ("summary", "what a configuration comes to: tensors, memory, arithmetic"),
        ("gradcheck", "every gradient against finite differences and autograd, in float64"),
    ):
        command = commands.add_parser(name, help=about, description=about)
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
    else:
        params = load_params(arguments.config)
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
    console = Console()
    console.print("  ".join(f"{name}={value}" for name, value in config.model_dump().items()), highlight=False)

    table = Table("parameter", "shape", "count", "share")
    parameters = GPT2.parameters(config)
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
    memory = memory_bytes(config, training.batch_size, time, DTYPES[training.precision], training.optimizer)
    resources = Table("memory", "MiB")
    resources.columns[1].justify = "right"
    for what, size in memory.items():
        resources.add_row(what, f"{size / 2**20:,.1f}")
    resources.add_row("all", f"{sum(memory.values()) / 2**20:,.1f}", end_section=True)
    console.print(resources)
    console.print(
        f"activations: {training.batch_size} × {time} tokens in {training.precision}, without the head's chunks\n"
        f"arithmetic: {flops_per_token(GPT2, config, time):,} FLOPs per token, forward and backward",
        highlight=False,
    )


def print_gradcheck(params: Params) -> None:
    full = model_config(params)
    config = reduced(full)
    console = Console()
    if config != full:
        sizes = {k: v for k, v in config.model_dump().items() if v != getattr(full, k)}
        console.print("reduced to " + " ".join(f"{k}={v}" for k, v in sizes.items()), highlight=False)
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
            "ok" if check.ok else "[red]OFF[/red]",
        )
    console.print(table)
    wrong = [check.name for check in checks if not check.ok]
    if wrong:
        print(f"{len(wrong)} of {len(checks)} gradients are off: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)
    console.print(f"all {len(checks)} gradients agree within {TOLERANCE:g} of each tensor's largest", highlight=False)


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
