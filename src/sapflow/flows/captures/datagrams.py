"""UDP datagrams out of captured packets, whole, with the addresses they went between (RFC 768)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

from attrs import frozen

from sapflow.flows.captures.internet import UDP, Payloads, address_text
from sapflow.flows.captures.links import Skip
from sapflow.flows.captures.packets import Packet

_HEADER = struct.Struct("!HHH2x")


@frozen
class Datagram:
    """One UDP datagram; its time is that of the packet which made it whole."""

    time_us: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    payload: bytes


class Datagrams:
    """Feed it a capture's packets in order, then `finish`.

    `skipped` counts what gave no datagram by reason (the values of `Skip`). Fragments that wait for the rest of
    their datagram are not counted until it is given up.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self._payloads = Payloads(UDP, Skip.NOT_UDP, self.skipped)

    def feed(self, packet: Packet) -> Iterator[Datagram]:
        """The datagram that is whole with this packet, if one is. Never raises for what the packet says."""
        ip = self._payloads.take(packet)
        if ip is None:
            return
        payload = _udp_payload(ip.payload)
        if isinstance(payload, Skip):
            self.skipped[payload] += 1
            return
        source_port, destination_port, _ = _HEADER.unpack_from(ip.payload)
        source, destination = address_text(ip.source), address_text(ip.destination)
        yield Datagram(packet.time_us, source, source_port, destination, destination_port, payload)

    def finish(self) -> None:
        """No packet comes any more: datagrams still in fragments are counted as dropped."""
        self._payloads.finish()


def _udp_payload(data: bytes) -> bytes | Skip:
    """A length of 0 is a jumbogram's (RFC 2675, 4): all that IP carries."""
    if len(data) < _HEADER.size:
        return Skip.MALFORMED
    length = _HEADER.unpack_from(data)[2] or len(data)
    if not _HEADER.size <= length <= len(data):
        return Skip.MALFORMED
    return data[_HEADER.size : length]
