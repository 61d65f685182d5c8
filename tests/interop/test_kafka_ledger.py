"""The ledger in a real Kafka: checkpoints that outlive nodes, a topic made anew, and what retention removed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from tools.peers import kafka
from tools.peers.server import Server

from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.names import ledger_topic_of, topic_of
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
from sapflow.ledger import OrgLedger
from sapflow.link.account import Account
from tests.interop.kafka_nodes import COMPACTED_SOON, Open, nodes
from tests.peers import needs

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]

LOSSY = Account(received=3, exported=5, lost=2, refused={"spool_full": 1})


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with kafka.broker(tmp_path_factory.mktemp("kafka"), properties=COMPACTED_SOON) as server:
        yield server


@pytest.fixture(params=[False, True], ids=["one topic", "topic per org"])
def open_node(broker: Server, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Nodes of one fleet."""
    with nodes(broker, per_org=request.param) as opened:
        yield opened


def an_entry(seq: int, *, stream: int = 1) -> LogEntry:
    return LogEntry(bytes([stream]) * 16, seq, "192.0.2.1:9", 7, 1, 2, b"payload", LOSSY.encode(2))


def store(log: KafkaLog, *entries: LogEntry, org: str = "acme") -> None:
    assert {one.kind for one in log.append([(org, entry) for entry in entries])} == {"stored"}


def keep(log: KafkaLog) -> None:
    """In the first round a node only looks whether another does it."""
    for _ in range(2):
        list(log.shared_ledger.keep(frozenset({"acme", "globex"})))


def place_of(log: KafkaLog) -> TopicPartition:
    place = log._topics.place("acme")
    return TopicPartition(place.topic, place.partition)


def figures(found: OrgLedger) -> tuple[int, int, int, int, int]:
    assert found.closes, found.differences()
    return found.total.batches, found.total.stored, found.kept, found.total.account.lost, found.streams


def test_a_node_goes_on_from_the_checkpoint_of_another_that_is_gone(open_node: Open) -> None:
    one = open_node("one")
    store(one, *map(an_entry, range(1, 101)))
    store(one, an_entry(1), org="globex")
    keep(one)
    store(one, an_entry(101), an_entry(1, stream=2))
    two = open_node("two")
    # The same again, and on: what two nodes do when an org changes hands.
    store(two, *map(an_entry, range(100, 104)))
    found = two.ledger("acme", most_rows=9)
    assert figures(found) == (104, 208, 208, 208, 2)
    assert sorted(row.stored for row in found.rows) == [2, 206]
    assert two.counts()["ledger_folded_entries"] == 6
    assert figures(one.ledger("acme")) == figures(found)
    assert figures(two.ledger("globex")) == (1, 2, 2, 2, 1)
    keep(two)
    three = open_node("three")
    assert figures(three.ledger("acme")) == figures(found)
    assert three.counts()["ledger_folded_entries"] == 0


def test_a_topic_that_was_made_anew_and_has_grown_past_the_checkpoint_is_noticed(open_node: Open) -> None:
    one = open_node("one")
    store(one, *map(an_entry, range(1, 6)))
    keep(one)
    topic = place_of(one).topic
    admin = AdminClient({"bootstrap.servers": one.settings.servers})
    admin.delete_topics([topic])[topic].result(10)
    new = until_open(open_node)
    store(new, *(an_entry(seq, stream=2) for seq in range(1, 21)))
    for node in (one, new):
        found = node.ledger("acme")
        assert figures(found) == (20, 40, 40, 40, 1)
        assert found.begun == "the topic was made anew, so it begins anew"
    keep(new)
    other = open_node("other")
    assert (figures(other.ledger("acme")), other.ledger("acme").begun) == (figures(found), found.begun)
    assert other.counts()["ledger_folded_entries"] == 0


def until_open(open_node: Open) -> KafkaLog:
    """A topic that was deleted a moment ago may not be made yet."""
    until = time.monotonic() + 20
    while True:
        try:
            return open_node("new")
        except StorageError:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_what_retention_removed_is_told_as_removed_or_as_not_known(open_node: Open) -> None:
    one = open_node("one")
    store(one, *map(an_entry, range(1, 11)))
    keep(one)
    admin = AdminClient({"bootstrap.servers": one.settings.servers})
    remove_before(admin, one, 4)
    found = one.ledger("acme")
    assert figures(found) == (10, 20, 12, 20, 1)
    assert (found.removed, one.backlog("acme", 7).records, one.backlog("acme", 0).records) == (8, 6, 12)
    store(one, *map(an_entry, range(11, 21)))
    remove_before(admin, one, 15)
    for node in (one, open_node("two")):
        found = node.ledger("acme")
        assert figures(found) == (15, 30, 10, 30, 1)
        assert found.total.unknown_batches == 5
        assert "position 16 before it was counted" in found.begun


def remove_before(admin: AdminClient, log: KafkaLog, offset: int) -> None:
    before = place_of(log)
    before.offset = offset
    next(iter(admin.delete_records([before]).values())).result(10)


def test_many_checkpoints_leave_few_and_the_last_is_found(open_node: Open) -> None:
    one = open_node("one")
    keep(one)
    for seq in range(1, 40):
        store(one, *(an_entry(seq, stream=stream) for stream in range(1, 100)))
        keep(one)
    assert one.counts()["ledger_checkpoints"] >= 39
    two = open_node("two")
    assert figures(two.ledger("acme"))[:2] == (39 * 99, 2 * 39 * 99)
    assert two.counts()["ledger_folded_entries"] == 0
    assert ledger_topic_of(one.settings.fleet) in one._topics._listed()
    assert topic_of(one.settings.fleet) != ledger_topic_of(one.settings.fleet)
