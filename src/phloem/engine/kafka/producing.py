"""A group of entries into Kafka: all are stored, or it is not known which, and then the producer is thrown away.

A producer that failed may still have a request on its way, which Kafka may store later: that is a repeat of what the
next producer stores, never a later number without the one before. It is why nothing is sent on after a failure.

Each producer after a failure makes smaller requests, so that over a slow connection one gets through in time; when a
group went well they grow again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog
from attrs import define, field, frozen
from confluent_kafka import KafkaError, KafkaException

from phloem.engine.kafka.clients import Clients, Message, ProducerClient, Trouble
from phloem.engine.kafka.names import Place
from phloem.engine.kafka.settings import KafkaSettings
from sapflow.errors import StorageError

log = structlog.get_logger()

POLL_S = 0.1
UNKNOWN = -1
"""An offset that Kafka did not say."""
LEAST_REQUEST_BYTES = 16 << 10
MOST_REQUEST_BYTES = 256 << 10
"""Of one partition's entries; one entry may be larger. With requests of 1 MiB librdkafka's thread took 1.3 s of CPU to
send 134 MB to a busy loopback broker, with these 0.1 s, and a fifth of the time."""


@frozen(slots=True)
class Draft:
    """An entry on its way."""

    place: Place
    key: bytes
    value: bytes | None = field(repr=False)
    """None removes the key, of a compacted topic."""
    headers: list[tuple[str, bytes]]


@define
class _Group:
    """What is known of a group that is on its way."""

    offsets: list[int | None]
    waiting: int
    error: KafkaError | None = None
    heard: float = field(factory=time.monotonic)
    """When there was last a report; at first, when it began."""

    def report(self, index: int, error: KafkaError | None, message: Message) -> None:
        """librdkafka's word on one entry, in the thread that polls."""
        self.waiting -= 1
        self.heard = time.monotonic()
        if error is None:
            # Of an entry that was stored by an earlier try Kafka may not say where.
            self.offsets[index] = max(message.offset(), UNKNOWN)
        elif self.error is None or self.error.code() == KafkaError._PURGE_QUEUE:
            self.error = error


class Producing:
    """The producer of one node. It belongs to the storage thread."""

    def __init__(self, settings: KafkaSettings, clients: Clients, trouble: Trouble) -> None:
        self._settings = settings
        self._clients = clients
        self._trouble = trouble
        self._producer: ProducerClient | None = None
        self._is_interrupted = False
        self._request_bytes = MOST_REQUEST_BYTES
        self.turned_away: set[str] = set()
        """Topics of the last group, if Kafka answered and did not take all of it."""

    def interrupt(self) -> None:
        """Give up what is waited for."""
        self._is_interrupted = True

    def store(self, drafts: Sequence[Draft], on_stored: Callable[[int, int], None]) -> None:
        """Produce, and wait for every report; `on_stored(index, offset)` is called for each that is known to be stored,
        its offset perhaps UNKNOWN.

        Raises StorageError, when an entry fails or none is stored for too long: then some may be stored without that
        being known.
        """
        if not drafts:
            return
        self.turned_away = {draft.place.topic for draft in drafts}
        group = _Group([None] * len(drafts), len(drafts))
        try:
            with self._trouble.told("the log cannot be written"):
                producer = self._open()
                self._produce(producer, drafts, group)
                while group.waiting and group.error is None:
                    self._wait(producer, group)
            if group.error is not None:
                said = f"Kafka at {self._settings.servers} says: {group.error.str()}"
                raise StorageError(f"the log cannot be written: {said}")
        except BaseException:
            self.throw_away()
            self._request_bytes = max(LEAST_REQUEST_BYTES, self._request_bytes // 4)
            raise
        finally:
            self._tell(drafts, group.offsets, on_stored)
        self._trouble.over()
        self.turned_away = set()
        if self._request_bytes < MOST_REQUEST_BYTES:
            self.throw_away()
            self._request_bytes *= 2

    def _tell(self, drafts: Sequence[Draft], offsets: list[int | None], on_stored: Callable[[int, int], None]) -> None:
        lacking: set[Place] = set()
        for index, (draft, offset) in enumerate(zip(drafts, offsets, strict=True)):
            if offset is None:
                lacking.add(draft.place)
            elif draft.place not in lacking:
                on_stored(index, offset)
            else:
                # What librdkafka promises not to do. Not to be taken for stored, or what it lacks would be dropped.
                log.error("entry stored above one that was not", topic=draft.place.topic, offset=offset)

    def _open(self) -> ProducerClient:
        if self._producer is None:
            self._producer = self._clients.make_producer(
                self._settings.producer(self._request_bytes), self._trouble.note
            )
        return self._producer

    def _produce(self, producer: ProducerClient, drafts: Sequence[Draft], group: _Group) -> None:
        for index, draft in enumerate(drafts):
            while True:
                try:
                    producer.produce(
                        draft.place.topic,
                        draft.value,
                        draft.key,
                        draft.place.partition,
                        partial(group.report, index),
                        headers=draft.headers,
                    )
                    break
                except BufferError:
                    self._wait(producer, group)
            if group.error is not None:
                return

    def _wait(self, producer: ProducerClient, group: _Group) -> None:
        if self._is_interrupted:
            self.turned_away = set()
            raise StorageError("this process ends; what is on its way to Kafka is sent again by the collectors")
        timeout_s = self._settings.commit_timeout_s
        if time.monotonic() > group.heard + timeout_s:
            self.turned_away = set()
            raise self._trouble.silent(f"the log cannot be written: nothing was stored for {timeout_s:g} s")
        producer.poll(POLL_S)

    def throw_away(self) -> None:
        """Let go of the producer and of all that it has; the next group gets another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            # Letting go of what is in flight breaks the promise of no gaps, which it then complains of.
            with suppress(KafkaException):
                producer.purge()
                producer.poll(0)
