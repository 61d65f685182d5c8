"""The fleet's topics: made when they are not there, checked when they are, and taken away when their org is gone.

A topic of an org is obsolete when the org is not in the table and nothing of it is kept. Between seeing that and
deleting it another node might store something in it, so it is *closed* first: its max.message.bytes is set so low that
it takes nothing. What a closed topic holds does not change any more, and whoever finds one empty may delete it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition, Uuid
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from phloem.engine.kafka.clients import Clients, Trouble
from phloem.engine.kafka.names import (
    Place,
    groups_topic_of,
    is_topic_of_an_org,
    ledger_topic_of,
    options_topic_of,
    partition_of,
    topic_of,
)
from phloem.engine.kafka.settings import MAX_ENTRY_BYTES, KafkaSettings
from phloem.engine.kafka.topic_configs import compacted_config, groups_config, log_config
from sapflow.errors import StorageError

log = structlog.get_logger()

OTHER_LEADER = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)
"""Errors of who was asked for what its leader alone knows."""

CLOSED_BYTES = 1
"""The max.message.bytes of a topic that takes nothing any more."""
NO_ID = str(Uuid(0, 0))
"""What librdkafka has as a topic's identity where the brokers told none."""
LOOK_AGAIN_S = 0.05
"""Between two looks at a topic that a broker does not know yet."""


class Topics:
    """Where an org's entries go, and whether that is there. All may be called in any thread."""

    def __init__(self, settings: KafkaSettings, clients: Clients, trouble: Trouble) -> None:
        self._settings = settings
        self._trouble = trouble
        self._admin: Any = clients.make_admin(settings.common(), trouble.note)
        self._known: set[str] = set()
        """Topics that are there."""
        self._doubted: set[str] = set()
        """Those of orgs that may be closed: something was not taken there."""
        self._brokers = 1

    def open(self) -> None:
        """A broker answers, and the fleet's topic is as it should be. Raises StorageError."""
        found = self._look("the log cannot be opened")
        if self._settings.topic_per_org:
            for topic in self._doubted & self._known:
                if self._limit(topic) == CLOSED_BYTES:
                    self._open_again(topic)
            self._doubted.clear()
            return
        topic = topic_of(self._settings.fleet)
        if topic in self._known:
            self._check(topic, len(found.topics[topic].partitions))
        elif self._make([topic], self._settings.partitions):
            # Somebody else made it, so lately that the broker asked did not know it yet.
            self._check(topic, self._partitions(topic))

    def _look(self, what: str) -> Any:
        """Which topics and brokers there are. Raises StorageError."""
        with self._trouble.told(what):
            try:
                found = self._admin.list_topics(timeout=self._settings.request_timeout_s)
            finally:
                self._admin.poll(0)  # has what went wrong said to `trouble`
        self._trouble.over()
        self._brokers = max(1, len(found.brokers))
        self._known = {name for name, topic in found.topics.items() if topic.error is None}
        return found

    def place(self, org: str) -> Place:
        """Where an org's entries are read."""
        if self._settings.topic_per_org:
            return Place(topic_of(self._settings.fleet, org), 0)
        return Place(topic_of(self._settings.fleet), partition_of(org, self._settings.partitions))

    def prepare(self, orgs: Iterable[str]) -> None:
        """Make the topics that these orgs lack. Raises StorageError."""
        if self._settings.topic_per_org:
            missing = {topic_of(self._settings.fleet, org) for org in orgs} - self._known
            if missing:
                self._make(sorted(missing), 1)

    def prepare_groups(self) -> None:
        """Make the topic of consumer groups if it is not there. Raises StorageError."""
        topic = groups_topic_of(self._settings.fleet)
        if topic in self._known:
            return
        self._look("consumer groups cannot be kept")
        if topic not in self._known:
            self._make([topic], 1, groups_config)

    def prepare_ledger(self) -> int:
        """Make the topic of ledgers if it is not there: how many partitions it has. Raises StorageError."""
        return self._prepare_compacted(ledger_topic_of(self._settings.fleet), "the ledger cannot be kept")

    def prepare_options(self) -> int:
        """As `prepare_ledger`, of what exporters told in options data. Raises StorageError."""
        return self._prepare_compacted(options_topic_of(self._settings.fleet), "options data cannot be kept")

    def _prepare_compacted(self, topic: str, otherwise: str) -> int:
        if topic not in self._known:
            self._look(otherwise)
            if topic not in self._known:
                self._make([topic], self._settings.partitions, compacted_config)
                self._await_leaders({Place(topic, number) for number in range(self._partitions(topic))})
        try:
            return self._partitions(topic)
        except StorageError:
            self._known.discard(topic)  # it may have been deleted
            raise

    def identities(self, topics: Set[str]) -> Mapping[str, str]:
        """What tells each topic from one of the same name that was there before; of those that are there.

        Empty where the brokers are too old to say. Raises StorageError.
        """
        if not topics:
            return {}
        asked = TopicCollection(sorted(topics))
        futures = self._admin.describe_topics(asked, request_timeout=self._settings.request_timeout_s)
        found = {}
        for topic, future in futures.items():
            with self._trouble.told(f"topic {topic} cannot be looked at"):
                try:
                    told = self._result(future, topic).topic_id
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                    continue
            found[topic] = "" if told is None or str(told) == NO_ID else str(told)
        return found

    def forget_before(self, place: Place, offset: int) -> None:
        """Have Kafka delete what stands before an offset. Raises StorageError."""
        asked = TopicPartition(place.topic, place.partition, offset)
        futures = self._admin.delete_records([asked], request_timeout=self._settings.request_timeout_s)
        with self._trouble.told(f"topic {place.topic} cannot be shortened"):
            for future in futures.values():
                self._result(future, place.topic)

    def doubt(self, topics: Iterable[str]) -> None:
        """Something was not taken: whether these are closed is looked at when the log is opened again."""
        self._doubted.update(topics)

    def is_there(self, topic: str) -> bool:
        """Whether there is such a topic. Raises StorageError."""
        return topic in self._known or topic in self._listed()

    def ends(self, places: Set[Place]) -> Mapping[Place, int]:
        """The offset that comes next in each, of those that are there. Raises StorageError."""
        return self._offsets(places, OffsetSpec.latest())

    def starts(self, places: Set[Place]) -> Mapping[Place, int]:
        """The lowest offset that is kept in each, of those that are there. Raises StorageError."""
        return self._offsets(places, OffsetSpec.earliest())

    def upkeep(self, orgs: Set[str]) -> Iterator[int]:
        """Close, and the next time delete, the topics of orgs that are no more; one each step, 1 when it is deleted."""
        if not self._settings.topic_per_org:
            return
        kept = {topic_of(self._settings.fleet, org) for org in orgs}
        for topic in self._listed():
            if not is_topic_of_an_org(self._settings.fleet, topic) or topic in kept or not self._is_empty(topic):
                continue
            if self._limit(topic) != CLOSED_BYTES:
                self._limit_to(topic, CLOSED_BYTES)
                log.info("topic closed", topic=topic, reason="its org is gone and nothing of it is kept")
                yield 0
            else:
                self._delete(topic)
                log.info("topic deleted", topic=topic)
                yield 1

    def _open_again(self, topic: str) -> None:
        # It has taken nothing since it was closed, so what it holds is known.
        if self._is_empty(topic):
            self._delete(topic)
        else:
            self._limit_to(topic, MAX_ENTRY_BYTES)

    def _check(self, topic: str, partitions: int) -> None:
        if partitions != self._settings.partitions:
            raise StorageError(
                f"topic {topic} has {partitions} partitions and phloem.kafka_partitions is "
                f"{self._settings.partitions}: orgs would be looked for where they are not. Nothing is stored until "
                "that is set to what the topic has"
            )
        limit = self._limit(topic)
        if limit < MAX_ENTRY_BYTES:
            raise StorageError(
                f"topic {topic} takes entries of at most {limit:,} bytes, and batches may be larger. Nothing is stored "
                f"until its max.message.bytes is at least {MAX_ENTRY_BYTES}"
            )

    def _await_leaders(self, places: Set[Place]) -> None:
        """Wait, but not for long, until partitions that were made a moment ago answer. Raises StorageError."""
        deadline = time.monotonic() + self._settings.request_timeout_s
        while self._asked(places, OffsetSpec.latest())[1] and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_S)
            self._listed()

    def _partitions(self, topic: str) -> int:
        """Of a topic that is there, though the broker asked may hear of it only in a moment. Raises StorageError."""
        deadline = time.monotonic() + self._settings.request_timeout_s
        while True:
            with self._trouble.told(f"topic {topic} cannot be looked at"):
                found = self._admin.list_topics(topic, timeout=self._settings.request_timeout_s).topics[topic]
                if found.error is None:
                    return len(found.partitions)
                if time.monotonic() > deadline:
                    raise KafkaException(found.error)
            time.sleep(LOOK_AGAIN_S)

    def _make(
        self, topics: Sequence[str], partitions: int, config: Callable[[int], dict[str, str]] | None = None
    ) -> list[str]:
        """Make topics; those that were there already. Raises StorageError."""
        there = []
        copies = min(self._settings.copies, self._brokers)
        own = config(copies) if config is not None else log_config(self._settings, copies)
        new = [NewTopic(topic, partitions, copies, config=own) for topic in topics]
        futures = self._admin.create_topics(new, request_timeout=self._settings.request_timeout_s)
        for topic, future in futures.items():
            with self._trouble.told(f"topic {topic} cannot be made"):
                try:
                    self._result(future, topic)
                    log.info("topic made", topic=topic, partitions=partitions, copies=copies)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
                    there.append(topic)
            self._known.add(topic)
        return there

    def _listed(self) -> list[str]:
        with self._trouble.told("topics cannot be listed"):
            found = self._admin.list_topics(timeout=self._settings.request_timeout_s)
        return [name for name, topic in found.topics.items() if topic.error is None]

    def _limit(self, topic: str) -> int:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        (future,) = self._admin.describe_configs([resource], request_timeout=self._settings.request_timeout_s).values()
        with self._trouble.told(f"topic {topic} cannot be looked at"):
            return int(self._result(future, topic)["max.message.bytes"].value)

    def _limit_to(self, topic: str, limit: int) -> None:
        entry = ConfigEntry(
            "max.message.bytes",
            str(limit),
            source=ConfigSource.DYNAMIC_TOPIC_CONFIG,
            incremental_operation=AlterConfigOpType.SET,
        )
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        asked = self._admin.incremental_alter_configs([resource], request_timeout=self._settings.request_timeout_s)
        (future,) = asked.values()
        with self._trouble.told(f"topic {topic} cannot be configured"):
            self._result(future, topic)

    def _is_empty(self, topic: str) -> bool:
        place = Place(topic, 0)
        first, last = (self._offsets({place}, spec).get(place) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
        return first is not None and first == last

    def _offsets(self, places: Set[Place], spec: OffsetSpec) -> dict[Place, int]:
        """An offset of each place that is there.

        librdkafka asks the leaders that it has heard of. When one has died, or is none any more, it gives no error,
        but an offset that is none, until it asks for leaders again, minutes later. So it is made to ask.
        """
        found, stale = self._asked(places, spec)
        if stale:
            self._listed()
            again, stale = self._asked(stale, spec)
            found |= again
        if stale:
            topic = min(place.topic for place in stale)
            raise self._trouble.silent(f"it is not known how far the log of {topic} goes: a partition has no leader")
        return found

    def _asked(self, places: Set[Place], spec: OffsetSpec) -> tuple[dict[Place, int], set[Place]]:
        """The offsets that are told, and the places whose leader is another than was asked."""
        asked = {TopicPartition(place.topic, place.partition): spec for place in places}
        futures = self._admin.list_offsets(asked, request_timeout=self._settings.request_timeout_s)
        found, stale = {}, set()
        for partition, future in futures.items():
            place = Place(partition.topic, partition.partition)
            with self._trouble.told(f"it is not known how far the log of {place.topic} goes"):
                try:
                    offset: int = self._result(future, place.topic).offset
                except KafkaException as error:
                    code = error.args[0].code()
                    if code in OTHER_LEADER:
                        stale.add(place)
                    elif code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                    continue
                if offset < 0:
                    stale.add(place)
                else:
                    found[place] = offset
        return found, stale

    def _delete(self, topic: str) -> None:
        self._known.discard(topic)
        (future,) = self._admin.delete_topics([topic], request_timeout=self._settings.request_timeout_s).values()
        with self._trouble.told(f"topic {topic} cannot be deleted"):
            try:
                self._result(future, topic)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise

    def _result(self, future: Future[Any], topic: str) -> Any:
        try:
            return future.result(self._settings.request_timeout_s + 1)
        except TimeoutError as error:
            raise self._trouble.silent(f"topic {topic} cannot be looked at") from error
