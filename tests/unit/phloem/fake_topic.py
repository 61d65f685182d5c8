"""An org's topic in memory, on a clock of its own, that is slow, dead, small or lying when it is told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, field, frozen
from confluent_kafka import KafkaError, KafkaException

from phloem.engine.kafka.clients import Clients, Properties, Report

REQUEST_MESSAGES = 10


@frozen
class Stored:
    """A message in the topic."""

    stream: bytes
    position: int
    part: int
    value: bytes

    @property
    def place(self) -> tuple[int, int]:
        return self.position, self.part


@frozen
class Delivered:
    """What a delivery report is about."""

    at: int

    def offset(self) -> int:
        return self.at

    def partition(self) -> int:
        return 0

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return None

    def error(self) -> KafkaError | None:
        return None

    def headers(self) -> None:
        return None


@define
class FakeTopic:
    """`request_s` is what each request takes; `faults` is what becomes of the next ones, None: they are stored."""

    now: float = 0.0
    request_s: float = 0.001
    silent: bool = False
    max_message_bytes: int = 1 << 30
    faults: deque[int | None] = field(factory=deque)
    stored: list[Stored] = field(factory=list)
    offset_shift: int = 0
    on_poll: Callable[[], None] = lambda: None
    """What goes on in the process while somebody waits."""
    bug: Exception | None = None
    """Raised by whoever gives it a message."""
    producers: list[FakeProducer] = field(factory=list)

    def clients(self) -> Clients:
        return Clients(self._producer, None, None)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.now

    def _producer(self, properties: Properties, _on_error: Callable[[KafkaError], None]) -> FakeProducer:
        self.producers.append(FakeProducer(self, properties))
        return self.producers[-1]

    def once(self) -> list[Stored]:
        """Without repeats, which are the same to the byte; first appearances are in order."""
        seen: dict[tuple[int, int], Stored] = {}
        for one in self.stored:
            assert seen.setdefault(one.place, one) == one
        assert list(seen) == sorted(seen)
        return list(seen.values())


@define(eq=False)
class FakeProducer:
    topic: FakeTopic
    properties: Properties
    waiting: deque[tuple[Stored, Report]] = field(factory=deque)
    purged: bool = False
    failed: bool = False
    """Nothing more is sent, as librdkafka has it to leave no gap, and is told once."""
    told: bool = False

    def produce(
        self, topic: str, value: bytes, key: bytes, partition: int, on_delivery: Report, *, headers: object
    ) -> None:
        if self.topic.bug is not None:
            raise self.topic.bug
        assert isinstance(headers, list)
        told = dict(headers)
        assert told["_stream"] == key
        self.waiting.append((Stored(key, int(told["_position"]), int(told["_part"]), value), on_delivery))

    def poll(self, timeout: float) -> int:
        """What is ready by then is reported."""
        kafka = self.topic
        kafka.on_poll()
        if self.purged:
            self._report(len(self.waiting), KafkaError._PURGE_QUEUE)
            return 0
        if self.failed and not self.told:
            self.told = True
            raise KafkaException(KafkaError(KafkaError._GAPLESS_GUARANTEE))
        if kafka.silent or not self.waiting:
            kafka.now += timeout
            return 0
        until = kafka.now + timeout
        while self.waiting and kafka.now + kafka.request_s <= until:
            if self.failed and not self.told:
                return 0
            kafka.now += kafka.request_s
            self._request()
        if kafka.request_s > timeout > 0:
            kafka.now += kafka.request_s
            self._request()
        return 0

    def _request(self) -> None:
        count = min(len(self.waiting), REQUEST_MESSAGES)
        if self.failed:
            self._report(count, KafkaError._FATAL)
            return
        fault = self.topic.faults.popleft() if self.topic.faults else None
        if any(len(one.value) > self.topic.max_message_bytes for one, _ in list(self.waiting)[:count]):
            fault = KafkaError.MSG_SIZE_TOO_LARGE
        if fault is not None and self.properties["enable.gapless.guarantee"]:
            self.failed = True
        self._report(count, fault)

    def _report(self, count: int, fault: int | None) -> None:
        for _ in range(count):
            message, report = self.waiting.popleft()
            if fault is None:
                self.topic.stored.append(message)
                report(None, Delivered(len(self.topic.stored) + self.topic.offset_shift))
            else:
                report(KafkaError(fault), Delivered(-1))

    def purge(self, in_queue: bool = True, in_flight: bool = True, blocking: bool = True) -> None:
        self.purged = True
