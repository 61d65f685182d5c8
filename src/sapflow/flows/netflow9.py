"""NetFlow v9 to IPFIX, set by set (RFC 3954; RFC 7011 for what comes out).

Element numbers below 32,768 are IPFIX's own. Higher ones, which IPFIX has no room for, become elements of an
enterprise (`ENTERPRISES`, else Cisco), less 32,768 (ntop's: as it numbers them in IPFIX). Scopes become the elements
that mean the same. Records keep all their bytes; where a template has times of the device's uptime (21, 22) the times
that they mean come behind them, as flowStart- and flowEndMilliseconds. Sets whose template is not known yet are
parked, within bounds, until it comes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from attrs import define, field, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.clocks import absolute_ms, header_ms
from sapflow.flows.encode import make_message, make_set, make_template
from sapflow.flows.limits import FlowLimits
from sapflow.flows.parking import Parking
from sapflow.flows.sequences import SequenceCounter
from sapflow.flows.templates import Template, variable_records
from sapflow.flows.wire import FIRST_DATA_SET, MAX_MESSAGE_BYTES, SET_HEADER

VERSION = 9
HEADER = struct.Struct("!HHIIII")
"""version, count of records, uptime (ms), unix seconds, sequence, source id."""
TEMPLATES, OPTIONS = 0, 1
CISCO = 9
ENTERPRISES = {56_701: 25_461, 56_702: 25_461, **dict.fromkeys(range(57_552, 57_944), 35_632)}
"""Enterprises of v9 types above 32,767: Palo Alto's App-ID and User-ID, ntop's."""
NTOP, NTOP_OFFSET = 35_632, 57_472
"""nProbe numbers its elements in v9 as in IPFIX, but for this."""
SCOPES = {1: 144, 2: 10, 3: 141, 4: 143, 5: 145}
"""System, Interface, Line Card, Cache, Template (RFC 3954, 6.1) as IPFIX elements."""
END_UPTIME, START_UPTIME = 21, 22
_PAIR = struct.Struct("!HH")
_TRIPLE = struct.Struct("!HHH")


@frozen
class _Layout:
    """How records of one v9 template are read, and the IPFIX template of what is made of them."""

    source: Template
    made: Template
    times: tuple[tuple[int, int], ...] = ()
    """(offset, length) in the record of each time of uptime that an absolute one is made of; start, then end."""


@frozen
class _Head:
    domain: int
    uptime_ms: int
    now_ms: int
    records: int


@define
class Netflow9:
    """One exporter's v9 datagrams; `sequences` is what was lost, by source id (packets)."""

    limits: FlowLimits = FlowLimits()
    records: int = 0
    ignored_sets: int = 0
    template_changes: int = 0
    """How often a template was defined that was not known so."""
    sequences: dict[int, SequenceCounter] = field(factory=dict)
    parking: Parking[_Head] = field(factory=Parking)
    _layouts: dict[tuple[int, int], _Layout] = field(factory=dict)
    _numbers: dict[int, int] = field(factory=dict)

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The IPFIX messages of a datagram, and of what was parked for the templates it brings.

        Raises MalformedMessage, after which nothing of the datagram counts but its templates before the fault.
        """
        if len(datagram) < HEADER.size:
            raise MalformedMessage("a NetFlow v9 header is cut off", offset=0, reason="truncated")
        version, count, uptime, seconds, number, domain = HEADER.unpack_from(datagram)
        if version != VERSION:
            raise MalformedMessage(f"version {version}, not 9", offset=0, reason="version")
        if domain not in self.sequences and len(self.sequences) >= self.limits.max_domains:
            raise MalformedMessage(f"more than {self.limits.max_domains:,} sources", offset=16, reason="domains")
        self.sequences.setdefault(domain, SequenceCounter()).follow(number, 1, uptime)
        head = _Head(domain, uptime, header_ms(seconds, 0, received_s), count)
        return b"".join(self._sets(datagram, head))

    def template_sets(self) -> list[bytes]:
        """v9 datagrams that say all templates anew, for a file that outlives the process."""
        datagrams = []
        for (domain, _), layout in self._layouts.items():
            kind = OPTIONS if layout.source.scope_count else TEMPLATES
            flowset = make_set(kind, layout.source.raw)
            datagrams.append(HEADER.pack(VERSION, 1, 0, 0, 0, domain) + flowset)
        return datagrams

    def restore(self, datagrams: list[bytes]) -> bytes:
        """Learn what `template_sets` gave: the templates as IPFIX messages. Raises MalformedMessage."""
        made: list[bytes] = []
        for datagram in datagrams:
            if len(datagram) < HEADER.size:
                raise MalformedMessage("a NetFlow v9 header is cut off", offset=0, reason="truncated")
            made += self._sets(datagram, _Head(HEADER.unpack_from(datagram)[5], 0, 0, 0))
        return b"".join(made)

    def refresh(self) -> bytes:
        """All templates as IPFIX messages."""
        return b"".join(
            self._message(domain, layout.made.set_id, layout.made.raw, 0, 0)
            for (domain, _), layout in self._layouts.items()
        )

    def _sets(self, datagram: bytes, head: _Head) -> list[bytes]:
        made: list[bytes] = []
        at, end = HEADER.size, len(datagram)
        counted = 0
        while end - at >= SET_HEADER.size:
            set_id, length = SET_HEADER.unpack_from(datagram, at)
            if length < SET_HEADER.size or length > end - at:
                if not any(datagram[at:end]):
                    break  # some fill their datagrams up with zeros
                what = f"set {set_id} says {length:,} bytes, but {end - at:,} are left of its datagram"
                raise MalformedMessage(what, offset=at, reason="set")
            body = datagram[at + SET_HEADER.size : at + length]
            if set_id in (TEMPLATES, OPTIONS):
                counted += self._learn(body, set_id, head, at + SET_HEADER.size, made)
            elif set_id >= FIRST_DATA_SET:
                layout = self._layouts.get((head.domain, set_id))
                if layout is None:
                    self.parking.park((head.domain, set_id), body, head)
                else:
                    counted += self._data(layout, body, head, max(0, head.records - counted), made)
            else:
                self.ignored_sets += 1
            at += length
        return made

    def _learn(self, body: bytes, kind: int, head: _Head, offset: int, made: list[bytes]) -> int:
        at = learned = 0
        least = _TRIPLE.size if kind == OPTIONS else _PAIR.size
        while len(body) - at >= least:
            if not any(body[at:]):
                break  # padding
            layout, at = _parse(body, at, kind, offset, self.limits)
            key = (head.domain, layout.source.id)
            if key not in self._layouts and len(self._layouts) >= self.limits.max_templates:
                what = f"more than {self.limits.max_templates:,} templates of one exporter"
                raise MalformedMessage(what, offset=offset, reason="templates")
            learned += 1
            known = self._layouts.get(key)
            if known is not None and known.source.raw == layout.source.raw:
                continue
            self.template_changes += 1
            self._layouts[key] = layout
            made.append(self._message(head.domain, layout.made.set_id, layout.made.raw, 0, head.now_ms))
            for waiting, its_head in self.parking.take(key):
                self._data(layout, waiting, its_head, its_head.records, made)
        return learned

    def _data(self, layout: _Layout, body: bytes, head: _Head, at_most: int, made: list[bytes]) -> int:
        if layout.source.record_bytes:
            out, count = _fixed(layout, body, head, at_most)
        else:
            out, count = _varying(layout, body, head)
        size = layout.made.record_bytes or len(out) or 1
        room = (MAX_MESSAGE_BYTES - 20) // size * size
        if room == 0 and out:
            raise MalformedMessage("a record too long for a message", offset=0, reason="record")
        for at in range(0, len(out), room or 1):
            part = out[at : at + room]
            records = len(part) // layout.made.record_bytes if layout.made.record_bytes else count
            made.append(self._message(head.domain, layout.made.id, part, records, head.now_ms))
        self.records += count
        return count

    def _message(self, domain: int, set_id: int, body: bytes, records: int, now_ms: int) -> bytes:
        number = self._numbers.get(domain, 0)
        self._numbers[domain] = (number + records) & 0xFFFFFFFF
        return make_message(make_set(set_id, body), domain=domain, sequence=number, export_time=now_ms // 1000)


def _parse(body: bytes, at: int, kind: int, offset: int, limits: FlowLimits) -> tuple[_Layout, int]:
    """One template record: its layout, and where the next begins. Raises MalformedMessage."""
    start = at
    if kind == TEMPLATES:
        number, count = _PAIR.unpack_from(body, at)
        scopes, at = 0, at + _PAIR.size
    else:
        number, scope_bytes, option_bytes = _TRIPLE.unpack_from(body, at)
        if scope_bytes % 4 or option_bytes % 4:
            what = f"options template {number} has lengths that are not of whole fields"
            raise MalformedMessage(what, offset=offset + start, reason="template")
        scopes, count, at = scope_bytes // 4, (scope_bytes + option_bytes) // 4, at + _TRIPLE.size
    if number < FIRST_DATA_SET:
        raise MalformedMessage(f"template id {number}; ids begin at 256", offset=offset + start, reason="template")
    if not 1 <= count <= limits.max_fields_per_template or len(body) - at < count * _PAIR.size:
        what = f"template {number} of {count:,} fields in {len(body) - at:,} bytes"
        raise MalformedMessage(what, offset=offset + start, reason="template_fields")
    pairs = [_PAIR.unpack_from(body, at + index * _PAIR.size) for index in range(count)]
    at += count * _PAIR.size
    layout = _layout(number, pairs, scopes, body[start:at], offset + start)
    return layout, at


def _layout(number: int, pairs: list[tuple[int, int]], scopes: int, raw: bytes, offset: int) -> _Layout:
    fields = [_element(kind, length, index < scopes) for index, (kind, length) in enumerate(pairs)]
    # An options template without a scope (some send one) is in IPFIX a template like any other.
    source = make_template(number, fields, scopes=scopes)
    if not 1 <= source.min_record_bytes <= MAX_MESSAGE_BYTES - 64:
        what = f"records of template {number} would be at least {source.min_record_bytes:,} bytes"
        raise MalformedMessage(what, offset=offset, reason="template")
    source = Template(number, scopes, source.fields, raw, source.record_bytes, source.min_record_bytes)
    times = _times(source)
    known = {item.id for item in source.fields if not item.pen}
    if len(times) < 2 or {152, 153} & known:
        return _Layout(source, make_template(number, fields, scopes=scopes))
    made = make_template(number, [*fields, (0, 152, 8), (0, 153, 8)], scopes=scopes)
    return _Layout(source, made, times)


def _element(kind: int, length: int, is_scope: bool) -> tuple[int, int, int]:
    if is_scope:
        return (0, SCOPES.get(kind, kind & 0x7FFF), length)
    if kind & 0x8000:
        pen = ENTERPRISES.get(kind, CISCO)
        return (pen, kind - NTOP_OFFSET if pen == NTOP else kind & 0x7FFF, length)
    return (0, kind, length)


def _times(template: Template) -> tuple[tuple[int, int], ...]:
    """Where start and end are, when both are there, at fixed offsets, 4 or 8 bytes long."""
    if not template.record_bytes:
        found = {item.id: index for index, item in enumerate(template.fields) if not item.pen}
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


def _fixed(layout: _Layout, body: bytes, head: _Head, at_most: int) -> tuple[bytes, int]:
    """Records of fixed length: what is made of them, and how many.

    Padding may be longer than a record: records of zeros behind all that the header counts are none.
    """
    size = layout.source.record_bytes
    count = len(body) // size
    while count > at_most and not any(body[(count - 1) * size : count * size]):
        count -= 1
    if not layout.times:
        return body[: count * size], count
    (start, start_size), (end, end_size) = layout.times
    into = np.frombuffer(
        body,
        np.dtype(
            {
                "names": ["whole", "start", "end"],
                "formats": [f"V{size}", f">u{start_size}", f">u{end_size}"],
                "offsets": [0, start, end],
                "itemsize": size,
            }
        ),
        count,
    )
    out: np.ndarray[Any, Any] = np.empty(count, np.dtype([("whole", f"V{size}"), ("start", ">u8"), ("end", ">u8")]))
    out["whole"] = into["whole"]
    out["start"] = absolute_ms(into["start"], head.uptime_ms, head.now_ms)
    out["end"] = absolute_ms(into["end"], head.uptime_ms, head.now_ms)
    return out.tobytes(), count


def _varying(layout: _Layout, body: bytes, head: _Head) -> tuple[bytes, int]:
    """Records with elements of variable length, which some put into v9 as IPFIX has them."""
    pieces: list[bytes] = []
    count = at = 0
    for spans in variable_records(body, 0, len(body), layout.source):
        stop = spans[-1][1]
        pieces.append(body[at:stop])
        for index, _ in layout.times:
            value = np.array([int.from_bytes(body[slice(*spans[index])], "big")])
            pieces.append(int(absolute_ms(value, head.uptime_ms, head.now_ms)[0]).to_bytes(8, "big"))
        count, at = count + 1, stop
    return b"".join(pieces), count
