"""The Kafka engine against a real broker: durable when it says so, once for whoever reads, whatever becomes of it."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tools.peers import kafka
from tools.peers.server import Server, free_port

from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.names import topic_of
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.repeats import Repeats
from sapflow.entry import CorruptEntry, LogEntry, decode_entry
from sapflow.errors import StorageError
from tests.peers import needs

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]

STREAM = b"0123456789abcdef"
OTHER = b"fedcba9876543210"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with kafka.broker(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def open_log(broker: Server) -> Iterator[Callable[..., KafkaLog]]:
    """Nodes of one fleet, which no other test has."""
    fleet = f"fleet.{secrets.token_hex(4)}"
    with ExitStack() as stack:

        def opened(**settings: object) -> KafkaLog:
            log = KafkaLog(KafkaSettings(**{"servers": broker.address, "fleet": fleet, "partitions": 2, **settings}))  # type: ignore[arg-type]
            stack.callback(log.close)
            log.reopen()
            return log

        yield opened


@contextmanager
def paused(server: Server) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def an_entry(seq: int, payload: bytes = b"payload", stream: bytes = STREAM) -> LogEntry:
    return LogEntry(stream, seq, "192.0.2.1:9", seq * 1000, 1, 2, payload)


def kinds(log: KafkaLog, *entries: LogEntry, org: str = "acme") -> list[str]:
    return [outcome.kind for outcome in log.append([(org, entry) for entry in entries])]


def until_stored(log: KafkaLog, *entries: LogEntry) -> list[str]:
    """As the committer does: opened and tried again, while Kafka comes back."""
    until = time.monotonic() + 40
    while True:
        try:
            log.reopen()
            return kinds(log, *entries)
        except StorageError:
            assert time.monotonic() < until


def everything(log: KafkaLog, org: str = "acme", after: int = 0, max_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
    """All entries of an org, as they stand in the log."""
    found = []
    while (stretch := log.stretch(org, after, max_bytes=max_bytes, max_entries=1000)).through > after:
        found += stretch.entries
        after = stretch.through
    return found


def numbers(log: KafkaLog, org: str = "acme", stream: bytes = STREAM) -> list[int]:
    """A stream's numbers, as a consumer is given them."""
    entries = [decode_entry(data) for _, data in Repeats().without(everything(log, org))]
    return [entry.seq for entry in entries if entry.stream == stream]


def test_what_is_stored_is_read_from_any_position_and_repeats_are_not_stored(
    open_log: Callable[..., KafkaLog],
) -> None:
    log = open_log()
    assert kinds(log, an_entry(7), an_entry(8), an_entry(8), an_entry(10), an_entry(9)) == [
        "stored",
        "stored",
        "duplicate",
        "refused",
        "stored",
    ]
    assert kinds(log, an_entry(8, b"other")) == ["conflict"]
    assert kinds(log, an_entry(1), org="globex") == ["stored"]
    found = everything(log)
    assert [decode_entry(data) for _, data in found] == [an_entry(7), an_entry(8), an_entry(9)]
    positions = [position for position, _ in found]
    assert positions == sorted(set(positions))
    assert log.last_position("acme") >= positions[-1]
    assert everything(log, after=positions[0]) == found[1:]
    assert everything(log, after=log.last_position("acme")) == []
    assert log.first_position("acme") == 1
    assert log.position_at("acme", 0) == 1
    assert log.position_at("acme", 1 << 60) == log.last_position("acme") + 1
    with pytest.raises(StorageError, match="it was cut"):
        log.stretch("acme", 1_000_000, max_bytes=1, max_entries=1)


def test_orgs_that_share_a_partition_are_read_apart(open_log: Callable[..., KafkaLog]) -> None:
    log = open_log(partitions=1)
    orgs = ["acme", "a.b", "a_b", "globex"]
    log.append([(org, an_entry(seq, org.encode())) for seq in range(1, 51) for org in orgs])
    for org in orgs:
        found = [decode_entry(data) for _, data in everything(log, org, max_bytes=500)]
        assert [(entry.seq, entry.payload) for entry in found] == [(seq, org.encode()) for seq in range(1, 51)]


def test_two_nodes_that_both_store_a_stream_lose_nothing_and_a_reader_is_given_it_once(
    open_log: Callable[..., KafkaLog],
) -> None:
    one, two = open_log(), open_log()
    assert kinds(one, *map(an_entry, range(1, 6))) == ["stored"] * 5
    # The second takes over where the collector's lowest is, and the first, which does not know, stores some more.
    assert kinds(two, *map(an_entry, range(4, 11))) == ["stored"] * 7
    assert kinds(one, *map(an_entry, range(6, 9))) == ["stored"] * 3
    assert len(everything(one)) == 15
    assert numbers(one) == numbers(two) == list(range(1, 11))
    # What the other stored in between is looked for in the log before a number is refused.
    assert kinds(one, an_entry(12), an_entry(11)) == ["refused", "stored"]
    assert kinds(one, an_entry(10), an_entry(12)) == ["duplicate", "stored"]
    assert one.learning.searches == 1
    assert numbers(two) == list(range(1, 13))


def test_an_org_that_was_given_up_may_start_anywhere_when_it_comes_back(open_log: Callable[..., KafkaLog]) -> None:
    log = open_log()
    kinds(log, an_entry(1))
    assert kinds(log, an_entry(9)) == ["refused"]
    log.forget("acme")
    assert kinds(log, an_entry(9)) == ["stored"]


def test_news_tells_what_another_node_stored(open_log: Callable[..., KafkaLog]) -> None:
    one, two = open_log(), open_log()
    assert one.news({"acme"}) == {"acme"}
    assert one.news({"acme"}) == set()
    kinds(two, an_entry(1))
    assert one.news({"acme"}) == {"acme"}
    assert one.news({"acme"}) == set()


def test_c23_what_others_put_into_a_partition_costs_itself_only(open_log: Callable[..., KafkaLog]) -> None:
    log = open_log(partitions=1)
    kinds(log, an_entry(1))
    producer = Producer({"bootstrap.servers": log.settings.servers})
    for key, value in ((None, b"poison"), (b"acme", b"poison"), (b"acme", None), (b"globex", b"poison")):
        producer.produce(topic_of(log.settings.fleet), value, key, 0)
    assert producer.flush(10) == 0
    kinds(log, an_entry(2))
    found = [data for _, data in Repeats().without(everything(log))]
    assert [decode_entry(data).seq for data in (found[0], found[-1])] == [1, 2]
    for data in found[1:-1]:
        with pytest.raises(CorruptEntry):
            decode_entry(data)


def test_what_retention_removed_is_told_as_a_gap(open_log: Callable[..., KafkaLog]) -> None:
    log = open_log(partitions=1)
    kinds(log, *map(an_entry, range(1, 11)))
    admin = AdminClient({"bootstrap.servers": log.settings.servers})
    removed = TopicPartition(topic_of(log.settings.fleet), 0, 6)
    next(iter(admin.delete_records([removed]).values())).result(10)
    stretch = log.stretch("acme", 3, max_bytes=1 << 20, max_entries=10)
    assert stretch.gap_to == stretch.entries[0][0] == 7
    assert log.stretch("acme", 0, max_bytes=1 << 20, max_entries=10).gap_to is None
    assert log.stretch("acme", 6, max_bytes=1 << 20, max_entries=10).gap_to is None


def test_s07_a_topic_for_each_org_is_made_and_taken_away_when_it_is_empty_and_its_org_gone(
    open_log: Callable[..., KafkaLog],
) -> None:
    log, other = open_log(topic_per_org=True), open_log(topic_per_org=True)
    orgs = {"a.b", "a_b", "a-b", "x" * 63}
    log.append([(org, an_entry(1, org.encode())) for org in orgs])
    for org in orgs:
        assert [decode_entry(data).payload for _, data in everything(other, org)] == [org.encode()]
        assert other.holds(org)
    assert not other.holds("nobody")
    assert everything(other, "nobody") == []
    assert list(log.upkeep({"a.b", "a_b", "x" * 63})) == [], "what is kept of an org that is gone is kept"
    admin = AdminClient({"bootstrap.servers": log.settings.servers})
    removed = TopicPartition(topic_of(log.settings.fleet, "a-b"), 0, 1)
    next(iter(admin.delete_records([removed]).values())).result(10)
    assert list(log.upkeep({"a.b", "a_b", "x" * 63})) == [0], "first it is closed"
    # A stream of it comes meanwhile, to nodes that do not know: the topic is made again.
    for node in (log, other):
        with pytest.raises(StorageError, match="Message size too large"):
            kinds(node, an_entry(2), org="a-b")
    log.reopen()
    assert kinds(log, an_entry(2), org="a-b") == ["stored"]
    other.reopen()
    assert kinds(other, an_entry(2), an_entry(3), org="a-b") == ["stored", "stored"]
    assert numbers(other, "a-b") == [2, 3]
    assert list(log.upkeep({"a.b", "a_b", "x" * 63})) == []


def test_a_topic_that_cannot_be_used_is_named_with_what_to_do(
    broker: Server, open_log: Callable[..., KafkaLog]
) -> None:
    log = open_log(partitions=2)
    with pytest.raises(StorageError, match=r"has 2 partitions and phloem.kafka_partitions is 3"):
        open_log(partitions=3)
    admin = AdminClient({"bootstrap.servers": broker.address})
    fleet = f"small{secrets.token_hex(4)}"
    next(iter(admin.create_topics([NewTopic(fleet, 2, 1)]).values())).result(10)
    with pytest.raises(StorageError, match=r"takes entries of at most 1,048,588 bytes"):
        open_log(fleet=fleet)
    assert kinds(log, an_entry(1)) == ["stored"]


def test_the_largest_batch_of_a_link_is_stored_and_read(open_log: Callable[..., KafkaLog]) -> None:
    log = open_log()
    payload = os.urandom(2 << 20)
    assert kinds(log, an_entry(1, payload), an_entry(2)) == ["stored"] * 2
    assert [len(decode_entry(data).payload) for _, data in everything(log)] == [2 << 20, 7]


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_slow_readers_hold_little_however_much_there_is(open_log: Callable[..., KafkaLog]) -> None:
    log = open_log(partitions=1)
    payload = os.urandom(64 << 10)
    for first in range(1, 1600, 64):
        assert kinds(log, *(an_entry(seq, payload) for seq in range(first, first + 64))) == ["stored"] * 64
    before = rss_bytes()
    places = [0, 300, 600, 900, 1200]
    for _ in range(12):
        # Each of five consumers goes on where it was, 512 KiB at a time; the rest of 100 MB waits in Kafka.
        places = [log.stretch("acme", place, max_bytes=512 << 10, max_entries=1000).through for place in places]
    grown = rss_bytes() - before
    assert log.read_counts.readers == 5
    assert log.read_counts.assignments == 5
    assert grown < 5 * (8 << 20), f"{grown:,}"


def test_c10_while_the_broker_is_paused_nothing_is_stored_in_time_and_all_of_it_is_afterwards(
    broker: Server, open_log: Callable[..., KafkaLog]
) -> None:
    log = open_log(commit_timeout_s=1.0, request_timeout_s=1.0)
    until_stored(log, an_entry(1), an_entry(1, stream=OTHER))
    with paused(broker):
        with pytest.raises(StorageError, match=r"no Kafka broker at .* answers.*is not acknowledged"):
            kinds(log, *map(an_entry, range(2, 50)))
        assert not log.is_open
        with pytest.raises(StorageError, match="no Kafka broker"):
            log.reopen()
        with pytest.raises(StorageError, match="no Kafka broker"):
            log.stretch("acme", 0, max_bytes=1, max_entries=1)
    # Sent again from the lowest that is not acknowledged, and on. What was on its way may be stored as well.
    assert until_stored(log, *map(an_entry, range(2, 60))) == ["stored"] * 58
    assert until_stored(log, an_entry(2, stream=OTHER)) == ["stored"]
    assert numbers(log) == list(range(1, 60))
    assert numbers(log, stream=OTHER) == [1, 2]


def test_c10_a_broker_killed_amid_appends_keeps_what_it_acknowledged(
    broker: Server, open_log: Callable[..., KafkaLog]
) -> None:
    log = open_log(commit_timeout_s=2.0)
    until_stored(log, an_entry(1))
    killing = threading.Timer(0.2, broker.kill)
    killing.start()
    stored, lowest = 1, 2
    try:
        for _ in range(10_000):
            kinds(log, *(an_entry(seq, bytes(5000)) for seq in range(lowest, lowest + 20)))
            stored, lowest = lowest + 19, lowest + 20
    except StorageError:
        pass
    killing.join()
    broker.start()
    until_stored(log, *(an_entry(seq, bytes(5000)) for seq in range(lowest, lowest + 20)))
    found = numbers(log)
    assert found == list(range(1, lowest + 20))
    assert found[-1] > stored


def test_without_a_broker_it_is_said_what_that_means_and_what_to_do() -> None:
    port = free_port()
    log = KafkaLog(KafkaSettings(servers=f"127.0.0.1:{port}", request_timeout_s=0.5))
    with pytest.raises(StorageError) as caught:
        log.reopen()
    said = str(caught.value)
    assert f"no Kafka broker at 127.0.0.1:{port} answers" in said
    assert "refused" in said
    assert "collectors and meters keep it" in said
    assert "--kafka" in said
    log.close()
