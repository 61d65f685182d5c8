"""Rates out of counters that only grow, read about once a second. Pure; the clock is given."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from attrs import define, field

Key = TypeVar("Key", bound=Hashable)

SMOOTHING = 0.3
"""Of a new reading: exporters' batches go out about once a second, so that one reading alone says little."""


@define
class _Counter:
    total: int
    at: float
    rate: float = 0.0


@define
class Readings(Generic[Key]):
    """Smoothed rates of what is there now; what is not read is forgotten."""

    _counters: dict[Key, _Counter] = field(factory=dict)

    def read(self, totals: Iterable[tuple[Key, int]], now: float) -> dict[Key, float]:
        """The rate of each counter, a second. One that is read for the first time has none yet."""
        counters: dict[Key, _Counter] = {}
        for key, total in totals:
            known = self._counters.get(key)
            if known is None:
                known = _Counter(total, now)
            elif now > known.at:
                reading = (total - known.total) / (now - known.at)
                known.rate += (SMOOTHING if known.rate else 1.0) * (reading - known.rate)
                known.total, known.at = total, now
            counters[key] = known
        self._counters = counters
        return {key: counter.rate for key, counter in counters.items()}
