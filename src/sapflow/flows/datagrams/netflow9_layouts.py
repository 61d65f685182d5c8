"""Templates of NetFlow v9 (RFC 3954, 5.2 and 6.1), and the IPFIX templates that are made of them.

Element numbers below 32,768 are IPFIX's own. Higher ones, which IPFIX has no room for, become elements of an
enterprise (`ENTERPRISES`, else Cisco), less 32,768 (ntop's: as it numbers them in IPFIX). Scopes become the elements
that mean the same.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from attrs import frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.encode import make_template
from sapflow.flows.ipfix.shapes import Kept, Shape, make_shape
from sapflow.flows.ipfix.templates import Template
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import FIRST_DATA_SET, MAX_MESSAGE_BYTES

TEMPLATES, OPTIONS = 0, 1
CISCO = 9
ENTERPRISES = {56_701: 25_461, 56_702: 25_461, **dict.fromkeys(range(57_552, 57_944), 35_632)}
"""Enterprises of v9 types above 32,767: Palo Alto's App-ID and User-ID, ntop's."""
NTOP, NTOP_OFFSET = 35_632, 57_472
"""nProbe numbers its elements in v9 as in IPFIX, but for this."""
SCOPES = {1: 144, 2: 10, 3: 141, 4: 143, 5: 145}
"""System, Interface, Line Card, Cache, Template (RFC 3954, 6.1) as IPFIX elements."""
END_UPTIME, START_UPTIME = 21, 22
PAIR = struct.Struct("!HH")
TRIPLE = struct.Struct("!HHH")
_NUMBER_BYTES = 2


@frozen
class Layout:
    """How records of one v9 template are read, and the IPFIX template of what is made of them."""

    kind: int
    """Of the set that the template came in: TEMPLATES or OPTIONS."""
    source: Template
    made: Template
    times: tuple[tuple[int, int], ...] = ()
    """(offset, length) in the record of each time of uptime that an absolute one is made of; start, then end."""
    reads: np.dtype[np.void] | None = None
    writes: np.dtype[np.void] | None = None
    """Records of fixed length with such times, as they came and as they are made."""


@frozen
class _Plan:
    """A layout of any number: exporters send the same fields under many, and again and again."""

    kind: int
    source: Shape
    made: Shape
    times: tuple[tuple[int, int], ...] = ()
    reads: np.dtype[np.void] | None = None
    writes: np.dtype[np.void] | None = None

    def layout(self, number: int) -> Layout:
        source, made = Template(number, self.source), Template(number, self.made)
        return Layout(self.kind, source, made, self.times, self.reads, self.writes)


_plans: Kept[tuple[int, bytes, int], _Plan] = Kept()
"""By kind, the template's octets without its number, and how many fields it may have."""


def parse_layout(body: bytes, at: int, kind: int, offset: int, limits: FlowLimits) -> tuple[Layout, int]:
    """One template record: its layout, and where the next begins. Raises MalformedMessage."""
    start = at
    if kind == TEMPLATES:
        number, count = PAIR.unpack_from(body, at)
        scopes, at = 0, at + PAIR.size
    else:
        number, scope_bytes, option_bytes = TRIPLE.unpack_from(body, at)
        if scope_bytes % 4 or option_bytes % 4:
            what = f"options template {number} has lengths that are not of whole fields"
            raise MalformedMessage(what, offset=offset + start, reason="template")
        scopes, count, at = scope_bytes // 4, (scope_bytes + option_bytes) // 4, at + TRIPLE.size
    if number < FIRST_DATA_SET:
        raise MalformedMessage(f"template id {number}; ids begin at 256", offset=offset + start, reason="template")
    if not 1 <= count <= limits.max_fields_per_template or len(body) - at < count * PAIR.size:
        what = f"template {number} of {count:,} fields in {len(body) - at:,} bytes"
        raise MalformedMessage(what, offset=offset + start, reason="template_fields")
    at += count * PAIR.size
    key = (kind, body[start + _NUMBER_BYTES : at], limits.max_fields_per_template)
    plan = _plans.get(key)
    if plan is None:
        plan = _plan(*key, scopes, count)
        _plans.keep(key, plan, 2 * count)
    layout = plan.layout(number)
    if not 1 <= layout.source.min_record_bytes <= MAX_MESSAGE_BYTES - 64:
        what = f"records of template {number} would be at least {layout.source.min_record_bytes:,} bytes"
        raise MalformedMessage(what, offset=offset + start, reason="template")
    return layout, at


def _plan(kind: int, raw: bytes, max_fields: int, scopes: int, count: int) -> _Plan:
    pairs = PAIR.iter_unpack(raw[-count * PAIR.size :])
    fields = [_element(element, length, index < scopes) for index, (element, length) in enumerate(pairs)]
    # An options template without a scope (some send one) is in IPFIX a template like any other.
    plain = make_template(FIRST_DATA_SET, fields, scopes=scopes).shape
    source = make_shape(raw, scopes, plain.fields)
    times = _times(source)
    has_absolute = any(element in (152, 153) and not pen for pen, element, _ in fields)
    if len(times) < 2 or has_absolute or len(fields) + 2 > max_fields:
        return _Plan(kind, source, plain)
    made = make_template(FIRST_DATA_SET, [*fields, (0, 152, 8), (0, 153, 8)], scopes=scopes).shape
    if not source.record_bytes:
        return _Plan(kind, source, made, times)
    return _Plan(kind, source, made, times, *_dtypes(source.record_bytes, times))


@lru_cache(maxsize=1024)
def _dtypes(size: int, times: tuple[tuple[int, int], ...]) -> tuple[np.dtype[np.void], np.dtype[np.void]]:
    (start, start_bytes), (end, end_bytes) = times
    reads = np.dtype(
        {
            "names": ["whole", "start", "end"],
            "formats": [f"V{size}", f">u{start_bytes}", f">u{end_bytes}"],
            "offsets": [0, start, end],
            "itemsize": size,
        }
    )
    return reads, np.dtype([("whole", f"V{size}"), ("start", ">u8"), ("end", ">u8")])


def _element(kind: int, length: int, is_scope: bool) -> tuple[int, int, int]:
    if is_scope:
        return (0, SCOPES.get(kind, kind & 0x7FFF), length)
    if kind & 0x8000:
        pen = ENTERPRISES.get(kind, CISCO)
        return (pen, kind - NTOP_OFFSET if pen == NTOP else kind & 0x7FFF, length)
    return (0, kind, length)


def _times(template: Shape) -> tuple[tuple[int, int], ...]:
    """Where start and end are, when both are there, 4 or 8 bytes long: of records that vary, which fields they are."""
    if not template.record_bytes:
        found = {item.id: index for index, item in enumerate(template.fields) if not item.pen and item.length in (4, 8)}
        if START_UPTIME in found and END_UPTIME in found:
            return ((found[START_UPTIME], 0), (found[END_UPTIME], 0))
        return ()
    places: dict[int, tuple[int, int]] = {}
    at = 0
    for item in template.fields:
        if not item.pen and item.id in (START_UPTIME, END_UPTIME) and item.length in (4, 8):
            places[item.id] = (at, item.length)
        at += item.length
    return (places[START_UPTIME], places[END_UPTIME]) if len(places) == 2 else ()
