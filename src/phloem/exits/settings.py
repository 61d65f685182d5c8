"""What an exit's producer is told, and its bounds."""

from __future__ import annotations

from pathlib import Path

from phloem.engine.kafka.clients import Properties
from sapflow.config import ExitConfig
from sapflow.errors import StorageError

MESSAGE_COSTS_BYTES = 512
"""What a message on its way takes beside its value, in librdkafka and here."""
HEADER_BYTES = 1024
"""The most that a message's key and headers have."""
MOST_ANSWER_BYTES = 1 << 20
"""Of a broker: what is longer is no answer to what is asked here, and is not taken."""
LINGER_MS = 20
"""How long librdkafka waits for more messages before it sends those it has."""


def producer_properties(exit_: ExitConfig, *, alone: bool) -> Properties:
    """librdkafka's properties: idempotent, acknowledged by all replicas in sync, bounded.

    Once a message has failed none behind it is sent (`gapless`, and one request in flight: a broker takes any first
    sequence from a producer that it does not know yet). None times out by itself: whoever waits gives up all at once,
    and begins again at what is acknowledged. `alone` is for messages that are each waited for, and may be refused.
    Raises StorageError for a secret that cannot be read.
    """
    return {
        **exit_.properties,
        **{key: _secret(key, path) for key, path in exit_.secrets.items()},
        "bootstrap.servers": exit_.brokers,
        "client.id": f"sapflow-exit-{exit_.name}",
        "enable.idempotence": True,
        "enable.gapless.guarantee": not alone,
        "max.in.flight.requests.per.connection": 1,
        "acks": "all",
        "message.timeout.ms": 0,
        "compression.type": exit_.compression,
        "message.max.bytes": exit_.max_message_bytes + HEADER_BYTES,
        "batch.size": exit_.max_message_bytes,
        "batch.num.messages": 10_000,
        "linger.ms": 0 if alone else LINGER_MS,
        "queue.buffering.max.kbytes": max(1, 2 * exit_.window_bytes >> 10),
        "queue.buffering.max.messages": exit_.window_bytes // MESSAGE_COSTS_BYTES + 1,
        "receive.message.max.bytes": MOST_ANSWER_BYTES,
        # As Kafka's own clients have it, so that a key's partition is the same whoever writes it.
        "partitioner": "murmur2_random",
        "socket.connection.setup.timeout.ms": max(1000, min(10_000, int(exit_.timeout_s * 1000))),
        "socket.timeout.ms": max(1000, int(exit_.timeout_s * 1000)),
        # Said before the time is up in which something must be acknowledged.
        "topic.metadata.propagation.max.ms": min(10_000, int(exit_.timeout_s * 500)),
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 10_000,
        "socket.keepalive.enable": True,
        "enable.metrics.push": False,
    }


def _secret(key: str, path: str) -> str:
    try:
        return Path(path).read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"the file of {key}, {path}, cannot be read: {error}") from error
