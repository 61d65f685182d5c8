"""The traffic that exporters meter: packets of many kinds in a capture, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

CONVERSATIONS = 6
FIRST_S = 1_750_000_000
APART_S = 0.137
VLAN = 7
OUT = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
BACK = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")


def a_mixed_capture(path: Path) -> Path:
    """UDP, TCP and ICMP over IPv4 and IPv6, some answered, some in a VLAN."""
    packets = [packet for number in range(CONVERSATIONS) for packet in _conversation(number)]
    for number, packet in enumerate(packets):
        packet.time = FIRST_S + number * APART_S
    wrpcap(str(path), packets)
    return path


def _conversation(number: int) -> Iterator[Packet]:
    here, there = f"192.0.2.{1 + number}", f"198.51.100.{1 + number}"
    yield OUT / IP(src=here, dst=there, tos=0x28) / UDP(sport=1000 + number, dport=53) / (b"x" * (20 + number))
    yield BACK / IP(src=there, dst=here) / UDP(sport=53, dport=1000 + number) / (b"y" * (120 + number))
    yield OUT / IP(src=here, dst=there) / TCP(sport=2000 + number, dport=443, flags="S")
    yield BACK / IP(src=there, dst=here) / TCP(sport=443, dport=2000 + number, flags="SA")
    yield OUT / IP(src=here, dst=there) / TCP(sport=2000 + number, dport=443, flags="PA") / (b"z" * (300 + number))
    yield OUT / IP(src=here, dst=there) / ICMP(type=8, code=0) / (b"p" * 56)
    here6, there6 = f"2001:db8::{1 + number:x}", f"2001:db8:1::{1 + number:x}"
    yield OUT / IPv6(src=here6, dst=there6, tc=0x20) / UDP(sport=3000 + number, dport=53) / (b"x" * (40 + number))
    yield BACK / IPv6(src=there6, dst=here6) / UDP(sport=53, dport=3000 + number) / (b"y" * (140 + number))
    yield OUT / IPv6(src=here6, dst=there6) / ICMPv6EchoRequest(data=b"e" * 32)
    vlan = OUT / Dot1Q(vlan=VLAN)
    yield vlan / IP(src=here, dst=there) / UDP(sport=4000 + number, dport=4739) / (b"v" * (64 + number))
