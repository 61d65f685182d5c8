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
from typing import BinaryIO, cast

from attrs import define, frozen
from rich.console import Console
from rich.progress import Progress

from meter.batching import Batcher, Draft
from sapflow.cli.contents import OTHERS, ExporterStats, tally
from sapflow.errors import MalformedMessage, SapflowError
from sapflow.flows.captures import HEAD_BYTES, Datagrams, TcpSegments, is_capture, read_capture
from sapflow.flows.datagrams.netflow5 import HEADER as V5_HEADER
from sapflow.flows.datagrams.netflow5 import RECORD_BYTES as V5_RECORD_BYTES
from sapflow.flows.datagrams.parking import Allowance
from sapflow.flows.datagrams.session import DatagramSession, Protocol, protocol_of
from sapflow.flows.limits import FlowLimits

READ_BYTES = 256 << 10
MAX_DATAGRAM_BYTES = 65_535
IPFIX_BEGINS = b"\x00\x0a"
MAX_EXPORTERS = 10_000
"""Of a file, that are known at once, and that are told apart in stats."""
MAX_WAITING_BYTES = 64 << 20
"""In batches of all exporters that are not full yet."""
MAX_FAULTS = 100
"""That are told one by one."""


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
def opened(path: Path, *, output: Path | None = None) -> Iterator[BinaryIO]:
    """A file ('-': standard input), with a progress bar where somebody watches. Raises SapflowError.

    There is none where records come out on the terminal, which are to see themselves; with `output` they do not.
    """
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    console = Console(stderr=True)
    with ExitStack() as stack:
        # Only what goes wrong in opening is caught here: what is done with the file has errors of its own.
        try:
            if console.is_terminal and (output is not None or not sys.stdout.isatty()):
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


_Key = tuple[str, Protocol, bool]


@define
class _Exporter:
    name: str
    place: int
    """Among all, as they began."""
    stats: ExporterStats
    batcher: Batcher
    session: DatagramSession | None


class Decoder:
    """Arrivals in, self-contained batches out; `stats` is filled when wanted.

    Memory is bounded however many exporters a file has: those silent longest are forgotten with their templates, as at
    the UDP door.
    """

    def __init__(self, *, batch_bytes: int, limits: FlowLimits | None = None, tally: bool = False) -> None:
        self.stats: dict[str, ExporterStats] = {}
        self.faults: list[str] = []
        """The first of them, and how many more there were."""
        self.forgotten = 0
        """Exporters that made room for others."""
        self._limits = limits or FlowLimits()
        self._batch_bytes = batch_bytes
        self._tally = tally
        self._exporters: dict[_Key, _Exporter] = {}
        """The one heard of last is the last."""
        self._allowance = Allowance()
        self._waiting_bytes = 0
        self._untold = 0
        self._begun = 0

    def feed(self, arrival: Arrival) -> Iterator[tuple[str, Draft]]:
        """Take an arrival: the exporter's batches that are full by it."""
        key = (arrival.exporter, arrival.protocol, arrival.is_datagram)
        if arrival.begins and key in self._exporters:
            yield from self._end(key)
        exporter = self._exporters.pop(key, None)
        if exporter is None:
            exporter = self._begin(arrival)
            while len(self._exporters) >= MAX_EXPORTERS:
                self.forgotten += 1
                yield from self._end(next(iter(self._exporters)))
        self._exporters[key] = exporter
        yield from self._take(arrival, exporter)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            for other in self._exporters.values():
                yield from self._flushed(other)

    def _take(self, arrival: Arrival, exporter: _Exporter) -> Iterator[tuple[str, Draft]]:
        batcher = exporter.batcher
        exporter.stats.bytes += len(arrival.data)
        if batcher.fault is not None:
            return
        before = batcher.waiting_bytes
        drafts: list[Draft | None] = []
        if exporter.session is not None:
            exporter.stats.datagrams += 1
            drafts += batcher.feed_all(exporter.session.take([arrival.data], arrival.time_s or time.time()))
        else:
            drafts.append(batcher.feed(arrival.data))
        if batcher.fault is not None:
            self._fault(exporter, batcher.fault)
            drafts.append(batcher.flush())
        self._waiting_bytes += batcher.waiting_bytes - before
        for draft in drafts:
            if draft is not None:
                yield self._out(exporter, draft)

    def flush(self) -> Iterator[tuple[str, Draft]]:
        """Nothing more comes: what is left, and the last of the stats."""
        for key in sorted(self._exporters, key=lambda key: self._exporters[key].place):
            yield from self._end(key)
        if self._untold:
            self.faults.append(f"and {self._untold:,} more")
            self._untold = 0

    def _begin(self, arrival: Arrival) -> _Exporter:
        name = f"{arrival.exporter} {arrival.protocol}"
        if name not in self.stats and len(self.stats) >= MAX_EXPORTERS:
            name = f"{OTHERS} {arrival.protocol}"
        stats = self.stats.setdefault(name, ExporterStats(arrival.protocol))
        session = DatagramSession(arrival.protocol, self._limits, self._allowance) if arrival.is_datagram else None
        self._begun += 1
        batcher = Batcher(self._limits, batch_bytes=self._batch_bytes)
        return _Exporter(arrival.exporter, self._begun, stats, batcher, session)

    def _end(self, key: _Key) -> Iterator[tuple[str, Draft]]:
        exporter = self._exporters.pop(key)
        yield from self._flushed(exporter)
        self._settle(exporter)

    def _flushed(self, exporter: _Exporter) -> Iterator[tuple[str, Draft]]:
        self._waiting_bytes -= exporter.batcher.waiting_bytes
        draft = exporter.batcher.flush()
        if draft is not None:
            yield self._out(exporter, draft)

    def _out(self, exporter: _Exporter, draft: Draft) -> tuple[str, Draft]:
        if self._tally:
            tally(exporter.stats, draft)
        return exporter.name, draft

    def _tell(self, fault: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)
        else:
            self._untold += 1

    def _fault(self, exporter: _Exporter, fault: MalformedMessage) -> None:
        exporter.stats.errors[fault.reason] += 1
        self._tell(f"{exporter.name}: {fault}; what came before it was taken")

    def _settle(self, exporter: _Exporter) -> None:
        name, stats, batcher, session = exporter.name, exporter.stats, exporter.batcher, exporter.session
        if refused := batcher.counts.refused_sets:
            stats.errors.update(refused)
            self._tell(f"{name}: {refused.total()} set(s) left out that cannot be read: {dict(refused)}")
        if session is None:
            stats.lost += batcher.counts.lost_records
            stats.undecodable_sets += batcher.counts.undecodable_sets
            if batcher.fault is None and batcher.partial_bytes:
                what = MalformedMessage("the data end inside a message", offset=batcher.counts.bytes, reason="cut")
                self._fault(exporter, what)
            return
        session.close()
        stats.lost += session.lost
        stats.undecodable_sets += sum(session.parked)
        stats.errors.update(session.counts.malformed)
        stats.skipped.update(session.skipped)
        if session.counts.last_fault is not None:
            count = sum(session.counts.malformed.values())
            dropped = "datagram(s), or parts of them, dropped"
            self._tell(f"{name}: {count} {dropped}, the last for: {session.counts.last_fault}")
