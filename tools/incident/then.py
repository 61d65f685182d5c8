"""The service of 2012 as a small model: customers' meters, DNS, collectors, Phloem's threads, and Kafka.

It is a model and no more: one step a second, a customer's meters as one number, and figures that are guesses, chosen so
that the parts fail each other as they did. How they did is the model:

Rule 1: DNS (GSLB) gives a customer's resolver the collector with fewest connections; all of its meters are there.
Rule 2: a collector keeps what it cannot process in memory, without a bound, and dies of that. It comes back empty.
Rule 3: meters keep nothing. They find the same address in the cache until it expires, and then all come at once.
Rule 4: Phloem connects from the threads that consume: a dead collector holds one for each customer, until a timeout.
Rule 5: what its threads do not consume is in its memory, without a bound, until the process is killed.
Rule 6: Kafka then was not shut down cleanly, and reads every file for 20 to 60 minutes. Nothing is consumed meanwhile.
"""

from __future__ import annotations

import random

from attrs import define, field, frozen

from tools.incident.scenario import Recording

MIB = 1 << 20
RECORD_BYTES = 56


@frozen
class Then:
    """What the model takes for granted. Rates are of the whole fleet's size; `meters` scales what is not."""

    orgs: int
    meters: int
    base_bps: float
    """Bytes per second of all meters, usually."""
    surge_bps: float
    """What one customer sends more."""
    surge: tuple[float, float]
    """From and until, in seconds."""
    collectors: int
    capacity_bps: float
    """Of one collector."""
    accept_s: float
    scale: float = 1.0
    """Sizes of memory, as a part of those of a fleet of 5,000 meters."""
    collector_memory_bytes: float = 256 * MIB
    restart_s: float = 60.0
    dns_s: tuple[float, float] = (20.0, 60.0)
    """Until a resolver asks again."""
    threads: int = 32
    consume_most: float = 1.5
    """Times the usual load, when all threads consume."""
    connect_timeout_s: float = 21.0
    """A connect that is not answered, three SYNs."""
    phloem_memory_bytes: float = 256 * MIB
    kafka_s: tuple[float, float] = (1200.0, 3600.0)
    most_s: float = 8 * 3600.0
    calm_s: float = 60.0
    """All must be well for so long before it counts as over."""


@define
class _Customer:
    name: str
    meters: int
    bps: float
    collector: _Collector
    cached_until: float
    connected: int = 0


@define(eq=False)
class _Collector:
    name: str
    queue: float = 0.0
    up_at: float = 0.0
    links: int = 0
    took: float = 0.0


@define
class _Phloem:
    backlog: float = 0.0
    up_at: float = 0.0
    blocked: int = 0


@define
class Model:
    """`run()` plays it until all is well again."""

    then: Then
    rng: random.Random
    recording: Recording = field(factory=lambda: Recording("2012, a model"))
    lost_bytes: float = 0.0
    deaths: int = 0
    recoveries_s: float = 0.0
    collectors: list[_Collector] = field(init=False)
    customers: list[_Customer] = field(init=False)
    phloem: _Phloem = field(factory=_Phloem)
    now: float = 0.0

    def __attrs_post_init__(self) -> None:
        then = self.then
        self.collectors = [_Collector(f"collector-{number}") for number in range(1, then.collectors + 1)]
        self.customers = [
            _Customer(
                f"org-{number}",
                then.meters // then.orgs,
                then.base_bps / then.orgs,
                # Rule 1: by number of connections, none of which says what it will carry.
                self.collectors[(number - 1) % then.collectors],
                self.rng.uniform(*then.dns_s),
                then.meters // then.orgs,
            )
            for number in range(1, then.orgs + 1)
        ]

    def run(self) -> Recording:
        """One step a second."""
        then, recording = self.then, self.recording
        well_since: float | None = None
        worst_at = then.surge[0]
        while self.now < then.most_s:
            self.now += 1.0
            self._step()
            if self.now > then.surge[1] and self._is_well():
                well_since = self.now if well_since is None else well_since
                if self.now - well_since >= then.calm_s:
                    break
            else:
                well_since, worst_at = None, self.now
        over = well_since is not None
        took_s = worst_at - then.surge[0]
        recording.facts = {
            "records lost": f"{self.lost_bytes / RECORD_BYTES:,.0f}",
            "collectors that died": f"{self.deaths}",
            "time to recover": minutes(took_s) if over else f"not within {minutes(then.most_s)}",
            "of which Kafka reads its files": minutes(self.recoveries_s),
            "fewest collectors alive": f"{min(recording.series['alive']['collectors']):.0f} of {then.collectors}",
            "most memory of one collector": f"{max(map(max, recording.series['memory'].values())):,.0f} MiB",
        }
        recording.trace = recording.checksum()
        return recording

    def _step(self) -> None:
        taken = self._collect()
        self._consume(taken)
        recording = self.recording
        recording.sample(
            self.now,
            {
                "load": {one.name: one.took * 8 / 1e6 for one in self.collectors},
                "alive": {"collectors": sum(map(self._is_up, self.collectors))},
                "backlog": {"in Phloem's memory": self.phloem.backlog / MIB},
                "memory": {one.name: one.queue / MIB for one in self.collectors},
                "lost": {"records lost": self.lost_bytes / RECORD_BYTES},
                "threads": {"threads that wait for a connect": self.phloem.blocked},
            },
        )

    def _sent(self, customer: _Customer) -> float:
        surging = customer is self.customers[0] and self.then.surge[0] <= self.now < self.then.surge[1]
        return customer.bps + (self.then.surge_bps if surging else 0.0)

    def _is_up(self, collector: _Collector) -> bool:
        return self.now >= collector.up_at

    def _collect(self) -> float:
        """One second of all collectors: bytes that they pass on."""
        for customer in self.customers:
            self._look_up(customer)
        passed = 0.0
        for collector in self.collectors:
            collector.took = 0.0
            if self._is_up(collector):
                passed += self._work(collector, [one for one in self.customers if one.collector is collector])
        for customer in self.customers:
            # Rule 3: a meter that has no connection keeps nothing.
            self.lost_bytes += self._sent(customer) * (1 - customer.connected / customer.meters)
        return passed

    def _look_up(self, customer: _Customer) -> None:
        if self.now < customer.cached_until or self._is_up(customer.collector):
            return
        up = [one for one in self.collectors if self._is_up(one)]
        customer.cached_until = self.now + self.rng.uniform(*self.then.dns_s)
        if up:
            customer.collector = min(up, key=lambda one: (self._links(one), one.name))

    def _links(self, collector: _Collector) -> int:
        return sum(one.connected for one in self.customers if one.collector is collector)

    def _work(self, collector: _Collector, customers: list[_Customer]) -> float:
        then = self.then
        time_left = 1.0
        for customer in customers:
            # All come at once; each new connection costs what it costs.
            new = min(customer.meters - customer.connected, int(time_left / then.accept_s))
            customer.connected += new
            time_left -= new * then.accept_s
            arrived = self._sent(customer) * customer.connected / customer.meters
            collector.took += arrived
            collector.queue += arrived
        done = min(collector.queue, then.capacity_bps * time_left)
        collector.queue -= done
        if collector.queue > then.collector_memory_bytes * then.scale:
            self._die(collector, customers)
        return done

    def _die(self, collector: _Collector, customers: list[_Customer]) -> None:
        self.deaths += 1
        # Those of one place do not all find out in the same second.
        collector.up_at = self.now + self.then.restart_s * self.rng.uniform(0.8, 1.2)
        self.lost_bytes += collector.queue
        collector.queue = collector.took = 0.0
        for customer in customers:
            customer.connected = 0
        names = ", ".join(customer.name for customer in customers)
        self.recording.event(self.now, f"{collector.name} dies of its memory, with all meters of {names}")

    def _consume(self, arrived: float) -> None:
        then, phloem = self.then, self.phloem
        if self.now < phloem.up_at:
            self.lost_bytes += arrived
            phloem.blocked = 0
            return
        dead = sum(not self._is_up(one) for one in self.collectors)
        wanted = dead * then.orgs
        # A thread that waits for one that came back is free when its own time is over.
        ended = max(1, round(phloem.blocked / then.connect_timeout_s)) if phloem.blocked > wanted else 0
        phloem.blocked = min(then.threads, max(wanted, phloem.blocked - ended))
        most = then.base_bps * then.consume_most
        phloem.backlog += arrived
        phloem.backlog -= min(phloem.backlog, most * (1 - phloem.blocked / then.threads))
        if phloem.backlog > then.phloem_memory_bytes * then.scale:
            reads_s = self.rng.uniform(*then.kafka_s)
            self.recoveries_s += reads_s
            phloem.up_at = self.now + reads_s
            self.lost_bytes += phloem.backlog
            phloem.backlog = 0.0
            self.recording.event(
                self.now, f"Phloem is killed for its memory; Kafka reads its files for {minutes(reads_s)}"
            )

    def _is_well(self) -> bool:
        return (
            all(map(self._is_up, self.collectors))
            and all(customer.connected == customer.meters for customer in self.customers)
            and self.now >= self.phloem.up_at
            and self.phloem.backlog < self.then.base_bps
            and all(one.queue < self.then.capacity_bps for one in self.collectors)
        )


def minutes(seconds: float) -> str:
    """For people."""
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:,.0f} s"
