"""Records of many layouts, a few of each, as columns: fields of one kind are converted together, whosever they are.

A call of numpy costs as much as some hundred values. Exporters of thousands of templates whose fields all differ, which
are hostile or broken, would cost so many calls for each; here they cost some for each kind of field, of which there are
few. Octets of unusual width are a kind each: as many kinds need many bytes.
"""

from __future__ import annotations

import numpy as np
from attrs import define, field

from sapflow.flows.columns.layouts import PLACE, Kind
from sapflow.flows.columns.ranges import Offsets, ranges
from sapflow.flows.columns.tables import Column, Stack, Table
from sapflow.flows.columns.typed import typed
from sapflow.flows.columns.variable import VariableColumn, padded, spans, windows
from sapflow.flows.ipfix.templates import record_anchors

FEW_RECORDS = 512
"""A table of fewer records of fixed length is read together with others."""
FEW_VALUES = 256
"""A table of no more values of variable length is walked value by value, and read together with others."""


@define
class _Fields:
    """Fields of one kind."""

    tables: list[int] = field(factory=list)
    """The table of each."""
    names: list[str] = field(factory=list)
    places: list[int] = field(factory=list)
    """As a layout has them."""


def is_small(table: Table) -> bool:
    """Whether a table is to be read with others."""
    shape = table.template.shape
    return table.records < FEW_RECORDS if shape.record_bytes else table.records * len(shape.gaps) <= FEW_VALUES


class Few:
    """Tables that are read together. An anchor is where a run of fixed fields begins in some record."""

    def __init__(self, data: bytes, stack: Stack) -> None:
        self._data = data
        self._stack = stack
        self._fixed: list[Table] = []
        self._varying: list[Table] = []
        self._anchors: list[int] = []
        """Of the records that vary."""
        self._lengths: list[int] = []
        """Of the element that ends where the run begins."""
        self._counts: list[int] = []
        """Records that vary of each set."""
        self._bodies: list[int] = []
        self._stops: list[int] = []
        """Of all sets, as lists: an array's slice takes longer than what is in it."""

    def add_fixed(self, table: Table) -> None:
        """A table of records of fixed length."""
        self._fixed.append(table)

    def add_varying(self, table: Table) -> None:
        """Find a table's records. Raises MalformedMessage."""
        if not self._bodies:
            self._bodies, self._stops = self._stack.bodies.tolist(), self._stack.stops.tolist()
        first, stop = table.first, table.stop
        bodies, stops = self._bodies[first:stop], self._stops[first:stop]
        counts = record_anchors(self._data, bodies, stops, table.template, self._anchors, self._lengths)
        table.records = sum(counts)
        self._counts += counts
        self._varying.append(table)

    def read(self) -> None:
        """Make the columns of all tables."""
        tables = [*self._fixed, *self._varying]
        if not tables:
            return
        self._stack.counts[_sets_of(self._varying)] = self._counts
        records = np.array([table.records for table in tables])
        runs = np.array([len(table.template.shape.gaps) for table in tables])
        firsts = np.cumsum(records * runs) - records * runs
        anchors = np.concatenate([self._fixed_anchors(), np.array(self._anchors, np.intp)])
        lengths = np.zeros(len(anchors), np.intp)
        lengths[len(anchors) - len(self._lengths) :] = self._lengths
        octets = padded(self._data)
        for kind, fields in _by_kind(tables).items():
            which = np.array(fields.tables)
            run, offset = np.divmod(np.array(fields.places, np.intp), PLACE)
            counts = records[which]
            at = ranges(firsts[which] + run, counts, runs[which] if self._varying else None)
            begins = anchors[at]
            values: Column
            if kind is None:
                values = spans(octets, begins - lengths[at], lengths[at])
            else:
                begins += np.repeat(offset, counts)
                values = typed(windows(octets, begins, kind.length).view(kind.wire), kind)
            begin = 0
            part = values.part if isinstance(values, VariableColumn) else None
            for index, name, end in zip(fields.tables, fields.names, np.cumsum(counts).tolist(), strict=True):
                tables[index].columns[name] = values[begin:end] if part is None else part(begin, end)
                begin = end

    def _fixed_anchors(self) -> Offsets:
        """Where each record of fixed length begins."""
        if not self._fixed:
            return np.zeros(0, np.intp)
        sets = [table.stop - table.first for table in self._fixed]
        sizes = np.repeat([table.template.record_bytes for table in self._fixed], sets)
        which = _sets_of(self._fixed)
        return ranges(self._stack.bodies[which], self._stack.counts[which], sizes)


def _sets_of(tables: list[Table]) -> Offsets:
    """The places of all their sets."""
    firsts = np.array([table.first for table in tables], np.intp)
    return ranges(firsts, np.array([table.stop for table in tables], np.intp) - firsts)


_NOT_YET = np.zeros(0)


def _by_kind(tables: list[Table]) -> dict[Kind | None, _Fields]:
    """The fields of all tables; their columns have their places then, and no values."""
    kinds: dict[Kind | None, _Fields] = {}
    for index, table in enumerate(tables):
        table.columns = dict.fromkeys(table.layout.names, _NOT_YET)
        layout = table.layout
        for kind, name, place in zip(layout.kinds, layout.names, layout.places, strict=True):
            fields = kinds.get(kind)
            if fields is None:
                fields = kinds[kind] = _Fields()
            fields.tables.append(index)
            fields.names.append(name)
            fields.places.append(place)
    return kinds
