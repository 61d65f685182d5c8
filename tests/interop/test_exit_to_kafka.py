"""Exits against a real broker: what stands in the org's topic is what `tail` gives, whatever becomes of either side."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pytest
import trio
from attrs import frozen
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import kafka
from tools.peers.server import HOST, Server, free_port, free_ports

from phloem.exits.sending import Alone, ExitFailed, Given, Sending
from sapflow.cli.fleet_file import read_fleet
from sapflow.config import ExitConfig
from sapflow.flows.formats.messages import Messages
from tests.peers import needs

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]

STREAM = b"0123456789abcdef"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with kafka.broker(tmp_path_factory.mktemp("kafka"), properties={"auto.create.topics.enable": "false"}) as server:
        yield server


def a_topic(broker: Server, partitions: int = 3, **config: str) -> str:
    """A new one, which no other test has."""
    name = f"flows.{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": broker.address})
    made = admin.create_topics(
        [NewTopic(name, partitions, 1, config={key.replace("_", "."): value for key, value in config.items()})]
    )
    made[name].result(20)
    return name


@frozen
class Published:
    """A message as somebody else's consumer has it."""

    partition: int
    key: str
    position: int
    part: int
    value: bytes

    @property
    def place(self) -> tuple[int, int]:
        """What a record is known by."""
        return self.position, self.part


def published(broker: Server, topic: str) -> list[Published]:
    """Everything in a topic, partition by partition."""
    consumer = Consumer(
        {"bootstrap.servers": broker.address, "group.id": "tests", "enable.partition.eof": True, "check.crcs": True}
    )
    try:
        found = []
        for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)
            consumer.assign([TopicPartition(topic, number, low)])
            while low < high:
                message = consumer.poll(20)
                assert message is not None, (topic, number, low, high)
                if message.error() is not None:
                    break
                headers = dict(message.headers() or [])
                key = (message.key() or b"").decode()
                assert headers["_stream"].decode() == key
                found.append(
                    Published(number, key, int(headers["_position"]), int(headers["_part"]), message.value() or b"")
                )
                low = message.offset() + 1
        return found
    finally:
        consumer.close()


def once(messages: list[Published]) -> list[Published]:
    """Without what was published again; a stream's first appearances are in order, in one partition."""
    seen: dict[tuple[int, int], Published] = {}
    last: dict[str, tuple[int, int]] = {}
    partitions: dict[str, int] = {}
    for one in messages:
        if one.place in seen:
            assert seen[one.place].value == one.value
            continue
        assert last.get(one.key, (0, 0)) <= one.place, one
        assert partitions.setdefault(one.key, one.partition) == one.partition
        last[one.key] = one.place
        seen[one.place] = one
    return [seen[place] for place in sorted(seen)]


# --- a topic that refuses ---------------------------------------------------------------------------------------------


def sent(sending: Sending, entries: list[Messages]) -> int:
    """Give and settle until all went well: how often it had to begin again."""
    for tries in range(20):
        try:
            for position, made in enumerate(entries, 1):
                sending.give(Given(STREAM, position), [made])
            sending.settle()
        except Alone:
            continue
        return tries
    raise AssertionError("it never went well")


def test_a_record_that_the_topic_refuses_is_left_out_and_all_others_are_there(broker: Server) -> None:
    topic = a_topic(broker, 1, max_message_bytes="4000")
    entries = [Messages([b"%d-%d" % (entry, part) + os.urandom(500) for part in range(20)]) for entry in range(10)]
    entries[4].values[7] = os.urandom(8000)
    entries[9].values[19] = os.urandom(8000)
    sending = Sending(ExitConfig("small", "acme", broker.address, topic, timeout_s=20, compression="none"))
    assert sent(sending, entries) > 0
    sending.throw_away()
    counts = sending.counts
    assert (counts.refused_records, counts.records, counts.failures) == (2, 198, 0)
    found = once(published(broker, topic))
    assert [one.value for one in found] == [value for made in entries for value in made.values if len(value) < 8000]


def test_a_message_of_several_records_that_the_topic_refuses_is_to_be_made_smaller(broker: Server) -> None:
    topic = a_topic(broker, 1, max_message_bytes="4000")
    sending = Sending(ExitConfig("small", "acme", broker.address, topic, timeout_s=20, compression="none"))
    sizes = []
    for _ in range(20):
        sizes.append(min(6000, sending.most_bytes))
        try:
            sending.give(Given(STREAM, 1), [Messages([os.urandom(sizes[-1])], 10)])
            sending.settle()
            break
        except Alone:
            continue
    sending.throw_away()
    assert (sizes[0], sizes[-1]) == (6000, 3000)
    assert sending.counts.refused_records == 0
    assert [len(one.value) for one in published(broker, topic)] == [3000]


def test_a_topic_that_is_not_there_is_said_so(broker: Server) -> None:
    sending = Sending(ExitConfig("none", "acme", broker.address, "nowhere", timeout_s=5))
    sending.give(Given(STREAM, 1), [Messages([b"{}"])])
    with pytest.raises(ExitFailed, match="there is no topic 'nowhere'"):
        sending.settle()
    sending.throw_away()
    assert (sending.counts.failures, sending.counts.records, sending.waiting_bytes) == (1, 0, 0)


def test_a_password_is_its_files_and_a_new_one_is_used_at_the_next_try(tmp_path: Path) -> None:
    direct, secured, controller = free_ports(3)
    properties = {
        "listeners": f"DIRECT://{HOST}:{direct},SECURED://{HOST}:{secured},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"DIRECT://{HOST}:{direct},SECURED://{HOST}:{secured}",
        "listener.security.protocol.map": "DIRECT:PLAINTEXT,SECURED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "DIRECT",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.secured.plain.sasl.jaas.config": (
            'org.apache.kafka.common.security.plain.PlainLoginModule required user_sapflow="right";'
        ),
    }
    password = tmp_path / "password"
    password.write_text("wrong\n")
    with kafka.broker(tmp_path / "kafka", port=direct, properties=properties) as server:
        topic = a_topic(server, 1)
        exit_ = ExitConfig(
            "lake",
            "acme",
            f"{HOST}:{secured}",
            topic,
            timeout_s=3,
            properties={
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": "sapflow",
            },
            secrets={"sasl.password": str(password)},
        )
        sending = Sending(exit_)
        sending.give(Given(STREAM, 1), [Messages([b"{}"])])
        with pytest.raises(ExitFailed, match=r"(?i)for 3 s \(.*authentication") as refused:
            sending.settle()
        assert "wrong" not in str(refused.value)
        password.write_text("right\n")
        sending.give(Given(STREAM, 1), [Messages([b"{}"])])
        sending.settle()
        sending.throw_away()
        assert [one.value for one in published(server, topic)] == [b"{}"]


# --- a whole fleet ----------------------------------------------------------------------------------------------------


def an_exit(name: str, brokers: str, topic: str, more: str = "") -> str:
    return (
        f'[[phloem.exits]]\nname = "{name}"\norg = "acme"\nbrokers = "{brokers}"\ntopic = "{topic}"\n'
        f"timeout_s = 3\nbackoff_most_s = 1\n{more}\n"
    )


async def under_load(fleet: Fleet, faults: Callable[[], Any], *, seconds: float = 1.5) -> Ledger:
    """Records of an org while there are faults."""
    tokens = {"acme": fleet.token("acme")}
    await trio.sleep(1.5)  # collectors read the org table once a second
    ledger, stop = Ledger(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(load, fleet.doors["link"], tokens, ledger, stop, meters=3, interval_s=0.02, records=20)
        )
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(faults)
        await trio.sleep(seconds)
        stop.set()
    return ledger


def exits_of(fleet: Fleet) -> dict[str, dict[str, Any]]:
    status = fleet.status()["phloem-1"]
    lags = {one["group"]: one["lag"]["records"] for one in status.get("groups", ())}
    return {one["name"]: {**one, "lag": lags.get(one["group"])} for one in status.get("exits", ())}


def until(fleet: Fleet, what: Callable[[dict[str, dict[str, Any]]], bool], timeout_s: float = 60) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    found = exits_of(fleet)
    while not (found and what(found)):
        assert time.monotonic() < end, (found, (fleet.data / "up.log").read_text()[-4000:])
        time.sleep(0.1)
        found = exits_of(fleet)
    return found


def tail(fleet: Fleet, *options: str) -> bytes:
    return sapflow("tail", "acme", "--at", "earliest", "--no-follow", "--data", str(fleet.data), *options)


def sapflow(*words: str) -> bytes:
    return subprocess.run([sys.executable, "-m", "sapflow", *words], capture_output=True, check=True).stdout


def test_what_was_acknowledged_is_in_the_topics_once_phloem_was_killed_and_is_what_tail_gives(
    broker: Server, tmp_path: Path
) -> None:
    lines, tables, few = a_topic(broker), a_topic(broker), a_topic(broker)
    config = tmp_path / "fleet.toml"
    config.write_text(
        an_exit("lines", broker.address, lines)
        + an_exit("tables", broker.address, tables, 'format = "arrow"\nmax_message_bytes = 8000')
        + an_exit("few", broker.address, few, 'fields = ["_position", "sourceIPv4Address", "octetDeltaCount"]')
        + an_exit("dead", f"{HOST}:{free_port()}", "flows")
    )
    with running(tmp_path / "fleet", collectors=1, config=config) as fleet:

        def faults() -> None:
            for _ in range(3):
                fleet.kill("phloem-1")
                time.sleep(1)
            broker.pause()
            try:
                until(fleet, lambda exits: exits["lines"]["failures"] > 0)
            finally:
                broker.resume()

        ledger = trio.run(under_load, fleet, faults)
        assert ledger.acknowledged_records > 1000
        found = until(
            fleet,
            lambda exits: (
                all(exits[name]["lag"] == 0 for name in ("lines", "tables", "few"))
                and exits["dead"]["state"] == "waiting"
            ),
        )
        assert found["dead"]["lag"] >= ledger.acknowledged_records
        assert "has acknowledged nothing" in found["dead"]["reason"]
        shown = sapflow("status", "--data", str(fleet.data)).decode()
        assert f"{len(tail(fleet).splitlines()):,}" in shown
        assert "waits, and is tried again: Kafka at" in shown
        metrics = (
            urlopen(read_fleet(str(fleet.data))["control"]["phloem-1"].replace("/status", "/metrics")).read().decode()
        )
        assert "sapflow_phloem_exits_waiting 1.0" in metrics
        published_records = re.search(r"(?m)^sapflow_phloem_exit_out_records_total (\S+)", metrics)
        assert published_records is not None
        assert float(published_records[1]) > 0
        assert "sapflow_phloem_exit_refused_records_total 0.0" in metrics
        as_lines, as_table = tail(fleet).splitlines(), tail(fleet, "--format", "arrow")
        as_few = tail(fleet, "--fields", "_position,sourceIPv4Address,octetDeltaCount").splitlines()
    assert len(as_lines) >= ledger.acknowledged_records
    assert [one.value for one in once(published(broker, lines))] == as_lines
    assert [one.value for one in once(published(broker, few))] == as_few
    assert json.loads(as_few[0]).keys() == {"_position", "sourceIPv4Address", "octetDeltaCount"}
    streams = [pa.ipc.open_stream(one.value).read_all() for one in once(published(broker, tables))]
    assert max(len(one.value) for one in published(broker, tables)) <= 8000
    assert pa.concat_tables(streams).equals(pa.ipc.open_stream(as_table).read_all())


def test_of_nodes_that_share_kafka_the_one_that_holds_the_org_publishes_and_another_goes_on_when_it_dies(
    broker: Server, tmp_path: Path
) -> None:
    lines = a_topic(broker)
    config = tmp_path / "fleet.toml"
    config.write_text(
        f'phloems = 2\n[phloem]\nengine = "kafka"\nkafka = "{broker.address}"\n'
        + an_exit("lines", broker.address, lines)
    )
    with running(tmp_path / "fleet", collectors=1, config=config) as fleet:

        def holders() -> list[str]:
            status = fleet.status()
            return [name for name in ("phloem-1", "phloem-2") if status[name].get("exits")]

        def faults() -> None:
            end = time.monotonic() + 60
            while len(found := holders()) != 1:
                assert time.monotonic() < end, found
                time.sleep(0.2)
            fleet.kill(found[0])
            time.sleep(2)

        ledger = trio.run(under_load, fleet, faults)
        end = time.monotonic() + 60
        while len(once(published(broker, lines))) < ledger.acknowledged_records or len(holders()) != 1:
            assert time.monotonic() < end, (fleet.data / "up.log").read_text()[-4000:]
            time.sleep(0.5)
        as_lines = tail(fleet).splitlines()
    assert [one.value for one in once(published(broker, lines))] == as_lines
