"""Values out of their octets, one at a time: what a field holds, and the lists that it may hold (RFC 6313).

In JSON a list is an array of objects, whatever its kind: a basicList gives `{"<element>": value}` for each value, a
subTemplateList one object for each record, a subTemplateMultiList the records of all its entries in order. How the
members relate (the list's semantic: allOf, exactlyOneOf, …) is in the octets alone. Lists within lists are arrays
within objects.

A list is decoded whole or not at all. One that is malformed, or nested too deep, or whose template is not known raises
MalformedMessage with reason `list`, `depth` or `list_template`; rendered, it is the one object
`{"_undecoded": "<hex>", "_reason": "<reason>"}`, so that nothing is lost and the record's other fields stand.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from ipaddress import IPv6Address
from typing import TypeAlias

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.templates import Template, variable_records
from sapflow.flows.registry import InformationElement, Registry, registry
from sapflow.flows.wire import VARIABLE_LENGTH

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
Templates: TypeAlias = Callable[[int], Template | None]
"""The templates of the list's observation domain, by id."""

MAX_DEPTH = 8
"""Lists within lists, the outermost counted."""
MAX_VALUES = 16_384
"""In one list and all within it: as objects, values take a hundred times the bytes that they come in."""

_NTP_TO_UNIX_S = 2_208_988_800
_EPOCH = datetime(1970, 1, 1)
IPV4_MAPPED = bytes(10) + b"\xff\xff"
"""What stands before an IPv4 address in the 16 octets of an address of either version."""
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
"""Years 1 to 9999."""

_BASIC = struct.Struct("!BHH")
"""semantic, element id with its enterprise bit, element length."""
_PEN = struct.Struct("!I")
_SUB = struct.Struct("!BH")
"""semantic, template id."""
_ENTRY = struct.Struct("!HH")
"""template id, length with these four bytes."""


def holds_lists(template: Template) -> bool:
    """Whether records of the template need other templates of their domain, or may."""
    return not registry().list_elements.isdisjoint(template.shape.elements)


@define
class ListDecoder:
    """Decodes many lists of one observation domain; what it knows of a template it works out once."""

    templates: Templates
    elements: Registry
    depth: int = MAX_DEPTH
    _layouts: dict[Template, tuple[tuple[str, InformationElement], ...]] = field(factory=dict, init=False)

    def decode(self, kind: str, data: bytes) -> list[Value]:
        """The members of one list (RFC 6313, 4.5), `data` being all octets of its field.

        `kind` is basicList, subTemplateList or subTemplateMultiList; at most `depth` lists are nested.
        Raises MalformedMessage, with the offset in `data`.
        """
        return _List(self, data).members(kind, 0, len(data), self.depth)

    def render(self, kind: str, data: bytes) -> list[Value]:
        """The members of one list, or the one object that says why there are none. Never raises for what data say."""
        try:
            return self.decode(kind, data)
        except MalformedMessage as fault:
            return [{"_undecoded": data.hex(), "_reason": fault.reason}]

    def layout(self, template: Template) -> tuple[tuple[str, InformationElement], ...]:
        """Each field's name and element; a name that is repeated gets `_2`, `_3`, …"""
        known = self._layouts.get(template)
        if known is None:
            elements = tuple(self.elements.lookup(spec.pen, spec.id) for spec in template.fields)
            known = self._layouts[template] = tuple(zip(_distinct(elements), elements, strict=True))
        return known


def _distinct(elements: tuple[InformationElement, ...]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for element in elements:
        seen[element.name] = times = seen.get(element.name, 0) + 1
        names.append(element.name if times == 1 else f"{element.name}_{times}")
    return names


class _List:
    """One list and those within it, over the same octets."""

    def __init__(self, decoder: ListDecoder, data: bytes) -> None:
        self._decoder = decoder
        self._data = data
        # Each value has an octet of its own, unless a template has elements of length 0: those may not multiply.
        self._most = self._left = min(len(data), MAX_VALUES)

    def members(self, kind: str, at: int, end: int, depth: int) -> list[Value]:
        if depth <= 0:
            raise MalformedMessage("lists nested deeper than their limit", offset=at, reason="depth")
        match kind:
            case "basicList":
                return self._basic(at, end, depth)
            case "subTemplateList":
                return self._sub(at, end, depth)
            case "subTemplateMultiList":
                return self._multi(at, end, depth)
        raise AssertionError(kind)

    def _basic(self, at: int, end: int, depth: int) -> list[Value]:
        """RFC 6313, 4.5.1."""
        _, number, length = self._head(_BASIC, at, end)
        at += _BASIC.size
        pen = 0
        if number & 0x8000:
            (pen,) = self._head(_PEN, at, end)
            at += _PEN.size
        element = self._decoder.elements.lookup(pen, number & 0x7FFF)
        if length == 0 and at < end:
            raise _malformed(f"a basicList of {element.name} with no length, and {end - at:,} bytes of it", at)
        values: list[Value] = []
        while at < end:
            start, stop = self._span(at, end, length)
            self._count(1, at)
            values.append({element.name: self._value(element, start, stop, depth)})
            at = stop
        return values

    def _span(self, at: int, end: int, length: int) -> tuple[int, int]:
        """Where a value's octets are; of variable length they have it before them (RFC 7011, 7)."""
        start = at
        if length == VARIABLE_LENGTH:
            length, at = self._data[at], at + 1
            if length == 255:
                if end - at < 2:
                    raise _malformed("the length of a value is cut off", start)
                length, at = self._data[at] << 8 | self._data[at + 1], at + 2
        if length > end - at:
            raise _malformed(f"a value of {length:,} bytes, but {end - at:,} are left of its list", start)
        return at, at + length

    def _sub(self, at: int, end: int, depth: int) -> list[Value]:
        """RFC 6313, 4.5.2."""
        _, number = self._head(_SUB, at, end)
        return self._records(number, at + _SUB.size, end, depth)

    def _multi(self, at: int, end: int, depth: int) -> list[Value]:
        """RFC 6313, 4.5.3."""
        if at >= end:
            raise _malformed("a subTemplateMultiList without its semantic", at)
        at += 1
        records: list[Value] = []
        while at < end:
            number, length = self._head(_ENTRY, at, end)
            if not _ENTRY.size <= length <= end - at:
                raise _malformed(f"a list entry says {length:,} bytes, of 4 to {end - at:,} that it may have", at)
            records += self._records(number, at + _ENTRY.size, at + length, depth)
            at += length
        return records

    def _records(self, number: int, at: int, end: int, depth: int) -> list[Value]:
        if at == end:
            return []
        template = self._decoder.templates(number)
        if template is None:
            what = f"a list of records of template {number}, which is not known"
            raise MalformedMessage(what, offset=at, reason="list_template")
        if template.min_record_bytes < 1:
            raise _malformed(f"a list of records of template {number}, which have no length", at)
        layout = self._decoder.layout(template)
        records: list[Value] = []
        for spans in self._spans(at, end, template):
            records.append(
                {
                    name: self._value(element, start, stop, depth)
                    for (name, element), (start, stop) in zip(layout, spans, strict=True)
                }
            )
            at = spans[-1][1]
        if at != end:
            raise _malformed(f"{end - at:,} bytes after the last record of a list", at)
        return records

    def _spans(self, at: int, end: int, template: Template) -> Iterator[list[tuple[int, int]]]:
        """Each record's fields, counted before they are looked for."""
        records = variable_records(self._data, at, end, template)
        while end - at >= template.min_record_bytes:
            self._count(len(template.fields), at)
            try:
                spans = next(records)
            except MalformedMessage as fault:
                what = f"a record of template {template.id} runs past the end of its list"
                raise _malformed(what, fault.offset) from None
            yield spans
            at = spans[-1][1]

    def _value(self, element: InformationElement, start: int, stop: int, depth: int) -> Value:
        if element.is_list:
            return self.members(element.type, start, stop, depth - 1)
        return render(element.type, self._data[start:stop])

    def _head(self, layout: struct.Struct, at: int, end: int) -> tuple[int, ...]:
        if end - at < layout.size:
            raise _malformed("the head of a list is cut off", at)
        return layout.unpack_from(self._data, at)

    def _count(self, values: int, at: int) -> None:
        self._left -= values
        if self._left < 0:
            raise _malformed(f"more than {self._most:,} values in a list of {len(self._data):,} bytes", at)


def _malformed(what: str, offset: int) -> MalformedMessage:
    return MalformedMessage(what, offset=offset, reason="list")


def render(kind: str, octets: bytes) -> Value:
    """A single value of an abstract data type (RFC 7011, 6.1); as hex when its length is none that the type has."""
    return renderer(kind)(octets)


def renderer(kind: str) -> Callable[[bytes], Value]:
    """What renders the values of an abstract data type."""
    return _RENDER.get(kind, bytes.hex)


def _integer(value: bytes) -> Value:
    return int.from_bytes(value, "big") if 1 <= len(value) <= 8 else value.hex()


def _signed(value: bytes) -> Value:
    return int.from_bytes(value, "big", signed=True) if 1 <= len(value) <= 8 else value.hex()


def _float(value: bytes) -> Value:
    if len(value) not in (4, 8):
        return value.hex()
    number: float = struct.unpack("!f" if len(value) == 4 else "!d", value)[0]
    return number if math.isfinite(number) else None


def _boolean(value: bytes) -> Value:
    return value == b"\x01" if len(value) == 1 else value.hex()


def _ipv6(value: bytes) -> Value:
    return str(IPv6Address(value)) if len(value) == 16 else value.hex()


def _ip(value: bytes) -> Value:
    """An address of either version in 16 octets, IPv4 as RFC 4291, 2.5.5.2 maps it."""
    return _ipv4(value[12:]) if value.startswith(IPV4_MAPPED) else _ipv6(value)


def _ipv4(value: bytes) -> Value:
    return ".".join(map(str, value)) if len(value) == 4 else value.hex()


def _mac(value: bytes) -> Value:
    return value.hex(":") if len(value) == 6 else value.hex()


def _text(value: bytes) -> Value:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _seconds(value: bytes) -> Value:
    return _time(int.from_bytes(value, "big"), "") if len(value) == 4 else value.hex()


def _milliseconds(value: bytes) -> Value:
    if len(value) != 8:
        return value.hex()
    seconds, rest = divmod(int.from_bytes(value, "big"), 1000)
    return _time(seconds, f".{rest:03d}")


def _microseconds(value: bytes) -> Value:
    return _ntp(value, 6)


def _nanoseconds(value: bytes) -> Value:
    return _ntp(value, 9)


def _ntp(value: bytes, digits: int) -> Value:
    """64-bit NTP time (RFC 7011, 6.1.9)."""
    if len(value) != 8:
        return value.hex()
    seconds, fraction = struct.unpack("!II", value)
    return _time(seconds - _NTP_TO_UNIX_S, f".{fraction * 10**digits >> 32:0{digits}d}")


def _time(seconds: int, fraction: str) -> Value:
    if not _FIRST_S <= seconds <= _LAST_S:
        return None
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()}{fraction}Z"


_RENDER: Mapping[str, Callable[[bytes], Value]] = {
    "string": _text,
    "macAddress": _mac,
    "ipv6Address": _ipv6,
    "ipv4Address": _ipv4,
    "ipAddress": _ip,
    "boolean": _boolean,
    "dateTimeSeconds": _seconds,
    "dateTimeMilliseconds": _milliseconds,
    "dateTimeMicroseconds": _microseconds,
    "dateTimeNanoseconds": _nanoseconds,
    **dict.fromkeys(("unsigned8", "unsigned16", "unsigned32", "unsigned64"), _integer),
    **dict.fromkeys(("signed8", "signed16", "signed32", "signed64"), _signed),
    **dict.fromkeys(("float32", "float64"), _float),
}
