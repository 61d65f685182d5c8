"""Sets that cannot be read within IPFIX datagrams that can: each costs itself, as over TCP, and is counted."""

import struct

import pytest

from sapflow.flows.datagrams import DatagramSession
from sapflow.flows.encode import make_set, make_template
from sapflow.flows.session import Session
from tests.unit.flows.test_acceptance_sets import BAD_TEMPLATES
from tests.unit.flows.test_datagrams import PORTS, define, ipfix, ports, source_ports

LOOSE = make_template(257, [(0, 82, 65_535), (0, 4, 1)])
PAST = make_set(257, b"\x09\x06")


def taken(session: DatagramSession, *datagrams: bytes) -> bytes:
    """What comes out, which those behind read whole."""
    out = session.take(datagrams, 1_750_000_000.0)
    walk = Session().walk(out)
    assert (walk.fault, walk.taken) == (None, len(out))
    return out


# F21
def test_f21_a_record_that_runs_past_costs_its_set_and_makes_no_loss() -> None:
    session = DatagramSession("ipfix")
    out = taken(session, ipfix(define(PORTS, LOOSE)), ipfix(ports(1), PAST, ports(2)), ipfix(ports(3), number=40))
    assert source_ports(out) == [1, 2, 3]
    assert (session.counts.malformed, session.lost) == ({"record": 1}, 0)


# F11 F12 F13 F15 F20
@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_a_template_that_cannot_be_used_is_refused_and_its_neighbours_are_taken(case: str) -> None:
    set_id, body, reason = BAD_TEMPLATES[case]
    session = DatagramSession("ipfix")
    other = make_template(400, [(0, 7, 2)])
    first = ipfix(define(PORTS), ports(1))
    second = ipfix(ports(2), define(other), make_set(set_id, body), make_set(400, b"\0\3"), ports(4), number=1)
    out = taken(session, first, second)
    # Number 256 means nothing from the broken definition on: what comes then waits for a better one.
    assert source_ports(out) == [1, 2, 3]
    assert session.counts.malformed == {reason: 1}
    assert session.parked == (1, 0)
    assert source_ports(out + taken(session, ipfix(define(PORTS), number=4))) == [1, 2, 3, 4]


def test_a_number_defined_and_then_broken_in_one_datagram_means_nothing() -> None:
    session = DatagramSession("ipfix")
    broken = make_set(2, struct.pack("!HHHH", 256, 1, 7, 0))
    out = taken(session, ipfix(define(PORTS), ports(1), broken, ports(2)), ipfix(ports(3), number=1))
    assert source_ports(out) == [1]
    assert session.parked == (2, 0)


def test_what_waited_for_a_template_that_it_does_not_fit_is_dropped_alone() -> None:
    session = DatagramSession("ipfix")
    out = taken(session, ipfix(PAST), ipfix(make_set(257, b"\x01a\x06")), ipfix(define(LOOSE)))
    assert Session().walk(out).records == 1
    assert session.counts.malformed == {"record": 1}
