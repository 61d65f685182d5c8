"""What streams and links brought while they were there, so that one that comes again is placed by it. Pure, bounded.

What is not known is predicted as its org's median, and never as nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from statistics import median
from typing import TypeVar

from attrs import define, field

Key = TypeVar("Key")
Value = TypeVar("Value")

DEFAULT_RATE = 10_000.0
"""bytes/s of a stream that nothing is known of, not even of its org."""
LEAST_RATE = 1.0
SAMPLE = 64
"""Of an org, those heard of last make its median."""


@define
class RememberedRates:
    """bytes/s by key, and by org; of more than `max_keys` and `max_orgs` those not heard of for longest go first."""

    max_keys: int = 20_000
    max_orgs: int = 10_000
    _rates: OrderedDict[Hashable, float] = field(factory=OrderedDict)
    _orgs: OrderedDict[str, OrderedDict[Hashable, float]] = field(factory=OrderedDict)

    def note(self, key: Hashable, org: str, rate: float) -> None:
        """So much was measured; nothing at all is no measure of what will come."""
        if rate <= 0:
            return
        _put(self._rates, key, rate, self.max_keys)
        sample = self._orgs.get(org)
        if sample is None:
            sample = OrderedDict()
        _put(self._orgs, org, sample, self.max_orgs)
        _put(sample, key, rate, SAMPLE)

    def predict(self, key: Hashable, org: str) -> float:
        """What this key will bring."""
        known = self._rates.get(key)
        if known is None:
            sample = self._orgs.get(org)
            known = median(sample.values()) if sample else DEFAULT_RATE
        return max(known, LEAST_RATE)


def _put(known: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
