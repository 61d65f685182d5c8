"""librdkafka's clients, as much of them as is used here, so that tests bring their own; and its errors as ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from attrs import frozen
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from sapflow.errors import StorageError

Properties = Mapping[str, str | int | bool]

_quiet = logging.getLogger("sapflow.librdkafka")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class Message(Protocol):
    """What a consumer gives, and a delivery report."""

    def error(self) -> KafkaError | None: ...
    def offset(self) -> int: ...
    def partition(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> list[tuple[str, bytes]] | None: ...


Report = Callable[[KafkaError | None, Message], None]


class ProducerClient(Protocol):
    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes,
        partition: int,
        on_delivery: Report,
        *,
        headers: list[tuple[str, bytes]],
    ) -> None: ...
    def poll(self, timeout: float) -> int: ...
    def purge(self, in_queue: bool = True, in_flight: bool = True, blocking: bool = True) -> None: ...


class ConsumerClient(Protocol):
    def assign(self, partitions: list[TopicPartition]) -> None: ...
    def poll(self, timeout: float) -> Message | None: ...
    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int] | None: ...
    def list_topics(self, topic: str, timeout: float) -> Any: ...
    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]: ...
    def close(self) -> None: ...


@frozen
class Clients:
    """How clients are made. What librdkafka would log goes nowhere: `trouble` has what it last complained of."""

    make_producer: Callable[[Properties, Callable[[KafkaError], None]], ProducerClient]
    make_consumer: Callable[[Properties, Callable[[KafkaError], None]], ConsumerClient]
    make_admin: Callable[[Properties, Callable[[KafkaError], None]], Any]


def _producer(properties: Properties, on_error: Callable[[KafkaError], None]) -> ProducerClient:
    producer: ProducerClient = Producer({**properties, "error_cb": on_error}, logger=_quiet)
    return producer


def _consumer(properties: Properties, on_error: Callable[[KafkaError], None]) -> ConsumerClient:
    consumer: ConsumerClient = Consumer({**properties, "error_cb": on_error}, logger=_quiet)
    return consumer


def _admin(properties: Properties, on_error: Callable[[KafkaError], None]) -> AdminClient:
    return AdminClient({**properties, "error_cb": on_error}, logger=_quiet)


REAL = Clients(_producer, _consumer, _admin)

_UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._RESOLVE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)


class Trouble:
    """What clients last complained of, for the message of what fails by it."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._last = ""

    def note(self, error: KafkaError) -> None:
        """A client's error callback, in whichever thread."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self._last:
            self._last = error.str()

    def over(self) -> None:
        """A broker has answered."""
        self._last = ""

    def silent(self, what: str) -> StorageError:
        """No answer came in time."""
        why = f" ({self._last})" if self._last else ""
        return StorageError(
            f"{what}: no Kafka broker at {self._servers} answers{why}; what is not stored is not acknowledged, so "
            "collectors and meters keep it. Start a broker, or name others with --kafka (phloem.kafka)"
        )

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """KafkaException as StorageError, which says what could not be done."""
        try:
            yield
        except KafkaException as exception:
            error = exception.args[0]
            if not isinstance(error, KafkaError):
                raise StorageError(f"{what}: {exception}") from exception
            if error.code() in _UNREACHABLE:
                raise self.silent(what) from exception
            raise StorageError(f"{what}: Kafka at {self._servers} says: {error.str()}") from exception
