"""What exporters sent that could not be read, counted by reason: in all, and for those that did so last.

Reasons are the few labels of `MalformedMessage` and `Cut`. How many exporters are remembered one by one is bounded;
the totals forget nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping

from attrs import define, field


@define
class Faults:
    """Counts that never go down, and the exporters (by address) that made them rise last."""

    max_exporters: int = 256
    by_reason: Counter[str] = field(factory=Counter)
    by_exporter: OrderedDict[str, Counter[str]] = field(factory=OrderedDict)
    """Those at fault last are at its end."""

    def count(self, exporter: str, reasons: Mapping[str, int]) -> int:
        """Add these: how many the exporter now has."""
        self.by_reason.update(reasons)
        known = self.by_exporter.setdefault(exporter, Counter())
        known.update(reasons)
        self.by_exporter.move_to_end(exporter)
        if len(self.by_exporter) > self.max_exporters:
            self.by_exporter.popitem(last=False)
        return known.total()
