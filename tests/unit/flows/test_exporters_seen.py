"""What real exporters do, and what the protocols ask of those who read them: each a case that others got wrong."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.batching import Batcher
from sapflow.flows.datagrams import DatagramSession, Protocol
from sapflow.flows.encode import make_set, make_template, make_variable
from sapflow.flows.limits import FlowLimits
from sapflow.flows.session import Session
from tests.unit.flows.test_datagrams import OTHER, PORTS, define, ipfix, ports, source_ports
from tests.unit.flows.test_netflow import BOOT_S, FLOW, flow, flowset, options, rows, template, v5, v5_record, v9

RECEIVED_S = BOOT_S + 20.0
WIDER = make_template(256, [(0, 4, 1), (0, 7, 2)])


def taken(protocol: Protocol, *datagrams: bytes, limits: FlowLimits | None = None) -> tuple[bytes, DatagramSession]:
    """Datagrams one by one, and all of what comes out, which can be decoded."""
    session = DatagramSession(protocol, limits)
    out = b"".join(session.take([datagram], RECEIVED_S) for datagram in datagrams)
    walk = Session(limits).walk(out)
    assert (walk.fault, walk.undecodable_sets) == (None, 0)
    return out, session


def of_all(rows_: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows_ if name in row]


# --- sets and padding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7])
def test_a_set_of_templates_is_padded(size: int) -> None:
    """RFC 7011, 3.3.1; Ixia: 4 bytes."""
    out, session = taken("ipfix", ipfix(make_set(2, PORTS.raw + bytes(size)), ports(1)))
    assert source_ports(out) == [1]
    out, session = taken("netflow9", v9(flowset(0, FLOW, bytes(size)), flowset(300, flow(53))))
    assert of_all(rows(out), "destinationTransportPort") == [53]
    assert session.counts.malformed == {}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 24, 36, 49, 59])
def test_a_set_of_data_is_padded_or_not_aligned_at_all(size: int) -> None:
    """NX-OS pads 24 to 36 bytes, IOS-XR 49 to 59; softflowd aligns nothing."""
    layout = template(300, (7, 2), (11, 2), (4, 1))
    data = flowset(300, b"\0\1\0\2\6" * 2, bytes(size))
    out, session = taken("netflow9", v9(flowset(0, layout), data, flowset(300, b"\0\3\0\4\x11"), count=4))
    assert of_all(rows(out), "sourceTransportPort") == [1, 1, 3]
    assert session.counts.malformed == {}


def test_a_count_in_the_header_that_is_too_small_costs_no_records() -> None:
    """Some count sets, not records: what is not zero is no padding."""
    out, _ = taken("netflow9", v9(flowset(0, FLOW), flowset(300, flow(1) + flow(2) + flow(3)), count=1))
    assert of_all(rows(out), "destinationTransportPort") == [1, 2, 3]


@pytest.mark.parametrize("fill", [4, 60, 1000])
def test_palo_alto_fills_its_datagrams_with_zeros(fill: int) -> None:
    _, session = taken("netflow9", v9(flowset(0, FLOW), flowset(300, flow())) + bytes(fill))
    assert session.counts.malformed == {}
    out, session = taken("ipfix", ipfix(define(PORTS), ports(1)) + bytes(fill))
    assert source_ports(out) == [1]
    assert session.counts.malformed == {}


def test_palo_alto_puts_one_record_in_a_set_and_the_asa_changes_sets_all_the_time() -> None:
    sets = [flowset(300, flow(port)) if port % 3 else flowset(301, b"\6") for port in range(16)]
    out, _ = taken("netflow9", v9(flowset(0, FLOW + template(301, (4, 1))), *sets, count=18))
    assert of_all(rows(out), "destinationTransportPort") == [port for port in range(16) if port % 3]
    assert of_all(rows(out), "protocolIdentifier") == [6] * 6
    assert out.count(struct.pack("!HH", 10, 22)) <= 2, "records of one template go together"


@pytest.mark.parametrize("length", [0, 1, 2, 3, 15])
def test_f01_f07_lengths_that_cannot_be_end_a_datagram_and_no_loop(length: int) -> None:
    _, session = taken(
        "ipfix", ipfix(define(PORTS), struct.pack("!HH", 256, min(length, 3))), b"\0\x0a\0" + bytes([length]) * 20
    )
    assert sum(session.counts.malformed.values()) == 2


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_redefinition_counts_from_where_it_stands() -> None:
    first, second = template(300, (7, 2)), template(300, (4, 1), (7, 2))
    sets = (flowset(0, first), flowset(300, b"\0\1"), flowset(0, second), flowset(300, b"\6\0\2"))
    out, _ = taken("netflow9", v9(*sets, count=4))
    assert of_all(rows(out), "sourceTransportPort") == [1, 2]
    out, _ = taken("ipfix", ipfix(define(PORTS), ports(1), define(WIDER), make_set(256, b"\6\0\2")))
    assert source_ports(out) == [1, 2]


@pytest.mark.parametrize("broken", [struct.pack("!HH", 256, 9), struct.pack("!HHHH", 256, 1, 7, 0)])
def test_an_invalid_redefinition_ends_what_the_number_meant(broken: bytes) -> None:
    """go-ipfix PR #383; a record read by the old template would be garbage. It waits for the next definition."""
    bad, wide = make_set(2, broken), make_set(256, b"\6\0\2")
    out, session = taken(
        "ipfix",
        ipfix(define(PORTS), ports(1)),
        ipfix(bad, number=1),
        ipfix(wide, number=1),
        ipfix(define(WIDER), number=2),
    )
    assert source_ports(out) == [1, 2]
    assert sum(session.counts.malformed.values()) == 1
    first, second = template(256, (7, 2)), template(256, (4, 1), (7, 2))
    out, session = taken(
        "netflow9",
        v9(flowset(0, first), flowset(256, b"\0\1"), count=2),
        v9(flowset(0, broken), number=1),
        v9(flowset(256, b"\6\0\2"), number=2),
        v9(flowset(0, second), number=3),
    )
    assert of_all(rows(out), "sourceTransportPort") == [1, 2]
    assert sum(session.counts.malformed.values()) == 1


def test_v9_a_rebooted_device_gives_its_numbers_to_other_templates() -> None:
    """pmacct PR #726: data before the new template are garbage by the old. The other source keeps its own."""
    old, new = template(256, (7, 2)), template(256, (4, 1), (5, 1))
    out, session = taken(
        "netflow9",
        v9(flowset(0, old), flowset(256, b"\0\1"), number=70, uptime=900_000, count=2),
        v9(flowset(0, old), number=70, uptime=900_000, source=10),
        v9(flowset(256, b"\6\0"), number=1, uptime=5000),
        v9(flowset(256, b"\0\2"), number=71, uptime=901_000, source=10),
        v9(flowset(0, new), number=2, uptime=6000),
    )
    found = rows(out)
    assert (of_all(found, "sourceTransportPort"), of_all(found, "protocolIdentifier")) == ([1, 2], [6])
    assert (session.lost, session.restarts) == (0, 1)


def test_ipfix_a_device_that_began_anew_keeps_the_templates_that_it_sent_since() -> None:
    before = [ipfix(define(PORTS, OTHER), number=1000), ipfix(ports(1), number=1000), ipfix(define(PORTS), domain=2)]
    fresh = ipfix(define(WIDER), number=0)
    after = [ipfix(make_set(256, b"\6\0\2"), number=number) for number in range(12)]
    stale = ipfix(make_set(257, b"\6"), number=12)
    out, session = taken("ipfix", *before, fresh, *after, stale, ipfix(ports(3), domain=2))
    assert session.restarts == 1
    assert source_ports(out) == [1, *[2] * 12, 3]
    assert session.parked == (1, 0), "OTHER was defined before; it may mean something else now"


def test_templates_that_end_amid_datagrams_read_together_decode_none_of_the_rest() -> None:
    again = [ipfix(ports(number), number=number) for number in range(20)]
    session = DatagramSession("ipfix")
    out = session.take([ipfix(define(PORTS), number=500), ipfix(ports(1), number=500)], RECEIVED_S)
    out += session.take(again, RECEIVED_S)
    walk = Session().walk(out)
    assert (walk.fault, walk.undecodable_sets) == (None, 0)
    assert (session.restarts, session.parked) == (1, (12, 0))
    out = session.take([ipfix(define(PORTS), number=20)], RECEIVED_S)
    assert source_ports(out) == list(range(8, 20))


def test_f31_equal_numbers_in_domains_of_one_device_and_loss_in_one_of_them() -> None:
    """Juniper's line cards are domains with equal numbers; Beats PR #13821 deleted all templates of a device."""
    out, session = taken(
        "ipfix",
        *(ipfix(define(PORTS if domain % 2 else WIDER), domain=domain) for domain in (524_288, 592_385)),
        ipfix(make_set(256, b"\6\0\1"), domain=524_288),
        ipfix(ports(2), domain=592_385),
        ipfix(make_set(256, b"\6\0\3"), domain=524_288, number=100),
        ipfix(ports(4), domain=592_385, number=1),
    )
    assert sorted(source_ports(out)) == [1, 2, 3, 4]
    assert session.lost == 99


def test_data_and_options_before_their_template_in_one_message() -> None:
    """Akvorado #697, #700: template and data in one datagram, in any order."""
    out, session = taken("ipfix", ipfix(ports(1), define(PORTS), ports(2)), ipfix(ports(3), number=2))
    assert sorted(source_ports(out)) == [1, 2, 3]
    layout = options(310, [(1, 4)], [(34, 4)])
    sets = (flowset(310, struct.pack("!II", 1, 512)), flowset(1, layout), flowset(0, FLOW), flowset(300, flow(53)))
    out, session = taken("netflow9", v9(*sets, count=4))
    assert of_all(rows(out), "samplingInterval") == [512]
    assert session.parked == (0, 0)


def test_options_data_may_vary_in_length_and_count_as_records() -> None:
    """pmacct #764 (Arista EOS); ipfixcol #118: numbers count them."""
    layout = make_template(258, [(0, 10, 4), (0, 82, 65_535)], scopes=1)
    data = make_set(258, b"".join(struct.pack("!I", n) + make_variable(b"Ethernet%d" % n) for n in (1, 2)))
    out, session = taken(
        "ipfix", ipfix(make_set(3, layout.raw), data), ipfix(define(PORTS), number=2), ipfix(ports(1), number=2)
    )
    assert of_all(rows(out), "interfaceName") == ["Ethernet1", "Ethernet2"]
    assert session.lost == 0, "templates are no records"


def test_an_options_template_without_a_scope_is_taken_and_outlives_a_restart() -> None:
    layout = options(310, [], [(34, 4), (35, 1)])
    out, session = taken("netflow9", v9(flowset(1, layout, b"\0\0"), flowset(310, b"\0\0\0\x0a\1")))
    assert rows(out) == [{"samplingInterval": 10, "samplingAlgorithm": 1}]
    again = DatagramSession("netflow9")
    out = again.restore(session.templates()) + again.take([v9(flowset(310, b"\0\0\0\x0b\1"), number=1)], RECEIVED_S)
    assert of_all(rows(out), "samplingInterval") == [11]


# --- fields -----------------------------------------------------------------------------------------------------------


def test_h3c_has_strings_of_variable_length_in_v9() -> None:
    """Both forms of the length; field 65535 as IPFIX has it."""
    layout = template(303, (82, 65_535), (7, 2))
    record = b"\x04eth1\0\1" + b"\xff\0\x04eth2\0\2" + b"\0\0\3"
    out, _ = taken("netflow9", v9(flowset(0, layout), flowset(303, record), count=4))
    assert of_all(rows(out), "interfaceName") == ["eth1", "eth2", ""]


def test_records_that_grow_past_a_message_go_into_several() -> None:
    layout = template(303, (82, 65_535), (22, 4), (21, 4))
    record = b"\0" + struct.pack("!II", 9000, 9500)
    out, session = taken("netflow9", v9(flowset(0, layout), flowset(303, record * 7000), count=7001))
    assert len(rows(out)) == 7000
    assert session.counts.malformed == {}


@pytest.mark.parametrize("size", [1, 3, 5, 6, 7, 8])
def test_counters_are_of_any_width(size: int) -> None:
    """nfdump: 6 bytes; netflow_parser PR #314: 5 to 7."""
    out, _ = taken("netflow9", v9(flowset(0, template(300, (1, size))), flowset(300, (200).to_bytes(size, "big"))))
    assert of_all(rows(out), "octetDeltaCount") == [200]


def test_a_repeated_element_keeps_its_place() -> None:
    out, _ = taken("netflow9", v9(flowset(0, template(300, (7, 2), (7, 2))), flowset(300, b"\0\1\0\2")))
    assert list(rows(out)[0].values()) == [1, 2]


def test_one_time_of_uptime_alone_or_an_odd_width_is_left_as_it_is() -> None:
    out, _ = taken("netflow9", v9(flowset(0, template(300, (22, 4))), flowset(300, struct.pack("!I", 7))))
    assert rows(out) == [{"flowStartSysUpTime": 7}]
    out, _ = taken("netflow9", v9(flowset(0, template(300, (22, 2), (21, 4))), flowset(300, bytes(6)), count=2))
    assert "flowStartMilliseconds" not in rows(out)[0]


# --- clocks and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8])
def test_v9_uptime_wraps_after_49_days(size: int) -> None:
    """goflow2 PR #431, NX-OS (nfdump #344): a start before the wrap is not 49 days ahead."""
    layout = template(300, (22, size), (21, size))
    record = (0xFFFFFC18).to_bytes(size, "big") + (500).to_bytes(size, "big")
    out, _ = taken("netflow9", v9(flowset(0, layout), flowset(300, record), uptime=1000))
    (row,) = rows(out)
    assert row["flowStartMilliseconds"] == "2025-06-15T15:06:38.000Z"
    assert row["flowEndMilliseconds"] == "2025-06-15T15:06:39.500Z"


def test_softflowd_has_its_uptime_where_the_time_should_be() -> None:
    out, _ = taken("netflow9", v9(flowset(0, FLOW), flowset(300, flow(first=10_000, last=10_000)), at=10))
    (row,) = rows(out)
    assert row["flowStartMilliseconds"] == "2025-06-15T15:07:00.000Z", "when it was received"


def test_an_end_before_its_start_and_a_clock_that_steps_back_are_no_fault() -> None:
    """pmacct #640 (Juniper); libfds closed the session."""
    out, session = taken(
        "netflow9", v9(flowset(0, FLOW), flowset(300, flow(first=9500, last=9000))), v9(number=1, at=BOOT_S - 99)
    )
    (row,) = rows(out)
    assert row["flowStartMilliseconds"] > row["flowEndMilliseconds"]
    assert (session.lost, session.restarts, session.counts.malformed) == (0, 0, {})


@pytest.mark.parametrize("protocol", ["netflow5", "netflow9", "ipfix"])
def test_f29_numbers_wrap(protocol: Protocol) -> None:
    made = {
        "netflow5": [v5(v5_record(), v5_record(), number=number) for number in (0xFFFFFFFE, 0, 3)],
        "netflow9": [v9(number=number) for number in (0xFFFFFFFF, 0, 2)],
        "ipfix": [ipfix(define(PORTS), ports(1, 2), number=number) for number in (0xFFFFFFFE, 0, 3)],
    }[protocol]
    _, session = taken(protocol, *made)
    assert (session.lost, session.restarts) == (1, 0)


# --- what is made of it all -------------------------------------------------------------------------------------------


def test_what_passes_here_passes_behind() -> None:
    """Those behind have the same limits, and end a stream that passes them."""
    limits = FlowLimits(max_templates=8, max_fields_per_template=6, max_template_bytes=400)
    sets = [flowset(0, template(256 + n, *[(40_000 + n, 2)] * (n % 7), (22, 4), (21, 4))) for n in range(40)]
    data = [flowset(256 + n, bytes(range(1, 23))) for n in range(40)]
    session = DatagramSession("netflow9", limits)
    batcher = Batcher(limits, batch_bytes=1 << 20)
    for number, (definition, records) in enumerate(zip(sets, data, strict=True)):
        batcher.feed(session.take([v9(definition, records, number=number, count=9)], RECEIVED_S))
        assert batcher.fault is None
    assert session.counts.malformed["templates"] > 0
    assert batcher.counts.records > 0
    assert batcher.counts.undecodable_sets == 0


@pytest.mark.parametrize("protocol", ["netflow5", "netflow9", "ipfix"])
@given(data=st.data())
def test_datagrams_together_give_the_same_records_as_one_by_one(protocol: Protocol, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    together, single = DatagramSession(protocol), DatagramSession(protocol)
    datagrams = []
    number = 0
    for index, kind in enumerate(kinds):
        number += data.draw(st.sampled_from([0, 0, 0, 3, -2]))
        datagrams.append(_datagram(protocol, kind, max(number, 0), index))
        number += 1
    cut = data.draw(st.integers(0, len(datagrams)))
    many = together.take(datagrams[:cut], RECEIVED_S) + together.take(datagrams[cut:], RECEIVED_S)
    each = b"".join(single.take([datagram], RECEIVED_S) for datagram in datagrams)
    assert by_template(rows(many)) == by_template(rows(each))
    for name in ("lost", "restarts", "parked", "counts", "template_changes"):
        ours, theirs = getattr(together, name), getattr(single, name)
        if name == "counts":
            ours, theirs = (
                (ours.datagrams, ours.bytes, ours.malformed),
                (theirs.datagrams, theirs.bytes, theirs.malformed),
            )
        assert ours == theirs, name


def by_template(found: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Records of different templates may change places within what was read together; those of one may not."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault(tuple(row), []).append(row)
    return groups


def _datagram(protocol: Protocol, kind: int, number: int, index: int) -> bytes:
    if protocol == "netflow5":
        made = v5(*[v5_record(index)] * kind, number=number, uptime=10_000 + index, engine=kind % 2)
        return made[: len(made) - (kind == 3)]
    if protocol == "ipfix":
        layout = WIDER if kind == 4 else PORTS
        sets = {0: ports(index), 1: define(PORTS), 2: ports(index), 3: ports(index)[:-1], 4: define(layout)}[kind]
        return ipfix(sets, number=number)
    layout = template(300, (7, 2), (22, 4), (21, 4)) if kind == 4 else FLOW
    record = flowset(300, flow(index, first=9000 + index))
    return v9({0: record, 1: flowset(0, FLOW), 2: record, 3: record[:-1], 4: flowset(0, layout)}[kind], number=number)


@pytest.mark.parametrize("protocol", ["netflow5", "netflow9", "ipfix"])
@given(data=st.data())
def test_mutated_datagrams_cost_nothing_but_themselves(protocol: Protocol, data: st.DataObject) -> None:
    limits = FlowLimits(max_templates=3, max_fields_per_template=24)
    session, batcher = DatagramSession(protocol, limits), Batcher(limits, batch_bytes=1 << 20)
    for number, kind in enumerate(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))):
        made = bytearray(_datagram(protocol, kind, number, number))
        for _ in range(data.draw(st.integers(0, 3))):
            made[data.draw(st.integers(2, len(made) - 1))] = data.draw(st.integers(0, 255))
        batcher.feed(session.take([bytes(made)], RECEIVED_S))
        assert batcher.fault is None
    assert batcher.counts.undecodable_sets == 0
    rows(batcher.flush().payload if batcher.waiting_bytes else b"")  # type: ignore[union-attr]
