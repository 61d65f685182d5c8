"""What an idle link costs in memory: handed off, relayed, and through HAProxy.

Resident memory of the one process that links go through, before and after, over their number. What the kernel keeps of
sockets and pipes is not in it; a relayed link has two sockets and two pipes, one through HAProxy two sockets.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from tools.bench.front import Front, haproxy_front, most_connections, sapflow_front, stampede
from tools.peers import find

CONNECTIONS = 5000
WARM_UP = 200
DESCRIPTORS = {"sapflow, handed off": 1, "sapflow, relayed": 6, "haproxy": 2}
"""That the process holds for each link, at most."""


def run() -> list[dict[str, Any]]:
    """A row for each way."""
    return measure(CONNECTIONS)


def measure(connections: int) -> list[dict[str, Any]]:
    """Of so many links, or as many as there may be descriptors for."""
    rows = []
    with ExitStack() as stack:
        given = stack.enter_context(sapflow_front("sapflow, handed off", handoff=True))
        rows.append(_row(given, connections))
        if find("haproxy") is not None:
            rows.append(_row(stack.enter_context(haproxy_front(given)), connections))
    with sapflow_front("sapflow, relayed", handoff=False) as relayed:
        rows.insert(1, _row(relayed, connections))
    return rows


def _row(front: Front, wanted: int) -> dict[str, Any]:
    connections = most_connections(wanted, DESCRIPTORS[front.name])
    # What is made once for the first links is not the price of a link.
    stampede(front, WARM_UP).close()
    front.await_links(front.fleet.status()["balancer"]["counts"]["link_door"]["open"] + WARM_UP // 2)
    time.sleep(1.0)
    before = front.rss_bytes()
    herd = stampede(front, connections)
    time.sleep(2.0)
    after = front.rss_bytes()
    herd.close()
    return {
        "what": f"{front.name}, {connections:,} idle links",
        "KiB a link": round((after - before) / connections / 1024, 2),
        "RSS before, MiB": round(before / 2**20, 1),
        "RSS after, MiB": round(after / 2**20, 1),
    }
