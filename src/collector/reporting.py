"""What this collector says of itself: its load to the coordinator, and to each balancer also its meters' streams.

A balancer has a control link of its own here, apart from those that carry data: once a second it is told the load, the
largest streams of meters and which orgs are here, and it asks for moves over it. So what is known of a collector does
not wait behind its data, and goes on when the coordinator is gone.

    notice kind=load    bytes_per_s, lag_s, held_bytes, budget_bytes, up_s, draining, streams, orgs
    notice kind=move    stream, to, address: from a balancer
    notice kind=away    peers, deadline_s: from a balancer that ends and carries links which come from these addresses
"""

from __future__ import annotations

from heapq import nlargest
from typing import Any

import trio

from collector.carried import Carried
from collector.endpoints import Endpoint
from collector.sessions import Collector
from sapflow.link import Connection
from sapflow.monitor.machine import Figures
from sapflow.monitor.ratio import Flow, Ratio, note

MOST_STREAMS = 400
MOST_ORGS = 200
"""Told in one notice; where names are long, of streams as many as a control frame can hold."""
MOST_UNSENT_BYTES = 256 << 10
"""A balancer that does not read what it is told is told no more until it does."""


class Reporting:
    """Reads the figures once an interval, and tells those who listen. `run()` is its task."""

    def __init__(self, collector: Collector, figures: Figures, interval_s: float) -> None:
        self._collector = collector
        self._figures = figures
        self._interval_s = interval_s
        self._began = trio.current_time()
        self._rate = _Rate()
        self.bytes_per_s = 0.0
        """Over all links, as last read."""
        self.ratio = Ratio()
        """What goes to durable subscribers for each byte taken in."""

    def load(self) -> dict[str, Any]:
        """As last read."""
        pool = self._collector.pool
        return {
            "bytes_per_s": self.bytes_per_s,
            "held_bytes": pool.used_bytes,
            "budget_bytes": pool.budget_bytes,
            "up_s": round(trio.current_time() - self._began, 1),
            "draining": self._collector.is_draining,
            **self._figures.read(),
        }

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self._interval_s)
            now = trio.current_time()
            carried = self._collector.carried
            self.bytes_per_s = self._rate.of(self._collector.counts.bytes_in, now)
            carried.measure(now)
            carried.note_ignored(now)
            self._collector.note_gone(now)
            note(self.ratio, flow(self._collector.endpoints), now)
            self.tell()

    def tell(self) -> None:
        """Tell balancers, on their control links."""
        now = trio.current_time()
        watchers = [one for one in self._collector.watchers.values() if one.unsent_bytes < MOST_UNSENT_BYTES]
        if not watchers:
            return
        fields = {"kind": "load", **self.load(), "orgs": orgs_told(self._collector.endpoints)}
        streams = streams_told(self._collector.carried, now)
        for session in watchers:
            session.send(_fitting(session.connection, fields, streams))


def flow(endpoints: dict[str, Endpoint]) -> Flow:
    """Of all orgs together, to and from durable subscribers only: live ones shed, as they may."""
    of = endpoints.values()
    return Flow(sum(e.taken.bytes for e in of), sum(e.given.bytes for e in of), sum(e.due_bytes for e in of))


def streams_told(carried: Carried, now: float, most: int = MOST_STREAMS) -> list[list[Any]]:
    """The largest streams as they are told: id, org, bytes/s, whether it may be moved, exporter, meter."""
    return [
        [
            stream.state.id.hex(),
            stream.state.org,
            round(stream.rate),
            int(carried.is_movable(stream, now)),
            stream.state.exporter[:48],
            stream.meter[:48],
        ]
        for stream in carried.largest(most)
    ]


def orgs_told(endpoints: dict[str, Endpoint], most: int = MOST_ORGS) -> list[str]:
    """The orgs that have most streams here."""
    largest = nlargest(most, endpoints.values(), key=lambda endpoint: len(endpoint.streams))
    return [endpoint.org for endpoint in largest if endpoint.streams]


def _fitting(connection: Connection, fields: dict[str, Any], streams: list[list[Any]]) -> bytes:
    """A notice with as many streams as a control frame can hold."""
    most = connection.limits.max_control_bytes
    while len(notice := connection.notice(**fields, streams=streams)) > most and streams:
        streams = streams[: len(streams) // 2]
    return notice


class _Rate:
    """Bytes per second between two readings, smoothed over a few."""

    def __init__(self) -> None:
        self._before = (0, 0.0)
        self._rate = 0.0

    def of(self, total: int, now: float) -> float:
        count, at = self._before
        if at and now > at:
            self._rate += 0.5 * ((total - count) / (now - at) - self._rate)
        self._before = (total, now)
        return round(self._rate, 1)
