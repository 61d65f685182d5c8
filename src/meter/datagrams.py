"""Exporters' datagrams into streams: one stream for each source address, port and protocol.

There is no telling an exporter to wait. When its stream may hold no more that is unacknowledged, what comes is dropped
and counted, for that exporter only. No sockets here: `udp` reads them, and says what time it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import structlog
from attrs import define, field, frozen

from meter.accounts import DatagramAccounts
from meter.batching import Batcher, Draft, telling
from meter.exporter_stream import ExporterStream, StreamSource
from meter.faults import Faults
from meter.recvmmsg import Source
from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.parking import Allowance
from sapflow.flows.datagrams.session import DatagramSession, Protocol, protocol_of
from sapflow.flows.limits import FlowLimits
from sapflow.link.account import NOTHING, Account

log = structlog.get_logger()

NO_ROOM = "no_room"
"""Records for which there was no room: as many of their exporter's were not acknowledged as may be."""

ExporterKey = tuple[str, int, Protocol]


@frozen
class DatagramSettings:
    """Bounds of an intake of datagrams."""

    batch_bytes: int = 64 << 10
    flush_interval_s: float = 1.0
    max_exporters: int = 10_000
    idle_timeout_s: float = 3600.0
    max_unacknowledged_bytes: int = 4 << 20
    max_parked_bytes: int = 64 << 20
    """Of sets that wait for their template, of all exporters together."""
    limits: FlowLimits = FlowLimits()


@define
class DatagramIntakeCounts:
    """What all exporters together have brought; never goes down, but for `exporters`."""

    exporters: int = 0
    datagrams: int = 0
    bytes: int = 0
    messages: int = 0
    records: int = 0
    batches: int = 0
    unbound: int = 0
    """Datagrams from sources that no org is bound to."""
    unknown: int = 0
    """Datagrams of no protocol that is known here."""
    malformed: int = 0
    """Datagrams, or sets and samples of them."""
    skipped: int = 0
    """Samples of sFlow, and records of samples, that gave no flow record: counters, most of them."""
    dropped_full: int = 0
    """Datagrams whose records were dropped because their exporter's stream was full."""
    evicted: int = 0
    lost_units: int = 0
    """Flows (v5), packets (v9), records (IPFIX), datagrams (sFlow) that did not come; of exporters that have left."""


@define(eq=False)
class Exporter:
    """One source's session, batch and stream."""

    key: ExporterKey
    org: str
    session: DatagramSession
    batcher: Batcher
    stream: ExporterStream
    heard_at: float
    waiting_since: float = 0.0
    owed: Account = NOTHING
    """Of what was dropped since the last batch."""
    dropped: int = 0
    reasons: Counter[str] = field(factory=Counter)
    """Of its faults, as they were counted last."""
    faults: int = 0
    skipped: int = 0
    saved_changes: int = 0
    saved_s: float = 0.0
    """What `TemplateStore` has written: after how many changes, and when (time of day)."""

    @property
    def name(self) -> str:
        """As exporters are called in records and logs."""
        return f"{self.key[0]}:{self.key[1]}"


@define
class DatagramIntake:
    """The exporters that are known, and their way onto the uplink."""

    uplink: StreamSource
    settings: DatagramSettings
    org_of: Callable[[str], str | None]
    remembered: dict[ExporterKey, list[bytes]] = field(factory=dict)
    """Templates from before a restart, by exporter; each is taken when its exporter is heard again."""
    faults: Faults = field(factory=Faults)
    counts: DatagramIntakeCounts = field(factory=DatagramIntakeCounts)
    exporters: OrderedDict[ExporterKey, Exporter] = field(factory=OrderedDict)
    _untold: dict[ExporterKey, float] = field(factory=dict)
    """Since when exporters have something to tell though no record waits."""
    parked: Allowance = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.parked = Allowance(self.settings.max_parked_bytes)

    def take(self, datagrams: Iterable[tuple[bytes, Source]], now: float, received_s: float) -> None:
        """Datagrams in the order they came. `now` is this process's clock, `received_s` the time of day."""
        by_exporter: dict[ExporterKey, list[bytes]] = {}
        for data, (address, port) in datagrams:
            protocol = protocol_of(data)
            if protocol is None:
                self.counts.unknown += 1
                continue
            by_exporter.setdefault((address, port, protocol), []).append(data)
        for key, its in by_exporter.items():
            exporter = self.exporters.get(key) or self._met(key, now)
            if exporter is None:
                self.counts.unbound += len(its)
                continue
            self._take(exporter, its, now, received_s)

    def remember(self, templates: dict[ExporterKey, list[bytes]]) -> None:
        """Templates of exporters that another process has had, in case they come here; so many as exporters may be."""
        for key, datagrams in templates.items():
            has_room = key in self.remembered or len(self.remembered) < self.settings.max_exporters
            if key not in self.exporters and has_room:
                self.remembered[key] = datagrams

    def flush(self, now: float) -> None:
        """End batches that have waited for long enough."""
        due = now - self.settings.flush_interval_s
        for key, since in list(self._untold.items()):
            if since <= due:
                self._tell(key)
        for exporter in self.exporters.values():
            if exporter.batcher.waiting_bytes and exporter.waiting_since <= due:
                self._put(exporter, exporter.batcher.flush())

    def expire(self, now: float) -> list[Exporter]:
        """Let go of exporters that have been silent for long: which."""
        gone = []
        while self.exporters:
            exporter = next(iter(self.exporters.values()))
            if exporter.heard_at > now - self.settings.idle_timeout_s:
                break
            self._leave(exporter)
            gone.append(exporter)
        return gone

    def close(self) -> None:
        """What has come is delivered; nothing more will."""
        for exporter in list(self.exporters.values()):
            self._leave(exporter)

    @property
    def lost_units(self) -> int:
        """As `counts.lost_units`, of all exporters there ever were."""
        return self.counts.lost_units + sum(exporter.session.lost for exporter in self.exporters.values())

    def _met(self, key: ExporterKey, now: float) -> Exporter | None:
        org = self.org_of(key[0])
        if org is None:
            return None
        if len(self.exporters) >= self.settings.max_exporters:
            oldest = next(iter(self.exporters.values()))
            log.warning("exporter evicted", exporter=oldest.name, limit=self.settings.max_exporters)
            self.counts.evicted += 1
            self._leave(oldest)
        address, port, protocol = key
        limits = self.settings.limits
        session = DatagramSession(protocol, limits, self.parked)
        exporter = Exporter(
            key=key,
            org=org,
            session=session,
            batcher=Batcher(limits, batch_bytes=self.settings.batch_bytes, accounts=DatagramAccounts(session)),
            stream=self.uplink.open_stream(org, f"{address}:{port}"),
            heard_at=now,
        )
        self.exporters[key] = exporter
        self.counts.exporters += 1
        known = self._restore(exporter)
        log.info("exporter met", exporter=exporter.name, org=org, protocol=protocol, templates_known=known)
        return exporter

    def _restore(self, exporter: Exporter) -> bool:
        """Give an exporter the templates that it had before a restart of ours: whether there were any."""
        known = self.remembered.pop(exporter.key, None)
        if known is None:
            return False
        try:
            for draft in exporter.batcher.feed_all(exporter.session.restore(known)):
                self._put(exporter, draft)
        except MalformedMessage as fault:
            log.warning(
                "templates not restored", exporter=exporter.name, what=str(fault), meaning="it will send them again"
            )
            exporter.session = DatagramSession(exporter.key[2], self.settings.limits, self.parked)
            exporter.batcher.accounts = DatagramAccounts(exporter.session)
            return False
        exporter.saved_changes = exporter.session.template_changes
        return True

    def _take(self, exporter: Exporter, datagrams: list[bytes], now: float, received_s: float) -> None:
        counts, session, batcher = self.counts, exporter.session, exporter.batcher
        counts.datagrams += len(datagrams)
        counts.bytes += sum(map(len, datagrams))
        exporter.heard_at = now
        self.exporters.move_to_end(exporter.key)
        full = exporter.stream.is_full(self.settings.max_unacknowledged_bytes)
        if full:
            counts.dropped_full += len(datagrams)
            exporter.dropped += len(datagrams)
            # What waited came before; behind it all is dropped that comes until there is room.
            self._put(exporter, batcher.flush())
        messages = session.take(datagrams, received_s)
        self._fault(exporter)
        if exporter.key[2] == "sflow":
            self._skip(exporter)
        if full:
            self._drop(exporter, messages)
        elif messages:
            self._pass_on(exporter, messages, now)
        if exporter.key in self.exporters and not batcher.waiting_bytes:
            self._untold.setdefault(exporter.key, now)

    def _drop(self, exporter: Exporter, messages: bytes) -> None:
        """Take what datagrams say of templates, and count what they hold."""
        batcher = exporter.batcher
        for draft in (*batcher.feed_all(messages), batcher.last()):
            if draft is not None:
                exporter.owed += draft.given_up(NO_ROOM)
        self._begin_anew_if_broken(exporter)

    def _pass_on(self, exporter: Exporter, messages: bytes, now: float) -> None:
        counts, batcher = self.counts, exporter.batcher
        if not batcher.waiting_bytes:
            exporter.waiting_since = now
        before = batcher.counts.messages, batcher.counts.records
        for draft in batcher.feed_all(messages):
            self._put(exporter, draft)
        if not self._begin_anew_if_broken(exporter):
            counts.messages += batcher.counts.messages - before[0]
            counts.records += batcher.counts.records - before[1]

    def _begin_anew_if_broken(self, exporter: Exporter) -> bool:
        fault = exporter.batcher.fault
        if fault is None:
            return False
        # Our own fault, for the session gives whole messages; it is not to cost the other exporters anything.
        log.error("exporter begun anew", exporter=exporter.name, org=exporter.org, what=str(fault))
        self.counts.malformed += 1
        self._leave(exporter)
        return True

    def _tell(self, key: ExporterKey) -> None:
        """Say what became of an exporter's records though none waits; when there is room for it."""
        exporter = self.exporters[key]
        if exporter.batcher.waiting_bytes:
            del self._untold[key]
        elif not exporter.stream.is_full(self.settings.max_unacknowledged_bytes):
            del self._untold[key]
            self._put(exporter, self._last(exporter))

    def _last(self, exporter: Exporter) -> Draft | None:
        draft = exporter.batcher.last()
        return telling(NOTHING) if draft is None and exporter.owed else draft

    def _fault(self, exporter: Exporter) -> None:
        faults = sum(exporter.session.counts.malformed.values())
        if faults == exporter.faults:
            return
        self.counts.malformed += faults - exporter.faults
        reasons = exporter.session.counts.malformed
        self.faults.count(exporter.key[0], reasons - exporter.reasons)
        exporter.reasons = reasons.copy()
        if faults & (faults - 1) == 0:  # the 1st, 2nd, 4th, 8th …: one that is always faulty fills no log
            fault = exporter.session.counts.last_fault
            log.warning(
                "datagram, or part of it, dropped",
                exporter=exporter.name,
                org=exporter.org,
                what=str(fault),
                faults=faults,
                advice="all else of it is taken; the exporter is faulty, or this is another protocol",
            )
        exporter.faults = faults

    def _skip(self, exporter: Exporter) -> None:
        skipped = exporter.session.skipped.total()
        self.counts.skipped += skipped - exporter.skipped
        exporter.skipped = skipped

    def _put(self, exporter: Exporter, draft: Draft | None) -> None:
        if draft is not None:
            exporter.stream.put_now(draft.owing(exporter.owed))
            exporter.owed = NOTHING
            self.counts.batches += 1

    def _leave(self, exporter: Exporter) -> None:
        del self.exporters[exporter.key]
        self._untold.pop(exporter.key, None)
        exporter.session.close()
        self._put(exporter, self._last(exporter))
        exporter.stream.end()
        self.counts.exporters -= 1
        self.counts.lost_units += exporter.session.lost
        log.info(
            "exporter left",
            exporter=exporter.name,
            org=exporter.org,
            records=exporter.batcher.counts.records,
            lost=exporter.session.lost,
            dropped=exporter.dropped,
        )
