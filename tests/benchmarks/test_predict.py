"""The predicted exchange is the one that takes place, its time is sane, and a timeline has all that a step does."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.predict import CASES, Cluster, Work, bucket_seconds, critical_batch, limits, main, predicted, useful
from benchmarks.timeline import Span, save_timeline
from custom_transformer.errors import UserError
from custom_transformer.maths.architecture import architecture_of
from custom_transformer.maths.parameters import count
from custom_transformer.runs import distributed
from custom_transformer.runs.distributed import Shares
from custom_transformer.runs.processes import Processes
from tests.benchmarks.exchanged import BUCKET, CONFIG, PASSES
from tests.helpers import Held
from tests.processes import Group

SMALL = CASES[0].config


@pytest.fixture(scope="module", params=[2, 4])
def updates(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of several processes has sent and done in one update."""
    group = Group(request.param, "-m", "tests.benchmarks.exchanged")
    done = [process.wait() for process in group]
    assert [one.returncode for one in done] == [0] * request.param, done[0].stderr
    found: list[dict[str, Any]] = json.loads(done[0].stdout)
    return found


@pytest.mark.processes
def test_the_bytes_are_those_that_processes_really_send(
    updates: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "BUCKET", BUCKET)
    work = Work(CONFIG, len(updates), 1, PASSES)
    assert len(work.owned) > 2
    assert [update["sent"] for update in updates] == work.sent.tolist()
    assert {update["summed"] for update in updates} == {work.summed}


@pytest.mark.processes
def test_a_timeline_has_all_that_a_step_does(
    updates: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "BUCKET", BUCKET)
    buckets = len(Work(CONFIG, len(updates), 1, PASSES).owned)
    of_each = [[Span(*span) for span in update["spans"]] for update in updates]
    for spans in of_each:
        kinds = Counter(span.kind for span in spans)
        backwards = kinds.pop("backward")
        waits = {"wait": 2}  # for gradients and for parameters
        assert kinds == {"forward": PASSES, "norm": 1, "update": 1, "gradients": buckets, "parameters": buckets} | waits
        labels = [span.label for span in spans if span.kind == "backward"]
        assert labels == [""] * (PASSES - 1) + labels[PASSES - 1 :]  # only the last pass tells of its blocks
        assert backwards == len(labels)
        assert [label for label in labels if label] == ["1", "0"]
        assert all(span.begin <= span.end for span in spans)
    save_timeline(of_each, "a step", tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_the_gradients_held_are_those_of_the_exchange() -> None:
    """What one of two processes holds besides the model, up to the last gradient of its four passes."""

    class Received(Processes):
        def exchange(self, sent: torch.Tensor, sent_sizes: list[int], sizes: list[int]) -> Callable[[], torch.Tensor]:
            received = torch.empty(sum(sizes))
            return lambda: received

    table = architecture_of(CONFIG).parameters(CONFIG)
    parameters = {name: torch.zeros(shape) for name, (shape, _) in table.items()}
    work = Work(CONFIG, 2, 1, 4)
    with Held() as held:
        sums = Shares(Received(0, 2), parameters, 8).sums(8, torch.zeros(0))
        for sums.shard in range(4):
            for name in reversed([*parameters]):
                sums[name] = torch.zeros(table[name].shape)
    largest = 4 * max(p.numel() for p in parameters.values())
    expected = 4 * count(table) * (1 + work.sums)
    assert expected <= held.most <= expected + 2 * largest


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_one_process_exchanges_nothing_and_loses_nothing(case: Any) -> None:
    work = Work(case.config, 1, 4, 4)
    assert (work.sent == 0).all()
    assert predicted(work, Cluster()).efficiency == 1


@pytest.mark.parametrize("processes", [2, 7, 8, 12, 64])
def test_every_number_is_owned_once_and_sent_as_often_as_it_must_be(processes: int) -> None:
    work = Work(SMALL, processes, 1, 1)
    numbers = count(architecture_of(SMALL).parameters(SMALL))
    assert work.owned.sum() == numbers
    assert work.sent.sum() == 2 * 4 * numbers * (processes - 1)
    assert (np.diff(work.ready) >= 0).all()
    assert work.ready[-1] == 1


def test_many_processes_own_about_as_many_numbers_each() -> None:
    """Slices consist of whole blocks, of which a bucket must have more than there are processes."""
    own = Work(SMALL, 1024, 1, 1).owned.sum(0)
    assert own.max() < 1.2 * own.mean()


@pytest.mark.parametrize("processes", [8, 64, 200])
def test_a_better_cluster_is_never_slower(processes: int) -> None:
    work, cluster = Work(SMALL, processes, 1, 2), Cluster()
    before = predicted(work, cluster)
    assert before.efficiency < 1
    better = [("nvlink", 2.0), ("network", 2.0), ("latency", 0.5), ("overhead", 0.5)]
    for name, factor in better:
        after = predicted(work, replace(cluster, **{name: factor * getattr(cluster, name)}))
        assert after.compute + after.exposed <= before.compute + before.exposed
    assert predicted(work, replace(cluster, peak=2 * cluster.peak)).compute == before.compute / 2


def test_an_exchange_takes_as_long_as_its_slowest_process() -> None:
    """Of eight GPUs in two hosts: all own the same, or one owns all."""
    cluster = Cluster(per_host=4, nvlink=4.0, network=2.0, latency=100.0, overhead=10.0)
    assert bucket_seconds(np.array([5] * 8), cluster) == 100 + 10 * 7 + 20 * 4 / 2
    assert bucket_seconds(np.array([5] + [0] * 7), cluster) == 100 + 10 * 7 + 20 * 4 / 2
    assert bucket_seconds(np.array([5] * 4), cluster) == 100 + 10 * 3 + 20 * 3 / 4


def test_memory_falls_and_useful_tokens_fall_with_more_processes() -> None:
    memory = [Work(SMALL, processes, 1, 1).memory() for processes in (2, 8, 64)]
    assert memory == sorted(memory, reverse=True)
    assert useful(1, 1) == 0.5
    assert useful(1e6, critical_batch(3.0)) < useful(1e6, critical_batch(2.5)) < 1


def test_the_limits_are_those_of_the_guide() -> None:
    small, large, memory = limits(4, 4, Cluster())
    assert "0.89 million tokens: 54 GPUs of 16,384 tokens each, or 866 of one window each" in small
    assert "2.28 million tokens: 139 GPUs of 16,384 tokens each, or 2,222 of one window each" in large
    assert "holds 16 bytes per parameter" in memory
    assert "80 GB end at 5.0 billion parameters" in memory


@pytest.mark.parametrize(
    "arguments", [["--gpus", "8", "0"], ["--network", "0"], ["--nvlink=-1"], ["--per-host", "0"], ["--peak", "nan"]]
)
def test_what_no_cluster_has_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    with pytest.raises(UserError, match=f"argument {arguments[0].split('=')[0]}: .* is not above 0"):
        main()
