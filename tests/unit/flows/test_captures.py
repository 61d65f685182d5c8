"""Captures read: pcap and pcapng of every form, link layers, IP with its fragments, UDP datagrams, TCP streams."""

import io
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from itertools import accumulate, pairwise
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapflow.errors import MalformedMessage
from sapflow.flows.captures import Datagram, Datagrams, Packet, Segment, TcpSegments, is_capture, read_capture
from sapflow.flows.captures.fragments import MAX_IN_PROGRESS
from sapflow.flows.captures.packets import MAX_PACKET_BYTES
from sapflow.flows.captures.pcapng import MAX_BLOCK_BYTES
from sapflow.flows.captures.segments import MAX_DIRECTIONS, MAX_WAITING_BYTES

HERE, THERE = "192.0.2.7", "198.51.100.1"
HERE6, THERE6 = "2001:db8::7", "2001:db8::1"
TIME_US = 1_700_000_000_123_456
UDP, TCP, HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS = 17, 6, 0, 43, 44, 51, 60


def udp(payload: bytes = b"flows") -> bytes:
    return struct.pack("!HHHH", 51234, 4739, 8 + len(payload), 0) + payload


def ipv4(payload: bytes, protocol: int = UDP, *, options: bytes = b"", number: int = 1, place: int = 0) -> bytes:
    words, total = 5 + len(options) // 4, 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, number, place, 64, protocol, 0)
    return head + ip_address(HERE).packed + ip_address(THERE).packed + options + payload


def ipv6(payload: bytes, following: int = UDP) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 64)
    return head + ip_address(HERE6).packed + ip_address(THERE6).packed + payload


def fragments4(payload: bytes, size: int, *, number: int = 1) -> list[bytes]:
    more = {at: 0x2000 if at + size < len(payload) else 0 for at in range(0, len(payload), size)}
    return [ipv4(payload[at : at + size], number=number, place=at // 8 | flag) for at, flag in more.items()]


def fragments6(payload: bytes, size: int, following: int = UDP, *, number: int = 1) -> list[bytes]:
    places = [(at, at | (at + size < len(payload))) for at in range(0, len(payload), size)]
    heads = [(at, struct.pack("!BBHI", following, 0, place, number)) for at, place in places]
    return [ipv6(head + payload[at : at + size], FRAGMENT) for at, head in heads]


def ethernet(ip: bytes, *tags: int) -> bytes:
    kind = b"\x08\x00" if ip[0] >> 4 == 4 else b"\x86\xdd"
    return bytes(12) + b"".join(struct.pack("!HH", tag, 7) for tag in tags) + kind + ip


def tcp(sequence: int, payload: bytes = b"", *, syn: bool = False, port: int = 51234, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    flags = 0x02 if syn else 0x18
    return struct.pack("!HHIIBBHHH", port, 4739, sequence, 0, words << 4, flags, 1, 0, 0) + options + payload


def pcap(packets: Iterable[bytes], *, order: str = "<", nanoseconds: bool = False, link_type: int = 1) -> bytes:
    magic, units = (0xA1B23C4D, 1000) if nanoseconds else (0xA1B2C3D4, 1)
    seconds, fraction = divmod(TIME_US, 1_000_000)
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link_type)
    records = [struct.pack(order + "IIII", seconds, fraction * units, len(data), len(data)) + data for data in packets]
    return head + b"".join(records)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    length = struct.pack(order + "I", 12 + len(padded(body)))
    return struct.pack(order + "I", kind) + length + padded(body) + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + padded(value)


def interface(options: bytes = b"", *, order: str = "<", link_type: int = 1, snapshot_bytes: int = 0) -> bytes:
    return block(1, struct.pack(order + "HHI", link_type, 0, snapshot_bytes) + options, order)


def enhanced(data: bytes, *, order: str = "<", number: int = 0, stamp: int = TIME_US) -> bytes:
    head = struct.pack(order + "IIIII", number, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data))
    return block(6, head + padded(data) + option(2, bytes(4), order) + option(0, b"", order), order)


def packets_of(capture: bytes) -> list[Packet]:
    return list(read_capture(io.BytesIO(capture)))


def data_of(capture: bytes) -> list[bytes]:
    return [packet.data for packet in packets_of(capture)]


def packet(data: bytes, link_type: int = 101, time_us: int = TIME_US) -> Packet:
    return Packet(time_us, link_type, data, 0)


def datagrams_of(*packets: bytes, link_type: int = 101) -> tuple[list[Datagram], dict[str, int]]:
    datagrams = Datagrams()
    found = [one for data in packets for one in datagrams.feed(packet(data, link_type))]
    datagrams.finish()
    return found, dict(datagrams.skipped)


def payloads_of(*packets: bytes, link_type: int = 101) -> list[bytes]:
    found, skipped = datagrams_of(*packets, link_type=link_type)
    assert skipped == {}
    return [one.payload for one in found]


def read_to_fault(capture: bytes) -> tuple[list[Packet], MalformedMessage | None]:
    found: list[Packet] = []
    try:
        for one in read_capture(io.BytesIO(capture)):
            found.append(one)
    except MalformedMessage as fault:
        return found, fault
    return found, None


def refusal(capture: bytes) -> MalformedMessage:
    _, fault = read_to_fault(capture)
    assert fault is not None
    return fault


@pytest.mark.parametrize("nanoseconds", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pcap_is_read_in_either_byte_order_and_time_unit(order: str, nanoseconds: bool) -> None:
    capture = pcap([b"one", b"", b"three"], order=order, nanoseconds=nanoseconds, link_type=113)
    assert is_capture(capture[:4])
    assert packets_of(capture) == [
        Packet(TIME_US, 113, b"one", 24),
        Packet(TIME_US, 113, b"", 43),
        Packet(TIME_US, 113, b"three", 59),
    ]


def test_the_length_of_the_frame_check_sequence_is_no_part_of_a_link_type() -> None:
    assert packets_of(pcap([b"x"], link_type=0x5400_0001))[0].link_type == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pcapng_gives_the_packets_of_every_kind_of_block(order: str) -> None:
    stamp = struct.pack(order + "II", TIME_US >> 32, TIME_US & 0xFFFFFFFF)
    old = struct.pack(order + "HH", 1, 0) + stamp + struct.pack(order + "II", 3, 90) + b"old"
    simple = struct.pack(order + "I", 6) + b"simple"
    blocks = [
        section(order),
        interface(order=order),
        interface(order=order, link_type=113),
        block(5, bytes(8), order),
        enhanced(b"enhanced", order=order),
        block(2, old, order),
        block(3, simple, order),
    ]
    capture = b"".join(blocks)
    assert is_capture(capture[:12])
    found = [(one.time_us, one.link_type, one.data) for one in packets_of(capture)]
    assert found == [(TIME_US, 1, b"enhanced"), (TIME_US, 113, b"old"), (TIME_US, 1, b"simple")]
    assert packets_of(capture)[0].offset == sum(map(len, blocks[:4]))


def test_a_simple_packet_is_as_long_as_its_interface_lets_it_be() -> None:
    capture = section() + interface(snapshot_bytes=3) + block(3, struct.pack("<I", 1500) + b"abc")
    assert data_of(capture) == [b"abc"]


@pytest.mark.parametrize(
    ("resolution", "stamp", "time_us"),
    [
        (6, TIME_US, TIME_US),
        (9, TIME_US * 1000 + 999, TIME_US),
        (3, 1_700_000_000_123, 1_700_000_000_123_000),
        (0, 1_700_000_000, 1_700_000_000_000_000),
        (0x80 | 20, (1_700_000_000 << 20) + (1 << 19), 1_700_000_000_500_000),
        (0x80, 1_700_000_000, 1_700_000_000_000_000),
    ],
)
def test_time_stamps_are_counted_in_the_units_of_their_interface(resolution: int, stamp: int, time_us: int) -> None:
    capture = section() + interface(option(9, bytes([resolution]))) + enhanced(b"x", stamp=stamp)
    assert packets_of(capture)[0].time_us == time_us


def test_an_interface_may_count_its_time_from_another_second() -> None:
    capture = section() + interface(option(14, struct.pack("<q", -3600))) + enhanced(b"x")
    assert packets_of(capture)[0].time_us == TIME_US - 3_600_000_000


def test_each_section_has_its_own_byte_order_and_interfaces() -> None:
    first = section("<") + interface(link_type=1) + enhanced(b"one")
    second = section(">") + interface(order=">", link_type=228) + enhanced(b"two", order=">")
    assert [(one.link_type, one.data) for one in packets_of(first + second)] == [(1, b"one"), (228, b"two")]
    assert refusal(first + section() + enhanced(b"two")).reason == "interface"


@pytest.mark.parametrize("head", [b"", b"\x00", b"\xa1\xb2\xc3", b"\x00\x0a\x00\x14", b"\x0a\x0d\x0d\x0a" + bytes(8)])
def test_what_is_no_capture_is_told_by_its_head(head: bytes) -> None:
    assert not is_capture(head)
    fault = refusal(head)
    assert (fault.offset, fault.reason) == (0, "magic")


@pytest.mark.parametrize(
    ("capture", "reason", "offset"),
    [
        (pcap([])[:4] + b"\x03" + pcap([])[5:], "version", 4),
        (pcap([b"x"]) + struct.pack("<IIII", 0, 0, MAX_PACKET_BYTES + 1, 0), "length", 41),
        (section() + struct.pack("<II", 5, MAX_BLOCK_BYTES + 4), "length", 28),
        (section() + struct.pack("<II", 5, 8), "length", 28),
        (section() + struct.pack("<II", 5, 13) + bytes(8), "length", 28),
        (section() + block(5, bytes(4))[:-4] + bytes(4), "length", 28),
        (section() + block(0x0A0D0D0A, bytes(16)), "magic", 28),
        (section() + enhanced(b"x"), "interface", 28),
        (section() + block(1, bytes(4)), "block", 28),
        (section() + interface(option(9, b"")), "block", 28),
        (section() + interface(struct.pack("<HH", 9, 5)), "option", 28),
        (section() + interface() + enhanced(b"x", stamp=1 << 63), "time", 48),
        (section() + interface() + block(3, struct.pack("<I", 5) + b"abcd"), "length", 48),
        (section() + interface() + block(3, struct.pack("<I", MAX_PACKET_BYTES + 1)), "length", 48),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_the_offset(capture: bytes, reason: str, offset: int) -> None:
    fault = refusal(capture)
    assert (fault.reason, fault.offset) == (reason, offset)


@pytest.mark.parametrize(
    ("heads", "records"),
    [
        ([pcap([])], [pcap([data])[24:] for data in (b"one", b"seven")]),
        ([section(), interface(option(9, b"\x06"))], [enhanced(b"one"), enhanced(b"seven")]),
    ],
    ids=["pcap", "pcapng"],
)
def test_a_capture_cut_at_each_byte_gives_what_is_whole_and_says_so(heads: list[bytes], records: list[bytes]) -> None:
    ends = list(accumulate(len(part) for part in heads + records))
    capture = b"".join(heads + records)
    for cut in range(4, len(capture) + 1):
        found, fault = read_to_fault(capture[:cut])
        assert len(found) == sum(end <= cut for end in ends[len(heads) :])
        assert (fault is None) == (cut in ends)
        assert fault is None or (fault.reason == "truncated" and fault.offset <= cut)


def test_packets_before_a_fault_are_given() -> None:
    reading = read_capture(io.BytesIO(pcap([b"one", b"two"])[:-1]))
    assert next(reading).data == b"one"
    with pytest.raises(MalformedMessage, match="cut off") as caught:
        next(reading)
    assert caught.value.offset == 24 + 19 + 16


def test_a_packet_of_the_largest_size_is_read() -> None:
    assert data_of(pcap([bytes(MAX_PACKET_BYTES)])) == [bytes(MAX_PACKET_BYTES)]


class Drip(io.RawIOBase):
    """Gives one byte a read, as a pipe may."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1))


def test_a_file_may_give_fewer_bytes_than_asked_for() -> None:
    assert [one.data for one in read_capture(cast(io.BytesIO, Drip(pcap([b"one", b"two"]))))] == [b"one", b"two"]


LINKS = {
    "ethernet": (1, ethernet(ipv4(udp())) + b"padding"),
    "802.1Q": (1, ethernet(ipv4(udp()), 0x8100)),
    "QinQ": (1, ethernet(ipv6(udp()), 0x88A8, 0x8100, 0x8100)),
    "cooked": (113, bytes(14) + b"\x08\x00" + ipv4(udp())),
    "cooked 802.1Q": (113, bytes(14) + b"\x81\x00\x00\x07\x86\xdd" + ipv6(udp())),
    "cooked 2": (276, b"\x86\xdd" + bytes(18) + ipv6(udp())),
    "cooked 2 802.1Q": (276, b"\x81\x00" + bytes(18) + b"\x00\x07\x08\x00" + ipv4(udp())),
    "raw 12": (12, ipv4(udp())),
    "raw 14": (14, ipv6(udp())),
    "raw": (101, ipv6(udp())),
    "ipv4": (228, ipv4(udp())),
    "ipv6": (229, ipv6(udp())),
    "null, little-endian": (0, struct.pack("<I", 2) + ipv4(udp())),
    "null, big-endian": (0, struct.pack(">I", 30) + ipv6(udp())),
    "loop": (108, struct.pack(">I", 24) + ipv6(udp())),
}


@pytest.mark.parametrize(("link_type", "data"), LINKS.values(), ids=LINKS)
def test_a_datagram_is_found_behind_each_link_layer(link_type: int, data: bytes) -> None:
    found, skipped = datagrams_of(data, link_type=link_type)
    source, destination = (HERE, THERE) if ip_address(HERE).packed in data else (HERE6, THERE6)
    assert found == [Datagram(TIME_US, source, 51234, destination, 4739, b"flows")]
    assert skipped == {}


@pytest.mark.parametrize(("link_type", "data"), LINKS.values(), ids=LINKS)
def test_a_packet_cut_anywhere_gives_nothing_and_is_counted(link_type: int, data: bytes) -> None:
    for cut in range(len(data.removesuffix(b"padding"))):
        found, skipped = datagrams_of(data[:cut], link_type=link_type)
        assert (found, skipped) == ([], {"truncated_by_snaplen": 1}), cut


@pytest.mark.parametrize(
    ("link_type", "data", "reason"),
    [
        (147, ipv4(udp()), "unknown_link"),
        (1, bytes(12) + b"\x08\x06" + bytes(28), "not_ip"),
        (113, bytes(14) + b"\x00\x04" + bytes(28), "not_ip"),
        (276, b"\x08\x06" + bytes(40), "not_ip"),
        (0, struct.pack("<I", 7) + bytes(20), "not_ip"),
        (101, b"\x55" + bytes(40), "not_ip"),
        (101, ipv4(tcp(1, b"x"), TCP), "not_udp"),
        (101, ipv4(bytes(8), TCP, place=0x2000), "not_udp"),
        (101, ipv6(b"", 59), "not_udp"),
        (101, b"\x44" + ipv4(udp())[1:], "malformed"),
        (101, b"\x4f" + ipv4(udp())[1:], "malformed"),
        (101, ipv4(udp()[:7]), "malformed"),
        (101, ipv4(udp()[:-1]), "malformed"),
        (101, ipv4(struct.pack("!HHHH", 1, 2, 7, 0)), "malformed"),
        (101, ipv6(bytes([UDP, 9]) + bytes(14), OPTIONS), "malformed"),
        (101, ipv6(bytes([UDP, 0]), OPTIONS), "malformed"),
    ],
)
def test_what_is_no_datagram_is_counted_by_reason(link_type: int, data: bytes, reason: str) -> None:
    assert datagrams_of(data, link_type=link_type) == ([], {reason: 1})


def test_ipv4_options_and_ipv6_extension_headers_are_passed_over() -> None:
    options = bytes([AUTHENTICATION, 1]) + bytes(14)
    authentication = bytes([ROUTING, 4]) + bytes(22)
    routing = bytes([FRAGMENT, 0]) + bytes(6)
    atomic = struct.pack("!BBHI", UDP, 0, 0, 9)
    chain = bytes([OPTIONS, 0]) + bytes(6) + options + authentication + routing + atomic
    assert payloads_of(ipv4(udp(), options=bytes(12)), ipv6(chain + udp(), HOP_BY_HOP)) == [b"flows", b"flows"]


def test_a_packet_the_network_card_was_to_cut_is_taken_as_it_is() -> None:
    offloaded = ipv4(udp())
    assert payloads_of(offloaded[:2] + bytes(2) + offloaded[4:]) == [b"flows"]


def test_padding_behind_a_datagram_is_no_part_of_it() -> None:
    assert payloads_of(ipv4(udp() + b"tail"), ipv6(udp()) + bytes(9)) == [b"flows", b"flows"]


@given(st.data())
def test_fragments_in_any_order_make_their_datagrams(data: st.DataObject) -> None:
    packets, wanted = [], []
    for number in range(data.draw(st.integers(1, 5))):
        payload = data.draw(st.binary(max_size=200))
        size = 8 * data.draw(st.integers(1, 8))
        if data.draw(st.booleans()):
            packets += fragments4(udp(payload), size, number=number)
        else:
            options = bytes([UDP, 0]) + bytes(6)
            packets += fragments6(options + udp(payload), size, OPTIONS, number=number)
        wanted.append(payload)
    assert sorted(payloads_of(*data.draw(st.permutations(packets)))) == sorted(wanted)


def test_a_datagram_of_the_largest_size_is_put_together() -> None:
    payload = bytes(range(256)) * 255
    assert payloads_of(*reversed(fragments4(udp(payload), 1480))) == [payload]


def test_a_fragment_that_came_twice_is_taken_once() -> None:
    one, two, three = fragments4(udp(bytes(30)), 16)
    assert payloads_of(one, one, three, three, two) == [bytes(30)]


@pytest.mark.parametrize(
    "bad",
    [
        ipv4(bytes(16), place=0x2000 | 1),
        ipv4(bytes(9), place=0x2000 | 5),
        ipv4(b"", place=0x2000 | 5),
        ipv4(bytes(16), place=0x1FFF),
        ipv4(bytes(8), place=1),
    ],
    ids=["overlap", "no multiple of 8", "empty", "beyond the largest datagram", "an end before the end"],
)
def test_fragments_that_contradict_each_other_cost_their_datagram(bad: bytes) -> None:
    one, two, three = fragments4(udp(bytes(30)), 16)
    for order in ([one, bad, two, three], [one, two, bad, three], [two, bad, three, one], [two, one, bad, three]):
        found, skipped = datagrams_of(*order)
        assert found == []
        assert skipped["fragment_dropped"] == 2


def test_a_last_fragment_before_one_that_came_is_refused() -> None:
    beyond, last = ipv4(udp(b""), place=0x2000 | 2), ipv4(bytes(8), place=1)
    assert datagrams_of(beyond, last) == ([], {"fragment_dropped": 1})
    assert datagrams_of(last, beyond) == ([], {"fragment_dropped": 1})


def test_fragments_within_a_fragmented_datagram_are_refused() -> None:
    inner = struct.pack("!BBHI", UDP, 0, 1, 5) + udp()
    assert datagrams_of(*fragments6(inner, 8, FRAGMENT)) == ([], {"not_udp": 3})
    hidden = bytes([FRAGMENT, 0]) + bytes(6) + inner
    assert datagrams_of(*fragments6(hidden, 16, OPTIONS)) == ([], {"malformed": 1})


def test_the_oldest_unfinished_datagram_goes_for_another() -> None:
    pairs = [fragments4(udp(bytes(30)), 24, number=number) for number in range(MAX_IN_PROGRESS + 1)]
    heads, tails = zip(*pairs, strict=True)
    found, skipped = datagrams_of(*heads, *tails[1:], tails[0])
    assert len(found) == MAX_IN_PROGRESS
    assert skipped == {"fragment_dropped": 2}


def test_an_old_fragment_does_not_meet_those_of_a_later_datagram() -> None:
    (one, _), (_, two) = fragments4(udp(b"a" * 30), 24), fragments4(udp(b"b" * 30), 24)
    datagrams = Datagrams()
    assert list(datagrams.feed(packet(one))) == []
    assert list(datagrams.feed(packet(two, time_us=TIME_US + 60_000_001))) == []
    datagrams.finish()
    assert datagrams.skipped == {"fragment_dropped": 2}


def segments_of(*packets: bytes) -> tuple[list[Segment], TcpSegments]:
    segments = TcpSegments()
    found = [one for data in packets for one in segments.feed(packet(data))]
    return found + list(segments.finish()), segments


def over_ip(sequence: int, payload: bytes = b"", *, syn: bool = False, port: int = 51234) -> bytes:
    return ipv4(tcp(sequence, payload, syn=syn, port=port), TCP)


def test_a_stream_is_given_in_order_with_its_ends() -> None:
    found, segments = segments_of(over_ip(99, syn=True), over_ip(100, b"one"), over_ip(103), over_ip(103, b"two"))
    assert found == [
        Segment(TIME_US, HERE, 51234, THERE, 4739, b"one", first=True),
        Segment(TIME_US, HERE, 51234, THERE, 4739, b"two", first=False),
    ]
    assert (segments.gaps, segments.joined_midway, dict(segments.skipped)) == (0, 0, {})


@given(st.data())
def test_a_stream_cut_repeated_and_shuffled_in_any_way_is_given_once_and_in_order(data: st.DataObject) -> None:
    stream = data.draw(st.binary(min_size=1, max_size=60))
    start = data.draw(st.integers(0, 2**32 - 1) | st.integers(2**32 - 60, 2**32 - 1))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))) | {0, len(stream)})
    spans = list(pairwise(cuts))
    spans += [(min(span), max(span)) for span in data.draw(st.lists(st.tuples(*[st.integers(0, len(stream))] * 2)))]
    sent = [over_ip((start + a) % 2**32, stream[a:b]) for a, b in data.draw(st.permutations(spans))]
    found, segments = segments_of(over_ip((start - 1) % 2**32, syn=True), *sent)
    assert b"".join(one.payload for one in found) == stream
    assert [one.first for one in found] == [True] + [False] * (len(found) - 1)
    assert segments.gaps == 0


def test_each_direction_and_connection_has_its_own_stream() -> None:
    found, _ = segments_of(over_ip(1, b"a", port=1), over_ip(1, b"b", port=2), over_ip(2, b"c", port=1))
    assert [(one.source_port, one.payload, one.first) for one in found] == [
        (1, b"a", True),
        (2, b"b", True),
        (1, b"c", False),
    ]


def test_a_segment_out_of_order_is_given_when_what_was_missing_comes() -> None:
    segments = TcpSegments()
    arrivals = [(1, over_ip(0, syn=True)), (2, over_ip(3, b"cd")), (3, over_ip(1, b"ab"))]
    found = [[one.payload for one in segments.feed(packet(data, time_us=at))] for at, data in arrivals]
    assert found == [[], [], [b"ab", b"cd"]]


def test_of_two_waiting_segments_at_one_place_the_longer_counts() -> None:
    found, segments = segments_of(over_ip(0, syn=True), over_ip(2, b"b"), over_ip(2, b"bcd"), over_ip(1, b"a"))
    assert [one.payload for one in found] == [b"a", b"bcd"]
    assert segments.gaps == 0


def test_all_directions_together_wait_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapflow.flows.captures.segments.MAX_WAITING_BYTES_IN_ALL", 10_000)
    segments = TcpSegments()
    for port in (1, 2, 3):
        list(segments.feed(packet(over_ip(0, syn=True, port=port))))
    late = [over_ip(9, bytes(4000), port=port) for port in (1, 2, 3)]
    found = [list(segments.feed(packet(data))) for data in late]
    assert [[(one.source_port, one.lost_bytes) for one in given] for given in found] == [[], [], [(3, 8)]]
    # What was given up is no longer held: the others wait on, and get what they wait for.
    assert [one.payload for one in segments.feed(packet(over_ip(1, bytes(8), port=1)))] == [bytes(8), bytes(4000)]
    assert list(segments.feed(packet(over_ip(4020, bytes(1000), port=3)))) == []


def test_what_never_came_is_given_up_at_the_end_and_told() -> None:
    found, segments = segments_of(over_ip(0, syn=True), over_ip(1, b"ab"), over_ip(10, b"j"), over_ip(20, b"t"))
    assert [(one.payload, one.first, one.lost_bytes) for one in found] == [
        (b"ab", True, 0),
        (b"j", False, 7),
        (b"t", False, 9),
    ]
    assert (segments.gaps, segments.lost_bytes) == (2, 16)


@pytest.mark.parametrize("size", [1, 1400, 60_000])
def test_a_gap_is_waited_for_within_a_bound(size: int) -> None:
    segments = TcpSegments()
    list(segments.feed(packet(over_ip(0, syn=True))))
    sent = 0
    found: list[Segment] = []
    while not found:
        # Two bytes missing before each: none of them follows on another.
        found = list(segments.feed(packet(over_ip(3 + sent * (size + 2), bytes(size)))))
        sent += 1
    assert (sent - 1) * size <= MAX_WAITING_BYTES < sent * (size + 256)
    assert (found[0].lost_bytes, found[0].first, segments.gaps) == (2, True, len(found))


def test_what_comes_after_its_gap_was_given_up_is_dropped() -> None:
    large = [over_ip(11 + at, bytes(50_000)) for at in range(0, 1_100_000, 50_000)]
    found, segments = segments_of(over_ip(0, syn=True), *large, over_ip(1, b"late"), over_ip(1_100_011, b"next"))
    assert sum(len(one.payload) for one in found) == 1_100_004
    assert (found[0].lost_bytes, segments.gaps) == (10, 1)


def test_the_same_ports_taken_again_begin_another_stream() -> None:
    first = [over_ip(0, syn=True), over_ip(1, b"old"), over_ip(9, b"waits")]
    again = [over_ip(5000, syn=True), over_ip(5000, syn=True), over_ip(5001, b"new")]
    found, segments = segments_of(*first, *again)
    assert [(one.payload, one.first) for one in found] == [(b"old", True), (b"waits", False), (b"new", True)]
    assert segments.gaps == 1


def test_data_beyond_any_window_is_another_connection() -> None:
    found, segments = segments_of(over_ip(1, b"one"), over_ip(2**31, b"two"))
    assert [(one.payload, one.first, one.lost_bytes) for one in found] == [(b"one", True, 0), (b"two", True, 0)]
    assert (segments.joined_midway, segments.gaps) == (2, 0)


def test_data_on_the_syn_and_keep_alives_are_placed_right() -> None:
    found, _ = segments_of(over_ip(7, b"ab", syn=True), over_ip(9, b"\x00"), over_ip(10, b"c"), over_ip(10))
    assert [one.payload for one in found] == [b"ab", b"c"]


def test_a_direction_idle_for_longest_is_forgotten_for_another() -> None:
    starts = [over_ip(1, b"a", port=port) for port in range(MAX_DIRECTIONS + 1)]
    found, segments = segments_of(*starts, *[over_ip(at, b"b", port=port) for at, port in ((2, 1), (2, 0), (3, 1))])
    assert [one.first for one in found[-3:]] == [False, True, False]
    assert segments.forgotten == 2


def test_a_segment_in_fragments_is_put_together() -> None:
    data = tcp(1, bytes(40), options=bytes(12))
    pieces = [ipv4(data[:48], TCP, place=0x2000), ipv4(data[48:], TCP, place=6)]
    assert [one.payload for one in segments_of(*pieces)[0]] == [bytes(40)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ipv4(udp()), "not_tcp"),
        (over_ip(1, b"x")[:-1], "truncated_by_snaplen"),
        (ipv4(tcp(1)[:19], TCP), "malformed"),
        (ipv4(tcp(1)[:12] + b"\x40" + tcp(1)[13:], TCP), "malformed"),
        (ipv4(tcp(1)[:12] + b"\x60" + tcp(1)[13:], TCP), "malformed"),
        (ipv4(tcp(1), TCP, place=0x2000), "fragment_dropped"),
    ],
)
def test_what_is_no_segment_is_counted_by_reason(data: bytes, reason: str) -> None:
    found, segments = segments_of(data)
    assert (found, dict(segments.skipped)) == ([], {reason: 1})


CAPTURES = [
    pcap([ethernet(data) for data in fragments4(udp(bytes(30)), 16)]),
    section(">")
    + interface(option(9, b"\x09", ">"), order=">")
    + enhanced(ethernet(over_ip(1, b"x")), order=">")
    + block(3, struct.pack(">I", 67) + ethernet(ipv6(udp())), ">"),
]


def test_the_captures_that_are_damaged_below_are_whole() -> None:
    assert [len(packets_of(capture)) for capture in CAPTURES] == [3, 2]


@settings(max_examples=300)
@given(st.sampled_from(CAPTURES), st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=6))
def test_a_capture_with_any_bytes_changed_is_read_or_refused(capture: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(capture)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    found, _ = read_to_fault(bytes(damaged))
    datagrams, segments = Datagrams(), TcpSegments()
    for one in found:
        assert len(list(datagrams.feed(one))) <= 1
        list(segments.feed(one))


@settings(max_examples=300)
@given(st.sampled_from([0, 1, 12, 14, 101, 108, 113, 228, 229, 276]), st.binary(max_size=120))
def test_any_bytes_are_a_packet_that_is_taken_or_counted(link_type: int, data: bytes) -> None:
    datagrams = Datagrams()
    found = list(datagrams.feed(packet(data, link_type)))
    datagrams.finish()
    assert len(found) + datagrams.skipped.total() == 1


@given(st.sampled_from([b"", *[capture[:24] for capture in CAPTURES]]), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(head: bytes, data: bytes) -> None:
    _, fault = read_to_fault(head + data)
    assert fault is None or 0 <= fault.offset <= len(head + data)
