"""One exporter's datagrams of one protocol into IPFIX messages in which every data set can be decoded.

NetFlow v5 and v9 and sFlow v5 are translated; IPFIX passes unchanged, but for sets whose template has not come: those
are parked until it does. A malformed datagram costs itself only. Templates live as long as the session, which is that
of one source address and port (RFC 7011, 8.4); over UDP a definition replaces the one before, and withdrawals are
ignored (RFC 7011, 8.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.encode import make_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.netflow5 import Netflow5
from sapflow.flows.netflow9 import Netflow9
from sapflow.flows.parking import Parking
from sapflow.flows.sequences import SequenceCounter
from sapflow.flows.session import Session
from sapflow.flows.templates import Template, Withdrawal, parse_template_set
from sapflow.flows.wire import (
    FIRST_DATA_SET,
    MESSAGE_HEADER,
    OPTIONS_TEMPLATE_SET,
    SET_HEADER,
    TEMPLATE_SET,
    VERSION,
)

Protocol = Literal["netflow5", "netflow9", "ipfix"]


def protocol_of(datagram: bytes) -> Protocol | None:
    """What a datagram's first bytes say it is; None when it is nothing of ours."""
    match datagram[:2]:
        case b"\x00\x05":
            return "netflow5"
        case b"\x00\x09":
            return "netflow9"
        case b"\x00\x0a":
            return "ipfix"
        case _:
            return None


@define
class DatagramCounts:
    """What one exporter's datagrams have brought; never goes down."""

    datagrams: int = 0
    bytes: int = 0
    malformed: Counter[str] = field(factory=Counter)
    """By reason."""
    last_fault: MalformedMessage | None = None


class DatagramSession:
    """Datagrams in, IPFIX messages out; `units` of loss are the protocol's own."""

    def __init__(self, protocol: Protocol, limits: FlowLimits | None = None) -> None:
        self.protocol = protocol
        self.counts = DatagramCounts()
        self._translator: Netflow5 | Netflow9 | _Ipfix
        match protocol:
            case "netflow5":
                self._translator = Netflow5()
            case "netflow9":
                self._translator = Netflow9(limits or FlowLimits())
            case "ipfix":
                self._translator = _Ipfix(limits or FlowLimits())

    def take(self, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """Datagrams in the order they came: whole IPFIX messages. Never raises for what they say."""
        self.counts.datagrams += len(datagrams)
        self.counts.bytes += sum(map(len, datagrams))
        if isinstance(self._translator, Netflow5) and len(datagrams) > 1:
            return self._runs(self._translator, datagrams, received_s)
        return b"".join(self._one(datagram, received_s) for datagram in datagrams)

    def _runs(self, translator: Netflow5, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """v5 datagrams of the same engine and sampling go together: their columns are made at once."""
        made: list[bytes] = []
        for _, run in groupby(datagrams, key=lambda datagram: datagram[20:24]):
            together = list(run)
            try:
                made.append(translator.translate_all(together, received_s))
            except MalformedMessage:
                made += (self._one(datagram, received_s) for datagram in together)
        return b"".join(made)

    def _one(self, datagram: bytes, received_s: float) -> bytes:
        try:
            return self._translator.translate(datagram, received_s)
        except MalformedMessage as fault:
            self.counts.malformed[fault.reason] += 1
            self.counts.last_fault = fault
            return b""

    @property
    def lost(self) -> int:
        """Flows (v5), packets (v9), records (IPFIX) or datagrams (sFlow) that did not come."""
        return sum(counter.lost for counter in self._translator.sequences.values())

    @property
    def restarts(self) -> int:
        """How often the exporter began anew."""
        return sum(counter.restarts for counter in self._translator.sequences.values())

    @property
    def parked(self) -> tuple[int, int]:
        """(sets that wait for their template, sets that were dropped waiting)."""
        if isinstance(self._translator, Netflow9 | _Ipfix):
            parking = self._translator.parking
            return parking.parked - parking.replayed - parking.dropped, parking.dropped
        return 0, 0

    @property
    def template_changes(self) -> int:
        """How often templates were defined or redefined: whether `templates` would say something new."""
        if isinstance(self._translator, Netflow9 | _Ipfix):
            return self._translator.template_changes
        return 0

    def templates(self) -> list[bytes]:
        """Datagrams that say all templates anew: what `restore` learns after a restart of ours."""
        if isinstance(self._translator, Netflow9 | _Ipfix):
            return self._translator.template_sets()
        return []

    def restore(self, datagrams: Sequence[bytes]) -> bytes:
        """Learn what `templates` gave: the IPFIX messages that define them. Raises MalformedMessage."""
        if isinstance(self._translator, Netflow9 | _Ipfix):
            return self._translator.restore(list(datagrams))
        return b""


@define
class _Ipfix:
    """IPFIX over UDP (RFC 7011, 10.3)."""

    limits: FlowLimits
    sequences: dict[int, SequenceCounter] = field(factory=dict)
    parking: Parking[tuple[int, int]] = field(factory=Parking)
    """With the export time and sequence number of their message."""
    _session: Session = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._session = Session(self.limits)

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The message, and behind it what was parked for the templates it brings. Raises MalformedMessage."""
        session = self._session
        datagram = _without_withdrawals(_one_message(datagram), self.limits)
        learned = session.changes
        walk = session.walk(datagram)
        if walk.fault is not None:
            raise walk.fault
        _, _, _, number, domain = MESSAGE_HEADER.unpack_from(datagram)
        units = None if walk.undecodable_sets else walk.records
        self.sequences.setdefault(domain, SequenceCounter()).follow(number, units)
        made = self._decodable(datagram, domain) if walk.undecodable_sets else datagram
        return made if session.changes == learned else made + self._replayed(domain)

    def _decodable(self, datagram: bytes, domain: int) -> bytes:
        """The message without the sets that wait for their template."""
        _, _, export_time, number, _ = MESSAGE_HEADER.unpack_from(datagram)
        kept = []
        at = MESSAGE_HEADER.size
        while at < len(datagram):
            set_id, length = SET_HEADER.unpack_from(datagram, at)
            whole = datagram[at : at + length]
            if set_id >= FIRST_DATA_SET and domain << 16 | set_id not in self._session.templates:
                self.parking.park((domain, set_id), whole, (export_time, number))
            else:
                kept.append(whole)
            at += length
        return _message(b"".join(kept), export_time, number, domain) if kept else b""

    def _replayed(self, domain: int) -> bytes:
        made = []
        for key in list(self._session.templates):
            if key >> 16 == domain:
                for whole, (export_time, number) in self.parking.take((domain, key & 0xFFFF)):
                    message = _message(whole, export_time, number, domain)
                    if self._session.walk(message).fault is None:
                        made.append(message)
        return b"".join(made)

    @property
    def template_changes(self) -> int:
        """How often templates were defined."""
        return self._session.changes

    def template_sets(self) -> list[bytes]:
        """Messages that define all templates."""
        return self._session.definitions()

    def restore(self, datagrams: list[bytes]) -> bytes:
        """Learn what `template_sets` gave. Raises MalformedMessage."""
        for datagram in datagrams:
            walk = self._session.walk(datagram)
            if walk.fault is not None:
                raise walk.fault
        return b"".join(datagrams)


def _one_message(datagram: bytes) -> bytes:
    """The one message of a datagram, without the zeros that some fill up with. Raises MalformedMessage."""
    if len(datagram) < MESSAGE_HEADER.size:
        raise MalformedMessage("a message header is cut off", offset=0, reason="truncated")
    length = int.from_bytes(datagram[2:4], "big")
    if not MESSAGE_HEADER.size <= length <= len(datagram):
        what = f"a message of {length:,} bytes in a datagram of {len(datagram):,}"
        raise MalformedMessage(what, offset=2, reason="length")
    if length == len(datagram):
        return datagram
    if any(datagram[length:]):
        raise MalformedMessage("bytes behind the message of a datagram", offset=length, reason="length")
    return datagram[:length]


def _without_withdrawals(datagram: bytes, limits: FlowLimits) -> bytes:
    """The message as it is, unless it withdraws templates, which over UDP is not done (RFC 7011, 8.4)."""
    kept = []
    at, end, found = MESSAGE_HEADER.size, len(datagram), False
    while end - at >= SET_HEADER.size:
        set_id, length = SET_HEADER.unpack_from(datagram, at)
        if length < SET_HEADER.size or length > end - at:
            return datagram  # the walk will say what is wrong with it
        whole = datagram[at : at + length]
        if set_id in (TEMPLATE_SET, OPTIONS_TEMPLATE_SET):
            parsed = list(parse_template_set(whole, SET_HEADER.size, length, set_id, limits))
            if any(isinstance(item, Withdrawal) for item in parsed):
                found = True
                raws = b"".join(item.raw for item in parsed if isinstance(item, Template))
                whole = make_set(set_id, raws) if raws else b""
        kept.append(whole)
        at += length
    if not found:
        return datagram
    _, _, export_time, number, domain = MESSAGE_HEADER.unpack_from(datagram)
    return _message(b"".join(kept), export_time, number, domain)


def _message(sets: bytes, export_time: int, number: int, domain: int) -> bytes:
    head = MESSAGE_HEADER.pack(VERSION, MESSAGE_HEADER.size + len(sets), export_time, number, domain)
    return head + sets
