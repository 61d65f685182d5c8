"""10,000 meters that connect again at once: through the balancer, which hands them off, and through HAProxy, in turn.

Both are in front of the same two collectors, which serve each link (its hello is read, and its welcome has come back)
in the same way. Where a process may not hold as many descriptors as HAProxy needs, two a link, there are fewer.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median
from typing import Any

from attrs import frozen

from tools.bench.front import Front, haproxy_front, most_connections, sapflow_front, stampede
from tools.peers import find

CONNECTIONS = 10_000
ROUNDS = 3
SETTLE_S = 1.0


@frozen
class _Round:
    seconds: float
    p99_s: float
    cpu_s: float


def run() -> list[dict[str, Any]]:
    """Medians of rounds that alternate."""
    return measure(most_connections(CONNECTIONS, 2), ROUNDS)


def measure(connections: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each that links go through."""
    with ExitStack() as stack:
        fronts = [stack.enter_context(sapflow_front("sapflow, hand-off", handoff=True))]
        if find("haproxy") is not None:
            fronts.append(stack.enter_context(haproxy_front(fronts[0])))
        found: dict[str, list[_Round]] = {front.name: [] for front in fronts}
        for _ in range(rounds):
            for front in fronts:
                found[front.name].append(_round(front, connections))
        handed = fronts[0].fleet.status()["balancer"]["counts"]["link_door"]
        assert handed["handed"] == rounds * connections, f"not all were handed off: {handed}"
    peer = median(one.seconds for one in found["haproxy"]) if "haproxy" in found else None
    return [_row(name, connections, its, peer) for name, its in found.items()]


def _round(front: Front, connections: int) -> _Round:
    before, cpu = front.links(), front.cpu_s()
    herd = stampede(front, connections)
    used = front.cpu_s() - cpu
    herd.close()
    front.await_links(before)
    time.sleep(SETTLE_S)
    return _Round(herd.seconds, herd.quantile(0.99), used)


def _row(name: str, connections: int, rounds: list[_Round], peer: float | None) -> dict[str, Any]:
    seconds = median(one.seconds for one in rounds)
    return {
        "what": f"{name}, {connections:,} links",
        "served in, s": round(seconds, 2),
        "links/s": round(connections / seconds),
        "p99, ms": round(median(one.p99_s for one in rounds) * 1e3),
        "its CPU, s": round(median(one.cpu_s for one in rounds), 2),
        "times as fast as haproxy": round(peer / seconds, 2) if peer else "-",
    }
