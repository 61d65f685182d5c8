"""Data records as numpy columns: the joined data sets of one template, seen through a structured dtype.

Types (RFC 7011, 6.1): integers and addresses of version 4 as native unsigned integers, whatever their reduced size;
times as datetime64 of their own unit; addresses of version 6, MAC addresses and octets of fixed length as void of that
width; elements of variable length as object arrays of bytes. A length that its type cannot have gives raw bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from sapflow.errors import MalformedMessage
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import InformationElement, Registry, registry
from sapflow.flows.session import Session
from sapflow.flows.structured import holds_lists
from sapflow.flows.templates import Field, Template, variable_records
from sapflow.flows.wire import FIRST_DATA_SET, MESSAGE_AND_SET, MESSAGE_HEADER, SET_HEADER, VARIABLE_LENGTH

Column = NDArray[Any]
NTP_TO_UNIX_S = 2_208_988_800

MAX_SNAPSHOTS = 64
"""How often the templates of lists may change within data decoded at once; lists after that are left undecoded."""

_UNSIGNED = {"unsigned8", "unsigned16", "unsigned32", "unsigned64"}
_SIGNED = {"signed8", "signed16", "signed32", "signed64"}


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


@define
class _Gathered:
    domain: int
    template: Template
    pieces: list[bytes] = field(factory=list)
    firsts: list[int] = field(factory=list)
    counts: list[int] = field(factory=list)
    times: list[int] = field(factory=list)
    templates: Mapping[int, Template] = field(factory=dict)


@define
class _Gathering:
    """What is gathered; of a template with lists only until templates change, for they mean others from then on."""

    found: dict[tuple[int, int], _Gathered] = field(factory=dict)
    _closed: list[_Gathered] = field(factory=list)
    _listing: list[tuple[int, int]] = field(factory=list)
    _snapshots: dict[int, Mapping[int, Template]] = field(factory=dict)
    _snapshots_left: int = MAX_SNAPSHOTS

    def begin(self, domain: int, template: Template, known: Mapping[int, Template]) -> _Gathered:
        item = self.found[domain, id(template)] = _Gathered(domain, template)
        if holds_lists(template):
            self._listing.append((domain, id(template)))
            item.templates = self._snapshot(domain, known)
        return item

    def templates_changed(self) -> None:
        self._closed += [self.found.pop(key) for key in self._listing]
        self._listing.clear()

    def gathered(self) -> list[_Gathered]:
        return [*self._closed, *self.found.values()]

    def _snapshot(self, domain: int, known: Mapping[int, Template]) -> Mapping[int, Template]:
        now = {key & 0xFFFF: template for key, template in known.items() if key >> 16 == domain}
        last = self._snapshots.get(domain, {})
        if len(now) == len(last) and all(key in last and last[key].raw == now[key].raw for key in now):
            return last
        if not self._snapshots_left:
            return {}
        self._snapshots_left -= 1
        self._snapshots[domain] = now
        return now


def decode(data: bytes, session: Session | None = None) -> list[FlowBatch]:
    """Whole self-contained messages to columns, one FlowBatch for each template.

    Of one whose records have lists there are more when templates changed between them. Sets whose template is not
    known are left out. Raises MalformedMessage for what is not IPFIX.
    """
    gathered = _gather(data, session or Session(FlowLimits()))
    return [_columns(item) for item in gathered]


def _gather(data: bytes, session: Session) -> list[_Gathered]:
    gathering = _Gathering()
    found = gathering.found
    at, end, ordinal = 0, len(data), 0
    unpack = MESSAGE_AND_SET.unpack_from
    last = end - MESSAGE_AND_SET.size
    while at < end:
        if at <= last:
            _, length, export_time, _, domain, set_id, set_length = unpack(data, at)
            if set_length + 16 == length and set_id >= FIRST_DATA_SET and set_length >= 4 and at + length <= end:
                template = session.templates.get(domain << 16 | set_id)
                if template is not None and template.record_bytes:
                    count = (set_length - 4) // template.record_bytes
                    item = found.get((domain, id(template)))
                    if item is None:
                        item = gathering.begin(domain, template, session.templates)
                    body = at + 20
                    item.pieces.append(data[body : body + count * template.record_bytes])
                    item.firsts.append(ordinal)
                    item.counts.append(count)
                    item.times.append(export_time)
                    ordinal += count
                    at += length
                    continue
        at, ordinal = _gather_message(data, at, session, gathering, ordinal)
    return gathering.gathered()


def _gather_message(data: bytes, start: int, session: Session, gathering: _Gathering, ordinal: int) -> tuple[int, int]:
    """One message of several sets, or of records that vary, or with templates: walked first, then its sets."""
    if len(data) - start < MESSAGE_HEADER.size:
        raise MalformedMessage("a message header is cut off", offset=start, reason="truncated")
    _, length, export_time, _, domain = MESSAGE_HEADER.unpack_from(data, start)
    message = data[start : start + max(length, 1)]
    before = dict(session.templates)
    walk = session.walk(message)
    if walk.fault is not None:
        fault = walk.fault
        raise MalformedMessage(fault.what, offset=start + fault.offset, reason=fault.reason)
    at = MESSAGE_HEADER.size
    learned = before
    while at < len(message):
        set_id, size = SET_HEADER.unpack_from(message, at)
        body, stop = at + SET_HEADER.size, at + size
        if set_id >= FIRST_DATA_SET:
            template = learned.get(domain << 16 | set_id)
            if template is not None:
                item = gathering.found.get((domain, id(template))) or gathering.begin(domain, template, learned)
                item.times.append(export_time)
                ordinal = _gather_set(message, body, stop, item, ordinal)
        elif set_id in (2, 3):
            # Sets see the templates that stand before them in the message.
            part = Session(FlowLimits())
            part.templates = dict(learned)
            head = MESSAGE_HEADER.pack(10, MESSAGE_HEADER.size + size, 0, 0, domain)
            part.walk(head + message[at:stop])
            learned = {
                key: session.templates[key]
                if key in session.templates and session.templates[key].raw == template.raw
                else template
                for key, template in part.templates.items()
            }
            gathering.templates_changed()
        at = stop
    return start + length, ordinal


def _gather_set(message: bytes, body: int, stop: int, item: _Gathered, ordinal: int) -> int:
    template = item.template
    if template.record_bytes:
        count = (stop - body) // template.record_bytes
        item.pieces.append(message[body : body + count * template.record_bytes])
    else:
        rows = list(variable_records(message, body, stop, template))
        count = len(rows)
        item.pieces.extend(message[a:b] for spans in rows for a, b in spans)
    item.firsts.append(ordinal)
    item.counts.append(count)
    return ordinal + count


def _columns(item: _Gathered) -> FlowBatch:
    template = item.template
    names, elements = _names(template)
    total = sum(item.counts)
    if template.record_bytes:
        table = np.frombuffer(b"".join(item.pieces), dtype=_dtype(template))
        columns = {
            name: _fixed(table[f"f{index}"], element, spec.length)
            for index, (name, element, spec) in enumerate(zip(names, elements, template.fields, strict=True))
        }
    else:
        width = len(template.fields)
        columns = {
            name: _loose(item.pieces[index::width], element, spec)
            for index, (name, element, spec) in enumerate(zip(names, elements, template.fields, strict=True))
        }
    order = np.repeat(np.array(item.firsts, dtype=np.int64), item.counts)
    starts = np.cumsum([0, *item.counts[:-1]], dtype=np.int64)
    order += np.arange(total, dtype=np.int64) - np.repeat(starts, item.counts)
    export_times = np.repeat(np.array(item.times, dtype=np.int64), item.counts)
    return FlowBatch(item.domain, template, elements, columns, order, item.templates, export_times)


@lru_cache(maxsize=1024)
def _names_of(fields: tuple[Field, ...], known: Registry) -> tuple[tuple[str, ...], tuple[InformationElement, ...]]:
    elements = tuple(known.lookup(spec.pen, spec.id) for spec in fields)
    seen: dict[str, int] = {}
    names = []
    for element in elements:
        seen[element.name] = times = seen.get(element.name, 0) + 1
        names.append(element.name if times == 1 else f"{element.name}_{times}")
    return tuple(names), elements


def _names(template: Template) -> tuple[tuple[str, ...], tuple[InformationElement, ...]]:
    return _names_of(template.fields, registry())


def _dtype(template: Template) -> np.dtype[Any]:
    return _dtype_of(template.fields, registry())


@lru_cache(maxsize=1024)
def _dtype_of(fields: tuple[Field, ...], known: Registry) -> np.dtype[Any]:
    return np.dtype(
        [(f"f{index}", _wire_type(known.lookup(spec.pen, spec.id), spec.length)) for index, spec in enumerate(fields)]
    )


def _wire_type(element: InformationElement, length: int) -> str:
    kind = element.type
    if length in (1, 2, 4, 8):
        if kind in _UNSIGNED or (kind == "ipv4Address" and length == 4) or (kind == "boolean" and length == 1):
            return f">u{length}"
        if kind in _SIGNED:
            return f">i{length}"
    if kind in ("float32", "float64") and length in (4, 8):
        return f">f{length}"
    if (kind == "dateTimeSeconds" and length == 4) or (kind == "dateTimeMilliseconds" and length == 8):
        return f">u{length}"
    if kind in ("dateTimeMicroseconds", "dateTimeNanoseconds") and length == 8:
        return ">u8"
    return f"V{length}"


def _fixed(column: Column, element: InformationElement, length: int) -> Column:
    if column.dtype.kind == "V":
        if element.type in _UNSIGNED | _SIGNED and 1 <= length <= 8:
            return _odd_integer(column, length, signed=element.type in _SIGNED)
        return column
    native = column.astype(column.dtype.newbyteorder("="))
    match element.type:
        case "boolean":
            flags: Column = native == 1
            return flags
        case "dateTimeSeconds":
            return native.astype("datetime64[s]")
        case "dateTimeMilliseconds":
            return native.astype(np.int64).view("datetime64[ms]")
        case "dateTimeMicroseconds":
            return _ntp(native, 1_000_000, "us")
        case "dateTimeNanoseconds":
            return _ntp(native, 1_000_000_000, "ns")
        case _:
            return native


def _odd_integer(column: Column, length: int, *, signed: bool) -> Column:
    """Reduced-size integers of 3, 5, 6 or 7 octets (RFC 7011, 6.2)."""
    octets = np.frombuffer(np.ascontiguousarray(column).tobytes(), dtype=np.uint8).reshape(-1, length)
    fill = np.where(octets[:, :1] & 0x80, 0xFF, 0).astype(np.uint8) if signed else np.uint8(0)
    wide = np.empty((len(octets), 8), dtype=np.uint8)
    wide[:, : 8 - length] = fill
    wide[:, 8 - length :] = octets
    return wide.view(">i8" if signed else ">u8").reshape(-1).astype(np.int64 if signed else np.uint64)


def _ntp(native: Column, per_second: int, unit: str) -> Column:
    """64-bit NTP time: seconds since 1900 and a binary fraction (RFC 7011, 6.1.9)."""
    seconds = (native >> np.uint64(32)).astype(np.int64) - NTP_TO_UNIX_S
    fraction = ((native & np.uint64(0xFFFFFFFF)) * np.uint64(per_second)) >> np.uint64(32)
    if unit == "ns":
        # 64 bits of nanoseconds end in 2262; NTP's era ends in 2036, and before 1970 they are negative.
        return (seconds * per_second + fraction.astype(np.int64)).view("datetime64[ns]")
    return (seconds * per_second + fraction.astype(np.int64)).view("datetime64[us]")


def _loose(values: list[bytes], element: InformationElement, spec: Field) -> Column:
    """A column of a template whose records vary: fixed elements become typed all the same."""
    if spec.length == 0:
        return np.zeros(len(values), "V0")
    if spec.length != VARIABLE_LENGTH:
        table = np.frombuffer(b"".join(values), dtype=np.dtype(_wire_type(element, spec.length)))
        return _fixed(table, element, spec.length)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
