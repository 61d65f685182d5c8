"""What exporters' accounts say: exported is received and lost, received is passed on and refused, to the record."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.batching import Batcher
from meter.datagrams import NO_ROOM, DatagramIntake
from meter.uplink import UplinkStream
from sapflow.flows.ipfix.encode import make_set
from sapflow.flows.limits import FlowLimits
from sapflow.ledger import StreamLedger
from sapflow.link import Batch
from sapflow.link.account import UNREADABLE, Account, decode_account
from tests.unit.flows.test_datagrams import PORTS, define, ipfix, ports
from tests.unit.flows.test_netflow import FLOW, flow, flowset, v5, v5_record, v9
from tests.unit.meter.test_datagrams import R1, an_intake, streams


def told(batches: Sequence[Batch]) -> StreamLedger:
    """The account of batches, beside the records that they hold."""
    found = StreamLedger()
    for batch in batches:
        found.account += decode_account(batch.account, batch.records)
        found.stored += batch.records
    return found


def of(intake: DatagramIntake) -> StreamLedger:
    """Of all that an intake passed on, once its exporters have left."""
    intake.close()
    found = StreamLedger()
    for stream in intake.uplink.streams:
        assert isinstance(stream, UplinkStream)
        found.add(told(list(stream.outbox)))
    return found


def test_what_was_lost_between_datagrams_is_in_the_account_of_the_next_batch() -> None:
    intake = an_intake()
    intake.take([(ipfix(define(PORTS), ports(1, 2)), R1), (ipfix(ports(3), number=7), R1)], 0, 0)
    found = of(intake)
    assert found.account == Account(received=3, exported=8, lost=5)
    assert found.differences() == {}


def test_netflow_9_counts_packets_and_its_records_are_not_counted() -> None:
    intake = an_intake()
    intake.take([(v9(flowset(0, FLOW)), R1), (v9(flowset(300, flow(80) + flow(81)), number=4, count=2), R1)], 0, 0)
    found = of(intake)
    account = Account(received=2, uncounted=2, packets_received=2, packets_exported=5, packets_lost=3)
    assert (found.account, found.differences()) == (account, {})


def test_netflow_5_counts_flows() -> None:
    intake = an_intake()
    intake.take([(v5(v5_record(), v5_record()), R1)], 0, 0)
    assert of(intake).account == Account.usual(2)


def test_a_set_without_its_template_is_refused_with_as_many_records_as_the_next_number_tells() -> None:
    intake = an_intake()
    unknown = make_set(777, bytes(12))
    intake.take([(ipfix(define(PORTS), unknown, number=10), R1), (ipfix(ports(1), number=13), R1)], 0, 0)
    found = of(intake)
    assert (found.account.received, found.account.exported, found.stored) == (4, 4, 1)
    assert dict(found.account.refused) == {UNREADABLE: 3}
    assert dict(found.account.faults) == {"no_template": 1}
    assert found.differences() == {}


def test_a_set_that_waited_for_its_template_is_not_refused() -> None:
    intake = an_intake()
    intake.take([(ipfix(ports(1, 2, 3), number=10), R1), (ipfix(define(PORTS), number=13), R1)], 0, 0)
    found = of(intake)
    assert (found.account, found.stored) == (Account.usual(3), 3)


def test_what_a_full_stream_dropped_is_refused_to_the_record_and_its_templates_are_known() -> None:
    intake = an_intake(batch_bytes=100, max_unacknowledged_bytes=1000)
    intake.take([(ipfix(define(PORTS), ports(*range(50))), R1)], 0, 0)
    for number in range(1, 40):
        intake.take([(ipfix(ports(*range(50)), number=number * 50), R1)], 0, 0)
    (stream,) = intake.uplink.streams
    batches = list(stream.outbox)
    stream.acknowledged(stream.outbox.last)
    intake.take([(ipfix(ports(7), number=2000), R1)], 0, 0)
    intake.flush(10.0)
    found = told([*batches, *stream.outbox])
    assert found.account.exported == found.account.received == 2001
    assert found.account.refused[NO_ROOM] == 2001 - found.stored > 1000
    assert found.differences() == {}


def test_what_is_to_be_told_is_told_in_time_though_no_record_comes() -> None:
    intake = an_intake(flush_interval_s=1.0)
    intake.take([(ipfix(define(PORTS), ports(1)), R1)], 0.0, 0)
    intake.flush(2.0)
    intake.take([(b"\0\x0a\0\x08", R1)], 3.0, 0)
    intake.flush(3.5)
    (stream,) = intake.uplink.streams
    assert len(stream.outbox) == 1
    intake.flush(4.0)
    assert [batch.payload for batch in stream.outbox][1:] == [b""]
    assert told(list(stream.outbox)).account.faults == {"truncated": 1}
    intake.flush(9.0)
    assert len(stream.outbox) == 2, "once"


def test_while_there_is_no_room_nothing_is_told_and_later_all_of_it() -> None:
    intake = an_intake(batch_bytes=100, max_unacknowledged_bytes=1)
    intake.take([(ipfix(define(PORTS), ports(*range(50))), R1)], 0.0, 0)
    for at in range(1, 30):
        intake.take([(ipfix(ports(*range(50)), number=at * 50), R1)], float(at), 0)
        intake.flush(at + 0.5)
    (stream,) = intake.uplink.streams
    assert len(stream.outbox) == 1
    first = list(stream.outbox)
    stream.acknowledged(1)
    intake.flush(60.0)
    found = told([*first, *stream.outbox])
    assert found.account.received == 1500
    assert (found.stored, found.account.refused) == (50, {NO_ROOM: 1450})


DATAGRAMS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["came", "came", "came", "lost", "twice", "cut", "no template", "no set", "zeros", "anew"]),
        st.booleans(),
    ),
    max_size=40,
)


@given(DATAGRAMS, st.sampled_from(["ipfix", "v5", "v9"]), st.integers(1, 400), st.integers(1, 900))
def test_every_exporters_account_closes_whatever_it_sends(
    datagrams: list[tuple[int, str, bool]], protocol: str, batch_bytes: int, most_bytes: int
) -> None:
    intake = an_intake(batch_bytes=batch_bytes, max_unacknowledged_bytes=most_bytes)
    number, seen = 0, []
    for count, fate, acknowledges in datagrams:
        if fate == "anew":
            number = 0
        data = _datagram(protocol, number, count, fate)
        number += 1 if protocol == "v9" else count
        for _ in range({"lost": 0, "twice": 2}.get(fate, 1)):
            intake.take([(data, R1)], 0, 0)
        if acknowledges:
            intake.flush(10.0)
            for stream in streams(intake).values():
                seen += list(stream.outbox)
                stream.acknowledged(stream.outbox.last)
    found = of(intake)
    found.add(told(seen))
    assert found.differences() == {}, found


def _datagram(protocol: str, number: int, count: int, fate: str) -> bytes:
    match protocol:
        case "ipfix":
            data = ipfix(define(PORTS), ports(*range(count)), number=number)
            if fate == "no template":
                data = ipfix(make_set(777, bytes(count * 4)), number=number)
            elif fate == "no set":
                data = ipfix(ports(*range(count)), make_set(256, b"\1"), number=number)
        case "v5":
            data = v5(*[v5_record()] * count, number=number) if count else v5(number=number)
        case _:
            data = v9(flowset(0, FLOW), flowset(300, flow(80) * count), number=number, count=99)
            if fate == "no template":
                data = v9(flowset(999, bytes(8 * count)), number=number)
    return data[: len(data) // 2] if fate == "cut" else data + bytes(4) if fate == "zeros" else data


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=30), st.integers(1, 300))
def test_a_tcp_sessions_account_closes_whatever_it_sends(
    messages: list[tuple[int, bool, bool]], batch_bytes: int
) -> None:
    batcher = Batcher(FlowLimits(), batch_bytes=batch_bytes)
    drafts = [batcher.feed(ipfix(define(PORTS)))]
    number = 0
    for count, lost, readable in messages:
        data = ports(*range(count)) if readable else make_set(777, bytes(4 * count))
        if not lost and batcher.fault is None:
            drafts.append(batcher.feed(ipfix(data, number=number)))
        number += count
    drafts.append(batcher.last())
    found = StreamLedger()
    for draft in drafts:
        if draft is not None:
            found.account += decode_account(draft.account, draft.records)
            found.stored += draft.records
    assert found.differences() == {}, found


def test_a_message_that_ends_a_session_is_told_of() -> None:
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 16)
    batcher.feed(ipfix(define(PORTS), ports(1)) + b"\0\x09" + struct.pack("!H", 16) + bytes(12))
    draft = batcher.last()
    assert draft is not None
    assert decode_account(draft.account, draft.records).faults == {"version": 1}
    assert batcher.last() is None


@pytest.mark.parametrize("reason", ["x", "y"])
def test_a_draft_that_is_given_up_is_refused_whole(reason: str) -> None:
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 16)
    batcher.feed(ipfix(define(PORTS), ports(1, 2)) + ipfix(ports(3), number=5))
    draft = batcher.flush()
    assert draft is not None
    account = draft.given_up(reason)
    assert (account.received, account.lost, account.refused) == (3, 3, {reason: 3})
