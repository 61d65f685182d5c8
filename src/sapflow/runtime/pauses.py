"""How long until what was lost is tried again: longer each time, jittered, until it has lasted for a while."""

from __future__ import annotations

import random

from attrs import define


@define
class Pauses:
    """Of one connection that is kept."""

    first_s: float
    most_s: float
    steady_s: float
    """One that lasted so long is tried again as if it had never failed."""
    _failures: int = 0

    def after(self, lasted_s: float) -> float:
        """It was lost after so long: how long to wait now."""
        self._failures = self._failures + 1 if lasted_s < self.steady_s else 1
        most = min(self.most_s, self.first_s * 2.0 ** min(self._failures, 16))
        return random.uniform(most / 2, most)
