"""sFlow v5 flow samples to IPFIX: each sample becomes one data record (sflow.org, "sFlow Version 5", July 2004).

The observation domain is the sub agent; the agent is in each record, and so is the rate, by which nothing is scaled
here. octetDeltaCount is the length of the IP packet, layer2OctetDeltaCount that of the frame. A sample has no time, so
observationTimeMilliseconds is when its datagram came. selectorId is the data source, class << 32 | index, of which
selectorIdTotalPktsObserved is the sample pool. An interface that is not known, is many or is none is 0; why a packet
was discarded is its forwardingStatus. Counter samples are counted, not translated. Left out, for no standard element
means it: samples that the agent dropped; communities, which are lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from attrs import define, field, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.layouts import LayoutDomain
from sapflow.flows.datagrams.packets import Fields
from sapflow.flows.datagrams.sflow_samples import flow_sample
from sapflow.flows.datagrams.xdr import Cursor
from sapflow.flows.ipfix.encode import Encoder
from sapflow.flows.ipfix.sequences import SequenceCounter
from sapflow.flows.limits import FlowLimits

VERSION = 5
MAGIC = b"\0\0\0\5"
"""How a datagram begins: the version, in a word of four bytes where NetFlow v5 has two."""
MAX_LAYOUTS = 64
"""Templates of a domain."""

_FLOW, _COUNTERS, _EXPANDED_FLOW, _EXPANDED_COUNTERS = 1, 2, 3, 4


@frozen
class _Datagram:
    agent: bytes
    sub_agent: int
    number: int
    uptime_ms: int
    flows: list[Fields] = field(factory=list)
    skipped: Counter[str] = field(factory=Counter)
    faults: list[MalformedMessage] = field(factory=list)


@define
class Sflow:
    """One exporter's sFlow v5 datagrams; `sequences` is what was lost, by agent and sub agent (datagrams)."""

    limits: FlowLimits = FlowLimits()
    on_fault: Callable[[MalformedMessage], None] = lambda _: None
    """Told of each sample that is malformed, which costs that sample only."""
    records: int = 0
    numbered: int = 0
    """Datagrams whose sequence number was followed."""
    skipped: Counter[str] = field(factory=Counter)
    """Samples, and records of samples, that gave nothing: counter_sample, header_protocol, truncated, …"""
    sequences: dict[tuple[bytes, int], SequenceCounter] = field(factory=dict)
    _domains: dict[int, LayoutDomain] = field(factory=dict)

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The IPFIX messages of one datagram; none without flow samples.

        Raises MalformedMessage, before anything has changed, when it is not sFlow v5 or is cut off.
        """
        found = _parse(datagram)
        self._admit(found)
        source = found.agent, found.sub_agent
        self.sequences.setdefault(source, SequenceCounter()).follow(found.number, 1, found.uptime_ms)
        self.numbered += 1
        self.skipped += found.skipped
        self.records += len(found.flows)
        for fault in found.faults:
            self.on_fault(fault)
        if not found.flows:
            return b""
        observed = int(received_s * 1000).to_bytes(8, "big")
        for fields in found.flows:
            fields["observationTimeMilliseconds"] = observed
        domain = self._domains.get(found.sub_agent)
        if domain is None:
            layouts = min(MAX_LAYOUTS, self.limits.max_templates)
            domain = self._domains[found.sub_agent] = LayoutDomain(Encoder(found.sub_agent), layouts)
        return domain.messages(found.flows, int(received_s))

    def _admit(self, found: _Datagram) -> None:
        """Sources are bounded, and domains too, so that their templates together never pass the limit."""
        most = self.limits.max_domains
        if (found.agent, found.sub_agent) not in self.sequences and len(self.sequences) >= most:
            raise MalformedMessage(f"more than {most:,} agents", offset=4, reason="domains")
        most = min(most, max(1, self.limits.max_templates // MAX_LAYOUTS))
        if found.flows and found.sub_agent not in self._domains and len(self._domains) >= most:
            raise MalformedMessage(f"more than {most:,} sub agents", offset=4, reason="domains")


def _parse(datagram: bytes) -> _Datagram:
    cursor = Cursor(datagram, 0, len(datagram))
    version = cursor.word()
    if version != VERSION:
        raise MalformedMessage(f"sFlow version {version:,}, not 5", offset=0, reason="version")
    agent = cursor.address()
    if not agent:
        raise MalformedMessage("an sFlow agent without an address", offset=4, reason="address")
    sub_agent, number, uptime_ms = cursor.words(3)
    found = _Datagram(agent, sub_agent, number, uptime_ms)
    for _ in range(cursor.count(8)):
        kind, sample = cursor.part()
        if kind not in (_FLOW, _EXPANDED_FLOW):
            counters = kind in (_COUNTERS, _EXPANDED_COUNTERS)
            found.skipped["counter_sample" if counters else "unknown_sample"] += 1
            continue
        try:
            found.flows.append(flow_sample(sample, agent, found.skipped, expanded=kind == _EXPANDED_FLOW))
        except MalformedMessage as fault:
            found.faults.append(fault)
    return found
