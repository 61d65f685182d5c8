"""Stretches out of Kafka, by a few consumers that are assigned by hand and go on where they stood if they can.

What a reader holds is bounded: librdkafka's queue and one answer (`settings.py`), and one entry that
was too much for the call before. An org's entries are picked by their key out of its partition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from phloem.engine.engine import Stretch
from phloem.engine.kafka.clients import Clients, ConsumerClient, Message, Trouble
from phloem.engine.kafka.names import Place
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.kafka.topics import OTHER_LEADER
from sapflow.errors import StorageError

SCAN_BYTES = 8 << 20
"""Of a partition in one call, however little of it is the org's."""
NEAR = 128
"""So many positions ahead, it is quicker to read on than to begin there, which takes 0.1 to 0.2 s."""
POLL_S = 0.2
LEARN_S = 0.05
"""Between two questions about a topic that a broker knows and librdkafka does not."""
NO_SUCH_OFFSET = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_NOT_LEARNED = OTHER_LEADER | {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION}
"""What is said of a topic that is not there, and of one whose leader librdkafka does not know yet."""
END = -1
"""What librdkafka says where no entry is at or after a time."""


@define
class ReadCounts:
    """What readers have done; never goes down, but for `readers`."""

    readers: int = 0
    assignments: int = 0
    entries_passed_over: int = 0
    """Other orgs', on the way to the one that was asked for."""


class Reader:
    """One consumer, and where it stands. It belongs to one thread at a time."""

    def __init__(self, client: ConsumerClient, settings: KafkaSettings, trouble: Trouble, counts: ReadCounts) -> None:
        self.stands: tuple[Place, int] | None = None
        self._client = client
        self._timeout_s = settings.request_timeout_s
        self._trouble = trouble
        self._counts = counts
        self._kept: Message | None = None
        """Taken, and too much for the call that took it."""
        self._end = 0
        self._asked: int | None = None
        """Where it was last assigned to, as long as nothing came from there."""

    def close(self) -> None:
        """Let go of the consumer."""
        self._client.close()

    def ends(self, place: Place) -> tuple[int, int]:
        """The lowest offset that is kept, and the one that comes next; 0 of a topic that is not there."""
        until = time.monotonic() + self._timeout_s
        with self._trouble.told(f"the log of {place.topic} cannot be read"):
            while True:
                try:
                    found = self._client.get_watermark_offsets(
                        TopicPartition(place.topic, place.partition), timeout=self._timeout_s
                    )
                    break
                except KafkaException as error:
                    if error.args[0].code() not in _NOT_LEARNED:
                        raise
                    # Made a moment ago, or of a broker that is gone: being asked about it, librdkafka learns of it.
                    if not self._is_there(place):
                        return 0, 0
                    if time.monotonic() > until:
                        raise
                    time.sleep(LEARN_S)
        if found is None:
            raise self._trouble.silent(f"the log of {place.topic} cannot be read")
        self._trouble.over()
        return found

    def _is_there(self, place: Place) -> bool:
        """Whether a broker knows the topic: while none is reached, librdkafka does not know it either."""
        found = self._client.list_topics(place.topic, timeout=self._timeout_s).topics.get(place.topic)
        gone = found is None or (found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART)
        return not gone

    def expect(self, end: int) -> None:
        """The partition that it stands in is known to go on to `end`; a question would wait for a fetch under way."""
        self._end = max(self._end, end)

    def offset_at(self, place: Place, time_ms: int) -> int:
        """The first offset stored at or after a time; END where there is none."""
        asked = TopicPartition(place.topic, place.partition, time_ms)
        with self._trouble.told(f"the log of {place.topic} cannot be read"):
            (found,) = self._client.offsets_for_times([asked], timeout=self._timeout_s)
        if found.error is not None:
            raise StorageError(f"the log of {place.topic} cannot be read: {found.error.str()}")
        return int(found.offset)

    def stretch(self, place: Place, key: bytes, after: int, *, max_bytes: int, max_entries: int) -> Stretch:
        """See `Engine.stretch`; a position is an offset and one."""
        after, gap_to = self._begin(place, after)
        if after == self._end:
            return Stretch([], after, gap_to)
        entries: list[tuple[int, bytes]] = []
        size = scanned = 0
        while after < self._end and scanned < SCAN_BYTES and size < max_bytes and len(entries) < max_entries:
            message = self._next(place)
            if message is None:
                after = self._end
                break
            value = message.value() or b""
            if message.key() == key:
                if entries and size + len(value) > max_bytes:
                    self._kept = message
                    break
                entries.append((message.offset() + 1, value))
                size += len(value)
            else:
                self._counts.entries_passed_over += 1
            after = message.offset() + 1
            scanned += len(value)
        self.stands = (place, after)
        return Stretch(entries, after, gap_to)

    def scan(
        self,
        place: Place,
        after: int,
        each: Callable[[Message], None],
        begins: Callable[[int], None] = lambda position: None,
        *,
        max_bytes: int,
    ) -> tuple[int, int]:
        """Give what stands behind a position, everybody's, one by one: from where, and up to where.

        It begins later than at the position asked for where retention has removed what followed that; `begins` is told
        before anything is given.
        """
        after, _ = self._begin(place, after)
        begins(after)
        if after == self._end:
            return after, after
        begin, scanned = after, 0
        while after < self._end and scanned < max_bytes:
            message = self._next(place)
            if message is None:
                after = self._end
                break
            each(message)
            after = message.offset() + 1
            scanned += len(message.value() or b"")
        self.stands = (place, after)
        return begin, after

    def at(self, place: Place, position: int) -> Message | None:
        """What stands at a position; None when nothing does any more. Raises StorageError."""
        found: list[Message] = []

        def take(message: Message) -> None:
            if message.offset() + 1 == position:
                found.append(message)

        reached = position - 1
        if self.stands is not None and self.stands[0] == place and 0 < reached - self.stands[1] <= NEAR:
            reached = self.stands[1]
        after = -1
        while after < reached < position:
            after = reached
            _, reached = self.scan(place, after, take, max_bytes=1)
        return found[0] if found else None

    def _begin(self, place: Place, after: int) -> tuple[int, int | None]:
        """Stand behind a position, or where the log begins if that is later; at the log's end nowhere.

        Also the first position that is kept, where retention has removed what followed the position asked for.
        """
        gap_to = None
        if self.stands != (place, after) or after >= self._end:
            low, self._end = self.ends(place)
            if after > self._end:
                raise StorageError(f"the log of {place.topic} ends at {self._end}, before position {after}: it was cut")
            if after < low:
                gap_to, after = (low + 1 if after else None), low
        if after < self._end and self.stands != (place, after):
            self._assign(place, after)
        return after, gap_to

    def _assign(self, place: Place, after: int) -> None:
        self.stands = self._kept = None
        self._counts.assignments += 1
        with self._trouble.told(f"the log of {place.topic} cannot be read"):
            self._client.assign([TopicPartition(place.topic, place.partition, after)])
        self._asked = after

    def _next(self, place: Place) -> Message | None:
        """The next message; None when there is none before the end that is known."""
        if self._kept is not None:
            message, self._kept = self._kept, None
            return message
        until = time.monotonic() + self._timeout_s
        while True:
            # One by one: a call for many waits until they are there, and holds them all.
            with self._trouble.told(f"the log of {place.topic} cannot be read"):
                found = self._client.poll(POLL_S)
            if found is None:
                if time.monotonic() > until:
                    raise self._trouble.silent(f"the log of {place.topic} cannot be read")
                continue
            error = found.error()
            if error is None:
                self._asked = None
                return found
            if error.code() in NO_SUCH_OFFSET and self._asked not in (None, found.offset()):
                # Of where it stood before: a topic was made anew meanwhile, and librdkafka keeps such errors.
                continue
            if error.code() != KafkaError._PARTITION_EOF:
                raise StorageError(f"the log of {place.topic} cannot be read: {error.str()}")
            if found.offset() >= self._end:
                return None
            # It was the end when librdkafka came there; more has been stored since.


class Readers:
    """A bounded number of readers, each taken by one thread at a time: the one that stands there already, if any."""

    def __init__(self, settings: KafkaSettings, clients: Clients, trouble: Trouble) -> None:
        self.counts = ReadCounts()
        self._settings = settings
        self._make: Callable[[], ConsumerClient] = lambda: clients.make_consumer(settings.consumer(), trouble.note)
        self._trouble = trouble
        self._idle: deque[Reader] = deque()
        self._returned = threading.Condition()

    @contextmanager
    def take(self, stands: tuple[Place, int] | None = None) -> Iterator[Reader]:
        """A reader for the time of the block; one that failed is not used again. Raises StorageError."""
        reader = self._take(stands)
        try:
            yield reader
        except BaseException:
            with self._returned:
                self.counts.readers -= 1
                self._returned.notify()
            reader.close()
            raise
        with self._returned:
            self._idle.append(reader)
            self._returned.notify()

    def _take(self, stands: tuple[Place, int] | None) -> Reader:
        with self._returned:
            if not self._returned.wait_for(self._is_there_one, self._settings.commit_timeout_s):
                raise StorageError("all readers of Kafka are busy")
            for reader in self._idle:
                if stands is None or reader.stands == stands:
                    self._idle.remove(reader)
                    return reader
            if self.counts.readers >= self._settings.readers:
                return self._idle.popleft()
            self.counts.readers += 1
        try:
            return Reader(self._make(), self._settings, self._trouble, self.counts)
        except BaseException:
            with self._returned:
                self.counts.readers -= 1
            raise

    def _is_there_one(self) -> bool:
        return bool(self._idle) or self.counts.readers < self._settings.readers

    def close(self) -> None:
        """Let go of those that nobody has."""
        with self._returned:
            while self._idle:
                self._idle.pop().close()
                self.counts.readers -= 1
