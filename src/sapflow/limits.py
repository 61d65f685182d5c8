"""What settings may be: the least and the most of each, and which may not be more than another.

Only what would end a process, or stop all work without a word, is refused; the rest is the operator's choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MIB = 1 << 20

LEAST: Mapping[str, float] = {
    "balancer.rebalance_start": 1.01,
    "balancer.rebalance_stop": 1.0,
    "balancer.budget_bytes": 8 * MIB,
    "balancer.spool_bytes": 8 * MIB,
    "collector.budget_bytes": 8 * MIB,
    "phloem.budget_bytes": 8 * MIB,
    "phloem.map_bytes": 16 * MIB,
    "phloem.commit_bytes": 64 << 10,
    "intake.max_unacknowledged_bytes": 128 << 10,
    "meter.spool_bytes": 8 * MIB,
}

MOST: Mapping[str, float] = {
    "collectors": 64,
    "phloems": 64,
    "phloem.kafka_partitions": 10_000,
    "phloem.kafka_copies": 32,
    "balancer.org_share": 1,
    "collector.org_share": 1,
    "phloem.org_share": 1,
    "phloem.map_bytes": 1 << 46,
    "phloem.backlog_rest": 100,
    # A commit is one control frame of the link, in which the state is base64.
    "phloem.group_state_bytes": 40 << 10,
    # It is given to readers in one batch of the link.
    "phloem.options_bytes_per_stream": MIB,
    "balancer.udp_buffer_bytes": 1 << 30,
    # A batch ends with the message that fills it, and its templates come first: all of it must fit into a link's batch.
    "intake.batch_bytes": 512 << 10,
}

MAY_BE_0 = frozenset({"phloem.backlog_rest"})

NOT_MORE_THAN: tuple[tuple[str, str], ...] = (
    ("phloem.commit_bytes", "phloem.budget_bytes"),
    ("phloem.options_bytes_per_stream", "phloem.options_bytes_per_org"),
    ("intake.batch_bytes", "intake.max_unacknowledged_bytes"),
    ("fleet.report_interval_s", "fleet.lease_s"),
    ("balancer.rebalance_stop", "balancer.rebalance_start"),
    ("balancer.malformed_backoff_first_s", "balancer.malformed_backoff_most_s"),
)

FILES = ("tls_certificate", "tls_key", "certificate", "certificate_key", "authority")


def faults(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each setting that cannot be, by its key, with what is wrong."""
    for key, value in settings.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                yield key, f"must be a finite number, is {value}"
            elif value < 0 or (value == 0 and key not in MAY_BE_0):
                yield key, f"must be {'0 or ' if key in MAY_BE_0 else ''}more than 0, is {value}"
            elif value < LEAST.get(key, 0):
                yield key, f"at least {LEAST[key]:,}, is {value:,}"
            elif value > MOST.get(key, math.inf):
                yield key, f"at most {MOST[key]:,}, is {value:,}"
        elif value and key.rpartition(".")[2] in FILES and (why := _unreadable(value)):
            yield key, f"{value} cannot be read: {why}"
    for low, high in NOT_MORE_THAN:
        if settings[low] > settings[high]:
            yield low, f"at most {high}, which is {settings[high]:,}; is {settings[low]:,}"


def _unreadable(path: str) -> str | None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return None
