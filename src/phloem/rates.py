"""Bytes per second of each org, as it comes in here: what its work weighs when orgs are divided among nodes."""

from __future__ import annotations

from collections.abc import Mapping

INTERVAL_S = 1.0
"""Rates are made anew when so long has passed since they last were."""
SMOOTHING = 0.3
"""How much of the newest interval is in a rate."""
LEAST_BYTES_PER_S = 1.0
"""An org that brings less is not told of any more."""


class OrgRates:
    """Takes sizes by org; the clock is the caller's."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._bytes: dict[str, int] = {}
        self._rates: dict[str, float] = {}

    def add(self, org: str, size: int) -> None:
        """So many bytes of an org came."""
        self._bytes[org] = self._bytes.get(org, 0) + size

    def at(self, now: float) -> Mapping[str, float]:
        """Rates of the orgs that bring any."""
        elapsed = now - self._at
        if elapsed < INTERVAL_S:
            return self._rates
        taken, self._bytes, self._at = self._bytes, {}, now
        rates = {}
        for org in self._rates.keys() | taken.keys():
            # More than one interval may have passed: what was is forgotten by so much more.
            kept = (1 - SMOOTHING) ** (elapsed / INTERVAL_S)
            rate = kept * self._rates.get(org, 0.0) + (1 - kept) * taken.get(org, 0) / elapsed
            if rate >= LEAST_BYTES_PER_S:
                rates[org] = rate
        self._rates = rates
        return rates
