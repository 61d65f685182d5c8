"""Nodes of one fleet on a real Kafka, for tests of what they share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tools.peers.server import Server

from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.settings import KafkaSettings

Open = Callable[[str], KafkaLog]
"""A node of that name, which is closed at the end."""
COMPACTED_SOON = {"log.cleaner.backoff.ms": "100", "log.cleaner.min.cleanable.ratio": "0.01"}
"""Of a broker: what stands in a compacted topic twice goes as soon as it may."""


@contextmanager
def nodes(broker: Server, *, per_org: bool, **settings: Any) -> Iterator[Open]:
    """Open nodes of a fleet that nobody else has."""
    fleet = f"fleet.{secrets.token_hex(4)}"
    with ExitStack() as stack:

        def opened(node: str) -> KafkaLog:
            log = KafkaLog(KafkaSettings(broker.address, fleet, node, topic_per_org=per_org, partitions=2, **settings))
            stack.callback(log.close)
            log.reopen()
            return log

        yield opened
