"""How the loss falls with the size of the model and the tokens it is trained on: python -m studies.scaling (or make
scaling).

The grid is a queue of DVC experiments, and MLflow keeps what came of it, as the child runs of a sweep. So the study
may be stopped at any time, and goes on when it is started again: what MLflow has is not run a second time.

Each model is trained for its own budget to the end of its own schedule: a loss read half-way through a longer one, its
learning rate still high, would be above what those tokens can give (Hoffmann et al. 2022, appendix B).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import dvc.api
from rich.console import Console
from rich.table import Table

from custom_transformer.config import Params, load_params, validated
from custom_transformer.errors import ArgumentParser, UserError, run_main
from custom_transformer.files import write_csv, write_json
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import count
from custom_transformer.paths import TOKENS
from custom_transformer.progress import AS_IS
from custom_transformer.text.manifest import META
from custom_transformer.tracking import SweepRun, flat_params, sweep_runs, sync
from stages.dvc import run_dvc
from studies import queue
from studies.law import Fit, fit_law
from studies.plot import save_plot

RESULTS = Path("studies/results")
DECIDING = ("seed", "data.", "model.", "training.", "evaluation.")  # parameters that decide a point's result


@dataclass(frozen=True)
class Point:
    """One experiment: `changes` to params.yaml, and what results from them."""

    changes: dict[str, Any]
    params: Params

    @property
    def name(self) -> str:
        """Tells all parameters that decide, so that a study of others neither uses nor removes the experiment."""
        sweep, width, steps = self.params.tracking.sweep, self.params.model.d_model, self.params.training.max_steps
        return f"{sweep}-d{width}-s{steps}-{digest(json.dumps(self.deciding, sort_keys=True))}"

    @property
    def deciding(self) -> dict[str, str]:
        flat = dict(flat_params(self.params.model_dump(mode="json")))
        return {name: value for name, value in flat.items() if name.startswith(DECIDING)}


@dataclass(frozen=True)
class Result:
    """A trained point.

    parameters: without embeddings, the N of Kaplan et al. 2020 (section 2.1), whose laws are cleaner for it: the
    embeddings of small models outweigh all else, and how many of them there are is the vocabulary's matter.
    tokens: trained on, each once.
    loss: of the validation texts, nats a token.
    """

    width: int
    parameters: int
    tokens: int
    loss: float
    run_id: str


def main() -> None:
    args = arguments()
    base = with_changes(load_params(), {"tracking.sweep": args.sweep})
    data = data_changes(args.data)
    corpus = prepare_data(args.sweep, data)
    points = list(grid(base, data, corpus["splits"]["train"]["tokens"], args.widths, args.budgets, args.sweep))
    run_missing(base, points, args.jobs)
    results, floor = read_results(base, points)
    sizes, budgets, losses = ([getattr(r, name) for r in results] for name in ("parameters", "tokens", "loss"))
    fit = fit_law(sizes, budgets, losses, floor)
    show(results, fit, floor)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_csv(RESULTS / f"{args.sweep}.csv", [asdict(result) for result in results])
    write_json(
        RESULTS / f"{args.sweep}.json", {"floor": floor, "compute_exponent": fit.law.compute_exponent} | asdict(fit)
    )
    save_plot(results, fit, floor, RESULTS / f"{args.sweep}.png")
    print(f"written: {RESULTS}/{args.sweep}.csv, .json, .png")


def arguments() -> Any:
    parser = ArgumentParser(prog="python -m studies.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="text to train on, as data.dataset takes it (default: that of params.yaml)")
    parser.add_argument(
        "--sweep", help="the study's name; another one starts it afresh (default: scaling, and the text)"
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[48, 64, 96, 128], help="values of model.d_model")
    parser.add_argument(
        "--budgets", type=int, default=5, help="how many token budgets: an epoch, and each 0.71 of the one before"
    )
    parser.add_argument("--jobs", type=int, default=2, help="experiments at a time")
    args = parser.parse_args()
    if len(set(args.widths)) < 3 or args.budgets < 3:
        parser.error("a law needs 3 different --widths and 3 --budgets, or more")
    if args.jobs < 1:
        parser.error("--jobs begins at 1")
    args.sweep = args.sweep or default_sweep(args.data)
    return args


def default_sweep(dataset: str | None) -> str:
    """A name that tells the text, and by a digest tells apart what has the same words or the same beginning."""
    if dataset is None:
        return "scaling"
    return "-".join(["scaling", *re.findall(r"\w+", dataset)])[:60] + f"-{digest(dataset)}"


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:6]


# -- the grid


def data_changes(dataset: str | None) -> dict[str, Any]:
    """Changes to params.yaml for other text: all of it, a part kept for validation."""
    if dataset is None:
        return {}
    return {"data.dataset": dataset, "data.val_split": None, "data.subset_size": None, "data.val_subset_size": None}


def with_changes(params: Params, changes: Mapping[str, Any]) -> Params:
    content = params.model_dump()
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = value
    return validated(Params, content, "the study")


def grid(
    base: Params, data: Mapping[str, Any], tokens: int, widths: Sequence[int], budgets: int, sweep: str
) -> Iterator[Point]:
    """A point for each width and budget, the longest first, so that no long one is left to run alone at the end."""
    step = base.training.batch_size * base.training.grad_accumulation * base.data.max_length
    steps = [int(tokens // step / 2 ** (i / 2)) for i in range(budgets)]
    if not steps[-1] or len(set(steps)) < budgets:
        raise UserError(f"{tokens:,} tokens are too few for {budgets} budgets; give it more text, or --budgets fewer")
    for max_steps in steps:
        for width in sorted(set(widths), reverse=True):
            changes = {
                **data,
                "model.d_model": width,
                "model.d_ffn": 4 * width,
                "training.num_epochs": 1,
                "training.max_steps": max_steps,
                "training.eval_every": None,  # the checkpoint evaluated is that of the last step
                "tracking.sweep": sweep,
                "tracking.registered_model": None,  # the project's model is not to be one of these
            }
            yield Point(changes, with_changes(base, changes))


# -- DVC


def prepare_data(sweep: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The token files' description, after an experiment that makes only them; the queue finds them in DVC's cache."""
    name = f"{sweep}-data"
    if name in queue.experiments():  # of a study that was killed here
        run_dvc("exp", "remove", name)
    run_dvc("exp", "run", "--temp", "--name", name, *queue.settings(changes), "tokenize")
    meta: dict[str, Any] = json.loads(dvc.api.read(str(TOKENS / META), rev=name))
    run_dvc("exp", "remove", name)
    return meta


def run_missing(base: Params, points: Sequence[Point], jobs: int) -> None:
    """Queues the points that MLflow does not have, and waits for them.

    An experiment of that name and these parameters may exist all the same: its run has been deleted from MLflow, or
    MLflow's store is another now. It is run again. Ctrl-C takes the study's experiments out of the queue and kills
    those that run; the workers go on with other people's.
    """
    runs = finished(base)
    missing = {point.name: point.changes for point in points if not find(point, runs)}
    if not missing:
        return
    try:
        queue.enqueue(missing, "evaluate")
        queue.start_workers(jobs)
        queue.wait_for(missing, jobs)
    except KeyboardInterrupt:
        queue.stop(missing)
        raise


# -- MLflow


def finished(base: Params) -> list[SweepRun]:
    """The sweep's evaluated runs, newest first, those included whose results wait in the spool."""
    sync()
    # Evaluations that had no end_loss were over windows of the stream, and their losses are of another kind.
    return [run for run in sweep_runs(base.tracking) if "eval_end_loss" in run.metrics]


def find(point: Point, runs: Sequence[SweepRun]) -> SweepRun | None:
    """The newest run of the point's parameters."""
    deciding = point.deciding
    return next((run for run in runs if deciding.items() <= run.params.items()), None)


def read_results(base: Params, points: Sequence[Point]) -> tuple[list[Result], float | None]:
    """What MLflow knows of the points, and the entropy of the text in nats a token, where that is known."""
    runs, results, floor = finished(base), [], None
    for point in points:
        run = find(point, runs)
        if run is None:
            raise UserError(
                f"{point.name}: not in MLflow; python -m custom_transformer sync says why; then run this again"
            )
        metrics, training = run.metrics, point.params.training
        floor = metrics.get("eval_loss_floor", floor)
        assert training.max_steps is not None
        results.append(
            Result(
                width=point.params.model.d_model,
                parameters=non_embedding_parameters(point.params),
                tokens=training.max_steps
                * training.batch_size
                * training.grad_accumulation
                * point.params.data.max_length,
                loss=metrics["eval_loss"],
                run_id=run.run_id,
            )
        )
    return sorted(results, key=lambda r: (r.width, r.tokens)), floor


def non_embedding_parameters(params: Params) -> int:
    config = params.model.with_vocabulary(params.data.vocab_size)
    return count({name: p for name, p in architecture_of(config).parameters(config).items() if p.role != "table"})


def show(results: Sequence[Result], fit: Fit, floor: float | None) -> None:
    console = Console(**AS_IS, width=100)
    table = Table("width", "N", "D", "loss", "law", "above E", title="nats a token")
    for column in table.columns:
        column.justify = "right"
    for r in results:
        fitted = float(fit.law.loss(r.parameters, r.tokens))
        table.add_row(
            *(f"{r.width}", f"{r.parameters:,}", f"{r.tokens:,}"),
            *(f"{r.loss:.4f}", f"{fitted:.4f}", f"{r.loss - fit.law.E:.4f}"),
        )
    console.print(table)
    console.print("loss = E + A / N^α + B / D^β, with the 90% intervals of a bootstrap over runs")
    law = fit.law
    for name, symbol in {"E": "E", "A": "A", "alpha": "α", "B": "B", "beta": "β"}.items():
        low, high = fit.intervals[name]
        known = name == "E" and floor is not None
        console.print(f"{symbol} = {getattr(law, name):.4g}  " + ("known" if known else f"[{low:.4g}, {high:.4g}]"))
    low, high = fit.intervals["compute_exponent"]
    console.print(f"best size at a given compute: N ∝ C^{law.compute_exponent:.2f}  [{low:.2f}, {high:.2f}]")
    console.print(f"the law misses the runs by {fit.error:.1%} (root mean square)")


if __name__ == "__main__":
    run_main(main)
