"""Datagrams of one exporter: what comes out can always be decoded, and what is lost is counted once."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.datagrams.session import DatagramSession, protocol_of
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from tests.unit.flows.test_netflow import FLOW, flow, flowset, rows, v5, v5_record, v9

PORTS = make_template(256, [(0, 7, 2)])
OTHER = make_template(257, [(0, 4, 1)])


def ports(*numbers: int) -> bytes:
    return make_set(256, b"".join(struct.pack("!H", number) for number in numbers))


def ipfix(*sets: bytes, number: int = 0, domain: int = 1) -> bytes:
    return make_message(b"".join(sets), domain=domain, sequence=number, export_time=1)


def define(*templates: Any) -> bytes:
    return make_set(2, b"".join(template.raw for template in templates))


def source_ports(data: bytes) -> list[int]:
    return [row["sourceTransportPort"] for row in rows(data) if "sourceTransportPort" in row]


def test_the_first_bytes_say_which_protocol_it_is() -> None:
    assert protocol_of(v5(v5_record())) == "netflow5"
    assert protocol_of(v9()) == "netflow9"
    assert protocol_of(ipfix()) == "ipfix"
    assert protocol_of(b"GET / HTTP/1.1") is protocol_of(b"") is protocol_of(b"\0") is None


def test_ipfix_passes_unchanged() -> None:
    session = DatagramSession("ipfix")
    datagrams = [ipfix(define(PORTS), ports(1, 2)), ipfix(ports(3), number=2)]
    assert session.take(datagrams, 0) == b"".join(datagrams)
    assert session.lost == 0


def test_f32_a_set_before_its_template_waits_and_the_rest_of_its_message_is_taken() -> None:
    session = DatagramSession("ipfix")
    early = session.take([ipfix(ports(7, 8), define(OTHER), make_set(257, b"\x06"))], 0)
    assert Session().walk(early).undecodable_sets == 0
    assert [row["protocolIdentifier"] for row in rows(early)] == [6]
    assert session.take([ipfix(define(PORTS), domain=2)], 0) == ipfix(define(PORTS), domain=2)
    late = session.take([ipfix(define(PORTS), ports(9), number=3)], 0)
    assert source_ports(early + late) == [9, 7, 8]
    assert session.parked == (0, 0)


def test_a_gap_that_an_unknown_template_makes_is_no_loss() -> None:
    session = DatagramSession("ipfix")
    session.take([ipfix(define(OTHER), make_set(257, b"\x06")), ipfix(ports(1, 2, 3), number=1)], 0)
    session.take([ipfix(make_set(257, b"\x06"), number=4), ipfix(make_set(257, b"\x06"), number=8)], 0)
    assert session.lost == 3


def test_over_udp_a_definition_replaces_and_a_withdrawal_is_ignored() -> None:
    session = DatagramSession("ipfix")
    data = session.take([ipfix(define(PORTS), ports(1))], 0)
    data += session.take([ipfix(make_set(2, struct.pack("!HH", 256, 0)), number=1), ipfix(ports(2), number=1)], 0)
    data += session.take([ipfix(make_set(2, struct.pack("!HH", 2, 0)), ports(3), number=2)], 0)
    assert source_ports(data) == [1, 2, 3]
    wider = make_template(256, [(0, 4, 1), (0, 7, 2)])
    data += session.take([ipfix(define(wider), make_set(256, b"\x06\0\4"), number=3)], 0)
    assert source_ports(data) == [1, 2, 3, 4]


def test_a_malformed_datagram_costs_itself_only() -> None:
    session = DatagramSession("ipfix")
    good = ipfix(define(PORTS), ports(1))
    data = session.take([good, good[:-1], b"\0\x0a", good[:2] + b"\xff\xff" + good[4:], ipfix(ports(2), number=1)], 0)
    assert source_ports(data) == [1, 2]
    assert sum(session.counts.malformed.values()) == 3
    assert session.counts.last_fault is not None


def test_v5_datagrams_of_different_engines_and_a_broken_one_among_them() -> None:
    session = DatagramSession("netflow5")
    datagrams = [v5(v5_record(port), number=port - 1, engine=1) for port in (1, 2)]
    datagrams += [v5(v5_record(3), engine=2), v5(v5_record(4), number=1, engine=2)[:-5]]
    assert [row["destinationTransportPort"] for row in rows(session.take(datagrams, 0))] == [1, 2, 3]
    assert sum(session.counts.malformed.values()) == 1
    assert session.lost == 0


@pytest.mark.parametrize("protocol", ["ipfix", "netflow9"])
def test_templates_outlive_the_session(protocol: Any) -> None:
    before, after = DatagramSession(protocol), DatagramSession(protocol)
    if protocol == "ipfix":
        first, second = ipfix(define(PORTS)), ipfix(ports(53), number=0)
    else:
        first, second = v9(flowset(0, FLOW)), v9(flowset(300, flow(53)), number=1)
    before.take([first, first], 0)
    assert before.template_changes == 1
    data = after.restore(before.templates()) + after.take([second], 0)
    assert len(rows(data)) == 1


@given(st.lists(st.integers(0, 5), max_size=12), st.data())
def test_what_comes_out_can_always_be_decoded(kinds: list[int], data: st.DataObject) -> None:
    session = DatagramSession("ipfix", FlowLimits(max_templates=4))
    number, out = 0, b""
    for kind in kinds:
        made = {
            0: ipfix(define(PORTS), number=number),
            1: ipfix(ports(1, 2), number=number),
            2: ipfix(ports(1), make_set(257, b"\x06\x11"), number=number),
            3: ipfix(define(OTHER), ports(5), number=number),
            4: ipfix(make_set(2, struct.pack("!HH", 256, 0)), ports(9), number=number),
            5: data.draw(st.binary(max_size=60)),
        }[kind]
        number += 2
        out += session.take([made], 0)
    walk = Session(FlowLimits(max_templates=4)).walk(out)
    assert (walk.fault, walk.undecodable_sets) == (None, 0)
