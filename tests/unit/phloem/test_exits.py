"""Exits in virtual time, over a real log and the consume door: each at its own pace, from a position that holds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from phloem.consume import Consumers, ConsumeSettings
from phloem.engine.embedded import EmbeddedLog
from phloem.engine.layout import Place
from phloem.exits.exit import Exit
from phloem.exits.exits import Exits
from phloem.exits.sending import Interrupted, Sending
from sapflow.client import consume
from sapflow.config import ExitConfig
from sapflow.entry import LogEntry
from sapflow.errors import Refused
from sapflow.flows.formats.messages import maker
from sapflow.flows.ipfix.encode import Encoder, make_template
from sapflow.flows.reference import reference_work
from sapflow.flows.registry import registry
from sapflow.link import Close
from sapflow.runtime.threads import ThreadKind, instead
from tests.unit.flows.test_typeinfo import ACME, described
from tests.unit.phloem.fake_topic import FakeTopic

STREAM = b"0123456789abcdef"
WORK = reference_work(1)
RECORDS = 24


@define
class Node:
    """What of a Phloem node exits stand on. A thread's work is done at once, and takes the time that its Kafka took."""

    engine: EmbeddedLog
    consumers: Consumers
    topics: dict[str, FakeTopic] = field(factory=dict)
    stored: int = 0

    def store(self, count: int, work: bytes = WORK, records: int = RECORDS) -> None:
        batches = range(self.stored + 1, self.stored + count + 1)
        self.engine.append(
            [("acme", LogEntry(STREAM, seq, "192.0.2.1:9", seq * 1000, 2, records, work)) for seq in batches]
        )
        self.stored += count
        self.consumers.stored({"acme"})

    def exit(self, name: str, topic: FakeTopic, **settings: Any) -> Exit:
        self.topics[name] = topic
        config = ExitConfig(name, "acme", "127.0.0.1:9092", "flows", **settings)
        sending = Sending(config, topic.clients(), topic.clock)
        return Exit(config, sending, maker(config.format, config.fields or None), registry(), self.consumers.serve, "f")

    async def in_thread(self, kind: str, work: Callable[[], Any], *, abandon: bool) -> Any:
        topic = next((topic for name, topic in self.topics.items() if kind == f"exit-acme-{name}"), None)
        before = topic.now if topic is not None else 0.0
        await trio.lowlevel.checkpoint()
        try:
            return work()
        finally:
            if topic is not None and topic.now > before:
                await trio.sleep(topic.now - before)

    def position(self, name: str) -> int:
        group = self.engine.group("acme", f"exit.{name}")
        return group.place.position if group is not None else 0


@asynccontextmanager
async def a_node(directory: Path) -> AsyncIterator[Node]:
    engine = EmbeddedLog.open(directory / "log", map_bytes=1 << 28)
    consumers = Consumers(
        engine, ConsumeSettings("f"), {"a": "acme"}.get, {"acme"}.__contains__, ThreadKind("storage", 1)
    )
    node = Node(engine, consumers)
    token = instead.set(node.in_thread)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumers.run)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        instead.reset(token)
        engine.close()


async def until(what: Callable[[], bool], within_s: float = 3600) -> None:
    with trio.fail_after(within_s):
        while not what():
            await trio.sleep(0.25)


def run(directory: Path, test: Callable[[Node, trio.Nursery], Any]) -> None:
    async def main() -> None:
        async with a_node(directory) as node, trio.open_nursery() as nursery:
            await test(node, nursery)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_exit_whose_kafka_is_dead_holds_up_no_other_and_goes_on_from_its_position(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        well, dead = FakeTopic(), FakeTopic(silent=True)
        exits = Exits([node.exit("well", well), node.exit("dead", dead, backoff_most_s=20.0)])
        nursery.start_soon(exits.run)
        node.store(5)
        await until(lambda: node.position("well") == 5, within_s=5)
        await trio.sleep(3600)
        node.store(5)
        await until(lambda: node.position("well") == 10, within_s=5)
        figures = {one["name"]: one for one in exits.figures()}
        assert (node.position("dead"), figures["dead"]["state"], len(dead.stored)) == (0, "waiting", 0)
        assert "has acknowledged nothing" in figures["dead"]["reason"]
        # Tried again after 30 s of silence and 0 to 20 s at random.
        assert 3600 / 50 < figures["dead"]["failures"] < 3600 / 30
        assert exits.gauges()["exits_waiting"] == 1
        assert (figures["well"]["records"], figures["well"]["failures"]) == (10 * RECORDS, 0)
        dead.silent = False
        await until(lambda: node.position("dead") == 10, within_s=60)
        assert dead.once() == well.once()
        assert exits.figures()[1]["state"] == "publishing"
        assert exits.flow()["out"]["records"] == 20 * RECORDS
        assert exits.flow()["in"]["records"] > 20 * RECORDS  # what was given up was read again

    run(tmp_path, test)


def test_what_is_published_is_what_tail_gives_of_it(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        nursery.start_soon(node.exit("lake", topic, fields=("_position", "_stream", "sourceIPv4Address")).run)
        node.store(2)
        await until(lambda: node.position("lake") == 2)
        first = topic.once()[0]
        assert first.stream == STREAM.hex().encode()
        assert json.loads(first.value) == {
            "_position": 1,
            "_stream": STREAM.hex(),
            "sourceIPv4Address": json.loads(first.value)["sourceIPv4Address"],
        }
        assert [one.place for one in topic.stored] == [(at, part) for at in (1, 2) for part in range(RECORDS)]

    run(tmp_path, test)


def test_one_that_begins_behind_what_an_exporter_told_has_its_names_all_the_same(tmp_path: Path) -> None:
    """As every exit does when its node is started again."""

    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        told = LogEntry(STREAM, 1, "192.0.2.1:9", 1000, 2, 1, described(5, b"acmeTime"), tells=True)
        node.engine.append([("acme", told)])
        node.stored = 1
        nursery.start_soon(node.exit("lake", topic, at="latest").run)
        await until(lambda: node.position("lake") == 1 or bool(node.consumers.counts.options_out))
        template = make_template(300, [(ACME, 5, 4)])
        encoder = Encoder()
        records = encoder.records(template, [b"\0\0\0\7"], export_time=1)
        node.store(1, encoder.templates([template], export_time=1) + records, records=1)
        await until(lambda: node.position("lake") == 2)
        assert json.loads(topic.once()[0].value)["acmeTime"] == 7

    run(tmp_path, test)


def test_an_exit_that_is_ended_while_its_thread_waits_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruptions = [Interrupted("this process ends")]

    async def interrupted() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if interruptions:
                raise interruptions.pop() from None
            raise

    async def test(node: Node, nursery: trio.Nursery) -> None:
        exit_ = node.exit("lake", FakeTopic())
        monkeypatch.setattr(exit_, "_publish", interrupted)
        with trio.move_on_after(10):
            await exit_.run()
        assert (exit_.state, exit_.reason, exit_._failures) == ("starting", "", 0)

    run(tmp_path, test)


def test_a_reset_of_its_group_has_it_publish_again(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        nursery.start_soon(node.exit("lake", topic).run)
        node.store(4)
        await until(lambda: node.position("lake") == 4)
        groups = node.consumers.groups
        assert groups is not None
        await groups.reset("acme", "exit.lake", Place())
        await until(lambda: len(topic.stored) == 8 * RECORDS and node.position("lake") == 4)
        assert len(topic.once()) == 4 * RECORDS

    run(tmp_path, test)


def test_a_batch_that_cannot_be_decoded_is_left_out_and_counted(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        lake = node.exit("lake", topic)
        nursery.start_soon(lake.run)
        node.store(1)
        node.store(1, work=b"\x00\x0a\x00\x05nonsense")
        node.store(1)
        await until(lambda: node.position("lake") == 3)
        assert {one.position for one in topic.once()} == {1, 3}
        group = node.engine.group("acme", "exit.lake")
        assert group is not None
        assert (group.quarantined, lake.read.undecodable, lake.sent.failures) == (1, 1, 0)

    run(tmp_path, test)


def test_what_retention_removed_before_it_was_published_is_counted(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic(silent=True)
        lake = node.exit("lake", topic)
        exits = Exits([lake])
        nursery.start_soon(exits.run)
        node.store(6)
        await until(lambda: lake.state == "waiting")
        exits.hold(frozenset())
        await trio.sleep(60)
        node.engine.remove_oldest("acme", before_us=4500, keep_bytes=1 << 30)
        topic.silent = False
        exits.hold(None)
        await until(lambda: node.position("lake") == 6)
        assert {one.position for one in topic.once()} == {5, 6}
        assert lake.read.gap_entries == 4

    run(tmp_path, test)


def test_an_exit_with_nothing_to_publish_lets_go_of_its_producer(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        lake = node.exit("lake", topic)
        nursery.start_soon(lake.run)
        node.store(1)
        await until(lambda: node.position("lake") == 1)
        assert not topic.producers[0].purged
        await trio.sleep(200)
        assert topic.producers[0].purged
        node.store(1)
        await until(lambda: node.position("lake") == 2)
        assert (len(topic.producers), lake.sent.failures, len(topic.stored)) == (2, 0, 2 * RECORDS)

    run(tmp_path, test)


def test_an_exit_is_of_the_orgs_that_this_node_holds(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        exits = Exits([node.exit("lake", topic)])
        exits.hold(frozenset())
        nursery.start_soon(exits.run)
        node.store(3)
        await trio.sleep(60)
        assert (exits.figures(), topic.stored) == ([], [])
        exits.hold({"acme"})
        await until(lambda: node.position("lake") == 3)
        exits.hold({"globex"})
        await trio.sleep(1)
        node.store(3)
        await trio.sleep(60)
        assert node.position("lake") == 3
        exits.hold({"acme"})
        await until(lambda: node.position("lake") == 6)
        assert len(topic.stored) == 6 * RECORDS

    run(tmp_path, test)


def test_nobody_else_reads_for_a_group_that_is_an_exits(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"link://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, lambda stream: node.consumers.serve(stream, "somebody"), listeners)
        with pytest.raises(Refused, match=r"groups named exit\.… are the exits' of this fleet") as refused:
            async with consume(url, "acme", "a", group="exit.lake"):
                pass
        assert refused.value.code == Close.FORBIDDEN

    run(tmp_path, test)


def test_a_bug_in_one_exit_is_told_and_ends_nothing(tmp_path: Path) -> None:
    async def test(node: Node, nursery: trio.Nursery) -> None:
        topic = FakeTopic()
        lake = node.exit("lake", topic)
        topic.bug = ZeroDivisionError("as told")
        nursery.start_soon(lake.run)
        node.store(1)
        await until(lambda: lake.state == "waiting")
        assert lake.reason == "as told"
        topic.bug = None
        await until(lambda: node.position("lake") == 1)

    run(tmp_path, test)
