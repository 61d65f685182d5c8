"""What exporters told in options data, in a real Kafka: any node knows it, whatever was compacted or removed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from tools.peers import kafka
from tools.peers.server import Server

from phloem.engine.kafka import topic_configs
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.names import Place, options_topic_of
from phloem.engine.options import OptionsBounds
from sapflow.entry import LogEntry, decode_entry
from sapflow.flows.columns.batches import decode
from tests.interop.kafka_nodes import COMPACTED_SOON, Open, nodes
from tests.peers import needs
from tests.unit.flows.flows_made import messages, seen

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]

A, B = b"a" * 16, b"b" * 16
FLOW = messages({"ingressInterface": 7, "octetDeltaCount": 1})


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # What is removed from a compacted topic goes as soon as it may too.
    properties = {**COMPACTED_SOON, "log.cleaner.delete.retention.ms": "100"}
    with kafka.broker(tmp_path_factory.mktemp("kafka"), properties=properties) as server:
        yield server


@pytest.fixture(params=[False, True], ids=["one topic", "topic per org"])
def open_node(broker: Server, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Nodes of one fleet."""
    bounds = OptionsBounds(bytes_per_stream=64 << 10, bytes_per_org=128 << 10)
    with nodes(broker, per_org=request.param, options=bounds) as opened:
        yield opened


def interface(number: int, name: str) -> bytes:
    return messages({"ingressInterface": number, "interfaceName": name}, scopes=1)


def store(log: KafkaLog, stream: bytes, seq: int, payload: bytes = FLOW, org: str = "acme") -> int:
    entry = LogEntry(stream, seq, "192.0.2.1:9", 7, 2, 1, payload, tells=payload is not FLOW)
    [outcome] = log.append([(org, entry)])
    assert outcome.kind == "stored"
    return outcome.position


def keep(log: KafkaLog) -> None:
    """In the first round a node only looks whether another does it."""
    for _ in range(2):
        list(log.shared_ledger.keep(frozenset({"acme", "globex"})))


def names(log: KafkaLog, stream: bytes = A, position: int = 1 << 40, org: str = "acme") -> list[str]:
    told = log.told(org, stream, position)
    return [] if told is None else [str(row["interfaceName"]) for row in seen(decode(decode_entry(told).payload))]


def test_any_node_knows_what_was_told_also_when_the_entries_and_the_node_are_gone(open_node: Open) -> None:
    one = open_node("one")
    at = [store(one, A, seq, interface(7, f"name {seq}")) for seq in range(1, 4)]
    store(one, B, 1, interface(1, "other"))
    store(one, A, 1, interface(7, "foreign"), org="globex")
    last = store(one, A, 4)
    keep(one)
    admin = AdminClient({"bootstrap.servers": one.settings.servers})
    place = one._topics.place("acme")
    before = TopicPartition(place.topic, place.partition, last - 1)
    next(iter(admin.delete_records([before]).values())).result(10)
    # The same again by another, and what nobody has folded yet.
    two = open_node("two")
    store(two, A, 3, interface(7, "name 3"))
    newest = store(two, A, 4)
    store(two, B, 2, interface(2, "waits"))
    for node in (one, two, open_node("three")):
        assert [names(node, position=position) for position in (*at, newest)] == [
            *(["name 1"], ["name 2"], ["name 3"], ["name 3"])
        ]
        assert (names(node, B), names(node, org="globex")) == (["other", "waits"], ["foreign"])
        assert node.told_streams("acme") == [A, B]
    assert one.counts()["options_folded"] == 5


def test_of_many_rows_few_are_left_and_a_node_that_slept_finds_them(
    open_node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_configs, "COMPACTED_SEGMENT_BYTES", 1 << 20)
    one, sleeper = open_node("one"), open_node("sleeper")
    store(one, A, 1, interface(1, "first"))
    keep(one)
    assert names(sleeper) == ["first"]
    streams = [bytes([number]) * 16 for number in range(1, 11)]
    # So large that the topic's first segments are closed soon, and compacted.
    wide = "x" * 200
    for seq in range(1, 9):
        for stream in streams:
            store(one, stream, seq, b"".join(interface(number, f"{wide} {seq}") for number in range(1, 120)))
        store(one, A, 1 + seq)
        keep(one)
    left = one.told_streams("acme")
    assert 1 < len(left) < 10, "an org's bound has no room for all"
    assert one.counts()["options_streams_forgotten"] > 0
    into = next(held.options.into for held in one.shared_ledger._held.values() if held.options.rows)
    assert into is not None
    until = time.monotonic() + 60
    while kept(one, into) > one._topics.ends({into})[into] / 2:
        assert time.monotonic() < until
        time.sleep(0.2)
    for node in (sleeper, open_node("new")):
        # Who slept has what was forgotten meanwhile still from the entries, as long as they are there.
        assert [stream for stream in node.told_streams("acme") if stream in left or node is not sleeper] == left
        for stream in left:
            known = node.told("acme", stream, 1 << 40)
            assert known is not None
            assert known == one.told("acme", stream, 1 << 40)
        assert node.counts()["options_unreadable"] == 0
    assert options_topic_of(one.settings.fleet) in one._topics._listed()


def kept(log: KafkaLog, into: Place) -> int:
    """How many rows the topic still has, by reading it."""
    count = 0

    def take(message: object) -> None:
        nonlocal count
        count += 1

    after, through = -1, 0
    while through != after:
        after = through
        with log._readers.take((into, after)) as reader:
            _, through = reader.scan(into, after, take, max_bytes=4 << 20)
    return count
