"""What may be done to records between their decoding and their output: names joined, counters scaled, views.

A stage sees the batches of all exporters in the order they came, options data among them, and may remember what they
say: what is told among batches counts for all of them. Nothing is done that was not asked for: without stages records
go out as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context


class Stage(Protocol):
    """One step. What it does is done for many batches at once: each may be but a few records."""

    joins: ClassVar[bool]
    """Whether it makes rows of one layout out of all records, and so one batch."""

    def apply(self, batches: Sequence[FlowBatch], context: Context) -> list[FlowBatch]:
        """Of one exporter: the same batches with other columns, in their order; where the stage joins, their rows."""


def staged(batches: Sequence[FlowBatch], context: Context, stages: Sequence[Stage]) -> list[FlowBatch]:
    """Batches after all stages, in their order."""
    made = list(batches)
    for stage in stages:
        made = stage.apply(made, context)
    return made
