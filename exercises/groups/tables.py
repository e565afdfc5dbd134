"""Tables: what is looked up several times collects its gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from custom_transformer.maths import ops
from exercises.cases import Case, Draw, backward_case
from exercises.catalogue import Exercise, Group

REPEATED = torch.tensor([[3, 3, 0], [4, 3, 0]])  # tokens that stand several times, and tokens that stand nowhere


def _lookup(draw: Draw) -> list[Case]:
    return [
        backward_case(
            title,
            "lookup_backward",
            ops.lookup_forward,
            {"input_ids": ids, "table": draw(6, 3)},
            ("d_ids", "d_table"),
            ("input_ids", "table"),
            draw,
            dy="dx",
        )
        for title, ids in (
            ("some tokens stand several times", REPEATED),
            ("one text of four tokens", draw.ids(6, 1, 4)),
        )
    ]


def _tied_table(draw: Draw) -> list[Case]:
    def used_twice(input_ids: Tensor, table: Tensor) -> tuple[tuple[Tensor, Tensor], ops.Saved]:
        x, saved = ops.lookup_forward(input_ids, table)
        return (x, table), saved

    return [
        backward_case(
            "the table is the head's matrix too",
            "lookup_backward",
            used_twice,
            {"input_ids": REPEATED, "table": draw(6, 3)},
            ("d_ids", "d_table"),
            ("input_ids", "table"),
            draw,
            dy="dx d_head",
            order=lambda dys, saved: (dys[0], saved, dys[1]),
        )
    ]


def _positions(draw: Draw) -> list[Case]:
    return [
        backward_case(
            f"positions from {start} on",
            "positions_backward",
            partial(ops.positions_forward, start=start),
            {"x": draw(2, 3, 4), "table": draw(6, 4)},
            ("dx", "d_table"),
            ("table", "start", "time"),
            draw,
        )
        for start in (0, 2)
    ]


GROUP = Group(
    "Tables",
    (
        Exercise("lookup", {"lookup_backward": ops.lookup_backward}, _lookup),
        Exercise("repair_lookup", {"lookup_backward": ops.lookup_backward}, _lookup),
        Exercise("positions", {"positions_backward": ops.positions_backward}, _positions),
        Exercise("repair_tied_table", {"lookup_backward": ops.lookup_backward}, _tied_table),
    ),
)
