"""One exporter's datagrams of one protocol into IPFIX messages in which every data set can be decoded.

NetFlow v5 and v9 and sFlow v5 are translated; IPFIX passes unchanged, but for what cannot be decoded yet. A malformed
datagram costs itself only. Templates live as long as the session, which is that of one source address and port
(RFC 7011, 8.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from attrs import define, field

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams import sflow
from sapflow.flows.datagrams.ipfix import IpfixDatagrams
from sapflow.flows.datagrams.netflow5 import Netflow5
from sapflow.flows.datagrams.netflow9 import Netflow9
from sapflow.flows.datagrams.parking import Allowance, Parking
from sapflow.flows.ipfix.sequences import Numbers
from sapflow.flows.limits import FlowLimits

Protocol = Literal["netflow5", "netflow9", "ipfix", "sflow"]


def protocol_of(datagram: bytes) -> Protocol | None:
    """What a datagram's first bytes say it is; None when it is nothing of ours."""
    match datagram[:2]:
        case b"\x00\x05":
            return "netflow5"
        case b"\x00\x09":
            return "netflow9"
        case b"\x00\x0a":
            return "ipfix"
        case b"\x00\x00" if datagram[:4] == sflow.MAGIC:
            return "sflow"
        case _:
            return None


@define
class DatagramCounts:
    """What one exporter's datagrams have brought; never goes down."""

    datagrams: int = 0
    bytes: int = 0
    malformed: Counter[str] = field(factory=Counter)
    """Datagrams, or sets and samples of them, by reason."""
    last_fault: MalformedMessage | None = None


class DatagramSession:
    """Datagrams in, IPFIX messages out; `units` of loss are the protocol's own."""

    def __init__(
        self, protocol: Protocol, limits: FlowLimits | None = None, allowance: Allowance | None = None
    ) -> None:
        self.protocol = protocol
        self.counts = DatagramCounts()
        self.templates_heard_s = 0.0
        """When a template came last, known or not; 0: none has, in this process."""
        limits = limits or FlowLimits()
        allowance = allowance or Allowance()
        self._translator: Netflow5 | Netflow9 | IpfixDatagrams | sflow.Sflow
        match protocol:
            case "netflow5":
                self._translator = Netflow5(max_domains=min(256, limits.max_domains, limits.max_templates))
            case "netflow9":
                self._translator = Netflow9(limits, self._fault, parking=Parking(allowance))
            case "ipfix":
                self._translator = IpfixDatagrams(limits, self._fault, parking=Parking(allowance))
            case "sflow":
                self._translator = sflow.Sflow(limits, self._fault)

    def take(self, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """Datagrams in the order they came: whole IPFIX messages. Never raises for what they say."""
        self.counts.datagrams += len(datagrams)
        self.counts.bytes += sum(map(len, datagrams))
        translator, defined = self._translator, self._definitions
        if len(datagrams) == 1 or isinstance(translator, sflow.Sflow):
            made = self._each(datagrams, received_s)
        else:
            made = b"".join(
                self._each(run, received_s) if kind is None else self._together(translator, list(run), received_s)
                for kind, run in groupby(datagrams, translator.run_of)
            )
        if self._definitions != defined:
            self.templates_heard_s = received_s
        return made

    def _together(
        self, translator: Netflow5 | Netflow9 | IpfixDatagrams, run: Sequence[bytes], received_s: float
    ) -> bytes:
        try:
            return translator.translate_all(run, received_s)
        except MalformedMessage:
            return self._each(run, received_s)

    def _each(self, datagrams: Iterable[bytes], received_s: float) -> bytes:
        made: list[bytes] = []
        for datagram in datagrams:
            try:
                made.append(self._translator.translate(datagram, received_s))
            except MalformedMessage as fault:
                self._fault(fault)
        return b"".join(made)

    def _fault(self, fault: MalformedMessage) -> None:
        self.counts.malformed[fault.reason] += 1
        self.counts.last_fault = fault

    def close(self) -> None:
        """Nothing more will come: what is parked is dropped."""
        if isinstance(self._translator, Netflow9 | IpfixDatagrams):
            self._translator.parking.clear()

    @property
    def lost(self) -> int:
        """Flows (v5), packets (v9), records (IPFIX) or datagrams (sFlow) that did not come."""
        return sum(counter.lost for counter in self._translator.sequences.values())

    def take_numbers(self) -> Numbers:
        """What the sequence numbers say since this was last asked, in the units of `lost`."""
        if isinstance(self._translator, IpfixDatagrams):
            return self._translator.take_numbers()
        total = Numbers()
        for counter in self._translator.sequences.values():
            total += counter.take()
        return total

    @property
    def numbered(self) -> int | None:
        """Datagrams that came with their number, where numbers count those (v9, sFlow); None where they count flows."""
        return self._translator.numbered if isinstance(self._translator, Netflow9 | sflow.Sflow) else None

    @property
    def restarts(self) -> int:
        """How often the exporter began anew."""
        return sum(counter.restarts for counter in self._translator.sequences.values())

    @property
    def parked(self) -> tuple[int, int]:
        """(sets that wait for their template, sets that were dropped waiting)."""
        if isinstance(self._translator, Netflow9 | IpfixDatagrams):
            parking = self._translator.parking
            return parking.parked - parking.replayed - parking.dropped, parking.dropped
        return 0, 0

    @property
    def skipped(self) -> Counter[str]:
        """Samples, and records of samples, that gave nothing, by reason (sFlow)."""
        return self._translator.skipped if isinstance(self._translator, sflow.Sflow) else Counter()

    @property
    def _definitions(self) -> int:
        return self._translator.definitions if isinstance(self._translator, Netflow9 | IpfixDatagrams) else 0

    @property
    def template_changes(self) -> int:
        """How often templates were defined or redefined: whether `templates` would say something new."""
        if isinstance(self._translator, Netflow9 | IpfixDatagrams):
            return self._translator.template_changes
        return 0

    def templates(self) -> list[bytes]:
        """Datagrams that say all templates anew: what `restore` learns after a restart of ours."""
        if isinstance(self._translator, Netflow9 | IpfixDatagrams):
            return self._translator.template_sets()
        return []

    def restore(self, datagrams: Sequence[bytes]) -> bytes:
        """Learn what `templates` gave: the IPFIX messages that define them. Raises MalformedMessage."""
        if isinstance(self._translator, Netflow9 | IpfixDatagrams):
            return self._translator.restore(list(datagrams))
        return b""
