"""A Kafka in memory, as much of it as the engine uses, that fails when it is told to."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from attrs import define, field
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition, Uuid

from phloem.engine.kafka.clients import Clients, Properties, Report

Headers = list[tuple[str, bytes]]


@define
class FakeMessage:
    at: int
    name: bytes | None = None
    body: bytes | None = None
    fault: KafkaError | None = None
    stored_ms: int = 0
    told: Headers | None = None

    def offset(self) -> int:
        return self.at

    def partition(self) -> int:
        return 0

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.body

    def error(self) -> KafkaError | None:
        return self.fault

    def timestamp(self) -> tuple[int, int]:
        return 2, self.stored_ms

    def headers(self) -> Headers | None:
        return self.told


_numbers = itertools.count(1)


@define
class FakeTopic:
    partitions: list[list[FakeMessage]]
    config: dict[str, str] = field(factory=lambda: {"max.message.bytes": "1048588"})
    low: dict[int, int] = field(factory=dict)
    copies: int = 1
    number: int = field(factory=lambda: next(_numbers))
    """No other topic's."""


def failure(code: int, reason: str = "as told") -> KafkaException:
    return KafkaException(KafkaError(code, reason))


@define
class FakeKafka:
    """`faults` are raised by the calls that are named, in turn; `silent` clients hear nothing."""

    topics: dict[str, FakeTopic] = field(factory=dict)
    faults: dict[str, deque[Exception]] = field(factory=dict)
    silent: bool = False
    reports: deque[KafkaError | None] = field(factory=deque)
    """What becomes of the next entries; without one they are stored."""
    brokers: int = 1
    tells_offsets: bool = True
    leaderless: bool = False
    """Leaders died, and clients have not heard of others."""
    calls: Counter[str] = field(factory=Counter)
    behind: int = 0
    """Listings in which the broker asked does not know yet which topics there are."""
    producers: list[FakeProducer] = field(factory=list)
    consumers: list[FakeConsumer] = field(factory=list)

    def fail(self, call: str, *errors: Exception) -> None:
        self.faults.setdefault(call, deque()).extend(errors)

    def check(self, call: str) -> None:
        if self.faults.get(call):
            raise self.faults[call].popleft()

    def clients(self) -> Clients:
        return Clients(self._producer, self._consumer, lambda _properties, _on_error: FakeAdmin(self))

    def _producer(self, properties: Properties, _on_error: Callable[[KafkaError], None]) -> FakeProducer:
        self.producers.append(FakeProducer(self, properties))
        return self.producers[-1]

    def _consumer(self, _properties: object, _on_error: Callable[[KafkaError], None]) -> FakeConsumer:
        self.check("consumer")
        self.consumers.append(FakeConsumer(self))
        return self.consumers[-1]

    def partition(self, topic: str, number: int) -> list[FakeMessage]:
        if topic not in self.topics:
            raise failure(KafkaError.UNKNOWN_TOPIC_OR_PART)
        return self.topics[topic].partitions[number]

    def ends(self, topic: str, number: int) -> tuple[int, int]:
        stored = self.partition(topic, number)
        return self.topics[topic].low.get(number, 0), stored[-1].at + 1 if stored else 0

    def store(
        self,
        topic: str,
        number: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
    ) -> int:
        end = self.ends(topic, number)[1]
        self.partition(topic, number).append(FakeMessage(end, key, value, told=headers or None))
        return end


@define(eq=False)
class FakeProducer:
    kafka: FakeKafka
    properties: Properties
    waiting: deque[tuple[str, int, bytes, bytes | None, Headers, Report]] = field(factory=deque)
    purged: bool = False

    def produce(
        self, topic: str, value: bytes | None, key: bytes, partition: int, on_delivery: Report, *, headers: Headers
    ) -> None:
        self.kafka.check("produce")
        self.waiting.append((topic, partition, key, value, headers, on_delivery))

    def poll(self, timeout: float) -> int:
        if self.purged:
            while self.waiting:
                self.waiting.popleft()[-1](KafkaError(KafkaError._PURGE_QUEUE), FakeMessage(-1))
            raise failure(KafkaError._GAPLESS_GUARANTEE)  # as librdkafka does of what was in flight
        while self.waiting and not self.kafka.silent:
            topic, partition, key, value, headers, report = self.waiting.popleft()
            fault = self.kafka.reports.popleft() if self.kafka.reports else None
            at = self.kafka.store(topic, partition, key, value, headers) if fault is None else -1
            report(fault, FakeMessage(at if self.kafka.tells_offsets else -1001))
        return 0

    def purge(self, in_queue: bool = True, in_flight: bool = True, blocking: bool = True) -> None:
        self.purged = True


@define(eq=False)
class FakeConsumer:
    kafka: FakeKafka
    at: tuple[str, int, int] | None = None
    extra: deque[FakeMessage] = field(factory=deque)
    """Given before what is stored."""
    assigned: int = 0
    closed: bool = False

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.kafka.check("assign")
        (found,) = partitions
        self.at = found.topic, found.partition, found.offset
        self.assigned += 1

    def poll(self, timeout: float) -> FakeMessage | None:
        self.kafka.check("poll")
        if self.kafka.silent or self.at is None:
            return None
        if self.extra:
            return self.extra.popleft()
        topic, number, offset = self.at
        for message in self.kafka.partition(topic, number):
            if message.at >= offset:
                self.at = topic, number, message.at + 1
                return message
        return FakeMessage(self.kafka.ends(topic, number)[1], fault=KafkaError(KafkaError._PARTITION_EOF))

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int] | None:
        self.kafka.check("watermarks")
        return None if self.kafka.silent else self.kafka.ends(partition.topic, partition.partition)

    def list_topics(self, topic: str, timeout: float) -> Any:
        self.kafka.check("topic")
        there = {topic: _Named()} if topic in self.kafka.topics else {}
        return type("Metadata", (), {"topics": there})

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.kafka.check("times")
        return [TopicPartition(partitions[0].topic, partitions[0].partition, -1)]

    def close(self) -> None:
        self.closed = True


@define
class _Named:
    """A thing with fields of the client library's own."""

    partitions: dict[int, object] = field(factory=dict)
    error: KafkaError | None = None
    offset: int = 0
    value: str = ""


@define
class FakeAdmin:
    kafka: FakeKafka

    def poll(self, timeout: float) -> int:
        return 0

    def list_topics(self, topic: str | None = None, *, timeout: float) -> Any:
        self.kafka.check("list")
        if self.kafka.behind:
            self.kafka.behind -= 1
            unheard = _Named(error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            topics = {} if topic is None else {topic: unheard}
        else:
            topics = {name: _Named(dict.fromkeys(range(len(t.partitions)))) for name, t in self.kafka.topics.items()}
        return type("Metadata", (), {"brokers": dict.fromkeys(range(self.kafka.brokers)), "topics": topics})

    def create_topics(self, topics: list[Any], request_timeout: float) -> dict[str, Future[None]]:
        def make(new: Any) -> None:
            if new.topic in self.kafka.topics:
                raise failure(KafkaError.TOPIC_ALREADY_EXISTS)
            self.kafka.topics[new.topic] = FakeTopic(
                [[] for _ in range(new.num_partitions)], dict(new.config), copies=new.replication_factor
            )

        self.kafka.calls["create"] += 1
        return {new.topic: self._done("create", lambda new=new: make(new)) for new in topics}

    def delete_topics(self, topics: list[str], request_timeout: float) -> dict[str, Future[None]]:
        return {topics[0]: self._done("delete", lambda: self.kafka.topics.pop(topics[0]))}

    def delete_records(self, asked: list[TopicPartition], request_timeout: float) -> dict[TopicPartition, Future[None]]:
        (before,) = asked

        def forget() -> None:
            self.kafka.topics[before.topic].low[before.partition] = before.offset
            stored = self.kafka.partition(before.topic, before.partition)
            stored[:] = [message for message in stored if message.at >= before.offset]

        return {before: self._done("forget", forget)}

    def describe_configs(self, resources: list[Any], request_timeout: float) -> dict[object, Future[Any]]:
        config = self.kafka.topics[resources[0].name].config
        found = {key: _Named(value=value) for key, value in config.items()}
        return {resources[0].name: self._done("describe", lambda: found)}

    def incremental_alter_configs(self, resources: list[Any], request_timeout: float) -> dict[object, Future[Any]]:
        (resource,) = resources
        (entry,) = resource.incremental_configs
        config = self.kafka.topics[resource.name].config
        return {resource.name: self._done("alter", lambda: config.update({entry.name: entry.value}))}

    def describe_topics(self, asked: TopicCollection, request_timeout: float) -> dict[str, Future[Any]]:
        def one(topic: str) -> Any:
            if topic not in self.kafka.topics:
                raise failure(KafkaError.UNKNOWN_TOPIC_OR_PART)
            return type("Description", (), {"topic_id": Uuid(1, self.kafka.topics[topic].number)})

        return {topic: self._done("describe", lambda topic=topic: one(topic)) for topic in asked.topic_names}

    def list_offsets(
        self, asked: dict[TopicPartition, Any], request_timeout: float
    ) -> dict[TopicPartition, Future[Any]]:
        def one(partition: TopicPartition, spec: Any) -> Any:
            low, high = self.kafka.ends(partition.topic, partition.partition)
            if self.kafka.leaderless:
                low = high = -1001
            return _Named(offset=low if type(spec).__name__ == "EarliestSpec" else high)

        return {
            partition: self._done("offsets", lambda p=partition, s=spec: one(p, s)) for partition, spec in asked.items()
        }

    def _done(self, call: str, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self.kafka.check(call)
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future
