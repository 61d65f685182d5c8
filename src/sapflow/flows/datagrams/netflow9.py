"""NetFlow v9 to IPFIX, set by set (RFC 3954; RFC 7011 for what comes out).

What becomes of templates is in `netflow9_layouts`, of records in `netflow9_records`. Sets whose template is not known
yet are parked, within bounds, until it comes. A set that is malformed costs itself only; a template that is malformed,
or an exporter that begins anew, ends what its number meant until then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Sequence

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.clocks import header_ms
from sapflow.flows.datagrams.netflow9_layouts import OPTIONS, PAIR, TEMPLATES, TRIPLE, Layout, parse_layout
from sapflow.flows.datagrams.netflow9_records import ROOM, Head, Run, timed, trim, varying_pieces, without_padding
from sapflow.flows.datagrams.parking import Key, Parking
from sapflow.flows.datagrams.reboots import Reboots
from sapflow.flows.ipfix.encode import make_message, make_set
from sapflow.flows.ipfix.sequences import SequenceCounter
from sapflow.flows.ipfix.templates import variable_starts
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import FIRST_DATA_SET, SET_HEADER

VERSION = 9
HEADER = struct.Struct("!HHIIII")
"""version, count of records, uptime (ms), unix seconds, sequence, source id."""
_HEADER_AND_SET = struct.Struct("!HHIIIIHH")
_U16 = struct.Struct("!H")


@define
class _Making:
    """What is made of one datagram."""

    head: Head
    made: list[bytes] = field(factory=list)
    pending: list[tuple[int, list[bytes]]] = field(factory=list)
    """Sets of records of fixed length in their order, those of one template that follow on each other together: made at
    the end, when it is known how many records there are, or when a template is defined otherwise."""
    values: int = 0
    """Of records that may have more of them than bytes."""


@define
class Netflow9:
    """One exporter's v9 datagrams; `sequences` is what was lost, by source id (packets)."""

    limits: FlowLimits = FlowLimits()
    on_fault: Callable[[MalformedMessage], None] = lambda _: None
    """Told of each set that is malformed, which costs that set only."""
    records: int = 0
    numbered: int = 0
    """Datagrams whose sequence number was followed."""
    ignored_sets: int = 0
    template_changes: int = 0
    """How often a template was defined that was not known so, or is no more."""
    definitions: int = 0
    """Templates that came, whether they were known or not."""
    sequences: dict[int, SequenceCounter] = field(factory=dict)
    parking: Parking[Head] = field(factory=Parking)
    _layouts: dict[Key, Layout] = field(factory=dict)
    _template_bytes: int = 0
    _numbers: dict[int, int] = field(factory=dict)
    _reboots: Reboots = field(factory=Reboots)

    def run_of(self, datagram: bytes) -> Hashable:
        """Whether it is of one data set of a known template, as those are that `translate_all` takes together."""
        if len(datagram) < _HEADER_AND_SET.size:
            return None
        version, _, _, _, _, domain, set_id, length = _HEADER_AND_SET.unpack_from(datagram)
        if version != VERSION or length + HEADER.size != len(datagram):
            return None
        layout = self._layouts.get((domain, set_id))
        return True if layout is not None and layout.source.record_bytes else None

    def translate_all(self, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """Datagrams of one run; of those that just follow on the records of a template are made together."""
        made: list[bytes] = []
        runs: dict[Key, Run] = {}
        for datagram in datagrams:
            _, records, uptime, seconds, number, domain, set_id, _ = _HEADER_AND_SET.unpack_from(datagram)
            key = (domain, set_id)
            layout, counter = self._layouts.get(key), self.sequences.get(domain)
            if layout is not None and counter is not None and counter.advance(number, 1, uptime):
                self.numbered += 1
                size = layout.source.record_bytes
                count = (len(datagram) - _HEADER_AND_SET.size) // size
                body = datagram[_HEADER_AND_SET.size : _HEADER_AND_SET.size + count * size]
                head = Head(domain, uptime, header_ms(seconds, 0, received_s), records)
                runs.setdefault(key, Run()).add(without_padding(body, size, count - records), head)
                continue
            made += self._runs(runs)
            try:
                made.append(self.translate(datagram, received_s))
            except MalformedMessage as fault:
                self.on_fault(fault)
        made += self._runs(runs)
        return b"".join(made)

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The IPFIX messages of a datagram, and of what was parked for the templates it brings.

        Raises MalformedMessage, before anything has changed, for what is no v9 datagram.
        """
        if len(datagram) < HEADER.size:
            raise MalformedMessage("a NetFlow v9 header is cut off", offset=0, reason="truncated")
        version, count, uptime, seconds, number, domain = HEADER.unpack_from(datagram)
        if version != VERSION:
            raise MalformedMessage(f"version {version}, not 9", offset=0, reason="version")
        if domain not in self.sequences and len(self.sequences) >= self.limits.max_domains:
            raise MalformedMessage(f"more than {self.limits.max_domains:,} sources", offset=16, reason="domains")
        counter = self.sequences.setdefault(domain, SequenceCounter())
        counter.follow(number, 1, uptime)
        self.numbered += 1
        head = Head(domain, uptime, header_ms(seconds, 0, received_s), count)
        making = _Making(head, [self._forgotten(key, head) for key in self._reboots.stale(domain, counter)])
        self._sets(datagram, making)
        return b"".join(making.made)

    def template_sets(self) -> list[bytes]:
        """v9 datagrams that say all templates anew, for a file that outlives the process."""
        datagrams = []
        for (domain, _), layout in self._layouts.items():
            flowset = make_set(layout.kind, layout.source.raw)
            datagrams.append(HEADER.pack(VERSION, 1, 0, 0, 0, domain) + flowset)
        return datagrams

    def restore(self, datagrams: Sequence[bytes]) -> bytes:
        """Learn what `template_sets` gave: the templates as IPFIX messages. Raises MalformedMessage."""
        made: list[bytes] = []
        for datagram in datagrams:
            if len(datagram) < HEADER.size:
                raise MalformedMessage("a NetFlow v9 header is cut off", offset=0, reason="truncated")
            making = _Making(Head(HEADER.unpack_from(datagram)[5], 0, 0, 0))
            self._sets(datagram, making)
            made += making.made
        return b"".join(made)

    def refresh(self) -> bytes:
        """All templates as IPFIX messages."""
        return b"".join(
            self._message(domain, layout.made.set_id, layout.made.raw, 0, 0)
            for (domain, _), layout in self._layouts.items()
        )

    def _sets(self, datagram: bytes, making: _Making) -> None:
        at, end = HEADER.size, len(datagram)
        counted = 0
        while end - at >= SET_HEADER.size:
            set_id, length = SET_HEADER.unpack_from(datagram, at)
            if length < SET_HEADER.size or length > end - at:
                if any(datagram[at:end]):  # some fill their datagrams up with zeros
                    what = f"set {set_id} says {length:,} bytes, but {end - at:,} are left of its datagram"
                    self.on_fault(MalformedMessage(what, offset=at, reason="set"))
                break
            body = datagram[at + SET_HEADER.size : at + length]
            try:
                if set_id in (TEMPLATES, OPTIONS):
                    counted += self._learn(body, set_id, at + SET_HEADER.size, making)
                elif set_id >= FIRST_DATA_SET:
                    counted += self._data(set_id, body, making)
                else:
                    self.ignored_sets += 1
            except MalformedMessage as fault:
                self.on_fault(fault)
            at += length
        self._finish(making, counted)

    def _finish(self, making: _Making, counted: int) -> None:
        """Make what is pending; `counted` is how many records, and templates, the datagram seems to have."""
        excess = counted - making.head.records
        pending, making.pending = making.pending, []
        head = making.head
        for number, bodies in pending:
            layout = self._layouts[head.domain, number]
            if excess > 0:
                excess = trim(bodies, layout.source.record_bytes, excess)
            making.made += self._pieces(layout, timed(layout, bodies, [head]), head)

    def _learn(self, body: bytes, kind: int, offset: int, making: _Making) -> int:
        """How many templates the set has. Raises MalformedMessage, after which the one at fault is no more."""
        at = learned = 0
        least = TRIPLE.size if kind == OPTIONS else PAIR.size
        while len(body) - at >= least:
            number = _U16.unpack_from(body, at)[0]
            if number < FIRST_DATA_SET and not any(body[at:]):
                break  # padding
            key = (making.head.domain, number)
            known = self._layouts.get(key)
            if known is not None and known.kind == kind and body.startswith(known.source.raw, at):
                at += len(known.source.raw)
            else:
                at = self._redefine(key, body, at, kind, offset, making)
            learned += 1
            self.definitions += 1
            self._reboots.defined(key)
        return learned

    def _redefine(self, key: Key, body: bytes, at: int, kind: int, offset: int, making: _Making) -> int:
        """A template that is new, or not as it was: where the next begins."""
        self._finish(making, 0)
        try:
            layout, at = parse_layout(body, at, kind, offset, self.limits)
            self._admit(key, layout, offset)
        except MalformedMessage:
            if key in self._layouts:
                making.made.append(self._forgotten(key, making.head))
                self._reboots.forgotten(key)
            raise
        self._define(key, layout, making)
        return at

    def _admit(self, key: Key, layout: Layout, offset: int) -> None:
        """The bounds hold for what is made, since those behind have the same. Raises MalformedMessage."""
        known, limits = self._layouts.get(key), self.limits
        size = self._template_bytes + len(layout.made.raw) - (len(known.made.raw) if known is not None else 0)
        count = len(self._layouts) + (known is None)
        if count > limits.max_templates or size > limits.max_template_bytes:
            what = f"more than {limits.max_templates:,} templates, or {limits.max_template_bytes:,} bytes of them"
            raise MalformedMessage(what, offset=offset, reason="templates")

    def _define(self, key: Key, layout: Layout, making: _Making) -> None:
        known = self._layouts.get(key)
        self._template_bytes += len(layout.made.raw) - (len(known.made.raw) if known is not None else 0)
        self.template_changes += 1
        self._layouts[key] = layout
        head = making.head
        making.made.append(self._message(head.domain, layout.made.set_id, layout.made.raw, 0, head.now_ms))
        for body, its_head in self.parking.take(key):
            then = _Making(its_head, values=making.values)
            try:
                self._finish(then, self._data(key[1], body, then))
            except MalformedMessage as fault:
                self.parking.misfit()
                self.on_fault(fault)
            making.made += then.made
            making.values = then.values

    def _forgotten(self, key: Key, head: Head) -> bytes:
        """The message by which those behind forget a template as well."""
        layout = self._layouts.pop(key)
        self._template_bytes -= len(layout.made.raw)
        self.template_changes += 1
        return self._message(key[0], layout.made.set_id, PAIR.pack(key[1], 0), 0, head.now_ms)

    def _data(self, number: int, body: bytes, making: _Making) -> int:
        """How many records the set seems to have. Raises MalformedMessage; it has then given nothing."""
        head, key = making.head, (making.head.domain, number)
        layout = self._layouts.get(key)
        if layout is None:
            self.parking.park(key, body, head)
            return 0
        if size := layout.source.record_bytes:
            count = len(body) // size
            if not making.pending or making.pending[-1][0] != number:
                making.pending.append((number, []))
            making.pending[-1][1].append(body[: count * size])
            return count
        starts = variable_starts(body, 0, len(body), layout.source)
        self._count_values(layout, len(starts), making)
        pieces = varying_pieces(layout, body, starts, head)
        self._finish(making, 0)
        making.made += [self._message(head.domain, number, piece, count, head.now_ms) for piece, count in pieces]
        self.records += len(starts)
        return len(starts)

    def _count_values(self, layout: Layout, records: int, making: _Making) -> None:
        """Raises MalformedMessage for more than a message may have, which only elements without octets can reach."""
        if layout.made.shape.sparse:
            values, most = making.values + records * len(layout.made.fields), self.limits.max_values_per_message
            if values > most:
                what = (
                    f"{values:,} values in one datagram (limit {most:,}): records of template {layout.source.id} have "
                )
                what += f"{len(layout.made.fields):,} elements, most of length 0"
                raise MalformedMessage(what, offset=0, reason="values")
            making.values = values

    def _runs(self, runs: dict[Key, Run]) -> list[bytes]:
        made = [message for key, run in runs.items() for message in self._run(key, run)]
        runs.clear()
        return made

    def _run(self, key: Key, run: Run) -> list[bytes]:
        """The messages of sets of fixed-length records, which are made together."""
        layout = self._layouts.get(key)
        return self._pieces(layout, timed(layout, run.bodies, run.heads), run.heads[-1]) if layout and run.heads else []

    def _pieces(self, layout: Layout, records: bytes, head: Head) -> list[bytes]:
        """Records of fixed length in as few messages as hold them."""
        made = []
        size = layout.made.record_bytes
        room = ROOM // size * size
        for at in range(0, len(records), room):
            part = records[at : at + room]
            made.append(self._message(head.domain, layout.made.id, part, len(part) // size, head.now_ms))
        self.records += len(records) // size
        return made

    def _message(self, domain: int, set_id: int, body: bytes, records: int, now_ms: int) -> bytes:
        number = self._numbers.get(domain, 0)
        self._numbers[domain] = (number + records) & 0xFFFFFFFF
        return make_message(make_set(set_id, body), domain=domain, sequence=number, export_time=now_ms // 1000)
