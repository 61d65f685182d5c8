"""Apache Kafka as the other log: how soon it answers after kill -9, and how long until what is sent is acknowledged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tools.peers import kafka
from tools.peers.server import Server

HEAP_MB = 2048
TOPIC_BYTES = 200_000
TIMEOUT_S = 120.0
WARM_S = 5.0
"""What is sent before is not counted: connections are made, and Java compiles."""
CREATED_AT_ONCE = 200
QUIET = {"log_level": 0}
AGAIN_AT_ONCE = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50}


def recovery(topics: int, kills: int) -> list[float]:
    """Seconds from the exec of a killed broker's successor until it gives a stored record."""
    with (
        tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory,
        kafka.broker(Path(directory).absolute(), heap_mb=HEAP_MB) as broker,
    ):
        names = [f"topic-{number}" for number in range(topics)]
        _create(broker, names)
        _fill(broker, names)
        return [_kill(broker, names[0]) for _ in range(kills)]


def latencies(rate: float, size: int, seconds: float, properties: Mapping[str, str]) -> list[float]:
    """Seconds until each of the messages that were sent at that rate (a second) was acknowledged, acks=all."""
    found: list[float] = []

    def delivered(sent_at: float, error: KafkaError | None) -> None:
        if error is not None:
            raise RuntimeError(f"Kafka did not take a message: {error}")
        if sent_at > began + WARM_S:
            found.append(time.perf_counter() - sent_at)

    with (
        tempfile.TemporaryDirectory(prefix="sapflow-bench-", dir=".") as directory,
        kafka.broker(Path(directory).absolute(), heap_mb=HEAP_MB, properties=properties) as broker,
    ):
        _create(broker, ["topic-0"])
        settings = {"bootstrap.servers": broker.address, "acks": "all", "enable.idempotence": True, "linger.ms": 0}
        producer = Producer({**settings, **QUIET})
        payload = bytes(size)
        began = time.perf_counter()
        for number in range(int(rate * (WARM_S + seconds))):
            due = began + number / rate
            while (left := due - time.perf_counter()) > 0:
                producer.poll(min(left, 0.001))
            producer.produce("topic-0", payload, on_delivery=lambda error, _, at=due: delivered(at, error))
        producer.flush(TIMEOUT_S)
    return found


def _create(broker: Server, names: list[str]) -> None:
    admin = AdminClient({"bootstrap.servers": broker.address})
    for at in range(0, len(names), CREATED_AT_ONCE):
        made = admin.create_topics([NewTopic(name, 1) for name in names[at : at + CREATED_AT_ONCE]])
        for future in made.values():
            future.result(TIMEOUT_S)


def _fill(broker: Server, names: list[str]) -> None:
    producer = Producer({"bootstrap.servers": broker.address, "acks": "all", "queue.buffering.max.kbytes": 1 << 20})
    for name in names:
        producer.produce(name, bytes(TOPIC_BYTES))
    if producer.flush(TIMEOUT_S):
        raise RuntimeError("Kafka did not take the work in time")


def _kill(broker: Server, topic: str) -> float:
    broker.kill()
    began = time.perf_counter()
    broker.launch()
    settings = {"bootstrap.servers": broker.address, "group.id": "bench", "enable.auto.commit": False}
    consumer = Consumer({**settings, **QUIET, **AGAIN_AT_ONCE})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        until = began + TIMEOUT_S
        while time.perf_counter() < until:
            message: Message | None = consumer.poll(0.01)
            if message is not None and message.error() is None:
                return time.perf_counter() - began
    finally:
        consumer.close()
    raise RuntimeError(f"Kafka gave no record within {TIMEOUT_S:g} s of its start")
