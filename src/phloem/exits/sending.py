"""One exit's messages into a Kafka: all that was given is acknowledged, or it fails and begins again.

Rule 1: what is on its way is bounded in bytes; who gives more waits, in the exit's own thread. One exit computes at a
time: however many have a backlog, they take no more of the process than one thread.
Rule 2: while something is on its way, something is acknowledged within `timeout_s`, or it is given up.
Rule 3: after a failure nothing is sent on, and the producer is thrown away with all that it has. What it had sent may
be stored all the same: a repeat of what the next one sends, never a hole. So first appearances are in order.
Rule 4: a broker that finds a request too large says so of every message in it. So all of them are sent again, each
alone and waited for: one that is refused then is at fault itself. It is left out, counted and told; the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import structlog
from attrs import define, frozen
from confluent_kafka import KafkaError, KafkaException

from phloem.engine.kafka.clients import REAL, Clients, Message, ProducerClient, Report
from phloem.exits.settings import MESSAGE_COSTS_BYTES, producer_properties
from sapflow.config import ExitConfig
from sapflow.errors import MalformedMessage, StorageError
from sapflow.flows.formats.messages import Messages
from sapflow.runtime.seldom import Seldom

log = structlog.get_logger()

POLL_S = 0.1
ANY_PARTITION = -1
RELEARN_S = 600.0
"""After so long messages are tried again as large as they were at first."""
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)


class ExitFailed(StorageError):
    """An exit's Kafka could not do what was asked; the records wait in the log."""


class Alone(ExitFailed):
    """What was on its way is to be sent again, each message alone. Nothing is wrong with the Kafka."""


class Interrupted(ExitFailed):
    """This process ends."""


@frozen(slots=True)
class Given:
    """Where messages are from: an entry of the log."""

    stream: bytes
    position: int


@define
class SentCounts:
    """What became of messages; never goes down."""

    messages: int = 0
    """Acknowledged, as are …"""
    bytes: int = 0
    records: int = 0
    refused_records: int = 0
    """Left out since a message that had nothing else was too large for the topic, or for `max_message_bytes`."""
    failures: int = 0
    """Times that it had to begin again."""
    offsets_back: int = 0
    """Acknowledged below an offset that was acknowledged before: the topic was made anew, or has lost records."""


@define
class _Way:
    """What is on its way."""

    messages: int = 0
    bytes: int = 0
    heard: float = 0.0
    """When there was last an acknowledgement; at first, when it began."""
    error: KafkaError | None = None
    too_large: bool = False


@define
class _Since:
    """What was given since all was last acknowledged."""

    messages: int = 0
    bytes: int = 0
    records: int = 0
    position: int = 0


class Sending:
    """The producer of one exit. Synchronous; it belongs to the exit's thread, but for `interrupt`."""

    def __init__(
        self,
        exit_: ExitConfig,
        clients: Clients = REAL,
        clock: Callable[[], float] = time.monotonic,
        turn: threading.Lock | None = None,
    ) -> None:
        self.counts = SentCounts()
        self._turn = turn or threading.Lock()
        """Held by the exit that computes, of all that share it; never while something is waited for."""
        self._exit = exit_
        self._clients = clients
        self._clock = clock
        self._producer: ProducerClient | None = None
        self._is_interrupted = False
        self._complaint = ""
        """What librdkafka last complained of."""
        self._way = _Way()
        self._since = _Since()
        self._alone_through = 0
        """Messages of entries up to this position go alone."""
        self._is_alone = False
        """Whether the producer is one for messages that go alone."""
        self._most_bytes = exit_.max_message_bytes
        self._learned_at = 0.0
        self._offsets: dict[int, int] = {}
        self._refused = Seldom()

    @property
    def waiting_bytes(self) -> int:
        """What is on its way and not acknowledged."""
        return self._way.bytes

    @property
    def most_bytes(self) -> int:
        """How large messages of several records are made at most: less than configured where a topic takes less."""
        if self._most_bytes < self._exit.max_message_bytes and self._clock() > self._learned_at + RELEARN_S:
            self._most_bytes = self._exit.max_message_bytes
        return self._most_bytes

    def begin(self) -> None:
        """Wait for answers again, after an `interrupt`."""
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Give up what is waited for. In any thread."""
        self._is_interrupted = True

    def give(self, given: Given, made: Iterable[Messages]) -> None:
        """Send an entry's messages, in order; waits for room. Raises ExitFailed: all since `settle` is void then."""
        with self._failing(), self._turn:
            self._open(given.position)
            self._since.position = given.position
            key = given.stream.hex().encode()
            fixed = [("_stream", key), ("_position", b"%d" % given.position)]
            for part, value, records in _parts(made):
                self._send(given, part, records, value, key, [*fixed, ("_part", b"%d" % part)])
            self._poll(0)
            self._check()

    def settle(self) -> SentCounts:
        """Wait until all that was given is acknowledged: the counts then. Raises ExitFailed, as `give`."""
        with self._failing(), self._turn:
            while self._way.messages:
                self._wait()
        since, self._since = self._since, _Since(position=self._since.position)
        self.counts.messages += since.messages
        self.counts.bytes += since.bytes
        self.counts.records += since.records
        if self._is_alone and since.position >= self._alone_through:
            self.throw_away()
        return self.counts

    def throw_away(self) -> None:
        """Let go of the producer and of all that it has."""
        producer, self._producer = self._producer, None
        self._is_alone = False
        self._way, self._since = _Way(), _Since(position=self._since.position)
        self._offsets.clear()
        if producer is not None:
            with suppress(KafkaException):
                producer.purge()
                producer.poll(0)

    # --- in the midst -----------------------------------------------------------------------------------------

    # No frame but that of `throw_away` holds the producer: an error's traceback would, and then let go of it in another
    # thread, which would wait for librdkafka's.

    def _open(self, position: int) -> None:
        if self._producer is None:
            self._is_alone = position <= self._alone_through
            properties = producer_properties(self._exit, alone=self._is_alone)
            self._complaint = ""
            self._producer = self._clients.make_producer(properties, self._note)

    def _poll(self, timeout_s: float) -> None:
        assert self._producer is not None
        try:
            self._producer.poll(timeout_s)
        except KafkaException:
            # It sends no more since a message failed; what that was comes next.
            with suppress(KafkaException):
                self._producer.poll(POLL_S)
            self._check()
            raise

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self._complaint:
            self._complaint = error.str()

    def _send(
        self,
        given: Given,
        part: int,
        records: int,
        value: bytes,
        key: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        if len(value) > self._exit.max_message_bytes:
            self._leave_out(given, part, records, len(value), "max_message_bytes of this exit")
            return
        size = len(value) + MESSAGE_COSTS_BYTES
        way = self._way
        if not way.messages:
            way.heard = self._clock()
        while way.messages and way.bytes + size > self._exit.window_bytes:
            self._wait()
        report = partial(self._report, way, size, None)
        if self._is_alone:
            report = partial(self._report, way, size, (given, part, records, len(value)))
        self._produce(value, key, report, headers)
        way.messages += 1
        way.bytes += size
        since = self._since
        since.messages += 1
        since.bytes += len(value)
        since.records += records
        while self._is_alone and way.messages:
            self._wait()

    def _produce(self, value: bytes, key: bytes, report: Report, headers: list[tuple[str, bytes]]) -> None:
        assert self._producer is not None
        while True:
            try:
                self._producer.produce(self._exit.topic, value, key, ANY_PARTITION, report, headers=headers)
                return
            except BufferError:
                self._wait()
            except KafkaException:
                self._poll(POLL_S)
                self._check()
                raise

    def _report(
        self,
        way: _Way,
        size: int,
        alone: tuple[Given, int, int, int] | None,
        error: KafkaError | None,
        message: Message,
    ) -> None:
        """librdkafka's word on one message, in the thread that polls."""
        if way is not self._way:
            return  # of a producer that was thrown away
        way.messages -= 1
        way.bytes -= size
        if error is None:
            way.heard = self._clock()
            self._look_at(message)
        elif error.code() not in _TOO_LARGE:
            way.error = way.error or error
        elif alone is None:
            way.too_large = True
        else:
            self._refused_alone(way, *alone)

    def _look_at(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if 0 <= offset < self._offsets.get(partition, 0):
            self.counts.offsets_back += 1
            log.warning(
                "a topic's offsets went back",
                org=self._exit.org,
                exit=self._exit.name,
                topic=self._exit.topic,
                partition=partition,
                offset=offset,
                data="the topic was made anew, or has lost records that it had acknowledged; 'sapflow groups reset' "
                "has them published again",
            )
        self._offsets[partition] = offset

    def _refused_alone(self, way: _Way, given: Given, part: int, records: int, size: int) -> None:
        way.heard = self._clock()
        if records > 1:
            # Of more than one record the next try makes two messages.
            self._most_bytes, self._learned_at = min(self._most_bytes, size // 2), self._clock()
            way.too_large = True
            return
        self._since.messages -= 1
        self._since.bytes -= size
        self._since.records -= records
        self._leave_out(given, part, records, size, "the topic's max.message.bytes")

    def _leave_out(self, given: Given, part: int, records: int, size: int, limit: str) -> None:
        self.counts.refused_records += records
        if times := self._refused.again(limit):
            log.error(
                "record not published",
                org=self._exit.org,
                exit=self._exit.name,
                position=given.position,
                part=part,
                bytes=size,
                reason=f"more than {limit}",
                data="it is in the log, and not in the topic; those after it are published",
                times=times,
            )

    def _wait(self) -> None:
        if self._is_interrupted:
            raise Interrupted("this process ends")
        if self._clock() > self._way.heard + self._exit.timeout_s:
            raise ExitFailed(
                f"Kafka at {self._exit.brokers} has acknowledged nothing of topic '{self._exit.topic}' for "
                f"{self._exit.timeout_s:g} s{f' ({self._complaint})' if self._complaint else ''}"
            )
        self._turn.release()
        try:
            self._poll(POLL_S)
        finally:
            self._turn.acquire()
        self._check()

    def _check(self) -> None:
        way = self._way
        if way.too_large:
            # What else it complains of is that it sends nothing behind that.
            self._alone_through = max(self._alone_through, self._since.position, 1)
            raise Alone(f"topic '{self._exit.topic}' finds a request too large")
        if way.error is not None:
            raise ExitFailed(f"Kafka at {self._exit.brokers} says: {self._said(way.error)}")

    def _said(self, error: KafkaError) -> str:
        if error.code() in (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART):
            return f"there is no topic '{self._exit.topic}'; make it, or let the brokers make topics by themselves"
        return f"{error.str()} ({self._complaint})" if self._complaint else str(error.str())

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What fails within throws the producer away; a message that cannot be made is nobody's failure."""
        try:
            yield
        except MalformedMessage:
            raise
        except BaseException as error:
            self.throw_away()
            self.counts.failures += not isinstance(error, Alone | Interrupted)
            if isinstance(error, StorageError) and not isinstance(error, ExitFailed):
                raise ExitFailed(str(error)) from error
            if isinstance(error, KafkaException):
                raise ExitFailed(f"librdkafka says: {error.args[0]}") from error
            raise


def _parts(made: Iterable[Messages]) -> Iterator[tuple[int, bytes, int]]:
    """Each message's number within its entry, its value, and how many records it has."""
    part = 0
    for some in made:
        for value in some.values:
            yield part, value, some.records
            part += 1
