"""A schema for people: the same few columns for the flows of every exporter, whatever elements it used.

Which columns there are, and which element each comes from, is in `schema`. Every column is there for every exporter, of
the same type; a value that was not told is masked (times: NaT). A record of both directions of a conversation becomes
two rows, one for each direction, so that every row is traffic from `src_addr` to `dst_addr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context
from sapflow.flows.columns.tables import Column
from sapflow.flows.ipfix.telling import tells
from sapflow.flows.meaning.fields import REVERSE, Fields, Made, Which, plain
from sapflow.flows.meaning.moments import Clock, flow_times
from sapflow.flows.meaning.sampling import RATE, own_rates, scaled
from sapflow.flows.meaning.schema import (
    ADDRESSES,
    DTYPES,
    ELEMENTS,
    JOINED,
    MACS,
    NUMBERS,
    ONE_WAY,
    ORDER,
    REVERSED,
    SWAPPED,
    TEXTS,
    Number,
)
from sapflow.flows.meaning.told import Told, address_of

Columns = dict[str, Made]


def view(
    batch: FlowBatch,
    context: Context | None = None,
    *,
    scale: bool = False,
    names: bool = False,
    booted_ms: int | None = None,
) -> FlowBatch:
    """The flows of a batch under common names; of options data, an empty batch of the same columns.

    Columns are those of `ELEMENTS`, without `scaled_bytes` and `scaled_packets` unless `scale`, and without those of
    `JOINED` unless `names`: numpy arrays, masked where a value was not told, `start` and `end` datetime64[us] (NaT),
    addresses void of 16 octets with IPv4 mapped (RFC 4291, 2.5.5.2), `sampling` float64 (NaN). `booted_ms` is when the
    exporter started, for exporters whose times are those of its uptime.
    """
    return views([batch], context, scale=scale, names=names, booted_ms=booted_ms)


def views(
    batches: Sequence[FlowBatch],
    context: Context | None = None,
    *,
    scale: bool = False,
    names: bool = False,
    booted_ms: int | Mapping[int, int] | None = None,
) -> FlowBatch:
    """The flows of one exporter's batches as `view` shows them, in the order that they came, options data left out.

    There must be a batch. Of many batches it takes little more time than of one with all their records.
    `booted_ms` may be told for each observation domain.
    """
    flows = [batch for batch in batches if not tells(batch.template)] or [_emptied(batches[0])]
    fields = Fields(flows)
    booted = (
        booted_ms if isinstance(booted_ms, Mapping) else dict.fromkeys({batch.domain for batch in flows}, booted_ms)
    )
    clock = Clock(fields.export_times(), _each_domain(fields, booted))
    columns = _forward(fields, context or Context(), clock, names)
    backward, which = _backward(fields, columns, clock)
    rows = np.arange(fields.records)
    if len(which):
        columns = {name: _joined(columns[name], backward[name][which]) for name in columns}
        rows = np.concatenate([rows, which])
    if len(which) or len(flows) > 1:
        places = np.argsort(fields.whole.order[rows], kind="stable")
        columns = {name: column[places] for name, column in columns.items()}
        rows = rows[places]
    if scale:
        for name in ("bytes", "packets"):
            counter = columns[name]
            made = scaled(np.ma.getdata(counter), columns["sampling"])
            columns[f"scaled_{name}"] = np.ma.array(made, mask=np.ma.getmaskarray(counter) | np.ma.getmaskarray(made))
    shown: dict[str, Column] = {name: plain(columns[name]) for name in ORDER if name in columns}
    return fields.whole.rows(rows, shown, tuple(ELEMENTS[name] for name in shown))


def _each_domain(fields: Fields, booted_ms: Mapping[int, int | None]) -> NDArray[np.int64]:
    """When the exporter of each record started; 0 where nobody told."""
    booted = [booted_ms.get(batch.domain) or 0 for batch in fields.batches]
    return np.repeat(np.array(booted, np.int64), fields.counts)


def _forward(fields: Fields, context: Context, clock: Clock, names: bool) -> Columns:
    count = fields.records
    start, end = flow_times(fields, clock)
    rates = own_rates(fields)
    if (made := fields.made_floats(RATE)) is not None:
        rates = np.where(np.isnan(made), rates, made)
    columns: Columns = {
        "exporter": np.full(count, address_of(context.exporter)),
        "domain": fields.domains(),
        "start": start,
        "end": end,
        "sampling": rates,
        "reverse": np.zeros(count, np.bool_),
        "tcp_flags": _tcp_flags(fields),
    }
    columns |= {name: _number(fields, number) for name, number in NUMBERS.items()}
    columns |= {name: _address(fields, elements) for name, elements in ADDRESSES.items()}
    columns |= {name: _mac(fields, element) for name, element in MACS.items()}
    columns |= {name: _text(fields, elements) for name, elements in TEXTS.items()}
    if names:
        columns |= {name: _masked([fields.made_texts(made)], count) for name, made in JOINED.items()}
    return columns


def _backward(fields: Fields, forward: Columns, clock: Clock) -> tuple[Columns, NDArray[np.int64]]:
    """The rows of the other direction, and which records have one: those that say it had octets or packets."""
    found = {name: _number(fields, number) for name, number in REVERSED.items()}
    has = (np.ma.filled(found["bytes"], 0) > 0) | (np.ma.filled(found["packets"], 0) > 0)
    which = np.flatnonzero(has)
    if not len(which):
        return {}, which
    columns = dict(forward)
    for name in ONE_WAY:
        columns[name] = _unknown(forward[name])
    for one, other in SWAPPED:
        if one in forward:
            columns[one], columns[other] = forward[other], forward[one]
    columns |= found
    columns["tcp_flags"] = _tcp_flags(fields, REVERSE)
    columns["reverse"] = np.ones(fields.records, np.bool_)
    start, end = flow_times(fields, clock, REVERSE)
    start = np.where(np.isnat(start), forward["start"] + _delay(fields), start)
    columns["start"], columns["end"] = start, np.where(np.isnat(end), forward["end"], end)
    return columns, which


def _number(fields: Fields, number: Number) -> Made:
    dtype = DTYPES[number.kind]
    values = np.zeros(fields.records, np.uint64)
    told = np.zeros(fields.records, np.bool_)
    for name in number.elements:
        found = fields.integers(name)
        if found is not None:
            fresh = found.told & (~told if number.or_zero else values == 0)
            np.copyto(values, found.values, where=fresh)
            told |= found.told
    fits = values <= np.iinfo(dtype).max
    return np.ma.array(np.where(fits, values, 0).astype(dtype), mask=~(told & fits))


def _address(fields: Fields, elements: tuple[str, ...]) -> Made:
    octets = np.zeros((fields.records, 16), np.uint8)
    told = np.zeros(fields.records, np.bool_)
    some = np.zeros(fields.records, np.bool_)
    for name in elements:
        found = fields.addresses(name)
        if found is None:
            continue
        # In templates with an element for each version, that of the other version is zero (mapped, but for its prefix).
        nonzero = found.values[:, :10].any(axis=1) | found.values[:, 12:].any(axis=1)
        fresh = found.told & (~told | (~some & nonzero))
        np.copyto(octets, found.values, where=fresh[:, None])
        some |= found.told & nonzero
        told |= found.told
    return np.ma.array(octets.view("V16").reshape(-1), mask=~told)


def _mac(fields: Fields, element: str) -> Made:
    found = fields.octets(element, 6)
    octets = np.zeros((fields.records, 6), np.uint8) if found is None else found.values
    told = np.zeros(fields.records, np.bool_) if found is None else found.told
    return np.ma.array(octets.view("V6").reshape(-1), mask=~told)


def _text(fields: Fields, elements: tuple[str, ...]) -> Made:
    """The name that a stage joined, else the first of the elements that there is."""
    return _masked([fields.made_texts(elements[0]), *map(fields.texts, elements)], fields.records)


def _masked(found: Sequence[tuple[list[str], Which] | None], records: int) -> Made:
    """Of several columns of text the first that a record has; what is empty is not known."""
    texts: list[str] = []
    known = np.zeros(records, np.bool_)
    for column in found:
        if column is not None:
            more, told = column
            texts = [old if has else new for old, new, has in zip(texts, more, known, strict=True)] if texts else more
            known |= told
    if not any(texts):
        return np.ma.array(np.full(records, ""), mask=True)
    return np.ma.array(np.array(texts, dtype=np.str_), mask=[not text for text in texts])


def _tcp_flags(fields: Fields, prefix: str = "") -> Made:
    """tcpControlBits; of YAF, the first packet's flags with those of the rest."""
    flags = _number(fields, Number("unsigned16", (f"{prefix}tcpControlBits",)))
    first, rest = fields.integers(f"{prefix}initialTCPFlags"), fields.integers(f"{prefix}unionTCPFlags")
    if first is None or rest is None:
        return flags
    unknown = np.ma.getmaskarray(flags)
    both = first.told & rest.told & unknown
    seen = np.where(both, (first.values | rest.values).astype(np.uint16), np.ma.getdata(flags))
    return np.ma.array(seen, mask=unknown & ~both)


def _delay(fields: Fields) -> NDArray[np.timedelta64]:
    """How long after the first packet the first of the other direction came (YAF)."""
    found = fields.integers("reverseFlowDeltaMilliseconds")
    ms = np.zeros(fields.records, np.int64) if found is None else found.values.astype(np.int64)
    return (ms * 1000).view("timedelta64[us]")


def _unknown(column: Made) -> Made:
    return np.ma.array(np.ma.getdata(column), mask=np.ones(len(column), np.bool_))


def _joined(one: Made, other: Made) -> Made:
    values: Made = np.concatenate([np.ma.getdata(one), np.ma.getdata(other)])
    if not (np.ma.isMaskedArray(one) or np.ma.isMaskedArray(other)):
        return values
    return np.ma.array(values, mask=np.concatenate([np.ma.getmaskarray(one), np.ma.getmaskarray(other)]))


def _emptied(batch: FlowBatch) -> FlowBatch:
    return batch.rows(slice(0), {}, ())


@define
class View:
    """The stage; from options data it learns when exporters started."""

    joins: ClassVar[bool] = True

    scale: bool = False
    names: bool = False
    booted_ms: Told[None, int] = field(factory=Told)

    def apply(self, batches: Sequence[FlowBatch], context: Context) -> list[FlowBatch]:
        """The flows of all batches under common names, as one batch."""
        for batch in batches:
            if batch.template.scope_count:
                self._learn(batch, context)
        told = {
            domain: moment
            for domain in {batch.domain for batch in batches}
            if (moment := self.booted_ms.get(context, domain, None)) is not None
        }
        return [views(batches, context, scale=self.scale, names=self.names, booted_ms=told)] if batches else []

    def _learn(self, batch: FlowBatch, context: Context) -> None:
        booted = Fields([batch]).times("systemInitTimeMilliseconds")
        if booted is not None and batch.records:
            for domain in (batch.domain, None):
                self.booted_ms.put(context, domain, None, int(booted.values.view(np.int64)[-1]))
