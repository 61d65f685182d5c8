"""What may be done to records between their decoding and their output: names joined, counters scaled, views.

A stage sees the batches of all exporters in the order they came, options data among them, and may remember what they
say. Nothing is done that was not asked for: without stages records go out as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context


class Stage(Protocol):
    """One step."""

    def apply(self, batch: FlowBatch, context: Context) -> FlowBatch:
        """The batch, or one of the same records with other columns."""


def staged(batch: FlowBatch, context: Context, stages: Sequence[Stage]) -> FlowBatch:
    """A batch after all stages, in their order."""
    for stage in stages:
        batch = stage.apply(batch, context)
    return batch
