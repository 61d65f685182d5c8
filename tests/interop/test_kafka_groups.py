"""Consumer groups in a real Kafka: what is committed is there for every node, whatever becomes of the broker."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.peers import kafka
from tools.peers.server import Server

from phloem.engine.groups import Change, Commit, Declined, Leave, Take
from phloem.engine.kafka import group_log
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.layout import Place
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
from tests.interop.kafka_nodes import Open, nodes
from tests.peers import needs

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with kafka.broker(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(params=[False, True], ids=["one topic", "topic per org"])
def open_node(broker: Server, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Nodes of one fleet, whose org `acme` has ten entries."""
    with nodes(broker, per_org=request.param, request_timeout_s=3.0) as opened:

        def filled(node: str) -> KafkaLog:
            log = opened(node)
            if not log.last_position("acme"):
                log.append([("acme", LogEntry(b"x" * 16, seq, "x", 0, 1, 2, b"payload")) for seq in range(1, 11)])
            return log

        yield filled


def take(seat: int) -> Take:
    return Take("acme", "billing", Place(), 9, seat)


def commit(seat: int, generation: int, position: int, state: bytes = b"") -> Commit:
    return Commit("acme", "billing", generation, Place(position), state, seat=seat)


def kinds(log: KafkaLog, *changes: Change | Leave) -> list[str]:
    return [one.kind if isinstance(one, Declined) else "made" for one in log.change_groups(changes, 1)]


def at(log: KafkaLog) -> tuple[int, bytes]:
    log.shared_groups.refresh()
    group = log.groups("acme")["billing"]
    return group.place.position, group.state


def test_nodes_agree_and_a_new_one_knows_what_was_committed(open_node: Open) -> None:
    one, two = open_node("one"), open_node("two")
    two.shared_groups.refresh()  # of a fleet that has no groups yet, and no topic for them
    assert two.groups("acme") == {}
    state = secrets.token_bytes(32 << 10)
    assert kinds(one, take(1), commit(1, 1, 4, state), commit(1, 1, 11)) == ["made", "made", "ahead"]
    assert kinds(two, take(1), commit(1, 1, 9)) == ["held", "fenced"]
    assert at(two) == at(open_node("three")) == (4, state)
    assert kinds(one, Leave("acme", "billing", 1)) == ["made"]
    assert kinds(two, take(1), commit(1, 2, 10)) == ["made", "made"]
    assert at(one) == (10, b"")
    # What was taken away with the orgs that are gone: not the groups.
    assert list(one.upkeep(set())) == []
    assert at(open_node("four")) == (10, b"")


def test_snapshots_shorten_the_topic_and_nobody_misses_what_is_gone(
    open_node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_log, "SNAPSHOT_BYTES", 4 << 10)
    one, two = open_node("one"), open_node("two")
    kinds(one, take(1))
    two.shared_groups.refresh()
    for position in range(1, 11):
        assert kinds(one, commit(1, 1, position, bytes(1000))) == ["made"]
    assert one.shared_groups.counts.snapshots >= 1
    assert at(open_node("new")) == at(two) == (10, bytes(1000))
    assert two.shared_groups.counts.loads == 2
    with one._readers.take() as reader:
        low, end = reader.ends(one.shared_groups._place)
    assert 0 < low < end


def test_what_was_committed_outlives_a_broker_that_is_killed(tmp_path: Path) -> None:
    with kafka.broker(tmp_path / "kafka") as server:
        log = KafkaLog(KafkaSettings(server.address, request_timeout_s=3.0, commit_timeout_s=3.0, partitions=1))
        log.reopen()
        log.append([("acme", LogEntry(b"x" * 16, seq, "x", 0, 1, 2, b"payload")) for seq in range(1, 11)])
        assert kinds(log, take(1), commit(1, 1, 4)) == ["made", "made"]
        server.kill()
        with pytest.raises(StorageError, match="Kafka"):
            kinds(log, commit(1, 1, 5))
        server.start()
        until = time.monotonic() + 60
        while True:
            try:
                found = kinds(log, commit(1, 1, 6))
                break
            except StorageError:
                assert time.monotonic() < until
        assert found == ["made"]
        new = KafkaLog(KafkaSettings(server.address, node="new", partitions=1))
        assert at(new) == (6, b"")
        log.close()
        new.close()
