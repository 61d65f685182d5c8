"""Once a second: measures what goes where, leaves collectors that do no work, and evens out the load.

The decisions are pure and elsewhere (`idle`, `rebalancing`); here they are given what was measured, and carried out. An
exporter's stream is moved on the uplink, at a batch boundary, make before break. A meter's is moved by its collector,
which is asked over its control link; of several balancers each asks for its own part of the meters' streams.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import structlog
import trio
from attrs import define, field

from balancer.carried_link import CarriedLink
from balancer.doors import LinkDoor
from balancer.idle import IdleCollectors, Work
from balancer.placement import Decision
from balancer.places import Places
from balancer.readings import Readings
from balancer.rebalancing import Move, Rebalancing, StreamLoad
from balancer.steering import Steering, ToldStream
from meter.rendezvous import ranked
from meter.uplink import Uplink, UplinkStream
from sapflow.link import StreamId

log = structlog.get_logger()

LEAST_UNANSWERED_BYTES = 4096
"""Of links carried to a collector: less may be the end of a stream, which needs no answer."""

ASK_AGAIN_S = 10.0
"""Meters that are still at a collector which was left are asked again after so long: one may have moved just before."""


@define
class RoundCounts:
    """What was moved; never goes down."""

    exporters_moved: int = 0
    meters_moved: int = 0
    """Asked to move."""
    idle_collectors: int = 0
    links_cut: int = 0


@define
class _Carried:
    """Of the links carried to one collector: what went in without an answer, and when any was last answered."""

    unanswered_bytes: int = 0
    answered_at: float = float("-inf")


@define(eq=False)
class Rounds:
    """`run()` is its task."""

    places: Places
    uplink: Uplink
    door: LinkDoor
    steering: Steering
    rebalancing: Rebalancing
    idle: IdleCollectors
    interval_s: float = 1.0
    moves_direct: bool = False
    counts: RoundCounts = field(factory=RoundCounts)
    _streams: Readings[StreamId] = field(factory=Readings)
    _links: Readings[object] = field(factory=Readings)
    _carried: Readings[str] = field(factory=Readings)
    _answers: dict[str, _Carried] = field(factory=dict)
    _rates: dict[StreamId, float] = field(factory=dict)
    _asked: dict[str, float] = field(factory=dict)
    """When the meters of a collector that was left lately were last asked to leave it too."""

    async def run(self) -> None:
        """Until cancelled; several balancers do not do it all at the same moment."""
        while True:
            await trio.sleep(self.interval_s * random.uniform(0.9, 1.1))
            self.round(trio.current_time())

    def round(self, now: float) -> None:
        """One round."""
        self._measure(now)
        self._leave_idle(now)
        self._ask_meters_to_leave(now)
        self._rebalance(now)
        self.steering.ask_for_signs(now)

    def _measure(self, now: float) -> None:
        self.places.tell_orgs()
        policy = self.places.policy
        streams = list(self.uplink.streams)
        self._rates = self._streams.read(((stream.id, stream.taken_bytes) for stream in streams), now)
        sent: Counter[str] = Counter()
        for stream in streams:
            rate = self._rates[stream.id]
            policy.rates.note(stream.id, stream.org, rate)
            if stream.target is not None:
                sent[stream.target] += int(rate)
        links = list(self.door.links)
        for (org, meter), rate in {**self._carried_rates(links, now), **self._told_rates(now)}.items():
            policy.rates.note((org, meter), org, rate)
        self._read_answers(links, now)
        carriage = self.door.carriage
        for name, rate in self._carried.read(((name, its.bytes_in) for name, its in carriage.items()), now).items():
            sent[name] += int(rate)
        for name in self.places.addresses:
            policy.sent(name, float(sent[name]))

    def _carried_rates(self, links: list[CarriedLink], now: float) -> dict[tuple[str, str], float]:
        """What each meter brings on links that are carried here, for as long as its collector tells nothing of it."""
        rates: dict[tuple[str, str], float] = {}
        read = self._links.read(((link, link.carriage.bytes_in) for link in links), now)
        for link in links:
            key = (link.hint.org, link.hint.name)
            rates[key] = rates.get(key, 0.0) + read[link]
        return rates

    def _told_rates(self, now: float) -> dict[tuple[str, str], float]:
        """What each meter brings, as its collector tells: of a link that was handed off nothing else is known here."""
        rates: dict[tuple[str, str], float] = {}
        for _collector, stream in self.places.told_lately(now):
            key = (stream.org, stream.meter)
            rates[key] = rates.get(key, 0.0) + stream.rate
        return rates

    def _leave_idle(self, now: float) -> None:
        policy = self.places.policy
        unfit = policy.unfit(now)
        work = {name: self._work(name) for name in self.places.addresses if not policy.is_left(name, now)}
        able = {name: its for name, its in work.items() if name not in unfit or its.outstanding}
        for found in self.idle.judge(able, now):
            policy.idle(found.collector, found.until, found.reason)
            self.counts.idle_collectors += 1
            moved = self._move_all(found.collector)
            cut = self.door.cut(found.collector)
            self.counts.links_cut += cut
            log.warning(
                "collector left",
                collector=found.collector,
                reason=found.reason,
                seconds=round(found.until - now),
                streams_moved=moved,
                links_cut=cut,
                meaning="nothing is lost: what was not acknowledged is sent again to others",
            )

    def _work(self, name: str) -> Work:
        """What a collector has of this balancer, and whether it does it; a sign that it owes is work too.

        Meters that wait for credit have sent only a few bytes, which could as well need no answer.
        """
        work = self._given_work(name)
        silent_since = self.steering.silent_since(name)
        return work if silent_since is None else Work(True, work.progress_at, silent_since)

    def _given_work(self, name: str) -> Work:
        """What it has of streams and links.

        Of its own streams a balancer sees what is acknowledged. Of links that it carries it sees only that bytes come
        back, which may be mere credit: that counts only where there is nothing better.
        """
        carried = self._carried_work(name)
        link = self.uplink.links.get(name)
        if link is None or not link.welcomed:
            return carried
        if any(len(stream.outbox) for stream in link.streams()):
            return Work(True, link.progress_at)
        return Work(carried.outstanding, max(carried.progress_at, link.progress_at))

    def _carried_work(self, name: str) -> Work:
        carried = self._answers.get(name, _Carried())
        return Work(carried.unanswered_bytes >= LEAST_UNANSWERED_BYTES, carried.answered_at)

    def _read_answers(self, links: list[CarriedLink], now: float) -> None:
        answers = {name: _Carried(0, its.answered_at) for name, its in self._answers.items()}
        for link in links:
            its = answers.setdefault(link.collector, _Carried())
            if link.is_answered():
                its.answered_at = now
            its.unanswered_bytes += link.unanswered_bytes
        self._answers = {name: its for name, its in answers.items() if name in self.places.addresses}

    def _move_all(self, collector: str) -> int:
        link = self.uplink.links.get(collector)
        streams = link.streams() if link is not None else []
        for stream in streams:
            target = self.places.choose(stream)
            if target is not None and target.name != collector:
                self.uplink.move(stream, target)
        return len(streams)

    def _ask_meters_to_leave(self, now: float) -> None:
        """Links that were handed off cannot be cut here: their meters are asked, again and again for a while."""
        left = [name for name in self.places.addresses if self.idle.is_left_lately(name, now)]
        self._asked = {name: at for name, at in self._asked.items() if name in left}
        for name in left:
            if now >= self._asked.get(name, -ASK_AGAIN_S) + ASK_AGAIN_S:
                self._asked[name] = now
                if asked := self._ask_all(name, now):
                    log.info("meters asked to leave", collector=name, streams=asked)

    def _ask_all(self, collector: str, now: float) -> int:
        """Have the meters' streams of a collector taken elsewhere: how many."""
        asked = 0
        policy = self.places.policy
        for source, stream in self.places.told_lately(now):
            if source != collector or not self._is_my_part(stream.id):
                continue
            key = ("asked", stream.id)
            decision = policy.place(key, stream.org, now, exclude={collector})
            policy.handed_off(key)
            if isinstance(decision, Decision):
                address = self._address(decision.collector)
                asked += self.steering.ask(collector, stream.id, decision.collector, address, leaves=True)
        self.counts.meters_moved += asked
        return asked

    def _address(self, collector: str) -> str:
        """What a meter is told of where to go: "" when it is to come back to the door."""
        return self.places.addresses[collector] if self.moves_direct else ""

    def _rebalance(self, now: float) -> None:
        places = self.places
        loads = places.policy.measured(now)
        moves = self.rebalancing.decide(loads, self._seen(now), now, balancers=len(places.balancers) or 1)
        by_stream = {move.stream: move for move in moves if move.destination in places.addresses}
        if not by_stream:
            return
        for stream in list(self.uplink.streams):
            if (move := by_stream.pop(stream.id, None)) is not None:
                self._move_mine(move, stream, now)
        for collector, told in places.told_lately(now):
            move = by_stream.get(told.id)
            if move is not None and move.source == collector:
                self._ask_for(move, told)

    def _seen(self, now: float) -> Iterator[StreamLoad]:
        """Streams of its own, and meters' as collectors tell of them."""
        for stream in self.uplink.streams:
            if stream.link is not None and stream.target is not None and not stream.ended:
                yield StreamLoad(stream.id, stream.org, stream.target, self._rates.get(stream.id, 0.0))
        for collector, told in self.places.told_lately(now):
            movable = told.movable and self._is_my_part(told.id)
            yield StreamLoad(told.id, told.org, collector, told.rate, movable)

    def _move_mine(self, move: Move, stream: UplinkStream, now: float) -> None:
        self.counts.exporters_moved += 1
        self.places.moved(move, (stream.exporter,))
        self.places.policy.reserve(stream.id, stream.org, move.destination, now)
        log.info("stream moved", **_said(move), exporter=stream.exporter)
        self.uplink.move(stream, self.places.target(move.destination))

    def _ask_for(self, move: Move, stream: ToldStream) -> None:
        if self.steering.ask(move.source, move.stream, move.destination, self._address(move.destination)):
            self.counts.meters_moved += 1
            self.places.moved(move, (stream.exporter, stream.meter))
            log.info("stream moved", **_said(move), meter=stream.meter)

    def _is_my_part(self, stream: bytes) -> bool:
        balancers = self.places.balancers
        return len(balancers) < 2 or next(ranked(stream, balancers)) == self.places.name


def _said(move: Move) -> dict[str, str]:
    return {
        "stream": move.stream.hex(),
        "org": move.org,
        "source": move.source,
        "destination": move.destination,
        "reason": move.reason,
    }
