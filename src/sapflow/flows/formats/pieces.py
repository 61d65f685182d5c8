"""Records in pieces that are written one after the other, so that no more than one of them is in memory as output.

A message of 64 KiB may be 65,515 records, each of which is a line of a hundred characters and, in a view, a row of
fifty columns; or the records of thousands of templates. What a piece will cost is reckoned before it is made: the
octets that values have as text or in columns, and the arrays that a template's columns are, however few its records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import Context
from sapflow.flows.columns.variable import VariableColumn
from sapflow.flows.ipfix.telling import tells
from sapflow.flows.meaning.stages import Stage, staged

Costs: TypeAlias = "tuple[NDArray[np.int64] | int, int]"
"""Bytes of each record of a batch, and of the batch however few they are."""
Weigh: TypeAlias = Callable[[Sequence[FlowBatch]], list[Costs]]

PIECE_BYTES = 5 << 19
"""What a piece may cost; one record may cost more."""
STAGED_RECORD_BYTES = 1_536
"""A record after stages has at least this: a row of the view, or two."""
STAGED_COLUMNS = 64
"""That a batch after stages has more than before, at most."""
BATCH_BYTES, COLUMN_BYTES = 4_096, 512
"""What a batch, and each of its columns, costs before it has any records."""
CONTEXT_COLUMNS = 6
MAX_LEFT_OUT, AND_OTHERS = 1_000, "and others"
"""Names that are told at the end; what stands for those beyond."""
_TEXT_CONTEXT, _TEXT_VALUE, _LIST_OCTET, _TEXT_OCTET = 400, 48, 75, 6
"""As text: the fields of the context; a number or a time with what stands around it and the room it is made in; an
octet in a list, which may be an object with the longest name; an octet escaped."""


def weigh_text(batches: Sequence[FlowBatch]) -> list[Costs]:
    """As JSON lines: names stand in every record."""
    return [_text_costs(batch) for batch in batches]


def _text_costs(batch: FlowBatch) -> Costs:
    names = sum(map(len, batch.columns))
    each: NDArray[np.int64] | int = _TEXT_CONTEXT + 2 * names + _TEXT_VALUE * len(batch.columns)
    for column, element in zip(batch.columns.values(), batch.elements, strict=True):
        if isinstance(column, VariableColumn):
            each = each + np.diff(column.offsets).astype(np.int64) * (_LIST_OCTET if element.is_list else _TEXT_OCTET)
        elif column.dtype.kind in "VU":
            each = each + column.dtype.itemsize * 2
    return each, BATCH_BYTES + COLUMN_BYTES * len(batch.columns)


def weigh_columns(batches: Sequence[FlowBatch]) -> list[Costs]:
    """As columns of a table, where lists are text."""
    return [_column_costs(batch) for batch in batches]


def _column_costs(batch: FlowBatch) -> Costs:
    each: NDArray[np.int64] | int = 32 * CONTEXT_COLUMNS
    for column, element in zip(batch.columns.values(), batch.elements, strict=True):
        if isinstance(column, VariableColumn):
            each = each + 8 + np.diff(column.offsets).astype(np.int64) * (_LIST_OCTET if element.is_list else 2)
        else:
            each = each + 8 + column.dtype.itemsize
    return each, BATCH_BYTES + COLUMN_BYTES * (len(batch.columns) + CONTEXT_COLUMNS)


def leave_out(left_out: set[str], names: Iterable[str]) -> None:
    """Remember names that an output has no place for: the first thousand of them."""
    for name in names:
        if name not in left_out:
            left_out.add(name if len(left_out) < MAX_LEFT_OUT else AND_OTHERS)


def pieces(
    data: bytes, context: Context, stages: Sequence[Stage], limit: int | None, weigh: Weigh
) -> Iterator[list[FlowBatch]]:
    """The records of self-contained messages, after all stages, the first `limit` of them.

    A piece follows on the one before it; within it each batch's `order` says where its records stand. Stages see
    options data first: what an exporter says of itself counts for all flows that came with it. Raises MalformedMessage.
    """
    batches, told = _told_first(decode(data), context, stages)
    costs = weigh(batches)
    if stages:
        own = 0 if _joins(stages) else STAGED_COLUMNS * COLUMN_BYTES
        costs = [
            cost if at in told else (np.maximum(cost[0], STAGED_RECORD_BYTES), cost[1] + own)
            for at, cost in enumerate(costs)
        ]
    for piece in _cut([batch.records for batch in batches], [batch.order for batch in batches], costs):
        parts = {
            at: batches[at] if stop - first == batches[at].records else batches[at].part(first, stop)
            for at, first, stop in piece
        }
        made = [part for at, part in parts.items() if at in told]
        made += staged([part for at, part in parts.items() if at not in told], context, stages)
        made = [batch for batch in made if batch.records]
        if limit is not None:
            made = _first(made, limit)
            limit -= sum(batch.records for batch in made)
        if made:
            yield made
        if limit is not None and limit <= 0:
            return


def _joins(stages: Sequence[Stage]) -> bool:
    return any(stage.joins for stage in stages)


def _told_first(
    batches: list[FlowBatch], context: Context, stages: Sequence[Stage]
) -> tuple[list[FlowBatch], set[int]]:
    """What exporters tell of themselves through all stages, and where it is; in rows of one layout it is not shown."""
    told = [at for at, batch in enumerate(batches) if stages and tells(batch.template)]
    learned = staged([batches[at] for at in told], context, stages)
    if _joins(stages):
        left_out = set(told)
        return [batch for at, batch in enumerate(batches) if at not in left_out], set()
    made = dict(zip(told, learned, strict=True))
    return [made.get(at, batch) for at, batch in enumerate(batches)], set(told)


def _cut(
    records: Sequence[int], orders: Sequence[NDArray[np.int64]], costs: Sequence[Costs]
) -> Iterator[list[tuple[int, int, int]]]:
    """For each piece which batches are in it, and from and up to which of their records."""
    each = _each(records, [cost for cost, _ in costs])
    fixed = np.array([cost for _, cost in costs], np.int64)
    if int(fixed.sum()) + int(each.sum()) <= PIECE_BYTES:
        yield [(at, 0, count) for at, count in enumerate(records) if count]
        return
    places = np.argsort(np.concatenate(orders), kind="stable")
    owners = np.repeat(np.arange(len(records)), records)[places]
    ends = np.cumsum(each[places])
    taken = np.zeros(len(records), np.int64)
    first = 0
    while first < len(owners):
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + PIECE_BYTES, "right")))
        present, counts = np.unique(owners[first:stop], return_counts=True)
        while int(fixed[present].sum()) > PIECE_BYTES and stop - first > 1:
            stop = first + (stop - first) // 2
            present, counts = np.unique(owners[first:stop], return_counts=True)
        begins = taken[present]
        taken[present] += counts
        yield list(zip(present.tolist(), begins.tolist(), (begins + counts).tolist(), strict=True))
        first = stop


def _each(records: Sequence[int], costs: Sequence[NDArray[np.int64] | int]) -> NDArray[np.int64]:
    """What each record of all batches costs."""
    # Of thousands of batches an array for each would be much.
    usual = np.repeat([cost if isinstance(cost, int) else 0 for cost in costs], records)
    ends = np.cumsum(records).tolist()
    for cost, count, end in zip(costs, records, ends, strict=True):
        if not isinstance(cost, int):
            usual[end - count : end] = cost
    return usual


def _first(batches: list[FlowBatch], limit: int) -> list[FlowBatch]:
    """The first records of all."""
    if sum(batch.records for batch in batches) <= limit:
        return batches
    places = np.argsort(np.concatenate([batch.order for batch in batches]), kind="stable")[:limit]
    owners = np.repeat(np.arange(len(batches)), [batch.records for batch in batches])
    counts = np.bincount(owners[places], minlength=len(batches)).tolist()
    return [batch.part(0, count) for batch, count in zip(batches, counts, strict=True) if count]
