"""The view of flows: each row of its table of precedence (docs/reference/view.md), and the exporters it is for."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.flows.columns.records import Context
from sapflow.flows.datagrams.netflow5 import Netflow5
from sapflow.flows.ipfix.encode import Encoder, make_template
from sapflow.flows.meaning.schema import ELEMENTS, JOINED, NUMBERS
from sapflow.flows.meaning.view import View, view
from sapflow.flows.registry import InformationElement, registry, using
from tests.unit.flows.flows_made import EXPORTED, Record, Value, a_batch, ntp, seen
from tests.unit.flows.test_netflow import v5, v5_record

CONTEXT = Context("acme", "192.0.2.1:4739")


def flows(*records: Record, exported: int = EXPORTED, scale: bool = False) -> list[dict[str, object]]:
    """What the view shows of records, nulls left out."""
    return seen([view(a_batch(*records, exported=exported), CONTEXT, scale=scale)])


def flow(**elements: Value) -> dict[str, object]:
    """What it shows of one."""
    (row,) = flows(elements)
    return row


@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_comes_from_each_of_its_elements(name: str) -> None:
    for element in NUMBERS[name].elements:
        assert flow(**{element: 7})[name] == 7, element


@pytest.mark.parametrize("name", ["in_if", "vlan", "event"])
def test_an_identifier_of_zero_gives_way_to_the_next_element(name: str) -> None:
    first, second = NUMBERS[name].elements[:2]
    assert flow(**{first: 0, second: 9})[name] == 9
    assert flow(**{first: 8, second: 9})[name] == 8
    assert flow(**{first: 0, second: 0})[name] == 0


@pytest.mark.parametrize(("name", "what"), [("bytes", "octet"), ("packets", "packet")])
def test_deltas_come_before_totals_even_when_they_are_zero(name: str, what: str) -> None:
    delta, total, post = f"{what}DeltaCount", f"{what}TotalCount", f"post{what.capitalize()}DeltaCount"
    assert flow(**{total: 900, delta: 5})[name] == 5
    assert flow(**{total: 900, delta: 0})[name] == 0
    assert flow(**{post: 3, total: 900})[name] == 900
    assert flow(**{post: 3})[name] == 3


def test_totals_alone_are_what_srx_sends() -> None:
    row = flow(octetTotalCount=1500, packetTotalCount=3)
    assert (row["bytes"], row["packets"]) == (1500, 3)


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("src_addr", ("sourceIPv4Address", "sourceIPv6Address")),
        ("dst_addr", ("destinationIPv4Address", "destinationIPv6Address")),
        ("next_hop", ("ipNextHopIPv4Address", "ipNextHopIPv6Address")),
        ("bgp_next_hop", ("bgpNextHopIPv4Address", "bgpNextHopIPv6Address")),
        ("nat_src_addr", ("postNATSourceIPv4Address", "postNATSourceIPv6Address")),
        ("nat_dst_addr", ("postNATDestinationIPv4Address", "postNATDestinationIPv6Address")),
    ],
)
def test_addresses_of_either_version_are_one_column(name: str, elements: tuple[str, str]) -> None:
    four, six = elements
    assert flow(**{four: "192.0.2.9"})[name] == "192.0.2.9"
    assert flow(**{six: "2001:db8::9"})[name] == "2001:db8::9"
    both = flows({four: "192.0.2.9", six: "::"}, {four: "0.0.0.0", six: "2001:db8::9"}, {four: "0.0.0.0", six: "::"})
    assert [row[name] for row in both] == ["192.0.2.9", "2001:db8::9", "0.0.0.0"]


def test_prefixes_stand_in_for_addresses_and_asa_s_first_nat_elements_count() -> None:
    assert flow(sourceIPv4Prefix="198.51.100.0")["src_addr"] == "198.51.100.0"
    assert flow(xlateSrcAddrIPv4="198.51.100.1")["nat_src_addr"] == "198.51.100.1"


def test_in_columns_an_address_has_16_octets_with_ipv4_mapped() -> None:
    column = view(a_batch({"sourceIPv4Address": "192.0.2.9"})).columns["src_addr"]
    assert column.dtype == np.dtype("V16")
    assert bytes(column[0]) == bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 9])


def test_mac_addresses_applications_and_users_are_told() -> None:
    row = flow(sourceMacAddress=b"\x00\x01\x02\x03\x04\x05", applicationName="dns", userName="amy")
    assert (row["src_mac"], row["app"], row["user"]) == ("00:01:02:03:04:05", "dns", "amy")
    assert flow(App_ID="ssl", User_ID="bob")["app"] == "ssl"


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"tcpControlBits": 0x1B}, 0x1B),
        ({"initialTCPFlags": 0x02, "unionTCPFlags": 0x19}, 0x1B),
        ({"tcpControlBits": 0x10, "initialTCPFlags": 0x02, "unionTCPFlags": 0x19}, 0x10),
    ],
)
def test_tcp_flags_are_all_that_were_seen(elements: Record, expected: int) -> None:
    assert flow(**elements)["tcp_flags"] == expected


TIMES = [
    ("Nanoseconds", ntp(1_700_000_004, 1 << 31), "2023-11-14T22:13:24.500000Z"),
    ("Microseconds", ntp(1_700_000_003, 1 << 31), "2023-11-14T22:13:23.500000Z"),
    ("Milliseconds", 1_700_000_002_500, "2023-11-14T22:13:22.500000Z"),
    ("Seconds", 1_700_000_001, "2023-11-14T22:13:21.000000Z"),
]


@pytest.mark.parametrize(("side", "name"), [("Start", "start"), ("End", "end")])
def test_the_finest_time_that_is_told_counts(side: str, name: str) -> None:
    for at in range(len(TIMES)):
        elements: dict[str, Value] = {f"flow{side}{unit}": value for unit, value, _ in reversed(TIMES[at:])}
        assert flow(**elements)[name] == TIMES[at][2]


def test_a_time_of_zero_tells_nothing() -> None:
    row = flow(flowStartMicroseconds=0, flowStartMilliseconds=0, flowStartSeconds=1_700_000_001)
    assert row["start"] == "2023-11-14T22:13:21.000000Z"
    assert "start" not in flow(flowStartSeconds=0)


def test_yaf_has_milliseconds_and_ntp_microseconds_in_one_template() -> None:
    row = flow(flowStartMilliseconds=1_700_000_002_500, flowStartMicroseconds=ntp(1_700_000_002, (1 << 31) + (1 << 20)))
    assert row["start"] == "2023-11-14T22:13:22.500244Z"


def test_sophos_has_seconds_only() -> None:
    row = flow(flowStartSeconds=1_700_000_001, flowEndSeconds=1_700_000_009)
    assert (row["start"], row["end"]) == ("2023-11-14T22:13:21.000000Z", "2023-11-14T22:13:29.000000Z")


def test_open_vswitch_has_microseconds_before_the_export() -> None:
    (row,) = flows({"flowStartDeltaMicroseconds": 2_500_000, "flowEndDeltaMicroseconds": 1}, exported=1_700_000_010)
    assert (row["start"], row["end"]) == ("2023-11-14T22:13:27.500000Z", "2023-11-14T22:13:29.999999Z")


def test_huawei_has_uptimes_and_when_it_started_in_the_record() -> None:
    row = flow(flowStartSysUpTime=1000, flowEndSysUpTime=2500, systemInitTimeMilliseconds=EXPORTED * 1000 - 5000)
    assert (row["start"], row["end"]) == ("2025-06-15T15:06:36.000000Z", "2025-06-15T15:06:37.500000Z")


def test_when_an_exporter_started_may_come_in_options_data_of_another_port() -> None:
    stage = View()
    options = a_batch({"meteringProcessId": 1, "systemInitTimeMilliseconds": EXPORTED * 1000 - 5000}, scopes=1)
    assert [batch.records for batch in stage.apply([options], Context("acme", "192.0.2.1:9999"))] == [0]
    (row,) = seen(stage.apply([a_batch({"flowEndSysUpTime": 2500})], CONTEXT))
    assert row["end"] == "2025-06-15T15:06:37.500000Z"
    (other,) = seen(stage.apply([a_batch({"flowEndSysUpTime": 2500})], Context("acme", "192.0.2.2:1")))
    assert "end" not in other


def test_an_uptime_that_wrapped_after_49_days_gives_no_flow_of_49_days_ago() -> None:
    wrap = 1 << 32
    booted = EXPORTED * 1000 - wrap - 5000
    row = flow(flowStartSysUpTime=wrap - 1000, flowEndSysUpTime=2500, systemInitTimeMilliseconds=booted)
    assert (row["start"], row["end"]) == ("2025-06-15T15:06:34.000000Z", "2025-06-15T15:06:37.500000Z")


def test_durations_and_times_of_observation_fill_what_is_missing() -> None:
    assert flow(flowStartSeconds=1_700_000_001, flowDurationMilliseconds=1500)["end"] == "2023-11-14T22:13:22.500000Z"
    assert flow(flowEndSeconds=1_700_000_001, flowDurationMicroseconds=5)["start"] == "2023-11-14T22:13:20.999995Z"
    event = flow(observationTimeMilliseconds=1_700_000_001_000)
    assert event["start"] == event["end"] == "2023-11-14T22:13:21.000000Z"


def test_juniper_s_end_before_start_is_left_as_it_was_told() -> None:
    row = flow(flowStartSeconds=1_700_000_009, flowEndSeconds=1_700_000_001)
    assert str(row["start"]) > str(row["end"])


def test_asa_s_events_are_a_row_for_each_direction() -> None:
    record: dict[str, Value] = {
        "sourceIPv4Address": "192.0.2.1",
        "destinationIPv4Address": "198.51.100.1",
        "sourceTransportPort": 1024,
        "destinationTransportPort": 443,
        "ingressInterface": 3,
        "egressInterface": 4,
        "initiatorOctets": 100,
        "responderOctets": 5000,
        "firewallEvent": 5,
        "observationTimeMilliseconds": 1_700_000_001_000,
    }
    forward, backward = flows(record)
    assert [forward[name] for name in ("src_addr", "src_port", "in_if", "bytes", "reverse")] == [
        *("192.0.2.1", 1024, 3, 100, False)
    ]
    assert [backward[name] for name in ("src_addr", "src_port", "in_if", "bytes", "reverse")] == [
        *("198.51.100.1", 443, 4, 5000, True)
    ]
    assert "packets" not in forward
    assert forward["event"] == backward["event"] == 5
    (created,) = flows({name: value for name, value in record.items() if "Octets" not in name})
    assert "bytes" not in created


def test_a_biflow_s_other_direction_has_its_own_flags_class_and_times() -> None:
    record: dict[str, Value] = {
        "sourceIPv6Address": "2001:db8::1",
        "destinationIPv6Address": "2001:db8::2",
        "octetDeltaCount": 10,
        "packetDeltaCount": 1,
        "tcpControlBits": 2,
        "ipClassOfService": 8,
        "flowStartMilliseconds": 1_700_000_000_000,
        "flowEndMilliseconds": 1_700_000_009_000,
        "reverse:octetDeltaCount": 20,
        "reverse:packetDeltaCount": 2,
        "reverse:tcpControlBits": 18,
        "reverse:flowStartMilliseconds": 1_700_000_001_000,
    }
    forward, backward = flows(record)
    assert (forward["tcp_flags"], forward["tos"], forward["bytes"]) == (2, 8, 10)
    assert (backward["tcp_flags"], backward["bytes"], backward["packets"]) == (18, 20, 2)
    assert (backward["src_addr"], backward["dst_addr"]) == ("2001:db8::2", "2001:db8::1")
    assert (backward["start"], backward["end"]) == ("2023-11-14T22:13:21.000000Z", "2023-11-14T22:13:29.000000Z")
    assert "tos" not in backward


def test_a_biflow_that_nobody_answered_is_one_row() -> None:
    (row,) = flows({"octetDeltaCount": 10, "reverse:octetDeltaCount": 0, "reverse:packetDeltaCount": 0})
    assert row["reverse"] is False


def test_yaf_tells_how_long_the_answer_took_and_its_flags() -> None:
    elements: dict[str, Value] = {
        "flowStartMilliseconds": 1_700_000_000_000,
        "octetTotalCount": 1,
        "reverse:octetTotalCount": 2,
        "reverseFlowDeltaMilliseconds": 250,
        "reverse:initialTCPFlags": 2,
        "reverse:unionTCPFlags": 16,
    }
    _, backward = flows(elements)
    assert (backward["start"], backward["tcp_flags"]) == ("2023-11-14T22:13:20.250000Z", 18)


def test_rows_of_both_directions_stand_beside_each_other() -> None:
    records = [{"octetDeltaCount": n, "reverse:octetDeltaCount": n % 2} for n in range(1, 5)]
    batch = view(a_batch(*records))
    assert batch.order.tolist() == [0, 0, 1, 2, 2, 3]
    assert batch.columns["reverse"].tolist() == [False, True, False, False, True, False]


def test_sampling_of_the_record_is_shown_and_scales_only_when_asked() -> None:
    record = {"octetDeltaCount": 10, "packetDeltaCount": 1, "samplingInterval": 100}
    (row,) = flows(record)
    assert (row["sampling"], row["bytes"]) == (100.0, 10)
    assert "scaled_bytes" not in row
    (row,) = flows(record, scale=True)
    assert (row["bytes"], row["scaled_bytes"], row["scaled_packets"]) == (10, 1000, 100)
    (row,) = flows({"octetDeltaCount": 10}, scale=True)
    assert "scaled_bytes" not in row


def test_a_v5_datagram_has_all_that_v5_tells() -> None:
    (batch,) = decode(Netflow5().translate(v5(v5_record(443), sampling=0x4000 | 10), 0))
    (row,) = seen([view(batch, CONTEXT)])
    told = {"src_addr", "dst_addr", "next_hop", "in_if", "out_if", "packets", "bytes", "start", "end", "src_port"}
    told |= {"dst_port", "tcp_flags", "proto", "tos", "src_as", "dst_as", "src_mask", "dst_mask", "sampling"}
    assert told <= row.keys()
    assert (row["dst_port"], row["sampling"], row["exporter"]) == (443, 10.0, "192.0.2.1")


def schema_of(batch: FlowBatch) -> list[tuple[str, str]]:
    return [(element.name, element.type) for element in batch.elements]


def test_columns_and_their_types_are_the_same_for_every_exporter() -> None:
    plain = view(a_batch({"octetDeltaCount": 1}))
    rich = view(a_batch({"sourceIPv6Address": "::1", "flowStartSeconds": 1, "reverse:octetTotalCount": 7}))
    options = view(a_batch({"samplerId": 1, "samplerRandomInterval": 10}, scopes=1))
    assert schema_of(plain) == schema_of(rich) == schema_of(options)
    assert [*plain.columns] == [name for name in ELEMENTS if name not in JOINED and not name.startswith("scaled_")]
    for name, column in plain.columns.items():
        for other in (rich, options):
            assert other.columns[name].dtype.kind == column.dtype.kind
            if column.dtype.kind != "U":
                assert other.columns[name].dtype == column.dtype
    assert options.records == 0


def test_a_value_that_its_column_cannot_hold_is_null() -> None:
    assert "src_as" in flow(bgpSourceAsNumber=(1 << 32) - 1)
    assert "tos" not in seen([view(a_batch({"ipClassOfService": (300).to_bytes(2, "big")}))])[0]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "flowStartMilliseconds": st.integers(0, (1 << 64) - 1),
                "flowEndMicroseconds": st.integers(0, (1 << 64) - 1),
                "flowStartNanoseconds": st.integers(0, (1 << 64) - 1),
                "flowStartDeltaMicroseconds": st.integers(0, (1 << 32) - 1),
                "flowEndSysUpTime": st.integers(0, (1 << 32) - 1),
                "systemInitTimeMilliseconds": st.integers(0, (1 << 64) - 1),
                "flowDurationMilliseconds": st.integers(0, (1 << 32) - 1),
                "octetDeltaCount": st.integers(0, (1 << 64) - 1),
                "reverse:octetDeltaCount": st.integers(0, (1 << 64) - 1),
                "samplingProbability": st.binary(min_size=8, max_size=8),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_records_say_there_is_a_row_for_it(records: list[dict[str, Value]]) -> None:
    rows = flows(*records, scale=True)
    assert len(rows) == len(records) + sum(1 for record in records if record["reverse:octetDeltaCount"])
    assert [row["bytes"] for row in rows if not row["reverse"]] == [record["octetDeltaCount"] for record in records]


def test_the_reference_tells_every_field_of_the_view() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "view.md").read_text()
    table = page.split("## Fields")[1].split("\n\n- ")[0]
    told = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    }
    assert told == set(ELEMENTS)


def test_ixia_has_reverse_counters_of_its_own() -> None:
    elements: dict[str, Value] = {
        "octetDeltaCount": 1,
        "ixiaReverseOctetDeltaCount": 2,
        "ixiaReversePacketDeltaCount": 1,
    }
    _, backward = flows(elements)
    assert (backward["bytes"], backward["packets"], backward["reverse"]) == (2, 1, True)


def test_an_exporter_s_own_element_cannot_pass_for_one_of_iana() -> None:
    impostor = InformationElement(32473, 1, "octetDeltaCount", "unsigned64")
    with using(registry().extended([impostor])):
        made = make_template(300, [(32473, 1, 8)])
        encoder = Encoder()
        (batch,) = decode(
            encoder.templates([made], export_time=1) + encoder.records(made, [(7).to_bytes(8, "big")], export_time=1)
        )
    assert batch.columns["octetDeltaCount"].tolist() == [7]
    assert "bytes" not in seen([view(batch)])[0]
