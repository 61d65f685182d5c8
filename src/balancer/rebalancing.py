"""Which long-lived streams go to another collector, and which: both chosen together. Pure; clock and dice are given.

Rule 1: it begins when the most loaded collector has more than `start` times the mean, and goes on until it has less
        than `stop` times: between the two nothing begins, so noise moves nothing to and fro.
Rule 2: what is moved in a round brings neither end past the mean. Only a stream that is too large for that may cross
        it, and only when the more loaded of the two ends has clearly less afterwards than before.
Rule 3: after a round nothing is decided until reports show what it did: `settle_s`.
Rule 4: in a round one of n balancers moves a part of n + 1 of what is too much. All together do not move too much, not
        even with one more that nobody knows of yet; what is left follows with the next round.
Rule 5: no stream is moved twice within `cooldown_s`, as long as it is where it was moved to. One that stayed where it
        was is asked again after a pause that grows, and others come before it. One that is elsewhere lost its collector
        since then, and was placed anew.
Rule 6: what is moved in a minute is bounded in bytes. Nothing goes onto a collector that is unfit, or past what one
        that is new may have yet; an org that is on two collectors is not brought onto one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence

from attrs import define, evolve, field, frozen

CLEAR_GAIN = 0.05
"""Of the mean: by so much the more loaded end must have less before a stream crosses the mean (rule 2)."""
ASK_AGAIN_S = 15.0
"""A stream that was asked to move and is still there is left alone for so long, times how often it was asked."""
MAX_MOVES = 500
"""In a round: each costs its meter a connection."""


@frozen
class RebalancingSettings:
    """Thresholds in multiples of the mean load, and what bounds the moves."""

    start: float = 1.25
    stop: float = 1.1
    cooldown_s: float = 300.0
    settle_s: float = 4.0
    bytes_per_minute: float = float(32 << 30)
    """What the streams moved within a minute bring in a minute."""
    least_bytes_per_s: float = 10_000.0
    """Nothing is moved while the collectors have less than this on average."""
    max_remembered: int = 50_000
    """Streams whose moves are remembered."""


@frozen
class CollectorLoad:
    """A collector that reports: its bytes/s, why nothing may go there now ("": it may), how far it has ramped up."""

    name: str
    rate: float
    unfit: str = ""
    ramp: float = 1.0
    """The part of the mean load that it may have."""


@frozen
class StreamLoad:
    """A stream that this balancer carries or sees, where it is, its bytes/s; `movable`: by this balancer, now."""

    id: bytes
    org: str
    collector: str
    rate: float
    movable: bool = True


@frozen
class Move:
    """A stream is to go from one collector to another, and why."""

    stream: bytes
    org: str
    source: str
    destination: str
    rate: float
    reason: str


@define
class _Asked:
    source: str
    destination: str
    at: float
    times: int = 1


@define
class Rebalancing:
    """One balancer's rounds; `dice` gives numbers from 0 to 1."""

    settings: RebalancingSettings
    dice: Callable[[], float]
    active: bool = False
    _not_before: float = 0.0
    _asked: OrderedDict[bytes, _Asked] = field(factory=OrderedDict)
    _spent: deque[tuple[float, float]] = field(factory=deque)

    def decide(
        self, collectors: Iterable[CollectorLoad], streams: Iterable[StreamLoad], now: float, *, balancers: int = 1
    ) -> list[Move]:
        """The moves of this moment; none while the last ones settle. `streams` are looked at only when one is due."""
        if now < self._not_before:
            return []
        by_name = {one.name: one for one in collectors}
        if len(by_name) < 2 or not self._is_due([one.rate for one in by_name.values()]):
            return []
        moves = _Round(self, by_name, list(streams), now, max(balancers, 1)).moves()
        for move in moves:
            self._remember(move, now)
        if moves:
            self._not_before = now + self.settings.settle_s * (1 + self.dice() / 2)
        return moves

    def rests(self, stream: StreamLoad, now: float) -> bool:
        """Whether a stream is left alone for now, since it was moved or asked to."""
        asked = self._asked.get(stream.id)
        if asked is None:
            return False
        if stream.collector == asked.destination:
            return now < asked.at + self.settings.cooldown_s
        pause = min(ASK_AGAIN_S * asked.times, self.settings.cooldown_s)
        return stream.collector == asked.source and now < asked.at + pause

    def times_asked(self, stream: bytes) -> int:
        """How often a stream was asked to leave the collector that it was on, in vain or not."""
        asked = self._asked.get(stream)
        return asked.times if asked is not None else 0

    def left_bytes(self, now: float) -> float:
        """What is left of the minute's budget."""
        while self._spent and self._spent[0][0] <= now - 60.0:
            self._spent.popleft()
        return self.settings.bytes_per_minute - sum(size for _, size in self._spent)

    def _is_due(self, rates: list[float]) -> bool:
        mean = sum(rates) / len(rates)
        ratio = max(rates) / mean if mean >= self.settings.least_bytes_per_s else 0.0
        self.active = ratio > (self.settings.stop if self.active else self.settings.start)
        return self.active

    def _remember(self, move: Move, now: float) -> None:
        before = self._asked.pop(move.stream, None)
        times = before.times + 1 if before is not None and before.source == move.source else 1
        self._asked[move.stream] = _Asked(move.source, move.destination, now, times)
        if len(self._asked) > self.settings.max_remembered:
            self._asked.popitem(last=False)
        self._spent.append((now, move.rate * 60.0))


class _Round:
    """One round: loads change as moves are found."""

    def __init__(
        self,
        owner: Rebalancing,
        collectors: dict[str, CollectorLoad],
        streams: Sequence[StreamLoad],
        now: float,
        balancers: int,
    ) -> None:
        self._owner = owner
        self._now = now
        self._balancers = balancers
        self._part = 1.0 / (balancers + 1)
        self._collectors = collectors
        self._mean = sum(one.rate for one in collectors.values()) / len(collectors)
        self._fit = [name for name, one in collectors.items() if not one.unfit]
        self._room = {
            name: (self._mean * min(1.0, one.ramp) - one.rate) * self._part for name, one in collectors.items()
        }
        self._width = Counter((one.org, one.collector) for one in streams)
        self._streams: dict[str, list[StreamLoad]] = {}
        for stream in streams:
            if stream.movable and stream.rate > 0 and not owner.rests(stream, now):
                self._streams.setdefault(stream.collector, []).append(stream)
        self._budget = owner.left_bytes(now) / 60.0
        self._moves: list[Move] = []

    def moves(self) -> list[Move]:
        loaded = sorted(self._collectors.values(), key=lambda one: -one.rate)
        for source in loaded:
            if source.rate <= self._mean or not self._fit:
                break
            before = len(self._moves)
            self._lighten(source)
            if len(self._moves) == before:
                self._move_a_large_one(source)
        return self._moves

    def _candidates(self, source: CollectorLoad) -> list[StreamLoad]:
        times = self._owner.times_asked
        return sorted(self._streams.get(source.name, ()), key=lambda one: (times(one.id), -one.rate, one.id))

    def _lighten(self, source: CollectorLoad) -> None:
        """Streams that fit below what is too much here and into what is missing elsewhere, the largest first."""
        allowance = (source.rate - self._mean) * self._part
        most_room = max((self._room[name] for name in self._fit if name != source.name), default=0.0)
        for stream in self._candidates(source):
            if len(self._moves) >= MAX_MOVES:
                return
            if stream.rate > min(allowance, most_room, self._budget):
                continue
            destination = self._destination(stream)
            if destination is None or stream.rate > self._room[destination]:
                continue
            allowance -= stream.rate
            self._move(stream, source, destination)
            most_room = max(self._room[name] for name in self._fit if name != source.name)

    def _move_a_large_one(self, source: CollectorLoad) -> None:
        """One stream that crosses the mean, when both ends together are clearly the better for it: the smallest."""
        if len(self._moves) >= MAX_MOVES or self._owner.dice() * self._balancers > 1.0:
            return
        for stream in reversed(self._candidates(source)):
            destination = self._destination(stream)
            if destination is None or stream.rate > self._budget:
                continue
            there = self._collectors[destination]
            after = max(source.rate - stream.rate, there.rate + stream.rate)
            if there.ramp >= 1.0 and after <= source.rate - CLEAR_GAIN * self._mean:
                self._move(stream, source, destination)
                return

    def _destination(self, stream: StreamLoad) -> str | None:
        fit = [name for name in self._fit if name != stream.collector and self._keeps_width(stream, name)]
        return max(fit, key=lambda name: (self._room[name], name), default=None)

    def _keeps_width(self, stream: StreamLoad, destination: str) -> bool:
        """Whether the org is on two collectors afterwards, when it is now."""
        org, width = stream.org, self._width
        if width[org, stream.collector] > 1 or not width[org, destination]:
            return True
        return any(width[org, name] for name in self._collectors if name not in (stream.collector, destination))

    def _move(self, stream: StreamLoad, source: CollectorLoad, destination: str) -> None:
        there, rate = self._collectors[destination], stream.rate
        reason = (
            f"{source.name} has {source.rate / self._mean:.2f} times the mean of {self._mean:,.0f} B/s, "
            f"{destination} {there.rate / self._mean:.2f} times; this stream brings {rate:,.0f} B/s"
        )
        self._moves.append(Move(stream.id, stream.org, source.name, destination, rate, reason))
        self._room[destination] -= rate
        self._budget -= rate
        self._collectors[destination] = evolve(there, rate=there.rate + rate)
        self._width[stream.org, source.name] -= 1
        self._width[stream.org, destination] += 1
