"""A session passes by most messages without telling their counter: it counts as one that is told of each."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.ipfix.sequences import SequenceCounter
from sapflow.flows.ipfix.session import Session
from sapflow.flows.ipfix.session_state import SessionState

WRAP = 1 << 32
TEMPLATE = struct.pack("!HHHHHHHH", 2, 16, 256, 2, 1, 4, 2, 4)


def a_message(number: int, count: int) -> bytes:
    data = struct.pack("!HH", 256, 4 + 8 * count) + bytes(8 * count)
    return struct.pack("!HHIII", 10, 16 + len(data), 0, number, 0) + data


def another_process(session: Session) -> Session:
    state = session.state()
    return Session.resumed(SessionState.read(state.fields(), state.definitions()))


counts = st.one_of(st.integers(1, 4), st.sampled_from([0, 3, 3, 3, 20]))
a_fate = st.sampled_from(["comes"] * 8 + ["lost", "twice"])
after_it = st.sampled_from(["more"] * 4 + ["cut", "asked", "carried"])


@given(st.integers(0, WRAP - 1), st.booleans(), st.lists(st.tuples(counts, a_fate, after_it), max_size=40))
def test_a_session_says_of_its_numbers_what_a_counter_says_that_hears_of_every_message(
    begin: int, own: bool, messages: list[tuple[int, str, str]]
) -> None:
    session, counter = Session(), SequenceCounter()
    session.walk(struct.pack("!HHIII", 10, 16 + len(TEMPLATE), 0, begin, 0) + TEMPLATE)
    counter.follow(begin, 0)
    waiting = b""
    for count, fate, after in messages:
        number = begin + count if own else begin
        begin = (begin + count) % WRAP
        for _ in range({"lost": 0, "comes": 1, "twice": 2}[fate]):
            waiting += a_message(number % WRAP, count)
            counter.follow(number % WRAP, count)
        if after == "more":
            continue
        assert session.walk(waiting).taken == len(waiting)
        waiting = b""
        if after == "asked":
            assert session.take_numbers() == counter.take()
        else:
            session.cut()
        if after == "carried":
            session.cut()
            session = another_process(session)
    session.walk(waiting)
    assert session.take_numbers() == counter.take()


def test_softflowds_numbers_are_known_for_what_they_are_though_messages_of_one_size_come_between() -> None:
    session = Session()
    session.walk(struct.pack("!HHIII", 10, 16 + len(TEMPLATE), 0, 0, 0) + TEMPLATE)
    number = 0
    for count in (25, 32, 32, 12, 32, 32, 32, 4):
        number += count
        session.walk(a_message(number, count))
        session.cut()
    told = session.take_numbers()
    assert (told.lost, told.repeated) == (0, 0)
