"""The Kafka engine's decisions and every way in which Kafka fails it, without Kafka."""

from __future__ import annotations

import threading

import pytest
from attrs import evolve
from confluent_kafka import KafkaError
from confluent_kafka.admin import OffsetSpec
from hypothesis import given
from hypothesis import strategies as st

from phloem.engine.kafka import log as kafka_log
from phloem.engine.kafka import reading
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.marks import Marks
from phloem.engine.kafka.names import MAX_TOPIC_CHARS, groups_topic_of, is_topic_of_an_org, partition_of, topic_of
from phloem.engine.kafka.settings import MAX_ENTRY_BYTES, KafkaSettings
from phloem.engine.kafka.topics import CLOSED_BYTES
from sapflow.entry import LogEntry, decode_entry, encode_entry
from sapflow.errors import StorageError
from tests.unit.phloem.fake_kafka import FakeKafka, FakeMessage, FakeTopic, failure

STREAM = b"0123456789abcdef"


def an_entry(seq: int, payload: bytes = b"payload", stream: bytes = STREAM) -> LogEntry:
    return LogEntry(stream, seq, "192.0.2.1:9", seq * 1000, 1, 2, payload)


def a_log(kafka: FakeKafka, **settings: object) -> KafkaLog:
    given = {"servers": "k:1", "partitions": 1, "commit_timeout_s": 0.2, "request_timeout_s": 0.2, **settings}
    log = KafkaLog(KafkaSettings(**given), kafka.clients())  # type: ignore[arg-type]
    log.reopen()
    return log


def kinds(log: KafkaLog, *entries: LogEntry, org: str = "acme") -> list[str]:
    return [outcome.kind for outcome in log.append([(org, entry) for entry in entries])]


def stored(kafka: FakeKafka, topic: str = "sapflow", partition: int = 0) -> list[int]:
    return [decode_entry(message.body or b"").seq for message in kafka.topics[topic].partitions[partition]]


def read(log: KafkaLog, after: int = 0, org: str = "acme", max_bytes: int = 1 << 20) -> list[int]:
    found = log.stretch(org, after, max_bytes=max_bytes, max_entries=100)
    return [decode_entry(data).seq for _, data in found.entries]


# --- writing --------------------------------------------------------------------------------------------------


def test_a_report_that_fails_ends_the_producer_and_keeps_what_is_known_to_be_stored() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kafka.reports.extend([None, KafkaError(KafkaError.NOT_ENOUGH_REPLICAS), None])
    with pytest.raises(StorageError, match="cannot be written: Kafka at k:1 says"):
        kinds(log, *map(an_entry, (1, 2, 3)))
    assert kafka.producers[0].purged
    with pytest.raises(StorageError, match="not open"):
        kinds(log, an_entry(1))
    log.reopen()
    # The third was stored behind a failure, which Kafka's client forbids; it is not taken for more than it is.
    assert kinds(log, *map(an_entry, (1, 2, 3))) == ["duplicate", "stored", "stored"]
    assert len(kafka.producers) == 2


def test_an_entry_that_may_tell_something_says_so_in_a_header_and_no_other_does() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1), evolve(an_entry(2), tells=True), an_entry(3))
    told = [dict(message.headers() or []) for message in kafka.topics["sapflow"].partitions[0]]
    assert told == [
        {"org": b"acme", "stream": STREAM, "seq": b"1"},
        {"org": b"acme", "stream": STREAM, "seq": b"2", "tells": b"1"},
        {"org": b"acme", "stream": STREAM, "seq": b"3"},
    ]


def test_without_reports_in_time_all_of_the_group_is_given_up_and_said_to_be_kept_by_the_senders() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kafka.silent = True
    with pytest.raises(StorageError, match=r"nothing was stored for 0.2 s: no Kafka broker at k:1 .*collectors"):
        kinds(log, *map(an_entry, (1, 2)))
    assert kafka.producers[0].purged
    assert not kafka.producers[0].waiting
    kafka.silent = False
    log.reopen()
    assert kinds(log, *map(an_entry, (1, 2))) == ["stored", "stored"]
    assert stored(kafka) == [1, 2]


def test_a_full_queue_is_waited_for_but_not_for_ever() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kafka.fail("produce", BufferError(), BufferError())
    assert kinds(log, an_entry(1), an_entry(2)) == ["stored", "stored"]
    kafka.silent = True
    kafka.fail("produce", *[BufferError()] * 1_000_000)
    with pytest.raises(StorageError, match="nothing was stored for"):
        kinds(log, an_entry(3))


def test_what_kafka_refuses_to_take_is_an_error_and_nothing_is_acknowledged() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kafka.fail("produce", failure(KafkaError._FATAL, "fenced"))
    with pytest.raises(StorageError, match="fenced"):
        kinds(log, an_entry(1))
    assert stored(kafka) == []


def test_what_is_stored_at_an_offset_that_kafka_does_not_say_is_stored() -> None:
    kafka = FakeKafka(tells_offsets=False)
    log = a_log(kafka)
    assert kinds(log, an_entry(1), an_entry(2)) == ["stored", "stored"]
    assert kinds(log, an_entry(2), an_entry(3), an_entry(9)) == ["duplicate", "stored", "refused"]
    assert stored(kafka) == [1, 2, 3]


def test_requests_shrink_with_each_failure_and_grow_again() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    for seq in range(1, 8):
        if seq in (2, 3):
            kafka.reports.append(KafkaError(KafkaError.REQUEST_TIMED_OUT))
            with pytest.raises(StorageError):
                kinds(log, an_entry(2))
            log.reopen()
        else:
            kinds(log, an_entry(seq if seq < 2 else seq - 2))
    sizes = [int(producer.properties["batch.size"]) >> 10 for producer in kafka.producers]
    assert sizes == [256, 64, 16, 32, 64, 128]


def test_an_end_of_the_process_is_not_held_up_by_kafka() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, commit_timeout_s=60.0)
    kafka.silent = True
    threading.Timer(0.1, log.interrupt).start()
    with pytest.raises(StorageError, match="this process ends"):
        kinds(log, an_entry(1))
    log.close()


def test_a_gap_that_the_log_does_not_explain_in_time_is_left_to_the_rules_of_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_log, "LEARN_BYTES", 10)
    kafka = FakeKafka()
    log = a_log(kafka)
    assert kinds(log, an_entry(1)) == ["stored"]
    for seq in range(2, 6):
        kafka.store("sapflow", 0, b"acme", encode_entry(an_entry(seq, stream=b"x" * 16))[0])
    assert kinds(log, an_entry(7)) == ["stored"]
    assert log.learning.unknown_gaps == 1


def test_a_gap_whose_explanation_is_past_retention_is_left_to_the_rules_of_links_too() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1))
    for seq in range(2, 9):
        kafka.store("sapflow", 0, b"acme", encode_entry(an_entry(seq))[0])
    kafka.topics["sapflow"].low[0] = 8
    del kafka.topics["sapflow"].partitions[0][:7]
    assert kinds(log, an_entry(12)) == ["stored"]


def test_a_damaged_entry_teaches_nothing() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1))
    damaged = bytearray(encode_entry(an_entry(2))[0])
    damaged[-1] ^= 1
    kafka.store("sapflow", 0, b"acme", bytes(damaged))
    assert kinds(log, an_entry(3)) == ["refused"]


def test_streams_silent_for_longest_are_forgotten_first() -> None:
    marks = Marks(max_streams=2)
    for stream in (b"a", b"b", b"a", b"c"):
        marks.note(("acme", stream), 1, 7, 1)
    assert (marks.get(("acme", b"a")) is None, marks.get(("acme", b"b")) is None, len(marks)) == (False, True, 2)


# --- reading --------------------------------------------------------------------------------------------------


def test_an_end_that_was_passed_meanwhile_is_no_end() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, *map(an_entry, range(1, 4)))
    assert read(log) == [1, 2, 3]
    kafka.consumers[0].extra.append(FakeMessage(3, fault=KafkaError(KafkaError._PARTITION_EOF)))
    kinds(log, an_entry(4))
    assert read(log, after=3) == [4]
    assert kafka.consumers[0].assigned == 1, "it stood there already"


def test_a_partition_that_ends_with_what_is_never_given_is_read_to_its_end() -> None:
    """As with the markers of somebody's transaction."""
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1))
    kafka.topics["sapflow"].partitions[0].append(FakeMessage(5, b"other", b""))
    found = log.stretch("acme", 0, max_bytes=1000, max_entries=9)
    assert (len(found.entries), found.through) == (1, 6)


def test_an_entry_too_large_for_what_is_left_of_a_call_comes_with_the_next() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1, bytes(100)), an_entry(2, bytes(1000)), an_entry(3))
    found = log.stretch("acme", 0, max_bytes=500, max_entries=9)
    assert found.through == 1
    assert read(log, after=1, max_bytes=500) == [2]
    assert kafka.consumers[0].assigned == 1
    assert read(log, after=0, max_bytes=10_000) == [1, 2, 3]


def test_others_entries_are_passed_over_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SCAN_BYTES", 1000)
    kafka = FakeKafka()
    log = a_log(kafka)
    for seq in range(1, 11):
        kinds(log, an_entry(seq, bytes(400)), org="globex")
    kinds(log, an_entry(1))
    found = log.stretch("acme", 0, max_bytes=10_000, max_entries=9)
    assert found.entries == []
    assert 0 < found.through < 10
    after, steps = found.through, 1
    while not (found := log.stretch("acme", after, max_bytes=10_000, max_entries=9)).entries:
        after, steps = found.through, steps + 1
    assert steps > 2
    assert log.read_counts.entries_passed_over == 10


@pytest.mark.parametrize(
    ("call", "code"),
    [("poll", KafkaError._TRANSPORT), ("watermarks", KafkaError._TIMED_OUT), ("assign", KafkaError._STATE)],
)
def test_a_reader_that_failed_is_not_used_again_and_the_next_is(call: str, code: int) -> None:
    kafka = FakeKafka()
    log = a_log(kafka, readers=1)
    kinds(log, an_entry(1))
    kafka.fail(call, failure(code))
    with pytest.raises(StorageError, match="the log of sapflow cannot be read"):
        read(log)
    assert kafka.consumers[0].closed
    assert read(log) == [1]


def test_a_message_that_is_an_error_fails_the_read() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, *map(an_entry, range(1, 4)))
    read(log)
    kinds(log, an_entry(4))
    kafka.consumers[0].extra.append(FakeMessage(3, fault=KafkaError(KafkaError._AUTO_OFFSET_RESET)))
    with pytest.raises(StorageError, match="cannot be read"):
        read(log, after=3)
    assert read(log, after=3) == [4]


def test_an_error_of_where_a_reader_stood_before_is_not_one_of_where_it_stands() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, readers=1)
    kinds(log, *map(an_entry, range(1, 4)))
    read(log)
    for code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        kafka.consumers[0].extra.append(FakeMessage(3, fault=KafkaError(code)))
        assert read(log) == [1, 2, 3]
    kafka.consumers[0].extra.append(FakeMessage(1, fault=KafkaError(KafkaError._AUTO_OFFSET_RESET)))
    with pytest.raises(StorageError, match="cannot be read"):
        read(log, after=1)


def test_a_silent_broker_fails_reads_in_time() -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1))
    kafka.silent = True
    for ask in (lambda: read(log), lambda: log.last_position("acme")):
        with pytest.raises(StorageError, match="no Kafka broker"):
            ask()


def test_a_consumer_that_cannot_be_made_takes_nobodys_place() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, readers=1)
    kinds(log, an_entry(1))
    kafka.fail("consumer", RuntimeError("no more files"))
    with pytest.raises(RuntimeError):
        read(log)
    assert read(log) == [1]


def test_what_reads_get_is_told_where_they_are_all_busy() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, readers=1)
    with log._readers.take(), pytest.raises(StorageError, match="busy"):
        read(log)


# --- topics ---------------------------------------------------------------------------------------------------


def test_copies_are_as_many_as_there_are_brokers_and_no_more_than_wanted() -> None:
    for brokers, copies, in_sync in ((1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (9, 3, "2")):
        kafka = FakeKafka(brokers=brokers)
        a_log(kafka)
        topic = kafka.topics["sapflow"]
        assert (topic.copies, topic.config["min.insync.replicas"]) == (copies, in_sync)
        assert topic.config["message.timestamp.type"] == "LogAppendTime"


def test_a_topic_that_another_node_makes_at_the_same_time_is_as_good() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, topic_per_org=True, retention_bytes_per_org=7)
    other = a_log(kafka, topic_per_org=True)
    assert kinds(log, an_entry(1)) == kinds(other, an_entry(1)) == ["stored"]
    assert kafka.topics["sapflow-acme"].config["retention.bytes"] == "7"


def test_a_topic_that_another_node_made_a_moment_ago_is_checked_like_any_other() -> None:
    kafka = FakeKafka()
    a_log(kafka, partitions=2)
    kafka.behind = 3
    with pytest.raises(StorageError, match=r"has 2 partitions and phloem.kafka_partitions is 3"):
        a_log(kafka, partitions=3)
    kafka.behind = 1 << 30
    with pytest.raises(StorageError, match="topic sapflow cannot be looked at: Kafka at k:1 says"):
        a_log(kafka, partitions=2)


@pytest.mark.parametrize(
    ("call", "says"),
    [("create", "topic sapflow cannot be made: Kafka at k:1 says"), ("list", "cannot be opened: Kafka at k:1 says")],
)
def test_a_topic_that_may_not_be_made_or_seen_is_told(call: str, says: str) -> None:
    kafka = FakeKafka()
    kafka.fail(call, failure(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(StorageError, match=says):
        a_log(kafka)
    a_log(kafka)


def test_an_answer_that_never_comes_is_a_silent_broker() -> None:
    kafka = FakeKafka()
    kafka.fail("create", TimeoutError())
    with pytest.raises(StorageError, match="no Kafka broker"):
        a_log(kafka)


def test_news_skips_topics_that_are_not_there_yet() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, topic_per_org=True)
    kinds(log, an_entry(1))
    assert log.news({"acme", "globex"}) == {"acme"}
    kafka.fail("offsets", failure(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(StorageError, match="not known how far"):
        log.news({"acme"})


@pytest.mark.parametrize(
    "code", [KafkaError.LEADER_NOT_AVAILABLE, KafkaError.FENCED_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION]
)
def test_news_come_from_a_partition_s_new_leader_as_soon_as_there_is_one(code: int) -> None:
    kafka = FakeKafka()
    log = a_log(kafka)
    kinds(log, an_entry(1))
    log.news({"acme"})
    kinds(log, an_entry(2))
    kafka.fail("offsets", failure(code))
    assert log.news({"acme"}) == {"acme"}


def test_a_leader_that_died_has_no_offset_which_is_no_news_and_no_empty_topic() -> None:
    """As librdkafka has it: -1001 and no error, until it is made to ask for leaders again."""
    kafka = FakeKafka()
    log = a_log(kafka, topic_per_org=True)
    kinds(log, an_entry(1))
    log.news({"acme"})
    kinds(log, an_entry(2))
    kafka.leaderless = True
    with pytest.raises(StorageError, match="a partition has no leader"):
        log.news({"acme"})
    with pytest.raises(StorageError, match="a partition has no leader"):
        list(log.upkeep(set()))
    assert "sapflow-acme" in kafka.topics
    kafka.leaderless = False
    assert log.news({"acme"}) == {"acme"}


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_topic_that_turns_out_to_be_closed_is_made_anew_or_opened_again(is_empty: bool) -> None:
    kafka = FakeKafka()
    log = a_log(kafka, topic_per_org=True)
    kinds(log, an_entry(1))
    topic = kafka.topics["sapflow-acme"]
    topic.config["max.message.bytes"] = str(CLOSED_BYTES)
    topic.low[0] = 1 if is_empty else 0
    kafka.reports.append(KafkaError(KafkaError._GAPLESS_GUARANTEE, "Message size too large"))
    with pytest.raises(StorageError, match="Message size too large"):
        kinds(log, an_entry(2))
    log.reopen()
    assert kinds(log, an_entry(2)) == ["stored"]
    assert (kafka.topics["sapflow-acme"] is topic) is not is_empty
    assert stored(kafka, "sapflow-acme") == ([2] if is_empty else [1, 2])
    assert kafka.topics["sapflow-acme"].config["max.message.bytes"] == str(MAX_ENTRY_BYTES)


def test_topics_of_many_new_orgs_are_made_at_once() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, topic_per_org=True)
    log.append([(f"org-{number}", an_entry(1)) for number in range(50)])
    log.append([(f"org-{number}", an_entry(2)) for number in range(60)])
    assert kafka.calls["create"] == 2
    assert a_log(kafka, topic_per_org=True).append([("org-1", an_entry(3))])
    assert kafka.calls["create"] == 2, "those that are there are known"


def test_only_empty_topics_of_orgs_that_are_gone_are_taken_away_and_only_this_fleets() -> None:
    kafka = FakeKafka()
    log = a_log(kafka, topic_per_org=True)
    for org in ("gone", "full", "there"):
        kinds(log, an_entry(1), org=org)
    for org in ("gone", "there"):
        kafka.topics[f"sapflow-{org}"].low[0] = 1
    kafka.topics["sapflow2-gone"] = FakeTopic([[]])
    kafka.topics["unrelated"] = FakeTopic([[]])
    assert (list(log.upkeep({"there"})), list(log.upkeep({"there"})), list(log.upkeep({"there"}))) == ([0], [1], [])
    assert set(kafka.topics) == {"sapflow-full", "sapflow-there", "sapflow2-gone", "unrelated"}
    assert list(a_log(kafka).upkeep(set())) == [], "one topic for all is never obsolete"


# --- names ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(max_size=260), st.none() | st.text(max_size=260)), min_size=2, max_size=6, unique=True)
)
def test_s07_no_two_orgs_of_any_fleets_have_one_topic_and_no_names_collide(pairs: list[tuple[str, str | None]]) -> None:
    topics = [topic_of(fleet, org) for fleet, org in pairs]
    assert len(set(topics)) == len(pairs)
    assert len({topic.replace(".", "_") for topic in topics}) == len(pairs)
    for topic in topics:
        assert len(topic) <= 249
        assert set(topic) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def test_s07_names_that_differ_a_little() -> None:
    names = [topic_of("f", org) for org in ("a.b", "a_b", "a-b", "a/b", "ab", "a" * 245, "a" * 249, "a" * 250)]
    assert len(set(names)) == len(names)
    assert topic_of("a", "b-c") != topic_of("a-b", "c")
    assert is_topic_of_an_org("f", names[0])
    assert not is_topic_of_an_org("f", topic_of("f"))
    assert not is_topic_of_an_org("f", topic_of("f-g", "a"))
    assert not is_topic_of_an_org("f", groups_topic_of("f"))
    assert len(groups_topic_of("f" * 300)) <= MAX_TOPIC_CHARS


def test_an_org_stays_in_its_partition() -> None:
    assert [partition_of(org, 12) for org in ("acme", "globex", "initech")] == [2, 10, 0]


def test_the_fake_tells_specs_apart_as_the_library_names_them() -> None:
    assert type(OffsetSpec.earliest()).__name__ == "EarliestSpec"
