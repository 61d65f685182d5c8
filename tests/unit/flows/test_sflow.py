"""sFlow v5 to IPFIX: every sample a record that says what the sample said, and nothing that it did not."""

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import MalformedMessage
from sapflow.flows.columns import decode
from sapflow.flows.datagrams import DatagramSession, protocol_of
from sapflow.flows.limits import FlowLimits
from sapflow.flows.session import Session
from sapflow.flows.sflow import MAX_LAYOUTS, Sflow
from tests.unit.flows.test_netflow import rows

AGENT = b"\xc0\x00\x02\x01"
RECEIVED_S = 1_750_000_000.25
MACS = bytes(range(12))


def words(*numbers: int) -> bytes:
    return struct.pack(f"!{len(numbers)}I", *numbers)


def opaque(data: bytes) -> bytes:
    return words(len(data)) + data + bytes(-len(data) % 4)


def address(data: bytes) -> bytes:
    return words({0: 0, 4: 1, 16: 2}[len(data)]) + data


def part(number: int, body: bytes) -> bytes:
    return words(number) + opaque(body)


def sample(*records: bytes, rate: int = 1000, pool: int = 5000, ingress: int = 3, egress: int = 4) -> bytes:
    return part(1, words(7, 5, rate, pool, 0, ingress, egress, len(records)) + b"".join(records))


def expanded(*records: bytes, ingress: tuple[int, int] = (0, 3), egress: tuple[int, int] = (0, 4)) -> bytes:
    head = words(7, 0, 1 << 24, 1000, 5000, 0, *ingress, *egress, len(records))
    return part(3, head + b"".join(records))


def sflow(*samples: bytes, number: int = 1, uptime: int = 60_000, agent: bytes = AGENT, sub_agent: int = 9) -> bytes:
    return words(5) + address(agent) + words(sub_agent, number, uptime, len(samples)) + b"".join(samples)


def raw(header: bytes, *, protocol: int = 1, length: int = 1518) -> bytes:
    return part(1, words(protocol, length, 4) + opaque(header))


def tcp(source: int = 1234, destination: int = 443, flags: int = 0x12) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 2, 0x50, flags, 100, 0, 0)


def ipv4(
    payload: bytes, *, protocol: int = 6, total: int | None = 1500, place: int = 0x4000, options: int = 0
) -> bytes:
    size = 20 + 4 * options
    length = size + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0xB8, length, 77, place, 63, protocol, 0)
    return head + b"\x0a\0\0\1\x0a\0\0\2" + bytes(4 * options) + payload


def ipv6(payload: bytes, *, following: int = 6, length: int = 1460) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    return struct.pack("!IHBB", 6 << 28 | 0x2E << 20 | 0x12345, length, following, 60) + addresses + payload


def ethernet(payload: bytes, ethertype: int, *tags: tuple[int, int]) -> bytes:
    return MACS + b"".join(struct.pack("!HH", *tag) for tag in tags) + struct.pack("!H", ethertype) + payload


ROUTER = part(1002, address(b"\x0a\0\0\xfe") + words(24, 16))
SWITCH = part(1001, words(100, 5, 200, 0))
GATEWAY = part(
    1003, address(b"\x0a\0\0\xfd") + words(64_500, 64_501, 64_502, 1, 2, 3, 64_510, 64_511, 64_512, 2, 7, 8, 100)
)


def translated(*samples: bytes) -> list[dict[str, Any]]:
    return rows(Sflow().translate(sflow(*samples), RECEIVED_S))


def row(*records: bytes) -> dict[str, Any]:
    (found,) = translated(sample(*records))
    return found


def named(found: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: found.get(name) for name in names}


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_raw_ethernet_header_becomes_all_that_it_says() -> None:
    (found,) = translated(sample(raw(ethernet(ipv4(tcp()), 0x0800))))
    assert found == {
        "exporterIPv4Address": "192.0.2.1",
        "selectorId": 5,
        "selectorIdTotalPktsObserved": 5000,
        "samplingInterval": 1000,
        "samplingAlgorithm": 2,
        "observationTimeMilliseconds": "2025-06-15T15:06:40.250Z",
        "ingressInterface": 3,
        "egressInterface": 4,
        "packetDeltaCount": 1,
        "octetDeltaCount": 1500,
        "layer2OctetDeltaCount": 1518,
        "destinationMacAddress": "00:01:02:03:04:05",
        "sourceMacAddress": "06:07:08:09:0a:0b",
        "ethernetType": 0x0800,
        "ipVersion": 4,
        "sourceIPv4Address": "10.0.0.1",
        "destinationIPv4Address": "10.0.0.2",
        "protocolIdentifier": 6,
        "ipClassOfService": 0xB8,
        "ipTTL": 63,
        "ipTotalLength": 1500,
        "fragmentIdentification": 77,
        "fragmentOffset": 0,
        "fragmentFlags": 0x40,
        "sourceTransportPort": 1234,
        "destinationTransportPort": 443,
        "tcpControlBits": 0x12,
    }


def test_the_domain_is_the_sub_agent_and_the_expanded_form_says_the_same() -> None:
    header = raw(ethernet(ipv4(tcp()), 0x0800))
    (batch,) = decode(Sflow().translate(sflow(sample(header)), RECEIVED_S))
    assert batch.domain == 9
    plain, wide = translated(sample(header), expanded(header))
    assert plain == {**wide, "selectorId": 5}
    assert wide["selectorId"] == 1 << 24


def test_an_ipv6_packet_behind_its_extension_headers() -> None:
    hop_by_hop = bytes([44, 0, 0, 0, 0, 0, 0, 0])
    fragment = struct.pack("!BxHI", 6, 1, 0xDEADBEEF)
    found = row(raw(ethernet(ipv6(hop_by_hop + fragment + tcp(), following=0), 0x86DD)))
    assert named(found, "sourceIPv6Address", "destinationIPv6Address", "ipVersion", "flowLabelIPv6") == {
        "sourceIPv6Address": "2001:db8::1",
        "destinationIPv6Address": "2001:db8::2",
        "ipVersion": 6,
        "flowLabelIPv6": 0x12345,
    }
    assert named(
        found, "protocolIdentifier", "destinationTransportPort", "fragmentIdentification", "fragmentFlags"
    ) == {
        "protocolIdentifier": 6,
        "destinationTransportPort": 443,
        "fragmentIdentification": 0xDEADBEEF,
        "fragmentFlags": 0x20,
    }
    assert (found["octetDeltaCount"], found["ipTotalLength"], found["ipClassOfService"]) == (1500, 1500, 0x2E)


@pytest.mark.parametrize(("protocol", "packet"), [(11, ipv4(tcp())), (12, ipv6(tcp()))])
def test_a_raw_ip_header_is_read_without_ethernet(protocol: int, packet: bytes) -> None:
    found = row(raw(packet, protocol=protocol, length=1400))
    assert named(found, "destinationTransportPort", "octetDeltaCount", "layer2OctetDeltaCount") == {
        "destinationTransportPort": 443,
        "octetDeltaCount": 1400,
        "layer2OctetDeltaCount": None,
    }


def test_tags_and_what_the_switch_says_of_them() -> None:
    found = row(raw(ethernet(ipv4(tcp()), 0x0800, (0x88A8, 3 << 13 | 30), (0x8100, 1 << 13 | 40))))
    assert named(found, "vlanId", "dot1qVlanId", "dot1qPriority", "dot1qCustomerVlanId", "dot1qCustomerPriority") == {
        "vlanId": 30,
        "dot1qVlanId": 30,
        "dot1qPriority": 3,
        "dot1qCustomerVlanId": 40,
        "dot1qCustomerPriority": 1,
    }
    found = row(SWITCH, raw(ethernet(ipv4(tcp()), 0x0800)))
    assert named(found, "vlanId", "dot1qPriority", "postVlanId") == {
        "vlanId": 100,
        "dot1qPriority": 5,
        "postVlanId": 200,
    }
    unknown = row(part(1001, words(0xFFFFFFFF, 0xFFFFFFFF, 0, 0)))
    assert named(unknown, "vlanId", "dot1qPriority", "postVlanId") == {
        "vlanId": None,
        "dot1qPriority": None,
        "postVlanId": 0,
    }


def test_routes_and_as_paths() -> None:
    found = row(GATEWAY, ROUTER, raw(ethernet(ipv4(tcp()), 0x0800)))
    assert named(found, "ipNextHopIPv4Address", "sourceIPv4PrefixLength", "destinationIPv4PrefixLength") == {
        "ipNextHopIPv4Address": "10.0.0.254",
        "sourceIPv4PrefixLength": 24,
        "destinationIPv4PrefixLength": 16,
    }
    assert {name: value for name, value in found.items() if name.startswith("bgp")} == {
        "bgpNextHopIPv4Address": "10.0.0.253",
        "bgpSourceAsNumber": 64_501,
        "bgpPrevAdjacentAsNumber": 64_502,
        "bgpNextAdjacentAsNumber": 64_510,
        "bgpDestinationAsNumber": 64_512,
    }


def test_a_path_that_ends_in_a_set_has_no_last_as() -> None:
    path = part(1003, address(AGENT) + words(1, 2, 3, 2, 2, 1, 64_510, 1, 2, 64_511, 64_512, 0, 100))
    found = row(path)
    assert (found["bgpNextAdjacentAsNumber"], found["bgpDestinationAsNumber"]) == (64_510, 0)
    empty = row(part(1003, address(AGENT) + words(1, 2, 3, 0, 0, 100)))
    assert (empty["bgpNextAdjacentAsNumber"], empty["bgpDestinationAsNumber"]) == (0, 0)


@pytest.mark.parametrize("width", [4, 16])
def test_sampled_ip_and_ethernet_say_what_no_raw_header_does(width: int) -> None:
    addresses = bytes([10] * width) + bytes([11] * width)
    ip = part(3 if width == 4 else 4, words(1400, 6) + addresses + words(1234, 443, 0x18, 4))
    layer2 = part(2, words(1418) + MACS[:6] + b"\0\0" + MACS[6:] + b"\0\0" + words(0x0800))
    found = row(layer2, ip)
    version = 4 if width == 4 else 6
    expected = {4: "10.10.10.10", 6: "a0a:a0a:a0a:a0a:a0a:a0a:a0a:a0a"}[version]
    assert found[f"sourceIPv{version}Address"] == expected
    assert named(found, "octetDeltaCount", "layer2OctetDeltaCount", "sourceMacAddress", "tcpControlBits") == {
        "octetDeltaCount": 1400,
        "layer2OctetDeltaCount": 1418,
        "sourceMacAddress": "00:01:02:03:04:05",
        "tcpControlBits": 0x18,
    }
    both = row(ip, raw(ethernet(ipv4(tcp(destination=22)), 0x0800)))
    assert (both["destinationTransportPort"], both["sourceIPv4Address"]) == (22, "10.0.0.1"), "the packet itself counts"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((0, 12), (12, None, None)),
        ((0, 0x3FFFFFFF), (0, None, None)),
        ((1, 258), (0, 130, None)),
        ((1, 256), (0, 128, None)),
        ((2, 7), (0, None, 7)),
    ],
)
def test_an_interface_is_one_or_many_or_why_there_is_none(
    output: tuple[int, int], expected: tuple[int, int | None, int | None]
) -> None:
    header = raw(ethernet(ipv4(tcp()), 0x0800))
    for made in (expanded(header, egress=output), sample(header, egress=output[0] << 30 | output[1])):
        (found,) = translated(made)
        names = ("egressInterface", "forwardingStatus", "multicastReplicationFactor")
        assert tuple(found.get(name) for name in names) == expected


def test_icmp_has_type_and_code_and_a_later_fragment_has_no_ports() -> None:
    found = row(raw(ethernet(ipv4(b"\3\1" + bytes(6), protocol=1), 0x0800)))
    assert named(found, "icmpTypeIPv4", "icmpCodeIPv4") == {"icmpTypeIPv4": 3, "icmpCodeIPv4": 1}
    found = row(raw(ethernet(ipv6(b"\x88\0" + bytes(6), following=58), 0x86DD)))
    assert named(found, "icmpTypeIPv6", "icmpCodeIPv6") == {"icmpTypeIPv6": 0x88, "icmpCodeIPv6": 0}
    found = row(raw(ethernet(ipv4(tcp(), place=100), 0x0800)))
    assert named(found, "fragmentOffset", "sourceTransportPort") == {"fragmentOffset": 100, "sourceTransportPort": None}


def test_frame_padding_and_options_of_ip_are_no_transport_header() -> None:
    found = row(raw(ethernet(ipv4(b"", total=None) + bytes(26), 0x0800)))
    assert "sourceTransportPort" not in found
    found = row(raw(ethernet(ipv4(tcp(destination=22), options=3), 0x0800)))
    assert found["destinationTransportPort"] == 22


def test_ip_is_found_behind_mpls_labels_and_nothing_in_what_is_no_ip() -> None:
    stack = bytes.fromhex("0006403f 0006513f".replace(" ", ""))
    for packet, port in ((ipv4(tcp()), 443), (ipv6(tcp()), 443), (bytes(40), None)):
        found = row(raw(ethernet(stack + packet, 0x8847, (0x8100, 30))))
        assert found.get("destinationTransportPort") == port
        assert found["mplsTopLabelStackSection"] == "000640"
        assert found["ethernetType"] == 0x8847
    endless = row(raw(ethernet(stack[:4] * 20, 0x8847)))
    assert "ipVersion" not in endless


def test_every_end_of_a_header_gives_what_is_before_it() -> None:
    whole = ethernet(bytes.fromhex("0006413f") + ipv4(tcp()), 0x8847, (0x8100, 30))
    complete = row(raw(whole))
    before = 0
    for end in range(len(whole) + 1):
        found = row(raw(whole[:end]))
        assert found.items() <= complete.items()
        assert len(found) >= before
        before = len(found)


# --- what is not translated -------------------------------------------------------------------------------------------


def test_what_gives_no_record_is_counted_by_reason() -> None:
    session = DatagramSession("sflow")
    header = raw(ethernet(ipv4(tcp()), 0x0800))
    data = session.take(
        [
            sflow(
                part(2, bytes(100)),
                part(4, bytes(100)),
                part(4096 * 4413 + 1, b"theirs"),
                sample(header, header, part(1012, bytes(8))),
                sample(part(1003, words(1)), header),
                sample(part(2003, b"nothing of a packet")),
            )
        ],
        RECEIVED_S,
    )
    assert len(rows(data)) == 3
    assert session.skipped == {
        "counter_sample": 2,
        "unknown_sample": 1,
        "repeated_record": 1,
        "unknown_record": 2,
        "malformed_record": 1,
        "no_packet": 1,
    }
    assert session.counts.malformed == {}


def test_a_malformed_sample_costs_itself_only() -> None:
    session = DatagramSession("sflow")
    header = raw(ethernet(ipv4(tcp()), 0x0800))
    broken = part(1, words(7, 5, 1, 1, 0, 3, 4, 0xFFFFFFFF) + header)
    data = session.take([sflow(sample(header), broken, sample(header))], RECEIVED_S)
    assert len(rows(data)) == 2
    assert session.counts.malformed == {"count": 1}


def test_a_datagram_that_is_cut_off_changes_nothing() -> None:
    whole = sflow(sample(ROUTER, raw(ethernet(ipv4(tcp()), 0x0800))))
    for end in range(len(whole)):
        exporter = Sflow()
        with pytest.raises(MalformedMessage):
            exporter.translate(whole[:end], RECEIVED_S)
        assert (exporter.records, exporter.sequences) == (0, {})


@pytest.mark.parametrize(
    "datagram",
    [
        sflow()[:3],
        words(4) + sflow()[4:],
        words(5, 0) + sflow()[12:],
        words(5, 3) + sflow()[8:],
        words(5) + address(AGENT) + words(0, 1, 2, 0xFFFFFFFF),
    ],
)
def test_what_is_no_sflow_is_said(datagram: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Sflow().translate(datagram, RECEIVED_S)


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_its_first_bytes_are_told_from_netflow() -> None:
    assert protocol_of(sflow()) == "sflow"
    assert protocol_of(b"\0\0\0\4" + bytes(20)) is None
    assert protocol_of(b"\0\0") is None


def test_numbers_count_datagrams_by_agent_and_sub_agent_and_a_reboot_is_no_loss() -> None:
    session = DatagramSession("sflow")
    for number, uptime in ((5, 100_000), (6, 101_000), (9, 104_000), (1, 500), (2, 1500)):
        session.take([sflow(number=number, uptime=uptime)], RECEIVED_S)
        session.take([sflow(number=number + 1000, uptime=uptime, sub_agent=8)], RECEIVED_S)
    assert (session.lost, session.restarts) == (4, 2)


def test_a_template_is_defined_before_its_first_record_and_by_each_session_anew() -> None:
    datagram = sflow(sample(raw(ethernet(ipv4(tcp()), 0x0800))), sample(raw(ethernet(ipv6(tcp()), 0x86DD))))
    session = DatagramSession("sflow")
    first, second = session.take([datagram], RECEIVED_S), session.take([datagram], RECEIVED_S)
    assert Session().walk(second).undecodable_sets == 2
    walk = Session().walk(first + second)
    assert (walk.fault, walk.undecodable_sets, walk.records, walk.lost_records) == (None, 0, 4, 0)
    assert DatagramSession("sflow").take([datagram], RECEIVED_S) == first


def test_templates_are_bounded_and_the_one_longest_unused_gives_its_number_to_the_next() -> None:
    exporter = Sflow()
    session = Session(FlowLimits(max_templates=MAX_LAYOUTS))
    kinds = [0x8100, 0x0800, 0x0806]
    data = b""
    for shape in range(3 * MAX_LAYOUTS):
        records = [raw(ethernet(ipv4(tcp())[: shape % 40], kinds[shape % 3]))]
        records += [record for bit, record in enumerate((ROUTER, SWITCH, GATEWAY)) if shape >> bit & 1]
        data += exporter.translate(sflow(sample(*records), number=shape), RECEIVED_S)
        data += exporter.translate(sflow(sample(raw(b"")), number=shape), RECEIVED_S)
    walk = session.walk(data)
    assert (walk.fault, walk.undecodable_sets, walk.lost_records) == (None, 0, 0)
    assert walk.records == 6 * MAX_LAYOUTS
    assert len(session.templates) <= MAX_LAYOUTS


def test_agents_and_sub_agents_are_bounded() -> None:
    session = DatagramSession("sflow", FlowLimits(max_domains=3, max_templates=2 * MAX_LAYOUTS))
    header = raw(ethernet(ipv4(tcp()), 0x0800))
    for number in range(6):
        session.take([sflow(sample(header), sub_agent=number), sflow(agent=bytes([192, 0, 2, number]))], RECEIVED_S)
    assert session.counts.malformed["domains"] == 9
    assert session.counts.datagrams == 12


@given(st.data())
def test_a_mutated_datagram_gives_decodable_ipfix_or_is_malformed(data: st.DataObject) -> None:
    header = raw(ethernet(ipv4(tcp()), 0x0800))
    whole = bytearray(sflow(sample(ROUTER, header, GATEWAY), expanded(SWITCH, header)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    exporter = Sflow()
    try:
        made = exporter.translate(bytes(whole[: data.draw(st.integers(0, len(whole)))]), RECEIVED_S)
    except MalformedMessage:
        return
    walk = Session().walk(made)
    assert (walk.fault, walk.undecodable_sets, walk.records) == (None, 0, exporter.records)
    rows(made)


@given(st.binary(max_size=300))
def test_any_bytes_behind_a_header_give_decodable_ipfix_or_are_malformed(body: bytes) -> None:
    try:
        made = Sflow().translate(sflow()[:-4] + body, RECEIVED_S)
    except MalformedMessage:
        return
    assert Session().walk(made).fault is None


@given(st.binary(max_size=120), st.sampled_from([1, 11, 12]))
def test_any_header_is_read_as_far_as_it_makes_sense(header: bytes, protocol: int) -> None:
    assert len(translated(sample(raw(header, protocol=protocol)))) == 1
