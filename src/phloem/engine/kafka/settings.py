"""What the Kafka engine is told, and its bounds."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import Factory, frozen

from phloem.engine.options import OptionsBounds
from sapflow.link.frames import LinkLimits

MAX_ENTRY_BYTES = LinkLimits().max_batch_bytes + (64 << 10)
"""The largest entry with its headers; a topic must take so much."""
READ_QUEUE_KBYTES = 512
"""Of each reader: what librdkafka may hold beyond one answer. Over loopback 90 MB/s come so, and
160 MB/s with twice as much, which takes 5 MiB more of five readers."""
FETCH_BYTES = 512 << 10
"""Of one partition in one answer; an entry that is larger comes alone."""


@frozen
class KafkaSettings:
    """The brokers, the topics, and how long they are waited for."""

    servers: str
    fleet: str = "sapflow"
    node: str = "phloem"
    """The name of this one among those that share the log."""
    properties: Mapping[str, str] = Factory(dict)
    """librdkafka's, for TLS and SASL."""
    topic_per_org: bool = False
    partitions: int = 12
    copies: int = 3
    retention_s: float = 7 * 86_400.0
    retention_bytes_per_org: int = 10 << 30
    ledger_streams_s: float = 86_400.0
    options: OptionsBounds = OptionsBounds()
    commit_timeout_s: float = 30.0
    request_timeout_s: float = 5.0
    readers: int = 5
    """Reading threads and the storage thread, which reads when another node may have stored what is missing; what is
    counted for the ledger is read by one of them, for a moment."""

    def common(self) -> dict[str, str | int | bool]:
        """librdkafka's properties of every client."""
        return {
            **self.properties,
            "bootstrap.servers": self.servers,
            "client.id": "sapflow-phloem",
            "socket.connection.setup.timeout.ms": max(1000, int(self.request_timeout_s * 1000)),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "socket.keepalive.enable": True,
            "socket.nagle.disable": True,
        }

    def producer(self, request_bytes: int) -> dict[str, str | int | bool]:
        """Idempotent, acknowledged by all replicas in sync, one request at a time.

        One in flight: a broker takes any first sequence from a producer that it does not know yet, so a second
        request could be stored where the first was turned away. No message times out by itself: those behind it
        would still be sent, and leave a gap. Who waits gives up all at once, and makes a new producer.
        """
        return {
            **self.common(),
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            "max.in.flight.requests.per.connection": 1,
            "message.timeout.ms": 0,
            "message.max.bytes": MAX_ENTRY_BYTES,
            "batch.size": request_bytes,
            "queue.buffering.max.messages": 1_000_000,
            "linger.ms": 1,
        }

    def consumer(self) -> dict[str, str | int | bool]:
        """Assigned by hand, commits nothing, holds little."""
        return {
            **self.common(),
            "group.id": f"{self.fleet}-phloem",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": READ_QUEUE_KBYTES,
            "queued.min.messages": 1000,
            "fetch.message.max.bytes": FETCH_BYTES,
            "fetch.max.bytes": MAX_ENTRY_BYTES,
            "receive.message.max.bytes": 2 * MAX_ENTRY_BYTES,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 100,
        }
