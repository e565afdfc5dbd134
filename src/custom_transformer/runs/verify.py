"""The run that is recorded somewhere, computed again here from its data and parameters, and the verdict.

The record is dvc.lock with metrics/digests.csv, a folder of states, or what somebody else has read from a store.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from custom_transformer.config import Params, load_params, validated
from custom_transformer.errors import UserError
from custom_transformer.fast.choose import prepare
from custom_transformer.paths import CONSTRAINTS, DIGESTS, KEPT_STATES, LOCK, TOKENS, project_root
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.assembly import build_model, build_trainer, deciding, training_flops, write_metrics
from custom_transformer.runs.checkpoint import read_tensors
from custom_transformer.runs.digests import DigestRow, read_digests
from custom_transformer.runs.fingerprint import differences, fingerprint, other_versions, run_key
from custom_transformer.runs.kept_states import KEEP, states_in
from custom_transformer.runs.locked import Files, locked_training
from custom_transformer.runs.results import compare_results
from custom_transformer.runs.verification import Difference, Record, Replay
from custom_transformer.text.manifest import META
from custom_transformer.text.tokens import load_tokens

TRAINER = Path("stages/train.py")  # the program whose digest a fingerprint has


@dataclass(frozen=True)
class Recorded:
    """A run as it is recorded.

    fingerprint: its conditions, as far as they are recorded. commit: of its code, if known. written: the MD5 of its
    results by their paths, if known.
    """

    record: Record
    params: Params
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    written: Mapping[Path, str] = field(default_factory=dict)


def locked_run(config: Path | str) -> Recorded:
    """The run of dvc.lock. Raises Difference for an input here that is not the one recorded, UserError for one that is
    not here. config: a file with the parameters that decide nothing."""
    locked, files = locked_training(), Files()
    if missing := [path for path in locked.read if path.parts[0] == "data" and not path.exists()]:
        raise UserError(f"{missing[0]}: not here; dvc pull, or dvc repro tokenize")
    _check_files(files.differing(locked.read), f"not the content that the training read, by {LOCK}")
    if DIGESTS not in locked.written:
        raise UserError(f"{LOCK}: its training left no {DIGESTS}; run dvc repro first")
    rows = []
    if DIGESTS.exists():
        changed = files.differing({DIGESTS: locked.written[DIGESTS]})
        _check_files(changed, f"not the content that the training wrote, by {LOCK}")
        rows = read_digests(DIGESTS)
    record = Record(str(DIGESTS if rows else LOCK), rows)
    return Recorded(record, with_deciding(config, locked.params, str(LOCK)), written=locked.written)


def run_of_states(folder: Path, config: Path | str) -> Recorded:
    """The run that left the states in a folder: its digests are those in the newest of them."""
    states = states_in(folder)
    if not states:
        raise UserError(f"{folder}: no states in it (state-000000500-….pt); keep them by {KEEP}=all dvc repro")
    rows, conditions = _read_progress(states[max(states)])
    return Recorded(Record(str(folder), rows, states), load_params(config), conditions)


def with_deciding(config: Path | str, deciding_ones: Mapping[str, Any], where: str) -> Params:
    """The parameters of a training, which has recorded those that decide its result: seed, data.max_length or data,
    model and training. The others are those of a file."""
    content = load_params(config).model_dump()
    content["data"]["max_length"] = deciding_ones["data.max_length"]
    return validated(Params, content | {name: deciding_ones[name] for name in ("seed", "model", "training")}, where)


def verify(recorded: Recorded, segments: int | None = None) -> str:
    """Computes a run again, the whole of it or so many segments, and says in a line what is equal.

    Raises Difference for the first thing that is not, and UserError where there is nothing to compare with.
    """
    params = recorded.params
    train, validation = load_tokens(TOKENS, "train"), load_tokens(TOKENS, "validation")
    device, engine = prepare(params.training, training_flops(params, train))
    model, begun_from = build_model(params, train.meta["tokenizer"], engine, device)
    here = fingerprint(deciding(params), train.meta | begun_from, TRAINER, engine.name, device)
    _check_inputs(recorded, here)
    known = recorded.record
    record = known if known.states else Record(known.name, known.rows, _kept_states(known, run_key(here)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainer = build_trainer(params, model, begun_from, train, validation, folder / "checkpoints", _kept_nowhere)
        try:
            with ProgressBar("verify", trainer.total_steps if segments is None else None, "steps") as bar:
                replay = Replay(trainer, record, folder, bar.update)
                if segments is not None:
                    return _verify_segments(replay, record, segments)
                replay.from_start()
            write_metrics(trainer, folder / "metrics")
            compare_results(recorded.written, folder)
        except Difference as difference:
            conditions = differences(dict(recorded.fingerprint), here) if recorded.fingerprint else []
            conditions = conditions or other_versions(CONSTRAINTS)
            raise difference.under(conditions) from None
    what = [f"{len(record.rows)} digests of {record.name}"] if record.rows else []
    what += [f"{len(record.states)} states"] if record.states else []
    what += [f"{len(recorded.written)} results of {LOCK}"] if recorded.written else []
    return f"equal: {', '.join(what)}, over {trainer.progress.step:,} steps"


def _verify_segments(replay: Replay, record: Record, count: int) -> str:
    if not record.rows:
        raise UserError(f"--segments: there is no {DIGESTS} to compare with; dvc pull, or verify the whole run")
    if not record.states:
        raise UserError(
            f"--segments: no states of it in {_kept_root()}; keep them by {KEEP}=all dvc repro --force train"
        )
    done = replay.segments(count, random.SystemRandom())
    steps, total = sum(last - first for first, last in done), replay.trainer.total_steps
    which = ", ".join(f"{first + 1:,} to {last:,}" for first, last in done)
    return (
        f"equal: {len(record.states)} states by their digests; {steps:,} of {total:,} steps ({steps / total:.0%}) "
        f"computed again: {which}"
    )


def _check_files(changed: list[Path], what: str) -> None:
    if changed:
        raise Difference(f"{changed[0]}: {what}", *(f"and {path}" for path in changed[1:]))


def _check_inputs(recorded: Recorded, here: Mapping[str, str]) -> None:
    """Raises Difference for code, parameters or data that are not those of the run, as far as it has recorded them.

    A fingerprint's `code` is of all sources, also of those that decide no result: it decides nothing here.
    """
    name = recorded.record.name
    if recorded.commit:
        changed = Files().sources_other_than(recorded.commit)
        _check_files(changed, f"not the content of commit {recorded.commit[:12]}, which {name} ran")
    what = {"params": "seed, data.max_length, model or training", "data": str(TOKENS / META)}
    other = [part for part in what if recorded.fingerprint.get(part, here[part]) != here[part]]
    if other:
        raise Difference(*(f"{what[part]}: not what {name} was computed from" for part in other))


def _kept_root() -> Path:
    """work/states, as it is shown."""
    root = project_root() / KEPT_STATES
    return root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root


def _kept_states(record: Record, key: str) -> dict[int, Path]:
    """The states that the recorded run has kept: those under its key, or, since any change of the sources makes
    another key, those that hold the record's own digests."""
    root = _kept_root()
    if own := states_in(root / key):
        return own
    for states in map(states_in, sorted(root.glob("*/"))):
        with contextlib.suppress(UserError):
            rows = _read_progress(states[max(states)])[0] if states else []
            if rows and rows == record.rows[: len(rows)]:
                return states
    return {}


def _read_progress(path: Path) -> tuple[list[DigestRow], dict[str, str]]:
    """The digests in a state and the conditions it was computed under. Raises UserError for a file that holds none."""
    try:
        content = read_tensors(path)
        return content["progress"]["digests"], content["fingerprint"]
    except (LookupError, TypeError):
        raise UserError(f"{path}: not a state of a training; name a folder of states") from None


def _kept_nowhere(step: int, state: dict[str, Any]) -> Path:
    """A state before a step with NaN: the run that is recorded has kept its own."""
    return Path("the state that the recorded run kept")
