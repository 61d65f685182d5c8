"""A schema for people: the same few columns for the flows of every exporter, whatever elements it used.

Which columns there are, and which element each comes from, is in `schema`. Every column is there for every exporter, of
the same type; a value that was not told is masked (times: NaT). A record of both directions of a conversation becomes
two rows, one for each direction, so that every row is traffic from `src_addr` to `dst_addr`.
"""

from __future__ import annotations

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from sapflow.flows.columns.batches import FlowBatch
from sapflow.flows.columns.records import Context
from sapflow.flows.columns.tables import Column
from sapflow.flows.ipfix.telling import says_rates
from sapflow.flows.meaning.fields import REVERSE, Fields, Made, made_column, plain
from sapflow.flows.meaning.moments import flow_times
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
    if batch.template.scope_count or says_rates(batch.template):
        batch = _emptied(batch)
    fields = Fields(batch)
    columns = _forward(batch, fields, context or Context(), booted_ms, names)
    rows = np.arange(batch.records)
    backward, which = _backward(fields, columns, batch, booted_ms)
    if len(which):
        columns = {name: _joined(columns[name], backward[name][which]) for name in columns}
        rows = np.concatenate([rows, which])
        places = np.argsort(batch.order[rows], kind="stable")
        columns = {name: column[places] for name, column in columns.items()}
        rows = rows[places]
    if scale:
        for name in ("bytes", "packets"):
            counter = columns[name]
            made = scaled(np.ma.getdata(counter), columns["sampling"])
            columns[f"scaled_{name}"] = np.ma.array(made, mask=np.ma.getmaskarray(counter) | np.ma.getmaskarray(made))
    shown: dict[str, Column] = {name: plain(columns[name]) for name in ORDER if name in columns}
    return batch.rows(rows, shown, tuple(ELEMENTS[name] for name in shown))


def _forward(batch: FlowBatch, fields: Fields, context: Context, booted_ms: int | None, names: bool) -> Columns:
    count = batch.records
    start, end = flow_times(fields, batch.export_times, booted_ms)
    rates = made_column(batch, RATE)
    columns: Columns = {
        "exporter": np.full(count, address_of(context.exporter)),
        "domain": np.full(count, batch.domain, np.uint32),
        "start": start,
        "end": end,
        "sampling": own_rates(fields) if rates is None else rates,
        "reverse": np.zeros(count, np.bool_),
        "tcp_flags": _tcp_flags(fields),
    }
    columns |= {name: _number(fields, number) for name, number in NUMBERS.items()}
    columns |= {name: _address(fields, elements) for name, elements in ADDRESSES.items()}
    columns |= {name: _mac(fields, element) for name, element in MACS.items()}
    columns |= {name: _text(batch, fields, elements) for name, elements in TEXTS.items()}
    if names:
        columns |= {name: _made_text(batch, made) for name, made in JOINED.items()}
    return columns


def _backward(
    fields: Fields, forward: Columns, batch: FlowBatch, booted_ms: int | None
) -> tuple[Columns, NDArray[np.int64]]:
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
    columns["reverse"] = np.ones(batch.records, np.bool_)
    start, end = flow_times(fields, batch.export_times, booted_ms, REVERSE)
    start = np.where(np.isnat(start), forward["start"] + _delay(fields), start)
    columns["start"], columns["end"] = start, np.where(np.isnat(end), forward["end"], end)
    return columns, which


def _number(fields: Fields, number: Number) -> Made:
    values = np.zeros(fields.records, np.uint64)
    told = np.zeros(fields.records, np.bool_)
    for name in number.elements:
        found = fields.integers(name)
        if found is None:
            continue
        fresh = ~told if number.or_zero else values == 0
        values[fresh] = found[fresh].astype(np.uint64)
        told[:] = True
        if number.or_zero:
            break
    dtype = DTYPES[number.kind]
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
        nonzero = found[:, :10].any(axis=1) | found[:, 12:].any(axis=1)
        fresh = ~told | (~some & nonzero)
        octets[fresh] = found[fresh]
        some |= nonzero
        told[:] = True
    return np.ma.array(octets.view("V16").reshape(-1), mask=~told)


def _mac(fields: Fields, element: str) -> Made:
    found = fields.octets(element, 6)
    octets = np.zeros((fields.records, 6), np.uint8) if found is None else np.ascontiguousarray(found)
    return np.ma.array(octets.view("V6").reshape(-1), mask=np.full(fields.records, found is None))


def _text(batch: FlowBatch, fields: Fields, elements: tuple[str, ...]) -> Made:
    joined = made_column(batch, elements[0])
    if joined is not None:
        return joined
    for name in elements:
        found = fields.texts(name)
        if found is not None:
            return np.ma.array(np.array(found, dtype=np.str_), mask=[not text for text in found])
    return np.ma.array(np.full(fields.records, ""), mask=True)


def _made_text(batch: FlowBatch, name: str) -> Made:
    made = made_column(batch, name)
    return np.ma.array(np.full(batch.records, ""), mask=True) if made is None else made


def _tcp_flags(fields: Fields, prefix: str = "") -> Made:
    """tcpControlBits; of YAF, the first packet's flags with those of the rest."""
    flags = _number(fields, Number("unsigned16", (f"{prefix}tcpControlBits",)))
    first, rest = fields.integers(f"{prefix}initialTCPFlags"), fields.integers(f"{prefix}unionTCPFlags")
    if first is None or rest is None or not np.ma.getmaskarray(flags).all():
        return flags
    return np.ma.array((first | rest).astype(np.uint16), mask=np.zeros(fields.records, np.bool_))


def _delay(fields: Fields) -> NDArray[np.timedelta64]:
    """How long after the first packet the first of the other direction came (YAF)."""
    found = fields.integers("reverseFlowDeltaMilliseconds")
    ms = np.zeros(fields.records, np.int64) if found is None else found.astype(np.int64)
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

    scale: bool = False
    names: bool = False
    booted_ms: Told[None, int] = field(factory=Told)

    def apply(self, batch: FlowBatch, context: Context) -> FlowBatch:
        """The flows of a batch under common names."""
        if batch.template.scope_count:
            booted = Fields(batch).times("systemInitTimeMilliseconds")
            if booted is not None and len(booted):
                for domain in (batch.domain, None):
                    self.booted_ms.put(context, domain, None, int(booted.view(np.int64)[-1]))
        booted_ms = self.booted_ms.get(context, batch.domain, None)
        return view(batch, context, scale=self.scale, names=self.names, booted_ms=booted_ms)
