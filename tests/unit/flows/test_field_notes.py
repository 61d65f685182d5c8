"""What real exporters send over TCP and in files, one test for each thing that a collector got wrong somewhere.

`docs/reference/field-notes.md` lists them. NetFlow and datagrams are in `test_netflow.py` and `test_datagrams.py`.
"""

import struct
from typing import Any

import pytest

from meter.batching import Batcher, ExporterCounts
from sapflow.flows.ipfix.encode import Encoder, make_message, make_set, make_template, make_variable
from sapflow.flows.ipfix.framing import MessageFramer
from sapflow.flows.ipfix.structured import MAX_VALUES
from sapflow.flows.limits import FlowLimits
from sapflow.flows.wire import VARIABLE_LENGTH
from tests.hostile import records_of

FLOW = make_template(256, [(0, 8, 4), (0, 1, 8)])
NAME = make_template(257, [(0, 82, VARIABLE_LENGTH), (0, 4, 1)])
SAMPLING = make_template(300, [(0, 10, 4), (0, 34, 4)], scopes=1)


def flow(octets: int = 7) -> bytes:
    return struct.pack("!IQ", 0xC0000201, octets)


def taken(*messages: bytes) -> tuple[list[dict[str, Any]], ExporterCounts]:
    """The records that come out of an exporter's session, and its counts."""
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 20)
    for message in messages:
        batcher.feed(message)
    assert batcher.fault is None, batcher.fault
    draft = batcher.flush()
    assert draft is not None
    rows = records_of(draft.payload)
    assert len(rows) == draft.records == batcher.counts.records
    return rows, batcher.counts


def test_sequence_numbers_count_records_of_options_as_well_and_templates_never() -> None:
    exporter = Encoder()
    _, counts = taken(
        exporter.templates([FLOW, SAMPLING], export_time=1),
        exporter.records(SAMPLING, [bytes(8)] * 3, export_time=1),
        exporter.templates([FLOW, SAMPLING], export_time=2),
        exporter.records(FLOW, [flow()] * 2, export_time=2),
        make_message(make_set(256, flow()), sequence=5),
        make_message(make_set(256, flow()), sequence=10),
    )
    assert counts.lost_records == 4


def test_a_number_that_counts_templates_shows_as_loss_of_as_many() -> None:
    defined = make_message(make_set(2, FLOW.raw))
    _, counts = taken(defined, make_message(make_set(2, FLOW.raw), sequence=1), make_message(b"", sequence=2))
    assert counts.lost_records == 2


def test_domains_are_counted_apart_and_a_gap_in_one_keeps_the_templates_of_all() -> None:
    messages = [make_message(make_set(2, FLOW.raw), domain=domain) for domain in (0, 524_288, 592_384)]
    messages += [make_message(make_set(256, flow(domain)), domain=domain) for domain in (0, 524_288, 592_384)]
    messages += [make_message(make_set(256, flow(9)), domain=524_288, sequence=1_000_000)]
    messages += [make_message(make_set(256, flow(domain)), domain=domain, sequence=1) for domain in (0, 592_384)]
    rows, counts = taken(*messages)
    assert [row["octetDeltaCount"] for row in rows] == [0, 524_288, 592_384, 9, 0, 592_384]
    assert counts.lost_records == 999_999


def test_a_message_from_before_is_taken_and_the_count_does_not_step_back() -> None:
    defined = make_message(make_set(2, FLOW.raw))
    numbers = (0, 1, 2, 1, 3, 4)
    rows, counts = taken(defined, *(make_message(make_set(256, flow(n)), sequence=n) for n in numbers))
    assert ([row["octetDeltaCount"] for row in rows], counts.lost_records) == ([0, 1, 2, 1, 3, 4], 0)


def test_a_gap_behind_a_set_without_template_is_called_undecodable_and_not_lost() -> None:
    rows, counts = taken(
        make_message(make_set(2, FLOW.raw)),
        make_message(make_set(256, flow()) + make_set(999, bytes(100)) + make_set(256, flow())),
        make_message(make_set(256, flow()), sequence=40),
    )
    assert (len(rows), counts.undecodable_sets, counts.lost_records) == (3, 1, 0)


def test_an_export_time_that_goes_back_ends_nothing() -> None:
    exporter = Encoder()
    rows, _ = taken(
        exporter.templates([FLOW], export_time=1_750_000_000),
        exporter.records(FLOW, [flow()], export_time=1_750_000_000),
        exporter.records(FLOW, [flow()], export_time=0),
        exporter.templates([FLOW], export_time=1_000_000_000),
        exporter.records(FLOW, [flow()], export_time=1_700_000_000),
    )
    assert len(rows) == 3


def test_a_template_sent_again_and_again_is_one_and_one_that_differs_is_counted() -> None:
    again = make_message(make_set(2, FLOW.raw) * 3)
    other = make_template(256, [(0, 2, 4)])
    _, counts = taken(again, again)
    assert counts.redefined_templates == 0
    rows, counts = taken(again, make_message(make_set(2, other.raw) + make_set(256, b"\0\0\0\5")))
    assert (rows, counts.redefined_templates) == ([{"packetDeltaCount": 5}], 1)


# F17
def test_f17_a_withdrawal_of_what_is_not_known_is_ignored_and_counted() -> None:
    withdrawn = make_message(make_set(2, struct.pack("!HH", 256, 0)))
    rows, counts = taken(withdrawn, make_message(make_set(2, FLOW.raw) + make_set(256, flow())), withdrawn, withdrawn)
    assert (len(rows), counts.stray_withdrawals) == (1, 2)


def test_late_data_of_a_template_withdrawn_ends_and_gives_nothing() -> None:
    withdrawn = make_set(2, struct.pack("!HH", 256, 0))
    rows, counts = taken(make_message(make_set(2, FLOW.raw) + withdrawn + make_set(256, flow() * 100)))
    assert (rows, counts.undecodable_sets) == ([], 1)


def test_options_may_stand_in_one_message_with_their_template_and_data_of_flows_before_or_after() -> None:
    sampling = make_set(300, struct.pack("!II", 3, 100))
    sets = [make_set(3, SAMPLING.raw), sampling, make_set(2, FLOW.raw), make_set(256, flow()), sampling]
    rows, _ = taken(make_message(b"".join(sets)))
    assert [row.get("samplingInterval") for row in rows] == [100, None, 100]


def test_options_with_names_of_variable_length_are_records_like_any_other() -> None:
    names = make_template(301, [(0, 10, 4), (0, 82, VARIABLE_LENGTH), (0, 83, VARIABLE_LENGTH)], scopes=1)
    record = struct.pack("!I", 7) + make_variable(b"Ethernet1") + make_variable(b"")
    rows, _ = taken(make_message(make_set(3, names.raw) + make_set(301, record * 2)))
    assert rows == [{"ingressInterface": 7, "interfaceName": "Ethernet1", "interfaceDescription": ""}] * 2


@pytest.mark.parametrize("size", range(12))
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_padding_of_any_bytes_shorter_than_a_record_is_none(size: int, fill: bytes) -> None:
    rows, counts = taken(make_message(make_set(2, FLOW.raw) + make_set(256, flow() + fill * size)))
    assert (len(rows), counts.refused_sets) == (1, {})


@pytest.mark.parametrize("size", range(8))
def test_padding_of_template_sets_is_no_template(size: int) -> None:
    sets = make_set(2, FLOW.raw + bytes(size)) + make_set(3, SAMPLING.raw + bytes(size)) + make_set(256, flow())
    rows, counts = taken(make_message(sets))
    assert (len(rows), counts.refused_sets, counts.stray_withdrawals) == (1, {}, 0)


def test_sets_need_no_alignment() -> None:
    odd = make_template(258, [(0, 4, 1), (0, 7, 2)])
    rows, _ = taken(make_message(make_set(2, odd.raw) + make_set(258, b"\x06\0\x50") + make_set(258, b"\x11\0\x35")))
    assert [row["sourceTransportPort"] for row in rows] == [80, 53]


def test_one_empty_value_is_a_record_and_no_padding() -> None:
    only = make_template(258, [(0, 82, VARIABLE_LENGTH)])
    rows, _ = taken(make_message(make_set(2, only.raw) + make_set(258, b"\0\1a\0")))
    assert [row["interfaceName"] for row in rows] == ["", "a", ""]


def test_an_element_that_is_repeated_keeps_every_value_in_order() -> None:
    labels = make_template(258, [(0, 70, 3), (0, 70, 3), (0, 4, 1), (0, 70, 3)])
    rows, _ = taken(make_message(make_set(2, labels.raw) + make_set(258, b"\0\0\1\0\0\2\6\0\0\3")))
    values = [value for name, value in rows[0].items() if name.startswith("mplsTopLabelStackSection")]
    assert values == ["000001", "000002", "000003"]


def test_milliseconds_and_microseconds_of_one_record_are_the_same_moment() -> None:
    times = make_template(258, [(0, 152, 8), (0, 154, 8), (0, 156, 8)])
    moment_ms = 1_750_000_000_250
    seconds = 1_750_000_000 + 2_208_988_800
    ntp = struct.pack("!II", seconds, 1 << 30)
    rows, _ = taken(make_message(make_set(2, times.raw) + make_set(258, struct.pack("!Q", moment_ms) + ntp * 2)))
    assert rows == [
        {
            "flowStartMilliseconds": "2025-06-15T15:06:40.250Z",
            "flowStartMicroseconds": "2025-06-15T15:06:40.250000Z",
            "flowStartNanoseconds": "2025-06-15T15:06:40.250000000Z",
        }
    ]


def test_a_multi_list_as_last_element_of_a_record_is_read_with_its_own_templates() -> None:
    inner = make_template(400, [(0, 4, 1), (0, 7, 2)])
    outer = make_template(258, [(0, 1, 8), (0, 293, VARIABLE_LENGTH)])
    entries = b"\xff" + struct.pack("!HHBHBH", 400, 10, 6, 80, 17, 53) + struct.pack("!HH", 400, 4)
    record = bytes(8) + b"\xff" + struct.pack("!H", len(entries)) + entries
    rows, _ = taken(make_message(make_set(2, inner.raw + outer.raw) + make_set(258, record)))
    assert rows[0]["subTemplateMultiList"] == [
        {"protocolIdentifier": 6, "sourceTransportPort": 80},
        {"protocolIdentifier": 17, "sourceTransportPort": 53},
    ]


# F27
def test_f27_a_list_that_cannot_be_read_costs_nothing_beside_it() -> None:
    outer = make_template(258, [(0, 292, VARIABLE_LENGTH), (0, 1, 8)])
    record = make_variable(b"\xff\x03\xe7abc") + struct.pack("!Q", 9)
    rows, _ = taken(make_message(make_set(2, outer.raw) + make_set(258, record)))
    assert rows[0]["octetDeltaCount"] == 9
    assert rows[0]["subTemplateList"] == [{"_undecoded": "ff03e7616263", "_reason": "list_template"}]


def test_a_list_of_more_values_than_its_bound_is_left_as_it_came() -> None:
    outer = make_template(258, [(0, 291, VARIABLE_LENGTH), (0, 1, 8)])
    data = struct.pack("!BHH", 3, 82, VARIABLE_LENGTH) + bytes(MAX_VALUES + 1)
    rows, _ = taken(make_message(make_set(2, outer.raw) + make_set(258, make_variable(data) + bytes(8))))
    assert rows == [{"basicList": [{"_undecoded": data.hex(), "_reason": "list"}], "octetDeltaCount": 0}]
    rows, _ = taken(make_message(make_set(2, outer.raw) + make_set(258, make_variable(data[:-1]) + bytes(8))))
    assert len(rows[0]["basicList"]) == MAX_VALUES


def test_an_element_of_no_registry_keeps_its_number_and_its_octets() -> None:
    vendor = make_template(258, [(64_999, 7, 3), (0, 4, 1)])
    rows, _ = taken(make_message(make_set(2, vendor.raw) + make_set(258, b"\xab\xcd\xef\x06")))
    assert rows == [{"e64999id7": "abcdef", "protocolIdentifier": 6}]


def test_reverse_elements_have_names_of_their_own() -> None:
    biflow = make_template(258, [(0, 1, 8), (29_305, 1, 8)])
    rows, _ = taken(make_message(make_set(2, biflow.raw) + make_set(258, struct.pack("!QQ", 5, 6))))
    assert rows == [{"octetDeltaCount": 5, "reverseOctetDeltaCount": 6}]


def test_a_template_with_the_number_0_is_refused_and_the_others_of_its_set_are_not() -> None:
    zero = struct.pack("!HHHH", 0, 1, 4, 1)
    rows, counts = taken(make_message(make_set(2, zero + FLOW.raw) + make_set(256, flow())))
    assert (len(rows), counts.refused_sets) == (1, {"template": 1})


# F06
@pytest.mark.parametrize(
    ("first", "hint"),
    [
        (b"\x16\x03\x01\x02\x00", "TLS"),
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b"POST / HTTP/1.1\r\n", "HTTP"),
        (b"\x00\x09\x00\x01", "NetFlow v9"),
        (b"\x00\x05\x00\x01", "NetFlow v5"),
    ],
)
def test_f06_what_comes_to_the_wrong_door_is_named(first: bytes, hint: str) -> None:
    for size in (2, len(first)):
        framer = MessageFramer()
        framer.feed(first[:size])
        assert framer.fault is not None
        assert hint in framer.fault.what


def test_a_fraction_of_microseconds_as_netscaler_sends_it_is_right_to_the_second() -> None:
    seconds = 1_750_000_000 + 2_208_988_800
    template = make_template(300, [(0, 154, 8)])
    record = struct.pack("!II", seconds, 999_999)
    data = make_message(make_set(2, template.raw) + make_set(300, record))
    (row,) = records_of(data)
    assert str(row["flowStartMicroseconds"]).startswith("2025-06-15T15:06:40.")
