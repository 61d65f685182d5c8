"""Inputs to begin from: small, well formed, of every kind that a decoder knows, so that mutations reach its depth."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.reference import reference_work
from sapflow.flows.wire import VARIABLE_LENGTH
from sapflow.link import Connection, Side
from sapflow.link.frames import Hint

LINK_TYPES = (0, 1, 101, 113, 276)
"""Loopback, Ethernet, raw IP, Linux cooked and its second version."""

FLOW = make_template(256, [(0, 8, 4), (0, 27, 16), (0, 56, 6), (0, 1, 8), (0, 2, 3), (0, 152, 8), (0, 154, 8)])
NAMES = make_template(257, [(0, 82, VARIABLE_LENGTH), (0, 96, VARIABLE_LENGTH), (0, 4, 1)])
TYPES = make_template(258, [(0, 276, 1), (0, 320, 8), (0, 319, 4), (0, 434, 2), (0, 155, 8), (9, 12345, 5), (0, 8, 0)])
INTERFACES = make_template(300, [(0, 10, 4), (0, 82, VARIABLE_LENGTH)], scopes=1)
LISTS = make_template(301, [(0, 291, VARIABLE_LENGTH), (0, 292, VARIABLE_LENGTH), (0, 293, VARIABLE_LENGTH)])
LIST_TEMPLATES = {each.id: each for each in (FLOW, NAMES, TYPES, LISTS)}


def together(parts: Iterable[bytes]) -> bytes:
    """Parts, each behind its length: what `parted` takes apart."""
    return b"".join(struct.pack("!H", len(part)) + part for part in parts)


def parted(data: bytes) -> list[bytes]:
    """Any bytes as parts; a length that is too long says all that is left."""
    parts, at = [], 0
    while at + 2 <= len(data) and len(parts) < 64:
        (length,) = struct.unpack_from("!H", data, at)
        parts.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return parts


def _name(text: bytes = b"eth0") -> bytes:
    return make_variable(text) + make_variable(b"a \xff\n") + b"\x06"


def lists() -> list[bytes]:
    """Behind a byte that says the kind."""
    basic = struct.pack("!BHH", 3, 82, VARIABLE_LENGTH) + make_variable(b"a") + make_variable(b"b" * 300)
    vendor = struct.pack("!BHHI", 0, 0x8001, 4, 29_305) + bytes(8)
    sub = struct.pack("!BH", 255, 257) + _name()
    multi = b"\x01" + struct.pack("!HH", 257, 4 + len(_name())) + _name() + struct.pack("!HH", 256, 4)
    nested = struct.pack("!BHH", 255, 292, VARIABLE_LENGTH) + make_variable(sub) * 2
    inner = struct.pack("!BH", 0, 301) + make_variable(basic) + make_variable(sub) + make_variable(multi)
    return [b"\0" + basic, b"\0" + vendor, b"\0" + nested, b"\1" + sub, b"\1" + inner, b"\2" + multi]


def _ipfix_messages() -> list[bytes]:
    one, two = Encoder(domain=1), Encoder(domain=2)
    basic, sub, multi = lists()[0][1:], lists()[3][1:], lists()[5][1:]
    listed = make_variable(basic) + make_variable(sub) + make_variable(multi)
    return [
        one.templates([FLOW, NAMES, TYPES, INTERFACES, LISTS], export_time=1_750_000_000),
        one.records(FLOW, [bytes(FLOW.record_bytes)] * 3, export_time=1_750_000_001),
        one.records(NAMES, [_name(b"n" * size) for size in (0, 1, 254, 255)], export_time=1_750_000_002),
        one.records(TYPES, [b"\x01" + struct.pack("!df", float("nan"), 1e30) + bytes(15)] * 2, export_time=1),
        one.records(LISTS, [listed] * 2, export_time=1_750_000_003),
        one.records(INTERFACES, [bytes(4) + make_variable(b"ge-0/0/1")], export_time=1_750_000_004),
        two.templates([make_template(256, [(0, 4, 1), (29_305, 1, 8)])], export_time=1),
        make_message(make_set(256, bytes(10)) + make_set(999, b"?") + make_set(4, b""), domain=2, sequence=4),
        make_message(make_set(2, struct.pack("!HH", 256, 0)) + make_set(3, struct.pack("!HH", 3, 0)), domain=1),
    ]


def _described() -> bytes:
    """A biflow, its sampler's rate, and an element of its exporter's own with the record that describes it."""
    exporter = Encoder(domain=3)
    own = make_template(256, [(0, 8, 4), (0, 1, 8), (29_305, 1, 8), (0, 302, 4), (32_473, 5, 2), (0, 22, 4)])
    rate = make_template(257, [(0, 302, 4), (0, 305, 4), (0, 306, 4), (0, 160, 8)], scopes=1)
    about = make_template(
        258, [(0, 346, 4), (0, 303, 2), (0, 339, 1), (0, 344, 1), (0, 341, VARIABLE_LENGTH)], scopes=2
    )
    return b"".join(
        [
            exporter.templates([own, rate, about], export_time=1_750_000_000),
            exporter.records(
                about, [struct.pack("!IHBB", 32_473, 5, 2, 1) + make_variable(b"ownCounter")], export_time=1
            ),
            exporter.records(rate, [struct.pack("!IIIQ", 7, 1, 99, 1_749_000_000_000)], export_time=1_750_000_000),
            exporter.records(own, [struct.pack("!IQQIHI", 1, 2, 3, 7, 5, 9)] * 2, export_time=1_750_000_001),
        ]
    )


def ipfix_streams() -> list[bytes]:
    """Streams of messages."""
    messages = _ipfix_messages()
    return [_described(), b"".join(messages), b"".join(messages[:3]), messages[0] + messages[4], reference_work(3)]


def ipfix_datagrams() -> list[bytes]:
    """A template late, withdrawn, defined again; zeros behind a message."""
    messages = _ipfix_messages()
    return [
        together(messages),
        together([messages[1], messages[0], messages[1] + bytes(12), messages[4]]),
        together([*messages[:2], messages[8], messages[1], messages[0], messages[2]]),
    ]


def netflow5() -> list[bytes]:
    """Datagrams of one and two records, of two engines."""
    record = bytes(range(48))
    heads = [
        struct.pack("!HHIIIIBBH", 5, count, 10_000, 1_750_000_000, 5, 7 * count, 0, count, 0x4064) for count in (1, 2)
    ]
    datagrams = [heads[0] + record, heads[1] + record * 2]
    return [together(datagrams), together(datagrams * 3)]


def netflow9() -> list[bytes]:
    """Templates, options, data before its template, padding, elements of vendors and of variable length."""

    def datagram(number: int, *flowsets: bytes) -> bytes:
        return struct.pack("!HHIIII", 9, 3, 60_000, 1_750_000_000, number, 1) + b"".join(flowsets)

    def template(number: int, *fields: tuple[int, int]) -> bytes:
        return struct.pack("!HH", number, len(fields)) + b"".join(struct.pack("!HH", *each) for each in fields)

    flow = make_set(0, template(256, (8, 4), (21, 4), (22, 4), (1, 3), (57_600, 2)))
    varying = make_set(0, template(257, (82, VARIABLE_LENGTH), (22, 4), (21, 4)))
    options = make_set(1, struct.pack("!HHH", 258, 4, 8) + struct.pack("!HHHHHH", 2, 4, 34, 4, 48, 1) + b"\0\0")
    data = make_set(256, bytes(range(34)) + b"\0\0")
    return [
        together([datagram(0, flow, varying, options), datagram(1, data, make_set(258, bytes(9)))]),
        together([datagram(0, data), datagram(2, flow), datagram(1, data, bytes(20))]),
        together([datagram(5, varying, make_set(257, make_variable(b"eth0") + bytes(8)))] * 2),
    ]


def sflow() -> list[bytes]:
    """A flow sample of a TCP packet in Ethernet, with switch and router data; an expanded one; counters."""

    def words(*numbers: int) -> bytes:
        return struct.pack(f"!{len(numbers)}I", *numbers)

    def part(number: int, body: bytes) -> bytes:
        return words(number, len(body) + -len(body) % 4) + body + bytes(-len(body) % 4)

    header = _ethernet(_ipv4(struct.pack("!HHIIBBHHH", 1234, 443, 1, 2, 0x50, 0x12, 100, 0, 0), protocol=6))
    raw = part(1, words(1, 1518, 4, len(header)) + header + bytes(-len(header) % 4))
    router = part(1002, words(1, 0x0A0000FE, 24, 16))
    switch = part(1001, words(100, 5, 200, 0))
    flow = part(1, words(7, 5, 1000, 5000, 0, 3, 4, 3) + raw + router + switch)
    wide = part(3, words(7, 0, 5, 1000, 5000, 0, 0, 3, 0, 4, 1) + raw)
    counters = part(2, words(1, 5, 1) + part(1, bytes(88)))
    samples = (flow, wide, counters)
    datagram = words(5, 1, 0xC0000201, 9, 1, 60_000, len(samples)) + b"".join(samples)
    return [together([datagram]), together([datagram] * 2)]


def _ipv4(payload: bytes, *, protocol: int = 17, place: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, place, 64, protocol, 0)
    return head + b"\xc0\0\2\1\xc6\x33\x64\1" + payload


def _ipv6(payload: bytes, following: int = 17) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + bytes(32) + payload


def _ethernet(ip: bytes) -> bytes:
    return bytes(12) + (b"\x08\0" if ip[0] >> 4 == 4 else b"\x86\xdd") + ip


def _udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 51234, 4739, 8 + len(payload), 0) + payload


def _packets() -> list[bytes]:
    whole = _udp(_ipfix_messages()[1])
    syn = struct.pack("!HHIIBBHHH", 51234, 4739, 9, 0, 0x50, 0x02, 1, 0, 0)
    data = struct.pack("!HHIIBBHHH", 51234, 4739, 10, 0, 0x50, 0x18, 1, 0, 0) + _ipfix_messages()[0]
    return [
        _ethernet(_ipv4(whole)),
        _ethernet(_ipv4(whole[:16], place=0x2000)),
        _ethernet(_ipv4(whole[16:], place=2)),
        _ethernet(_ipv6(struct.pack("!BBHI", 17, 0, 0, 7) + whole, following=44)),
        _ethernet(_ipv6(b"\x11\0" + bytes(6) + whole, following=0)),
        bytes(12) + b"\x81\0\0\7\x08\0" + _ipv4(syn, protocol=6),
        _ethernet(_ipv4(data, protocol=6)),
    ]


def frames() -> list[bytes]:
    """Packets, the first byte of each its link type."""
    ip = _ipv4(_udp(b"flows"))
    cooked = bytes(14) + b"\x08\0" + ip
    return [
        together(b"\x01" + packet for packet in _packets()),
        together([b"\x65" + ip, b"\x71" + cooked, b"\0" + struct.pack("<I", 2) + ip]),
    ]


def captures() -> list[bytes]:
    """pcap and pcapng."""
    packets = _packets()
    pcap = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    pcap += b"".join(struct.pack("<IIII", 1, 2, len(each), len(each)) + each for each in packets)

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))

    resolution = struct.pack("<HHB3xHH", 9, 1, 9, 0, 0)
    pcapng = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    pcapng += block(1, struct.pack("<HHI", 1, 0, 0) + resolution)
    pcapng += b"".join(block(6, struct.pack("<IIIII", 0, 1, 2, len(each), len(each)) + each) for each in packets)
    pcapng += block(3, struct.pack("<I", len(packets[0])) + packets[0])
    return [pcap, pcapng]


def links() -> list[bytes]:
    """A client's first words."""
    connection = Connection(Side.CLIENT)
    return [bytes(connection.hello(Hint(org="acme", name="m1"), role="meter", token="t", name="m1"))]


def hints() -> list[bytes]:
    """A preamble, a WebSocket's request line, a ClientHello with a server name."""
    name = b"acme.links.example"
    extension = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    hello = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + struct.pack("!H", len(extension)) + extension
    handshake = b"\x01" + len(hello).to_bytes(3, "big") + hello
    request = b"GET /link?org=acme&name=m1&want=c1 HTTP/1.1\r\nHost: x\r\n\r\n"
    return [*links(), request, b"\x16\x03\x01" + struct.pack("!H", len(handshake)) + handshake]


def websockets() -> list[bytes]:
    """A handshake, and behind it a message in two fragments with a ping between them."""
    request = (
        b"GET /link HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    mask = bytes(4)
    messages = b"\x02\x83" + mask + b"abc" + b"\x89\x80" + mask + b"\x80\x82" + mask + b"de" + b"\x88\x82" + mask
    return [request + messages + b"\x03\xe8", request]
