"""Flow datagrams and streams out of packet captures: pcap and pcapng, read as they come, in bounded memory.

`read_capture` gives a file's packets; `Datagrams` makes UDP datagrams of them, `TcpSegments` TCP byte streams in
order. The file's structure must be right, or MalformedMessage says where it is not; what the packets hold is the
network's, so a packet that gives nothing is counted under its reason and never raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from sapflow.errors import MalformedMessage
from sapflow.flows.captures.datagrams import Datagram, Datagrams
from sapflow.flows.captures.packets import CaptureInput, Packet
from sapflow.flows.captures.pcap import is_pcap, read_pcap
from sapflow.flows.captures.pcapng import is_pcapng, read_pcapng
from sapflow.flows.captures.segments import Segment, TcpSegments

__all__ = ["HEAD_BYTES", "Datagram", "Datagrams", "Packet", "Segment", "TcpSegments", "is_capture", "read_capture"]

HEAD_BYTES = 12
"""As many first bytes of a file as `is_capture` looks at."""


def is_capture(head: bytes) -> bool:
    """Whether a file that begins so is a pcap or pcapng capture; HEAD_BYTES of it are enough, 4 the least."""
    return is_pcap(head) or is_pcapng(head)


def read_capture(file: BinaryIO) -> Iterator[Packet]:
    """The packets of a capture in the file's order, holding one of them at a time.

    Raises MalformedMessage, with the byte offset in the file, when it is no capture, ends within a packet, or
    contradicts itself; the packets before that place have been given by then.
    """
    source = CaptureInput(file)
    head = source.peek(HEAD_BYTES)
    if is_pcap(head):
        yield from read_pcap(source)
    elif is_pcapng(head):
        yield from read_pcapng(source)
    else:
        raise MalformedMessage(f"no pcap or pcapng begins with {head[:4].hex() or 'nothing'}", offset=0, reason="magic")
