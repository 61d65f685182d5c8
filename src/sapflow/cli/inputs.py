"""Files of flow records, whatever they are: IPFIX Files, captures, raw datagrams; and what is in them.

`arrivals` gives what exporters sent, as it came; `Decoder` makes self-contained IPFIX of it, exporter by exporter.
"""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from attrs import define, field, frozen
from rich.console import Console
from rich.progress import Progress

from meter.batching import Batcher, Draft
from sapflow.errors import MalformedMessage, SapflowError
from sapflow.flows.captures import HEAD_BYTES, Datagrams, TcpSegments, is_capture, read_capture
from sapflow.flows.datagrams.netflow5 import HEADER as V5_HEADER
from sapflow.flows.datagrams.netflow5 import RECORD_BYTES as V5_RECORD_BYTES
from sapflow.flows.datagrams.session import DatagramSession, Protocol, protocol_of
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.templates import Template, parse_template_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.registry import registry
from sapflow.flows.wire import FIRST_DATA_SET, MESSAGE_HEADER, SET_HEADER

READ_BYTES = 256 << 10
MAX_DATAGRAM_BYTES = 65_535
IPFIX_BEGINS = b"\x00\x0a"


@frozen
class Arrival:
    """Bytes as an exporter sent them: a datagram, or the next bytes of a transport session."""

    exporter: str
    data: bytes
    protocol: Protocol
    is_datagram: bool
    time_s: float | None = None
    begins: bool = False
    """A transport session begins here."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file ('-': standard input), with a progress bar where somebody watches. Raises SapflowError."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    console = Console(stderr=True)
    with ExitStack() as stack:
        # Only what goes wrong in opening is caught here: what is done with the file has errors of its own.
        try:
            if console.is_terminal and not sys.stdout.isatty():
                progress = stack.enter_context(Progress(console=console, transient=True))
                file: BinaryIO = stack.enter_context(progress.open(path, "rb"))
            else:
                file = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise SapflowError(f"{path} cannot be read: {error.strerror}") from error
        yield file


def arrivals(file: BinaryIO, name: str, skipped: Counter[str]) -> Iterator[Arrival]:
    """What a file holds, in its order; what of a capture is no flow export is counted in `skipped`.

    Raises MalformedMessage when the file's own structure is broken, SapflowError when it cannot be read.
    """
    try:
        yield from _arrivals(file, name, skipped)
    except OSError as error:
        raise SapflowError(f"{name} cannot be read: {error.strerror}") from error


def _arrivals(file: BinaryIO, name: str, skipped: Counter[str]) -> Iterator[Arrival]:
    buffered = io.BufferedReader(cast(io.RawIOBase, file), READ_BYTES) if not hasattr(file, "peek") else file
    head = cast(io.BufferedReader, buffered).peek(HEAD_BYTES)
    if is_capture(head):
        yield from _captured(buffered, skipped)
    elif head[:2] == IPFIX_BEGINS:
        begins = True
        while data := buffered.read(READ_BYTES):
            yield Arrival(name, data, "ipfix", is_datagram=False, begins=begins)
            begins = False
    else:
        yield from _raw(buffered, head, name)


def _captured(file: BinaryIO, skipped: Counter[str]) -> Iterator[Arrival]:
    datagrams, segments = Datagrams(), TcpSegments()
    for packet in read_capture(file):
        for datagram in datagrams.feed(packet):
            protocol = protocol_of(datagram.payload)
            if protocol is None:
                skipped["other_udp"] += 1
                continue
            source = f"{datagram.source}:{datagram.source_port}"
            yield Arrival(source, datagram.payload, protocol, is_datagram=True, time_s=datagram.time_us / 1e6)
        for segment in segments.feed(packet):
            source = f"{segment.source}:{segment.source_port}"
            begins = segment.first or segment.lost_bytes > 0
            yield Arrival(source, segment.payload, "ipfix", False, segment.time_us / 1e6, begins)
    datagrams.finish()
    for segment in segments.finish():
        source = f"{segment.source}:{segment.source_port}"
        yield Arrival(source, segment.payload, "ipfix", False, segment.time_us / 1e6, begins=True)
    # What is not of one kind is of the other, unless it is of neither.
    neither = {"not_udp": "other_protocol"}
    for reason, count in datagrams.skipped.items():
        skipped[neither.get(reason, reason)] += count


def _raw(file: BinaryIO, head: bytes, name: str) -> Iterator[Arrival]:
    """One datagram; or NetFlow v5 datagrams one behind the other, since they say how long they are."""
    protocol = protocol_of(head)
    if protocol is None:
        what = f"no IPFIX File, capture or flow datagram: it begins with {head[:4].hex() or 'nothing'}"
        raise MalformedMessage(what, offset=0, reason="magic")
    if protocol == "netflow5":
        while header := file.read(V5_HEADER.size):
            rest = int.from_bytes(header[2:4], "big") * V5_RECORD_BYTES
            yield Arrival(name, header + file.read(rest), protocol, is_datagram=True)
        return
    data = file.read(MAX_DATAGRAM_BYTES + 1)
    if len(data) > MAX_DATAGRAM_BYTES:
        what = f"more than one datagram of {protocol}, whose ends nothing tells: give them as a capture, or one a file"
        raise MalformedMessage(what, offset=MAX_DATAGRAM_BYTES, reason="length")
    yield Arrival(name, data, protocol, is_datagram=True)


@define
class DomainStats:
    """What one observation domain of one exporter brought."""

    messages: int = 0
    sets: int = 0
    templates: set[int] = field(factory=set)
    records: int = 0

    def as_json(self) -> dict[str, int]:
        """Figures only."""
        return {
            "messages": self.messages,
            "sets": self.sets,
            "templates": len(self.templates),
            "records": self.records,
        }


@define
class ExporterStats:
    """What one exporter brought, by observation domain."""

    protocol: Protocol
    bytes: int = 0
    datagrams: int = 0
    lost: int = 0
    undecodable_sets: int = 0
    errors: Counter[str] = field(factory=Counter)
    skipped: Counter[str] = field(factory=Counter)
    """What gave no records, by reason: counter samples of sFlow."""
    domains: dict[int, DomainStats] = field(factory=dict)


@define
class _Exporter:
    stats: ExporterStats
    batcher: Batcher
    session: DatagramSession | None


class Decoder:
    """Arrivals in, self-contained batches out; `stats` is filled when wanted."""

    def __init__(self, *, batch_bytes: int, limits: FlowLimits | None = None, tally: bool = False) -> None:
        self.stats: dict[str, ExporterStats] = {}
        self.faults: list[str] = []
        self._limits = limits or FlowLimits()
        self._batch_bytes = batch_bytes
        self._tally = tally
        self._exporters: dict[tuple[str, Protocol, bool], _Exporter] = {}

    def feed(self, arrival: Arrival) -> Iterator[tuple[str, Draft]]:
        """Take an arrival: the exporter's batches that are full by it."""
        exporter = self._exporter(arrival)
        batcher = exporter.batcher
        exporter.stats.bytes += len(arrival.data)
        if batcher.fault is not None:
            return
        drafts: list[Draft | None] = []
        if exporter.session is not None:
            exporter.stats.datagrams += 1
            drafts += batcher.feed_all(exporter.session.take([arrival.data], arrival.time_s or time.time()))
        else:
            drafts.append(batcher.feed(arrival.data))
        if batcher.fault is not None:
            self._fault(arrival.exporter, exporter, batcher.fault)
            drafts.append(batcher.flush())
        for draft in drafts:
            if draft is not None:
                yield self._out(arrival.exporter, exporter, draft)

    def flush(self) -> Iterator[tuple[str, Draft]]:
        """Nothing more comes: what is left, and the last of the stats."""
        for (name, _, _), exporter in self._exporters.items():
            draft = exporter.batcher.flush()
            if draft is not None:
                yield self._out(name, exporter, draft)
            self._settle(name, exporter)

    def _exporter(self, arrival: Arrival) -> _Exporter:
        key = (arrival.exporter, arrival.protocol, arrival.is_datagram)
        known = self._exporters.get(key)
        if known is not None and not (arrival.begins and not arrival.is_datagram):
            return known
        stats = known.stats if known is not None else ExporterStats(arrival.protocol)
        session = DatagramSession(arrival.protocol, self._limits) if arrival.is_datagram else None
        batcher = Batcher(self._limits, batch_bytes=self._batch_bytes)
        self._exporters[key] = exporter = _Exporter(stats, batcher, session)
        self.stats[f"{arrival.exporter} {arrival.protocol}"] = stats
        return exporter

    def _out(self, name: str, exporter: _Exporter, draft: Draft) -> tuple[str, Draft]:
        if self._tally:
            _tally(exporter.stats, draft)
        return name, draft

    def _fault(self, name: str, exporter: _Exporter, fault: MalformedMessage) -> None:
        exporter.stats.errors[fault.reason] += 1
        self.faults.append(f"{name}: {fault}; what came before it was taken")

    def _settle(self, name: str, exporter: _Exporter) -> None:
        stats, batcher, session = exporter.stats, exporter.batcher, exporter.session
        if refused := batcher.counts.refused_sets:
            stats.errors.update(refused)
            self.faults.append(f"{name}: {refused.total()} set(s) left out that cannot be read: {dict(refused)}")
        if session is None:
            stats.lost += batcher.counts.lost_records
            stats.undecodable_sets += batcher.counts.undecodable_sets
            if batcher.fault is None and batcher.partial_bytes:
                what = MalformedMessage("the data end inside a message", offset=batcher.counts.bytes, reason="cut")
                self._fault(name, exporter, what)
            return
        stats.lost += session.lost
        stats.undecodable_sets += sum(session.parked)
        stats.errors.update(session.counts.malformed)
        stats.skipped.update(session.skipped)
        if session.counts.last_fault is not None:
            count = sum(session.counts.malformed.values())
            dropped = "datagram(s), or parts of them, dropped"
            self.faults.append(f"{name}: {count} {dropped}, the last for: {session.counts.last_fault}")


def _tally(stats: ExporterStats, draft: Draft) -> None:
    """Count a batch message by message; the messages of its prelude are not the exporter's own."""
    session = Session()
    data, at = draft.payload, 0
    lengths = []
    while at < len(data):
        lengths.append(int.from_bytes(data[at + 2 : at + 4], "big"))
        at += lengths[-1]
    at = 0
    for index, length in enumerate(lengths):
        message = data[at : at + length]
        at += length
        walk = session.walk(message)
        domain = MESSAGE_HEADER.unpack_from(message)[4]
        found = stats.domains.setdefault(domain, DomainStats())
        found.templates.update(key & 0xFFFF for key in session.templates if key >> 16 == domain)
        if index >= len(lengths) - draft.messages:
            found.messages += 1
            found.records += walk.records
            found.sets += sum(1 for _ in _sets(message))


def _sets(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Each set's id, and where it begins and ends."""
    at = MESSAGE_HEADER.size
    while at < len(message):
        set_id, length = SET_HEADER.unpack_from(message, at)
        yield set_id, at, at + length
        at += length


def described(payload: bytes) -> Iterator[dict[str, Any]]:
    """The templates that a batch defines, in words."""
    at = 0
    while at < len(payload):
        length = int.from_bytes(payload[at + 2 : at + 4], "big")
        message = payload[at : at + length]
        domain = MESSAGE_HEADER.unpack_from(message)[4]
        for set_id, start, end in _sets(message):
            if set_id >= FIRST_DATA_SET:
                continue
            for item in parse_template_set(message, start + SET_HEADER.size, end, set_id, FlowLimits()):
                if isinstance(item, Template):
                    yield {
                        "domain": domain,
                        "template": item.id,
                        "scope_fields": item.scope_count,
                        "fields": [
                            {"name": registry().lookup(part.pen, part.id).name, "length": part.length}
                            for part in item.fields
                        ],
                    }
        at += length
