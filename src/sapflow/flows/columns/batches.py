"""Data records as numpy columns: the data sets of templates with the same fields, seen through structured dtypes.

Types (RFC 7011, 6.1): integers and times as `typed` makes them; addresses, MAC addresses and octets of fixed length as
void of that width; elements of variable length as VariableColumn. A length that its type cannot have gives raw bytes.

Templates that differ in id alone make one batch, and those that differ in domain as well are converted with them:
records under thousands of template ids cost little more than those of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define
from numpy.typing import NDArray

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.few import Few, is_small
from sapflow.flows.columns.layouts import Layout
from sapflow.flows.columns.ranges import ranges
from sapflow.flows.columns.sets import Gathering, LikeSets
from sapflow.flows.columns.tables import Column, Stack
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import InformationElement

if TYPE_CHECKING:
    import pyarrow

    from sapflow.flows.columns.records import Context


_NO_TEMPLATES: Mapping[int, Template] = {}
_NO_TIMES, _NO_IDS, _NO_DOMAINS = np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint32)


@define(eq=False)
class FlowBatch:
    """Records of one domain, column by column, whose templates have the same fields: of one template, as a rule.

    What a view makes of them may be of several domains, and of templates of any fields. Nobody changes it; it is not
    frozen, for a message may be of thousands, and it would take three times as long to make.
    """

    domain: int
    template: Template
    """The first of theirs: all but its id is the same in the others (`template_ids`)."""
    elements: tuple[InformationElement, ...]
    columns: dict[str, Column]
    """By element name; a name that is repeated in the template gets `_2`, `_3`, …"""
    order: NDArray[np.int64]
    """Each record's place among all records of the data decoded."""
    templates: Mapping[int, Template] = _NO_TEMPLATES
    """What its lists refer to, by id: the templates of its domain as they were then. Without lists, none."""
    export_times: NDArray[np.int64] = _NO_TIMES
    """When each record was exported, in seconds since 1970; empty for a batch that was not decoded from messages."""
    template_ids: NDArray[np.uint16] = _NO_IDS
    """The template of each record; empty when all are of `template`."""
    domains: NDArray[np.uint32] = _NO_DOMAINS
    """The observation domain of each record; empty when all are of `domain`: only what was joined has several."""

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
        order, times, ids, domains = self.order[which], self.export_times, self.template_ids, self.domains
        times, ids = times[which] if len(times) else times, ids[which] if len(ids) else ids
        domains = domains[which] if len(domains) else domains
        return FlowBatch(self.domain, self.template, elements, columns, order, self.templates, times, ids, domains)

    def to_arrow(self, context: Context | None = None) -> pyarrow.RecordBatch:
        """The records for Arrow, without copying where its layout is ours (see `sapflow.flows.columns.arrow`).

        With a context its fields (`_org`, `_exporter`, …) are columns too.
        """
        from sapflow.flows.columns.arrow import record_batch

        return record_batch(self, context)


def joined(batches: Sequence[FlowBatch]) -> FlowBatch:
    """The records of some batches, of one behind those of another, without their columns. There must be a batch."""
    first = batches[0]
    counts = [batch.records for batch in batches]
    domains, ids = [batch.domain for batch in batches], [batch.template.id for batch in batches]
    template_ids, each_domain, times = _NO_IDS, _NO_DOMAINS, _NO_TIMES
    if len(set(ids)) > 1 or any(len(batch.template_ids) for batch in batches):
        template_ids = np.repeat(np.array(ids, np.uint16), counts)
        _put(template_ids, [batch.template_ids for batch in batches], counts)
    if len(set(domains)) > 1 or any(len(batch.domains) for batch in batches):
        each_domain = np.repeat(np.array(domains, np.uint32), counts)
        _put(each_domain, [batch.domains for batch in batches], counts)
    if any(len(batch.export_times) for batch in batches):
        times = np.zeros(sum(counts), np.int64)
        _put(times, [batch.export_times for batch in batches], counts)
    order = np.concatenate([batch.order for batch in batches])
    return FlowBatch(first.domain, first.template, (), {}, order, _NO_TEMPLATES, times, template_ids, each_domain)


def _put(into: NDArray[Any], parts: Sequence[NDArray[Any]], counts: Sequence[int]) -> None:
    """Write those parts that are not empty where they belong."""
    first = 0
    for part, count in zip(parts, counts, strict=True):
        if len(part):
            into[first : first + count] = part
        first += count


def decode(data: bytes, session: Session | None = None) -> list[FlowBatch]:
    """Whole self-contained messages to columns, in the order that their templates are first used.

    There is one FlowBatch for all templates of a domain that have the same fields; of those whose records have lists
    there are more when templates changed between them. Sets whose template is not known are left out.
    Raises MalformedMessage for what is not IPFIX, with the offset in `data`.
    """
    gathering = Gathering(session or Session(FlowLimits()))
    gathered = gathering.gather(data)
    by_layout: dict[Layout, list[LikeSets]] = {}
    for like in gathered:
        by_layout.setdefault(like.layout, []).append(like)
    stack = Stack(by_layout)
    faults = _read(data, stack)
    if gathering.fault is not None:
        faults.append(gathering.fault)
    if faults:
        raise min(faults, key=lambda fault: fault.offset)
    del gathering
    batches = dict(zip(map(id, stack.members), _batches(data, stack), strict=True))
    return [batches[id(like)] for like in gathered]


def _read(data: bytes, stack: Stack) -> list[MalformedMessage]:
    """Find the records of all tables and make their columns, or say what is wrong in some."""
    few = Few(data, stack)
    faults = []
    for table in stack.tables:
        try:
            match is_small(table), bool(table.template.record_bytes):
                case True, True:
                    few.add_fixed(table)
                case True, False:
                    few.add_varying(table)
                case False, True:
                    table.read_fixed(data, stack)
                case _:
                    table.read_varying(data, stack)
        except MalformedMessage as fault:
            faults.append(fault)
    if not faults:
        few.read()
    return faults


def _batches(data: bytes, stack: Stack) -> Iterator[FlowBatch]:
    """One for each member of the stack."""
    in_turn = np.zeros(len(stack.turns), np.int64)
    in_turn[stack.turns] = stack.counts
    order = ranges((np.cumsum(in_turn) - in_turn)[stack.turns], stack.counts)
    times = np.repeat(stack.times, stack.counts)
    octets = np.frombuffer(data, np.uint8)
    ids = octets[stack.bodies - 4].astype(np.uint16) << 8 | octets[stack.bodies - 3]
    usual = np.repeat(np.array([like.template.id for like in stack.members], np.uint16), stack.sets)
    others = np.concatenate([[0], np.cumsum(ids != usual)])[stack.ends].tolist()
    where = zip(stack.rows(), stack.ends.tolist(), others, strict=True)
    begin = first = others_before = 0
    for table in stack.tables:
        start = begin
        for like in table.members:
            stop, last, others_now = next(where)
            columns = table.columns
            if len(table.members) > 1:
                columns = {name: column[begin - start : stop - start] for name, column in columns.items()}
            yield FlowBatch(
                like.domain,
                like.template,
                table.layout.elements,
                columns,
                order[begin:stop],
                like.templates,
                times[begin:stop],
                np.repeat(ids[first:last], stack.counts[first:last]) if others_now > others_before else _NO_IDS,
            )
            begin, first, others_before = stop, last, others_now
