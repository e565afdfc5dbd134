"""All exercises, from the easiest group to the hardest."""

from __future__ import annotations

from exercises.groups import attention, blocks, curves, losses, norms, products, tables, updates

GROUPS = tuple(module.GROUP for module in (products, curves, tables, norms, losses, attention, blocks, updates))
EXERCISES = {exercise.name: exercise for group in GROUPS for exercise in group.exercises}
