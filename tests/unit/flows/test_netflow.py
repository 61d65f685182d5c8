"""NetFlow v5 and v9 to IPFIX: every field kept, every relative time made absolute, every number followed."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import MalformedMessage
from sapflow.flows.columns.batches import decode
from sapflow.flows.columns.records import values_of
from sapflow.flows.datagrams.clocks import absolute_ms, one_absolute_ms
from sapflow.flows.datagrams.netflow5 import Netflow5
from sapflow.flows.datagrams.netflow9 import Netflow9
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits

BOOT_S = 1_750_000_000
V5_RECORD = struct.Struct("!4s4s4sHHIIIIHHBBBBHHBBH")


def v5_record(port: int = 80, first: int = 5000, last: int = 6000) -> bytes:
    addresses = (b"\x0a\0\0\1", b"\x0a\0\0\2", b"\x0a\0\0\3")
    return V5_RECORD.pack(*addresses, 7, 8, 10, 1500, first, last, 1234, port, 0, 0x1B, 6, 4, 65000, 65001, 24, 16, 0)


def v5(
    *records: bytes, number: int = 0, uptime: int = 10_000, engine: int = 2, sampling: int = 1 << 14 | 1000
) -> bytes:
    head = struct.pack("!HHIIIIBBH", 5, len(records), uptime, BOOT_S + 10, 500_000_000, number, 1, engine, sampling)
    return head + b"".join(records)


def flowset(number: int, body: bytes, padding: bytes = b"") -> bytes:
    return struct.pack("!HH", number, 4 + len(body) + len(padding)) + body + padding


def v9(*sets: bytes, number: int = 0, count: int = 1, uptime: int = 10_000, source: int = 9, at: int = BOOT_S) -> bytes:
    return struct.pack("!HHIIII", 9, count, uptime, at, number, source) + b"".join(sets)


def template(number: int, *fields: tuple[int, int]) -> bytes:
    return struct.pack("!HH", number, len(fields)) + b"".join(struct.pack("!HH", *pair) for pair in fields)


def options(number: int, scopes: list[tuple[int, int]], fields: list[tuple[int, int]]) -> bytes:
    head = struct.pack("!HHH", number, 4 * len(scopes), 4 * len(fields))
    return head + b"".join(struct.pack("!HH", *pair) for pair in [*scopes, *fields])


def rows(data: bytes) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for batch in decode(data):
        values = values_of(batch)
        for place, row in zip(batch.order.tolist(), zip(*values.values(), strict=True), strict=True):
            found[place] = dict(zip(values, row, strict=True))
    return [found[place] for place in sorted(found)]


FLOW = template(300, (8, 4), (12, 4), (7, 2), (11, 2), (1, 4), (22, 4), (21, 4))


def flow(port: int = 80, first: int = 9000, last: int = 9500) -> bytes:
    return struct.pack("!4s4sHHIII", b"\x0a\0\0\1", b"\x0a\0\0\2", 1234, port, 99, first, last)


# --- v5 ---------------------------------------------------------------------------------------------------------------


def test_a_v5_record_keeps_every_field_and_gets_its_times_engine_and_sampling() -> None:
    data = Netflow5().translate(v5(v5_record()), 0)
    assert rows(data) == [
        {
            "sourceIPv4Address": "10.0.0.1",
            "destinationIPv4Address": "10.0.0.2",
            "ipNextHopIPv4Address": "10.0.0.3",
            "ingressInterface": 7,
            "egressInterface": 8,
            "packetDeltaCount": 10,
            "octetDeltaCount": 1500,
            "flowStartSysUpTime": 5000,
            "flowEndSysUpTime": 6000,
            "sourceTransportPort": 1234,
            "destinationTransportPort": 80,
            "tcpControlBits": 0x1B,
            "protocolIdentifier": 6,
            "ipClassOfService": 4,
            "bgpSourceAsNumber": 65000,
            "bgpDestinationAsNumber": 65001,
            "sourceIPv4PrefixLength": 24,
            "destinationIPv4PrefixLength": 16,
            "flowStartMilliseconds": "2025-06-15T15:06:45.500Z",
            "flowEndMilliseconds": "2025-06-15T15:06:46.500Z",
            "engineType": 1,
            "engineId": 2,
            "samplingInterval": 1000,
            "samplingAlgorithm": 1,
        }
    ]
    (batch,) = decode(data)
    assert batch.domain == 1 << 8 | 2


def test_v5_datagrams_together_are_the_same_as_one_by_one() -> None:
    datagrams = [v5(*[v5_record(port)] * 30, number=30 * port, uptime=10_000 + port) for port in range(40)]
    together, single = Netflow5(), Netflow5()
    assert rows(together.translate_all(datagrams, 0)) == rows(b"".join(single.translate(d, 0) for d in datagrams))
    assert together.records == single.records == 1200
    assert together.sequences[0x102].lost == 0


def test_v5_numbers_count_flows() -> None:
    exporter = Netflow5()
    for number, count in ((0, 2), (2, 3), (9, 1)):
        exporter.translate(v5(*[v5_record()] * count, number=number), 0)
    assert exporter.sequences[0x102].lost == 4


@pytest.mark.parametrize("first", [0xFFFFFF00, 5000])
def test_a_flow_that_began_before_the_uptime_wrapped_began_in_the_past(first: int) -> None:
    """Uptime is 49.7 days at most; a start in the future is one from before the wrap."""
    uptime = 744 if first > 1 << 31 else 6000
    (row,) = rows(Netflow5().translate(v5(v5_record(first=first, last=uptime), uptime=uptime), 0))
    assert row["flowStartMilliseconds"] == "2025-06-15T15:06:49.500Z"


@pytest.mark.parametrize(
    ("first", "start"), [(12_000, "2025-06-15T15:06:51.500Z"), (2_000_000_000, "2025-05-20T01:37:12.204Z")]
)
def test_a_flow_begins_a_little_in_the_future_or_long_before_the_wrap(first: int, start: str) -> None:
    (row,) = rows(Netflow5().translate(v5(v5_record(first=first), uptime=11_000), 0))
    assert row["flowStartMilliseconds"] == start


def test_a_header_without_a_clock_is_read_by_the_time_of_receipt() -> None:
    datagram = bytearray(v5(v5_record(first=10_000)))
    datagram[8:12] = (12).to_bytes(4, "big")
    (row,) = rows(Netflow5().translate(bytes(datagram), BOOT_S))
    assert row["flowStartMilliseconds"] == "2025-06-15T15:06:40.000Z"


def test_a_v5_datagram_that_is_cut_off_is_refused_and_changes_nothing() -> None:
    whole = v5(v5_record(), v5_record())
    for end in range(len(whole)):
        exporter = Netflow5()
        with pytest.raises(MalformedMessage):
            exporter.translate(whole[:end], 0)
        assert (exporter.records, exporter.sequences) == (0, {})


def test_a_v5_exporter_has_no_more_engines_than_its_bound() -> None:
    exporter = Netflow5(max_domains=2)
    exporter.translate(v5(v5_record(), engine=1), 0)
    exporter.translate(v5(v5_record(), engine=2), 0)
    with pytest.raises(MalformedMessage, match="engines"):
        exporter.translate(v5(v5_record(), engine=3), 0)


# --- v9 ---------------------------------------------------------------------------------------------------------------


def test_a_v9_record_keeps_its_fields_and_gets_its_times() -> None:
    data = Netflow9().translate(v9(flowset(0, FLOW), flowset(300, flow() + flow(443), b"\0\0")), 0)
    first, second = rows(data)
    assert first == {
        "sourceIPv4Address": "10.0.0.1",
        "destinationIPv4Address": "10.0.0.2",
        "sourceTransportPort": 1234,
        "destinationTransportPort": 80,
        "octetDeltaCount": 99,
        "flowStartSysUpTime": 9000,
        "flowEndSysUpTime": 9500,
        "flowStartMilliseconds": "2025-06-15T15:06:39.000Z",
        "flowEndMilliseconds": "2025-06-15T15:06:39.500Z",
    }
    assert second["destinationTransportPort"] == 443
    (batch,) = decode(data)
    assert batch.domain == 9


def test_uptimes_of_eight_bytes_and_types_above_32767_are_taken() -> None:
    layout = template(301, (22, 8), (21, 8), (40_005, 1), (56_701, 4))
    record = struct.pack("!QQB4s", 9000, 9500, 2, b"dns\0")
    (row,) = rows(Netflow9().translate(v9(flowset(0, layout), flowset(301, record)), 0))
    assert row["flowStartMilliseconds"] == "2025-06-15T15:06:39.000Z"
    assert row["fwEvent"] == 2
    assert row["App_ID"] == "dns"


def test_options_data_have_the_scope_that_means_the_same() -> None:
    layout = options(310, [(2, 4)], [(82, 4)])
    (row,) = rows(Netflow9().translate(v9(flowset(1, layout, b"\0\0"), flowset(310, b"\0\0\0\7eth0")), 0))
    assert row == {"ingressInterface": 7, "interfaceName": "eth0"}


def test_data_before_its_template_waits_for_it_and_for_no_other() -> None:
    exporter = Netflow9()
    assert rows(exporter.translate(v9(flowset(300, flow(53)), number=0), 0)) == []
    assert rows(exporter.translate(v9(flowset(0, FLOW), number=0, source=10), 0)) == []
    found = rows(exporter.translate(v9(flowset(0, FLOW), flowset(300, flow(80)), number=1), 0))
    assert [row["destinationTransportPort"] for row in found] == [53, 80]
    assert (exporter.parking.held_bytes, exporter.parking.dropped) == (0, 0)


def test_parked_sets_are_bounded() -> None:
    exporter = Netflow9()
    for number in range(4000):
        exporter.translate(v9(flowset(300 + number % 7, flow() * 30), number=number), 0)
    assert exporter.parking.held_bytes <= exporter.parking.max_bytes
    assert exporter.parking.dropped > 0


def test_f28_padding_longer_than_a_record_is_no_record() -> None:
    layout = template(302, (4, 1), (5, 1))
    data = Netflow9().translate(v9(flowset(0, layout), flowset(302, b"\x06\1\x11\0", bytes(24)), count=3), 0)
    assert [(row["protocolIdentifier"], row["ipClassOfService"]) for row in rows(data)] == [(6, 1), (17, 0)]


def test_zeros_behind_the_last_set_are_let_go() -> None:
    assert len(rows(Netflow9().translate(v9(flowset(0, FLOW), flowset(300, flow())) + bytes(100), 0))) == 1


def test_f31_the_same_template_id_of_two_sources_is_never_mixed() -> None:
    exporter = Netflow9()
    exporter.translate(v9(flowset(0, template(256, (4, 1))), source=1), 0)
    exporter.translate(v9(flowset(0, template(256, (7, 2))), source=2), 0)
    data = exporter.translate(v9(flowset(256, b"\x06\x11"), source=1, number=1, count=2), 0)
    assert [row["protocolIdentifier"] for row in rows(data)] == []  # known already: the template is not said again
    data = exporter.refresh() + data
    assert [row["protocolIdentifier"] for row in rows(data)] == [6, 17]


def test_v9_numbers_count_datagrams_and_a_reboot_is_no_loss() -> None:
    exporter = Netflow9()
    for number, uptime in ((5, 100_000), (6, 101_000), (9, 102_000), (0, 500), (1, 1500)):
        exporter.translate(v9(number=number, uptime=uptime), 0)
    found = exporter.sequences[9]
    assert (found.lost, found.restarts) == (2, 1)


def test_elements_of_variable_length_are_taken_though_v9_has_none() -> None:
    layout = template(303, (82, 65_535), (22, 4), (21, 4))
    record = b"\x04eth1" + struct.pack("!II", 9000, 9500)
    first, second = rows(Netflow9().translate(v9(flowset(0, layout), flowset(303, record * 2)), 0))
    assert first["interfaceName"] == "eth1"
    assert second["flowEndMilliseconds"] == "2025-06-15T15:06:39.500Z"


def test_records_of_elements_of_no_length_have_no_more_values_than_the_cap() -> None:
    """By IPFIX's rule: else a datagram could hold a hundred million."""
    layout = template(303, (82, 65_535), *[(8, 0)] * 1000)
    faults: list[MalformedMessage] = []
    exporter = Netflow9(FlowLimits(max_values_per_message=10_010), faults.append)
    exporter.translate(v9(flowset(0, layout)), 0)
    assert exporter.translate(v9(flowset(303, b"\0" * 11), number=1), 0) == b""
    assert [fault.reason for fault in faults] == ["values"]
    assert len(rows(exporter.translate(v9(flowset(0, FLOW), flowset(303, b"\0" * 10), number=2), 0))) == 0
    assert exporter.records == 10


def test_sets_of_several_templates_in_turn_keep_their_order() -> None:
    exporter = Netflow9()
    one, other = template(301, (7, 2)), template(302, (11, 2))
    sets = [flowset(301 + n % 2, struct.pack("!H", 1 + n)) for n in range(10)]
    found = rows(exporter.translate(v9(flowset(0, one + other), *sets, count=12), 0))
    assert [next(iter(row.values())) for row in found] == list(range(1, 11))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(-(2**33), 2**43))
def test_one_time_is_made_absolute_as_many_are(relative: int, uptime_ms: int, now_ms: int) -> None:
    many = absolute_ms(np.array([relative, relative], np.uint64), uptime_ms, now_ms).astype(np.uint64)
    assert many.tolist() == [one_absolute_ms(relative, uptime_ms, now_ms)] * 2


@pytest.mark.parametrize(
    "sets",
    [
        flowset(0, template(300)),
        flowset(0, template(20, (8, 4))),
        flowset(0, struct.pack("!HH", 300, 65_535)),
        flowset(0, template(300, (8, 0))),
        flowset(1, struct.pack("!HHH", 300, 3, 4)),
        struct.pack("!HH", 300, 2),
        struct.pack("!HH", 300, 400),
    ],
)
def test_a_broken_template_or_set_is_refused(sets: bytes) -> None:
    faults: list[MalformedMessage] = []
    assert Netflow9(on_fault=faults.append).translate(v9(sets + b"\1"), 0) == b""
    assert len(faults) == 1


def test_templates_are_bounded() -> None:
    faults: list[MalformedMessage] = []
    exporter = Netflow9(FlowLimits(max_templates=3), faults.append)
    exporter.translate(v9(flowset(0, b"".join(template(256 + n, (8, 4)) for n in range(3)))), 0)
    assert faults == []
    assert exporter.translate(v9(flowset(0, template(259, (8, 4))), number=1), 0) == b""
    assert "more than 3 templates" in str(faults)


def test_templates_outlive_the_process() -> None:
    before = Netflow9()
    before.translate(v9(flowset(0, FLOW), flowset(1, options(310, [(1, 4)], [(34, 4)]))), 0)
    after = Netflow9()
    data = after.restore(before.template_sets()) + after.translate(v9(flowset(300, flow(53)), number=7), 0)
    assert [row["destinationTransportPort"] for row in rows(data)] == [53]


@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_behind_a_v9_header_give_ipfix_or_a_malformed_message(body: bytes, known: int) -> None:
    exporter = Netflow9()
    if known:
        exporter.translate(v9(flowset(0, FLOW), flowset(0, template(303, (82, 65_535), (22, 4), (21, 4)))), 0)
    try:
        data = exporter.translate(v9(body), 0)
    except MalformedMessage:
        return
    assert Session().walk(data).fault is None
