"""Data records as numpy columns: the data sets of templates with the same fields, seen through structured dtypes.

Types (RFC 7011, 6.1): integers and times as `typed` makes them; addresses, MAC addresses and octets of fixed length as
void of that width; elements of variable length as VariableColumn. A length that its type cannot have gives raw bytes.

Templates that differ in id alone make one batch, and those that differ in domain as well are converted with them:
records under thousands of template ids cost little more than those of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.layouts import Layout
from sapflow.flows.columns.sets import Gathering, LikeSets
from sapflow.flows.columns.typed import typed
from sapflow.flows.columns.variable import Offsets, VariableColumn, fields_of, record_starts
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import InformationElement

if TYPE_CHECKING:
    import pyarrow

    from sapflow.flows.columns.records import Context

Column: TypeAlias = "NDArray[Any] | VariableColumn"


@frozen
class FlowBatch:
    """Records of one domain, column by column, whose templates have the same fields: of one template, as a rule."""

    domain: int
    template: Template
    """The first of theirs: all but its id is the same in the others (`template_ids`)."""
    elements: tuple[InformationElement, ...]
    columns: dict[str, Column]
    """By element name; a name that is repeated in the template gets `_2`, `_3`, …"""
    order: NDArray[np.int64]
    """Each record's place among all records of the data decoded."""
    templates: Mapping[int, Template] = field(factory=dict)
    """What its lists refer to, by id: the templates of its domain as they were then. Without lists, none."""
    export_times: NDArray[np.int64] = field(factory=lambda: np.empty(0, np.int64))
    """When each record was exported, in seconds since 1970; empty for a batch that was not decoded from messages."""
    template_ids: NDArray[np.uint16] = field(factory=lambda: np.empty(0, np.uint16))
    """The template of each record; empty when all are of `template`."""

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.order)

    def part(self, first: int, stop: int) -> FlowBatch:
        """Some of its records, over the same memory."""
        columns = {name: column[first:stop] for name, column in self.columns.items()}
        return self.rows(slice(first, stop), columns, self.elements)

    def rows(
        self, which: slice | NDArray[np.intp], columns: dict[str, Column], elements: tuple[InformationElement, ...]
    ) -> FlowBatch:
        """Other columns for some of its records, which may be named more than once."""
        order, times, ids = self.order[which], self.export_times, self.template_ids
        times, ids = times[which] if len(times) else times, ids[which] if len(ids) else ids
        return FlowBatch(self.domain, self.template, elements, columns, order, self.templates, times, ids)

    def to_arrow(self, context: Context | None = None) -> pyarrow.RecordBatch:
        """The records for Arrow, without copying where its layout is ours (see `sapflow.flows.columns.arrow`).

        With a context its fields (`_org`, `_exporter`, …) are columns too.
        """
        from sapflow.flows.columns.arrow import record_batch

        return record_batch(self, context)


def decode(data: bytes, session: Session | None = None) -> list[FlowBatch]:
    """Whole self-contained messages to columns, in the order that their templates are first used.

    There is one FlowBatch for all templates of a domain that have the same fields; of those whose records have lists
    there are more when templates changed between them. Sets whose template is not known are left out.
    Raises MalformedMessage for what is not IPFIX, with the offset in `data`.
    """
    gathering = Gathering(session or Session(FlowLimits()))
    gathered = gathering.gather(data)
    by_layout: dict[Layout, list[LikeSets]] = {}
    for sets in gathered:
        by_layout.setdefault(sets.layout, []).append(sets)
    faults = [gathering.fault] if gathering.fault is not None else []
    total = gathering.count
    del gathering
    tables = []
    for layout, members in by_layout.items():
        table = _Table(layout, members)
        try:
            table.find(data)
        except MalformedMessage as fault:
            faults.append(fault)
        tables.append(table)
    if faults:
        raise min(faults, key=lambda fault: fault.offset)
    counts = np.zeros(total, np.int64)
    for table in tables:
        counts[table.turns] = table.counts
    firsts = np.cumsum(counts) - counts
    batches: dict[int, FlowBatch] = {}
    for table in tables:
        batches.update(zip(map(id, table.members), table.batches(firsts), strict=True))
    return [batches[id(sets)] for sets in gathered]


class _Table:
    """The records of all sets of one layout, one batch after the other."""

    def __init__(self, layout: Layout, members: list[LikeSets]) -> None:
        places = np.fromiter(chain.from_iterable(sets.places for sets in members), np.intp).reshape(-1, 4)
        self.turns, self._bodies, self._stops, self._times = np.ascontiguousarray(places.T)
        self.counts = np.zeros(len(self.turns), np.intp)
        """Records of each set."""
        self._ids = np.zeros(len(self.turns), np.uint16)
        self._layout = layout
        self.members = members
        self._sets = [len(sets.places) // 4 for sets in members]
        # Of thousands of templates these are much of what is held.
        for sets in members:
            sets.places.clear()
        self._runs: list[NDArray[Any]] = []
        self._varying: list[VariableColumn] = []

    def find(self, data: bytes) -> None:
        """Find the records and their fields. Raises MalformedMessage."""
        octets = np.frombuffer(data, np.uint8)
        self._ids = octets[self._bodies - 4].astype(np.uint16) << 8 | octets[self._bodies - 3]
        template = self.members[0].template
        if not template.record_bytes:
            self._find_varying(data, template)
            return
        size = template.record_bytes
        self.counts = (self._stops - self._bodies) // size
        ends = self._bodies + self.counts * size
        pieces = [data[body:end] for body, end in zip(self._bodies.tolist(), ends.tolist(), strict=True)]
        self._runs = [np.frombuffer(b"".join(pieces), self._layout.runs[0])]

    def _find_varying(self, data: bytes, template: Template) -> None:
        turned = np.argsort(self._bodies)
        starts = record_starts(data, self._bodies[turned], self._stops[turned], template)
        firsts = np.searchsorted(starts, self._bodies)
        self.counts = np.searchsorted(starts, self._stops) - firsts
        runs, self._varying = fields_of(data, starts[_ranges(firsts, self.counts)], template)
        self._runs = [
            np.zeros(len(starts), kind) if run is None else run.view(kind)
            for run, kind in zip(runs, self._layout.runs, strict=True)
        ]

    def batches(self, firsts: NDArray[np.int64]) -> list[FlowBatch]:
        """One for each member; `firsts` says which is the first record of each set of the data."""
        columns = self._columns()
        order = _ranges(firsts[self.turns], self.counts)
        times = np.repeat(self._times, self.counts)
        batches = []
        first = begin = 0
        for sets, count in zip(self.members, self._sets, strict=True):
            last = first + count
            stop = begin + int(self.counts[first:last].sum())
            ids = self._ids[first:last]
            several = (ids != sets.template.id).any()
            batches.append(
                FlowBatch(
                    sets.domain,
                    sets.template,
                    self._layout.elements,
                    {name: column[begin:stop] for name, column in columns.items()},
                    order[begin:stop],
                    sets.templates,
                    times[begin:stop],
                    np.repeat(ids, self.counts[first:last]) if several else ids[:0],
                )
            )
            first, begin = last, stop
        return batches

    def _columns(self) -> dict[str, Column]:
        layout = self._layout
        return {
            name: self._varying[-1 - place]
            if place < 0
            else typed(self._runs[place][f"f{index}"], element, layout.fields[index].length)
            for index, (name, element, place) in enumerate(
                zip(layout.names, layout.elements, layout.places, strict=True)
            )
        }


def _ranges(firsts: Offsets, counts: Offsets) -> Offsets:
    """Numbers that go up by one, `counts[i]` of them from `firsts[i]`, joined."""
    before = np.cumsum(counts) - counts
    return np.repeat(firsts - before, counts) + np.arange(counts.sum())
