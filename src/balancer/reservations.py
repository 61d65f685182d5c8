"""What was promised to collectors and is not in their reports yet. Pure; a step costs the same however many there are.

A promise holds its whole rate at first and fades over `FADE_S`, since what it stands for shows in reports by then. Of
an org it counts whole as long as what was placed is there: that is how the org is spread.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

from attrs import define, field

FADE_S = 30.0


@define(eq=False)
class _Promise:
    key: Hashable
    collector: str
    org: str
    rate: float
    at: float
    fading: bool = True
    ends: bool = False
    """It is no more when it has faded."""


@define
class _Sum:
    """Of promises that fade: their rates, and rates times when they were made, from which what is left follows."""

    rate: float = 0.0
    rate_at: float = 0.0


@define
class _Share:
    rate: float = 0.0
    count: int = 0


@define
class Reservations:
    """Promises by what was placed, with their sums by collector and by org."""

    _promises: dict[Hashable, _Promise] = field(factory=dict)
    _fading: deque[_Promise] = field(factory=deque)
    _sums: dict[str, _Sum] = field(factory=lambda: defaultdict(_Sum))
    _orgs: dict[str, dict[str, _Share]] = field(factory=dict)
    _whole: float = 0.0
    """Rates of all promises."""

    def __len__(self) -> int:
        return len(self._promises)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._promises

    def add(self, key: Hashable, collector: str, org: str, rate: float, now: float) -> None:
        """Reserve `rate` bytes/s on a collector for what is placed there under `key`."""
        self.remove(key)
        promise = self._promises[key] = _Promise(key, collector, org, rate, now)
        self._fading.append(promise)
        self._count(promise, 1)
        share = self._orgs.setdefault(org, {}).setdefault(collector, _Share())
        share.rate += rate
        share.count += 1
        self._whole += rate

    def let_fade(self, key: Hashable) -> None:
        """Nothing will be heard of what was placed under `key`: its promise ends when it has faded."""
        if (promise := self._promises.get(key)) is not None:
            promise.ends = True
            if not promise.fading:
                self.remove(key)

    def remove(self, key: Hashable) -> None:
        """What was placed under `key` is no more."""
        promise = self._promises.pop(key, None)
        if promise is None:
            return
        self._end_fading(promise)
        shares = self._orgs[promise.org]
        share = shares[promise.collector]
        share.rate -= promise.rate
        share.count -= 1
        self._whole = self._whole - promise.rate if self._promises else 0.0
        if not share.count:
            del shares[promise.collector]
            if not shares:
                del self._orgs[promise.org]

    def left(self, collector: str, now: float) -> float:
        """bytes/s that are still reserved on a collector."""
        while self._fading and self._fading[0].at <= now - FADE_S:
            promise = self._fading.popleft()
            self._end_fading(promise)
            if promise.ends and self._promises.get(promise.key) is promise:
                self.remove(promise.key)
        known = self._sums.get(collector)
        return max(0.0, known.rate - (now * known.rate - known.rate_at) / FADE_S) if known is not None else 0.0

    def of_org(self, org: str) -> dict[str, float]:
        """bytes/s of an org's promises by collector."""
        return {name: share.rate for name, share in self._orgs.get(org, {}).items()}

    def part_of(self, org: str) -> float:
        """An org's part of all promises, whole: 0 to 1."""
        mine = sum(share.rate for share in self._orgs.get(org, {}).values())
        return min(1.0, mine / self._whole) if self._whole > 0 else 1.0

    def _end_fading(self, promise: _Promise) -> None:
        if promise.fading:
            promise.fading = False
            self._count(promise, -1)

    def _count(self, promise: _Promise, sign: int) -> None:
        known = self._sums[promise.collector]
        known.rate += sign * promise.rate
        known.rate_at += sign * promise.rate * promise.at
        if abs(known.rate) < 1e-3:
            del self._sums[promise.collector]
