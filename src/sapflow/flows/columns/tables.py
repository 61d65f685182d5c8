"""Sets gathered by layout, and the records of one layout as columns when they are many: one call for each field."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from sapflow.flows.columns.layouts import Layout
from sapflow.flows.columns.ranges import ranges
from sapflow.flows.columns.sets import LikeSets
from sapflow.flows.columns.typed import typed
from sapflow.flows.columns.variable import VariableColumn, fields_of, record_starts
from sapflow.flows.ipfix.templates import Template

Column: TypeAlias = "NDArray[Any] | VariableColumn"


class Stack:
    """All sets, those of one layout after those of another, and among them those of one batch; shape (sets,) each."""

    def __init__(self, by_layout: Mapping[Layout, list[LikeSets]]) -> None:
        self.members = list(chain.from_iterable(by_layout.values()))
        """What each batch is made of."""
        self.sets = np.array([len(like.places) // 4 for like in self.members], np.intp)
        """How many sets each has."""
        self.ends = np.cumsum(self.sets)
        """Behind each one's last."""
        places = np.fromiter(chain.from_iterable(like.places for like in self.members), np.intp)
        # Of thousands of templates these are much of what is held.
        for like in self.members:
            like.places.clear()
        self.turns, self.bodies, self.stops, self.times = np.ascontiguousarray(places.reshape(-1, 4).T)
        sizes = np.array([like.template.min_record_bytes for like in self.members], np.intp)
        self.counts = (self.stops - self.bodies) // np.repeat(sizes, self.sets)
        """Records of each; of those that vary, the most that there may be, until they are found."""
        self.tables = self._tables(by_layout)

    def rows(self) -> list[int]:
        """Behind the last record of each batch."""
        rows: list[int] = np.concatenate([[0], np.cumsum(self.counts)])[self.ends].tolist()
        return rows

    def _tables(self, by_layout: Mapping[Layout, list[LikeSets]]) -> list[Table]:
        tables = []
        rows, ends = self.rows(), self.ends.tolist()
        last = -1
        first = begin = 0
        for layout, members in by_layout.items():
            last += len(members)
            stop, end = ends[last], rows[last]
            tables.append(Table(layout, members, first, stop, end - begin, members[0].template))
            first, begin = stop, end
        return tables


@define(eq=False)
class Table:
    """The records of all sets of one layout."""

    layout: Layout
    members: list[LikeSets]
    first: int
    """Its sets in the stack."""
    stop: int
    records: int
    """The sum of their counts."""
    template: Template
    """The first of its templates."""
    columns: dict[str, Column] = field(factory=dict)

    def read_fixed(self, data: bytes, stack: Stack) -> None:
        """Columns of records of fixed length."""
        bodies, counts = stack.bodies[self.first : self.stop], stack.counts[self.first : self.stop]
        ends = bodies + counts * self.template.record_bytes
        pieces = [data[body:end] for body, end in zip(bodies.tolist(), ends.tolist(), strict=True)]
        self._read([np.frombuffer(b"".join(pieces), self.layout.runs[0])], [])

    def read_varying(self, data: bytes, stack: Stack) -> None:
        """Find records that vary, and make their columns. Raises MalformedMessage."""
        bodies, stops = stack.bodies[self.first : self.stop], stack.stops[self.first : self.stop]
        turned = np.argsort(bodies)
        starts = record_starts(data, bodies[turned], stops[turned], self.template)
        firsts = np.searchsorted(starts, bodies)
        counts = np.searchsorted(starts, stops) - firsts
        stack.counts[self.first : self.stop] = counts
        self.records = int(counts.sum())
        runs, varying = fields_of(data, starts[ranges(firsts, counts)], self.template)
        fixed = [
            run.view(kind) if kind.itemsize else np.zeros(len(starts), kind)
            for run, kind in zip(runs, self.layout.runs, strict=True)
        ]
        self._read(fixed, varying)

    def _read(self, runs: list[NDArray[Any]], varying: list[VariableColumn]) -> None:
        run = 0
        for index, (name, kind) in enumerate(zip(self.layout.names, self.layout.kinds, strict=True)):
            if kind is None:
                self.columns[name] = varying[run]
                run += 1
            else:
                self.columns[name] = typed(runs[run][f"f{index}"], kind)
