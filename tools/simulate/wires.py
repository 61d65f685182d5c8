"""The network between simulated hosts: what is on its way, how long it takes, and what faults do to it.

A path between two hosts has a latency, jitter, a rate, a share of segments that come late (lost once, sent again), and
may be blocked: what would arrive then waits, as TCP sends it again when the path is back. The clock delivers, each at
its time; a delivery is a call. What is delivered are segments of connections, whose ends are `sockets.py`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from tools.simulate.clock import VirtualClock

if TYPE_CHECKING:
    from tools.simulate.hosts import Host
    from tools.simulate.sockets import SimulatedSocket

TICK_S = 0.0005
"""Deliveries fall on multiples of this, so that one waking of the network serves many."""
YIELDS = 0.1
"""Share of the calls that need not wait after which other tasks have their turn all the same."""
SENT_AGAIN_S = 0.25
"""A segment that was lost comes so much later."""

Delivery = Callable[[], None]


@define(eq=False)
class Path:
    """Between two hosts, both ways."""

    usual_s: float = 0.0005
    """Latency and jitter when nothing is wrong."""
    latency_s: float = 0.0005
    jitter_s: float = 0.0005
    bytes_per_s: float = 1e9
    lost: float = 0.0
    """Share of segments that are lost once."""
    blocked: bool = False
    held: list[Delivery] = field(factory=list)
    """What would have arrived since, in order."""

    def mend(self) -> None:
        """As it was at first."""
        self.latency_s = self.jitter_s = self.usual_s
        self.bytes_per_s, self.lost = 1e9, 0.0


class Network:
    """All paths, what is on them, and who listens where."""

    def __init__(self, rng: random.Random, latency_s: float) -> None:
        self.latency_s = latency_s
        """Of a path when nothing is wrong, and its jitter."""
        self.listeners: dict[tuple[str, int], SimulatedSocket] = {}
        self.hosts: dict[str, Host] = {}
        """By address."""
        self.delivered = 0
        self.on_sent: Callable[[SimulatedSocket, memoryview], None] = lambda _socket, _data: None
        """Told of all that is sent."""
        self._rng = rng
        self._paths: dict[tuple[str, str], Path] = {}
        self._due: list[tuple[float, int, Delivery]] = []
        self._count = 0
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, VirtualClock), "a network is driven by the clock of its simulation"
        self._clock = clock
        clock.next_due, clock.deliver = self._next_due, self._deliver

    def path(self, one: Host, other: Host) -> Path:
        """The path between two hosts."""
        key = (one.address, other.address) if one.address < other.address else (other.address, one.address)
        found = self._paths.get(key)
        if found is None:
            found = self._paths[key] = Path(0.0 if one is other else self.latency_s)
            found.mend()
        return found

    def paths(self) -> list[tuple[Host, Host, Path]]:
        """Those between two hosts that were ever used."""
        hosts = self.hosts
        return [(hosts[one], hosts[other], path) for (one, other), path in self._paths.items() if one != other]

    async def step(self) -> None:
        """What a call that did not wait does at its end: sometimes others have their turn.

        With the kernel's sockets others always have it; most of a simulation's time would go into that. It cannot be
        cancelled here: what it did is done.
        """
        if self._rng.random() < YIELDS:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def at(self, when: float, delivery: Delivery) -> None:
        """Have something happen then."""
        self._count += 1
        heapq.heappush(self._due, (when, self._count, delivery))

    def send(self, source: Host, to: Host, size: int, not_before: float, delivery: Delivery) -> float:
        """Bring a segment from one host to another, behind what went before: when it arrives."""
        path = self.path(source, to)
        took_s = path.latency_s + self._rng.random() * path.jitter_s + size / path.bytes_per_s
        if path.lost and self._rng.random() < path.lost:
            took_s += SENT_AGAIN_S
        arrives = max(not_before, (int((self._clock.now + took_s) / TICK_S) + 1) * TICK_S)
        self.at(arrives, lambda: self._arrive(path, delivery))
        return arrives

    def _arrive(self, path: Path, delivery: Delivery) -> None:
        if path.blocked:
            path.held.append(delivery)
        else:
            self.delivered += 1
            delivery()

    def let_go(self, path: Path) -> None:
        """A path is there again."""
        path.blocked = False
        held, path.held = path.held, []
        # At once, so that nothing that is on its way comes before it.
        for delivery in held:
            self.delivered += 1
            delivery()

    def _next_due(self) -> float:
        return self._due[0][0] if self._due else float("inf")

    def _deliver(self) -> None:
        due, now = self._due, self._clock.now
        while due and due[0][0] <= now:
            heapq.heappop(due)[2]()
