"""An exit's producer on a clock of its own: what was acknowledged is in the topic, whatever that does meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
from attrs import evolve
from confluent_kafka import KafkaError
from hypothesis import given as by
from hypothesis import strategies as st

from phloem.exits.sending import Alone, ExitFailed, Given, Interrupted, Sending
from phloem.exits.settings import MESSAGE_COSTS_BYTES
from sapflow.config import ExitConfig
from sapflow.errors import MalformedMessage
from sapflow.flows.formats.messages import Messages
from tests.unit.phloem.fake_topic import FakeTopic, Stored

STREAM = b"0123456789abcdef"
EXIT = ExitConfig("lake", "acme", "127.0.0.1:9092", "flows", window_bytes=64 << 10, max_message_bytes=2000)


def a_sending(topic: FakeTopic, exit_: ExitConfig = EXIT) -> Sending:
    return Sending(exit_, topic.clients(), topic.clock)


def entries(*sizes: Sequence[int]) -> list[list[bytes]]:
    """Of each entry its messages, which are all different."""
    return [[b"%d/%d " % (at, part) + b"x" * size for part, size in enumerate(some)] for at, some in enumerate(sizes)]


def publish(sending: Sending, values: list[list[bytes]], settle_each: int = 3) -> int:
    """As an exit does: from where it settled last, until all is; how often it began again."""
    settled = again = 0
    while settled < len(values):
        try:
            upto = min(len(values), settled + settle_each)
            for position in range(settled, upto):
                sending.give(Given(STREAM, position + 1), [Messages(values[position])])
            sending.settle()
            settled = upto
        except ExitFailed:
            again += 1
            assert again < 200
    return again


def all_of(values: list[list[bytes]], most: int = 1 << 30) -> list[Stored]:
    key = STREAM.hex().encode()
    return [
        Stored(key, at, part, value)
        for at, some in enumerate(values, 1)
        for part, value in enumerate(some)
        if len(value) <= most
    ]


def test_a_slow_topic_is_waited_for_within_the_window_and_nothing_fails_while_it_moves() -> None:
    topic = FakeTopic(request_s=5.0)
    sending = a_sending(topic)
    made = 0
    most = 0

    def messages() -> Iterator[Messages]:
        nonlocal made, most
        for number in range(400):
            made += 1
            most = max(most, sending.waiting_bytes, (made - len(topic.stored)) * (1000 + MESSAGE_COSTS_BYTES))
            yield Messages([b"%4d" % number + b"x" * 996])

    sending.give(Given(STREAM, 1), messages())
    sending.settle()
    assert topic.now > 4 * EXIT.timeout_s
    assert 0.9 * EXIT.window_bytes < most <= EXIT.window_bytes + 1000 + MESSAGE_COSTS_BYTES
    assert (sending.counts.records, sending.counts.bytes, sending.counts.failures) == (400, 400_000, 0)
    assert len(topic.once()) == 400


def test_a_dead_topic_is_given_up_after_its_timeout_and_holds_nothing() -> None:
    topic = FakeTopic(silent=True)
    sending = a_sending(topic)
    sending.give(Given(STREAM, 1), [Messages([b"one", b"two"])])
    with pytest.raises(ExitFailed, match="has acknowledged nothing of topic 'flows' for 30 s"):
        sending.settle()
    assert EXIT.timeout_s < topic.now < EXIT.timeout_s + 1
    assert (sending.waiting_bytes, sending.counts.failures, sending.counts.records) == (0, 1, 0)
    topic.silent = False
    assert publish(sending, [[b"one", b"two"]]) == 0
    assert [one.value for one in topic.stored] == [b"one", b"two"]
    assert len(topic.producers) == 2


def test_a_record_that_is_too_large_for_the_exit_is_left_out_without_a_request() -> None:
    topic = FakeTopic()
    sending = a_sending(topic)
    values = entries([10, 5000, 10], [10])
    assert publish(sending, values) == 0
    assert topic.once() == all_of(values, 2000)
    assert (sending.counts.refused_records, sending.counts.records) == (1, 3)


@by(st.lists(st.lists(st.sampled_from([1, 50, 300, 800]), max_size=25), min_size=1, max_size=12))
def test_whatever_the_topic_refuses_is_left_out_and_counted_and_all_else_is_there_in_order(
    sizes: list[list[int]],
) -> None:
    topic = FakeTopic(max_message_bytes=500)
    sending = a_sending(topic)
    values = entries(*sizes)
    publish(sending, values)
    there = all_of(values, 500)
    assert topic.once() == there
    assert sending.counts.records == len(there)
    assert sending.counts.refused_records == sum(map(len, sizes)) - len(there)
    assert sending.counts.failures == 0


@by(
    st.lists(st.integers(0, 25), min_size=1, max_size=12),
    st.lists(
        st.sampled_from([None, None, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.POLICY_VIOLATION]), max_size=30
    ),
)
def test_whatever_fails_nothing_that_was_acknowledged_is_missing(counts: list[int], faults: list[int | None]) -> None:
    topic = FakeTopic(faults=deque(faults))
    sending = a_sending(topic)
    values = entries(*([20] * count for count in counts))
    again = publish(sending, values)
    assert topic.once() == all_of(values)
    assert sending.counts.records == sum(counts)
    assert sending.counts.failures == again


def test_messages_of_several_records_that_are_refused_are_made_smaller_for_a_while() -> None:
    topic = FakeTopic(max_message_bytes=500)
    sending = a_sending(topic)
    sizes = []
    while True:
        sizes.append(sending.most_bytes)
        try:
            sending.give(Given(STREAM, 1), [Messages([b"x" * min(1600, sending.most_bytes)], 10)])
            sending.settle()
            break
        except Alone:
            continue
    assert sizes == [2000, 2000, 800, 400]  # found to be too large in a request, then alone
    assert sending.counts.refused_records == 0
    topic.now += 601
    assert sending.most_bytes == 2000


def test_reports_of_a_producer_that_was_thrown_away_acknowledge_nothing() -> None:
    topic = FakeTopic(silent=True)
    sending = a_sending(topic)
    sending.give(Given(STREAM, 1), [Messages([b"old"])])
    late = topic.producers[0].waiting.copy()
    with pytest.raises(ExitFailed):
        sending.settle()
    sending.give(Given(STREAM, 1), [Messages([b"new"])])
    waiting = sending.waiting_bytes
    for message, report in late:
        report(None, message)  # type: ignore[arg-type]
    assert sending.waiting_bytes == waiting > 0
    with pytest.raises(ExitFailed):
        sending.settle()


def test_a_topic_whose_offsets_go_back_is_told() -> None:
    topic = FakeTopic()
    sending = a_sending(topic)
    publish(sending, entries([1] * 50))
    assert sending.counts.offsets_back == 0
    topic.offset_shift = -40
    publish(sending, entries([1] * 5))
    assert sending.counts.offsets_back == 1


def test_what_cannot_be_decoded_takes_nothing_with_it() -> None:
    topic = FakeTopic()
    sending = a_sending(topic)

    def broken() -> Iterator[Messages]:
        raise MalformedMessage("as told", offset=0, reason="test")
        yield

    sending.give(Given(STREAM, 1), [Messages([b"one"])])
    with pytest.raises(MalformedMessage):
        sending.give(Given(STREAM, 2), broken())
    sending.give(Given(STREAM, 3), [Messages([b"three"])])
    sending.settle()
    assert [one.value for one in topic.stored] == [b"one", b"three"]
    assert len(topic.producers) == 1


def test_who_ends_is_not_held_up() -> None:
    topic = FakeTopic(silent=True)
    sending = a_sending(topic)
    sending.give(Given(STREAM, 1), [Messages([b"one"])])
    sending.interrupt()
    with pytest.raises(Interrupted):
        sending.settle()
    assert topic.now < 1
    assert sending.counts.failures == 0


def test_who_waits_for_its_kafka_keeps_no_other_from_computing() -> None:
    turn = threading.Lock()
    dead, well = FakeTopic(silent=True), FakeTopic()
    waiting = Sending(EXIT, dead.clients(), dead.clock, turn)
    other = Sending(EXIT, well.clients(), well.clock, turn)

    def meanwhile() -> None:
        dead.on_poll = lambda: None
        thread = threading.Thread(target=publish, args=(other, entries([1], [1])), daemon=True)
        thread.start()
        thread.join(10)

    waiting.give(Given(STREAM, 1), [Messages([b"one"])])
    dead.on_poll = meanwhile
    with pytest.raises(ExitFailed):
        waiting.settle()
    assert len(well.stored) == 2
    assert not turn.locked()


def test_a_secret_is_read_when_it_is_needed_and_one_that_is_gone_is_a_failure(tmp_path: object) -> None:
    topic = FakeTopic()
    sending = a_sending(topic, evolve(EXIT, secrets={"sasl.password": f"{tmp_path}/password"}))
    with pytest.raises(ExitFailed, match=r"the file of sasl.password, .*/password, cannot be read"):
        sending.give(Given(STREAM, 1), [Messages([b"one"])])
    with open(f"{tmp_path}/password", "w") as file:
        file.write("pass word\n")
    publish(sending, [[b"one"]])
    assert topic.producers[0].properties["sasl.password"] == "pass word"
