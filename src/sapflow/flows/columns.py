"""Data records as numpy columns: the data sets of one template, seen through structured dtypes.

Types (RFC 7011, 6.1): integers as native ones of the width that they had, those of reduced size (3, 5, 6 and 7 octets)
as 64 bits; times as datetime64 of their own unit, NaT where 64 bits do not hold them; addresses, MAC addresses and
octets of fixed length as void of that width; elements of variable length as VariableColumn. A length that its type
cannot have gives raw bytes.

Templates that differ in id or domain alone share a layout, and their records are converted together: those of
thousands of exporters cost little more than those of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from sapflow.errors import MalformedMessage
from sapflow.flows.limits import FlowLimits
from sapflow.flows.record_layouts import SIGNED, UNSIGNED, Layout
from sapflow.flows.registry import InformationElement
from sapflow.flows.session import Session
from sapflow.flows.sets import Gathering, TemplateSets
from sapflow.flows.templates import Template
from sapflow.flows.variable import Offsets, VariableColumn, fields_of, record_starts

if TYPE_CHECKING:
    import pyarrow

    from sapflow.flows.records import Context

Column: TypeAlias = "NDArray[Any] | VariableColumn"
NTP_TO_UNIX_S = 2_208_988_800
_MOST = np.uint64((1 << 63) - 1)


@frozen
class FlowBatch:
    """Records of one template, column by column."""

    domain: int
    template: Template
    elements: tuple[InformationElement, ...]
    columns: dict[str, Column]
    """By element name; a name that is repeated in the template gets `_2`, `_3`, …"""
    order: NDArray[np.int64]
    """Each record's place among all records of the data decoded."""
    templates: Mapping[int, Template] = field(factory=dict)
    """What its lists refer to, by id: the templates of its domain as they were then. Without lists, none."""
    export_times: NDArray[np.int64] = field(factory=lambda: np.empty(0, np.int64))
    """When each record was exported, in seconds since 1970; empty for a batch that was not decoded from messages."""

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.order)

    def part(self, first: int, stop: int) -> FlowBatch:
        """Some of its records, over the same memory."""
        columns = {name: column[first:stop] for name, column in self.columns.items()}
        order, times = self.order[first:stop], self.export_times[first:stop]
        return FlowBatch(self.domain, self.template, self.elements, columns, order, self.templates, times)

    def to_arrow(self, context: Context | None = None) -> pyarrow.RecordBatch:
        """The records for Arrow, without copying where its layout is ours (see `sapflow.flows.arrow`).

        With a context its fields (`_org`, `_exporter`, …) are columns too.
        """
        from sapflow.flows.arrow import record_batch

        return record_batch(self, context)


def decode(data: bytes, session: Session | None = None) -> list[FlowBatch]:
    """Whole self-contained messages to columns, one FlowBatch for each template, in the order that they are first used.

    Of one whose records have lists there are more when templates changed between them. Sets whose template is not
    known are left out. Raises MalformedMessage for what is not IPFIX, with the offset in `data`.
    """
    gathering = Gathering(session or Session(FlowLimits()))
    gathered = gathering.gather(data)
    by_layout: dict[Layout, list[TemplateSets]] = {}
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
    """The records of all templates of one layout, one template after the other."""

    def __init__(self, layout: Layout, members: list[TemplateSets]) -> None:
        places = np.fromiter(chain.from_iterable(sets.places for sets in members), np.intp).reshape(-1, 4)
        self.turns, self._bodies, self._stops, self._times = np.ascontiguousarray(places.T)
        self.counts = np.zeros(len(self.turns), np.intp)
        """Records of each set."""
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
        """One for each template; `firsts` says which is the first record of each set of the data."""
        order = _ranges(firsts[self.turns], self.counts)
        layout = self._layout
        columns = {
            name: self._varying[-1 - place]
            if place < 0
            else _typed(self._runs[place][f"f{index}"], element, layout.fields[index].length)
            for index, (name, element, place) in enumerate(
                zip(layout.names, layout.elements, layout.places, strict=True)
            )
        }
        first = self.members[0]
        times = np.repeat(self._times, self.counts)
        whole = FlowBatch(first.domain, first.template, layout.elements, columns, order, first.templates, times)
        if len(self.members) == 1:
            return [whole]
        last_sets = np.cumsum(self._sets) - 1
        stops = np.cumsum(self.counts)[last_sets].tolist()
        return [
            FlowBatch(
                sets.domain,
                sets.template,
                layout.elements,
                {name: column[begin:stop] for name, column in columns.items()},
                order[begin:stop],
                sets.templates,
                times[begin:stop],
            )
            for sets, begin, stop in zip(self.members, [0, *stops[:-1]], stops, strict=True)
        ]


def _ranges(firsts: Offsets, counts: Offsets) -> Offsets:
    """Numbers that go up by one, `counts[i]` of them from `firsts[i]`, joined."""
    before = np.cumsum(counts) - counts
    return np.repeat(firsts - before, counts) + np.arange(counts.sum())


def _typed(column: NDArray[Any], element: InformationElement, length: int) -> NDArray[Any]:
    """A fixed field as it came, in the type of its element; in memory of its own."""
    if column.dtype.kind == "V":
        if element.type in UNSIGNED | SIGNED and 1 <= length <= 8:
            return _odd_integer(column, length, signed=element.type in SIGNED)
        return np.ascontiguousarray(column)
    native = column.astype(column.dtype.newbyteorder("="))
    match element.type:
        case "boolean":
            flags: NDArray[Any] = native == 1
            return flags
        case "dateTimeSeconds":
            return native.astype("datetime64[s]")
        case "dateTimeMilliseconds":
            return _milliseconds(native)
        case "dateTimeMicroseconds":
            return _ntp(native, 1_000_000, "us")
        case "dateTimeNanoseconds":
            return _ntp(native, 1_000_000_000, "ns")
        case _:
            return native


def _milliseconds(native: NDArray[np.uint64]) -> NDArray[np.datetime64]:
    times = native.view("datetime64[ms]")
    beyond = native > _MOST
    if beyond.any():
        times[beyond] = np.datetime64("NaT")
    return times


def _odd_integer(column: NDArray[Any], length: int, *, signed: bool) -> NDArray[Any]:
    """Reduced-size integers of 3, 5, 6 or 7 octets (RFC 7011, 6.2)."""
    octets = np.frombuffer(np.ascontiguousarray(column).tobytes(), dtype=np.uint8).reshape(-1, length)
    fill = np.where(octets[:, :1] & 0x80, 0xFF, 0).astype(np.uint8) if signed else np.uint8(0)
    wide = np.empty((len(octets), 8), dtype=np.uint8)
    wide[:, : 8 - length] = fill
    wide[:, 8 - length :] = octets
    return wide.view(">i8" if signed else ">u8").reshape(-1).astype(np.int64 if signed else np.uint64)


def _ntp(native: NDArray[np.uint64], per_second: int, unit: str) -> NDArray[np.datetime64]:
    """64-bit NTP time: seconds since 1900 and a binary fraction (RFC 7011, 6.1.9)."""
    seconds = (native >> np.uint64(32)).astype(np.int64) - NTP_TO_UNIX_S
    fraction = ((native & np.uint64(0xFFFFFFFF)) * np.uint64(per_second)) >> np.uint64(32)
    # As nanoseconds 64 bits end in 2262; NTP's era ends in 2036, and before 1970 they are negative.
    return (seconds * per_second + fraction.astype(np.int64)).view(f"datetime64[{unit}]")
