"""What exporters told, kept on Kafka by nodes that die, sleep and follow one another: the same as folded at once."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phloem.engine.kafka import options_log
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.names import Place
from sapflow.entry import LogEntry, decode_entry, encode_entry
from sapflow.flows.columns.batches import decode
from sapflow.flows.ipfix.standing import MAX_VERSIONS, Standing
from tests.unit.flows.flows_made import seen
from tests.unit.phloem.fake_kafka import FakeKafka
from tests.unit.phloem.test_kafka_options import FLOW, ORGS, TOPIC, a_node, compact, interface

STREAMS = [bytes([number]) * 16 for number in range(1, 4)]
OWNERS = [(org, stream) for org in sorted(ORGS) for stream in STREAMS]
WHAT = ["tell", "tell", "tell", "flow", "again", "step", "step", "step", "keep", "die", "ask", "compact", "retention"]


class World:
    """Nodes of a fleet, and a log of which all is known."""

    def __init__(self) -> None:
        self.kafka = FakeKafka()
        self.nodes: dict[int, KafkaLog] = {}
        self.keeping: dict[int, Iterator[None]] = {}
        self.stored: list[tuple[str, LogEntry]] = []
        self.told: dict[tuple[str, bytes], list[tuple[int, LogEntry]]] = {owner: [] for owner in OWNERS}
        """What each stream told, by its position."""
        self.first = 0
        """Before the first position that is kept."""

    def node(self, number: int) -> KafkaLog:
        if number not in self.nodes:
            self.nodes[number] = a_node(self.kafka, f"phloem-{number}")
        return self.nodes[number]

    def store(self, number: int, org: str, stream: bytes, payload: bytes) -> None:
        """The next entry of a stream, by a node that perhaps had none of it yet."""
        seq = 1 + sum((org, stream) == (owner, entry.stream) for owner, entry in self.stored)
        entry = LogEntry(stream, seq, f"192.0.2.{number}:9", 7, 2, 1, payload, tells=payload is not FLOW)
        self.node(number).forget(org)
        [outcome] = self.node(number).append([(org, entry)])
        self.stored.append((org, entry))
        if entry.tells:
            self.told[org, stream].append((outcome.position, entry))

    def again(self, number: int, back: int, count: int) -> None:
        """As a node does that was paused when somebody else stored it too, and that does not come to the end of it."""
        for org, entry in self.stored[-back:][:count]:
            self.node(number).forget(org)
            self.node(number).append([(org, entry)])

    def step(self, number: int) -> None:
        """Of its upkeep, which may go on much later."""
        steps = self.keeping.setdefault(number, self.node(number).shared_ledger.keep(ORGS))
        if next(steps, "done") == "done":
            del self.keeping[number]

    def die(self, number: int) -> None:
        self.nodes.pop(number, None)
        self.keeping.pop(number, None)

    def retention(self) -> None:
        """Of what was counted: who never counts cannot keep anything."""
        log = a_node(self.kafka, "looks")
        log.ledger("acme")
        before = log.counts()["ledger_folded_entries"]
        self.first = max(self.first, log.last_position("acme") - max(before, 1))  # the fake forgets its end else
        log._topics.forget_before(Place("sapflow", 0), self.first)

    def expected(self, org: str, stream: bytes, position: int) -> bytes | None:
        """By one fold of all that was told by then."""
        standing = Standing()
        for at, entry in self.told[org, stream]:
            if at <= position:
                standing.take(entry.payload, at)
                standing.exporter = entry.exporter
        payload, messages, records = standing.in_force(position)
        return (
            encode_entry(LogEntry(stream, 0, standing.exporter, 0, messages, records, payload))[0] if records else None
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whoever_folds_dies_or_sleeps_readers_are_told_what_one_fold_of_all_says(data: st.DataObject) -> None:
    before, options_log.STEP_READS = options_log.STEP_READS, data.draw(st.sampled_from([1, 3, 64]))
    try:
        world = World()
        for _ in range(data.draw(st.integers(1, 40))):
            act(world, data, data.draw(st.sampled_from(WHAT)), data.draw(st.integers(1, 3)))
        check(world, a_node(world.kafka, "new"))
        for number in range(1, 4):
            check(world, world.node(number))
    finally:
        options_log.STEP_READS = before


def act(world: World, data: st.DataObject, what: str, number: int) -> None:
    org, stream = data.draw(st.sampled_from(OWNERS))
    match what:
        case "tell":
            world.store(number, org, stream, interface(data.draw(st.integers(1, 3)), data.draw(st.sampled_from("abc"))))
        case "flow":
            world.store(number, org, stream, FLOW)
        case "again":
            world.again(number, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
        case "step":
            world.step(number)
        case "keep":
            for _ in range(2):
                list(world.node(number).shared_ledger.keep(ORGS))
        case "die":
            world.die(number)
        case "ask":
            check(world, world.node(number))
        case "compact":
            for topic in (TOPIC, "sapflow--ledger"):
                if topic in world.kafka.topics:
                    compact(world.kafka, topic)
        case "retention":
            world.retention()


def check(world: World, log: KafkaLog) -> None:
    end = log.last_position("acme")
    for (org, stream), told in world.told.items():
        for position in (end, end + 5):
            assert log.told(org, stream, position) == world.expected(org, stream, position)
        # Of each record so many versions are kept, so before as many changes too it is exact.
        for position in [at for at, _ in told[-MAX_VERSIONS:]]:
            if position >= world.first:
                known, right = log.told(org, stream, position), world.expected(org, stream, position)
                assert known is not None
                assert right is not None
                assert records(known) == records(right)
    for org in ORGS:
        last = {stream: told[-1][0] for (owner, stream), told in world.told.items() if owner == org and told}
        assert log.told_streams(org) == sorted(last, key=lambda stream: last[stream])


def records(entry: bytes) -> list[tuple[object, object]]:
    """Numbers and names, in no order."""
    found = [(row["ingressInterface"], row["interfaceName"]) for row in seen(decode(decode_entry(entry).payload))]
    return sorted(found, key=str)
