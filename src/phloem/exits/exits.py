"""The exits of this node: those of all orgs, or, where nodes divide them, of the orgs that this one holds."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import attrs

from phloem.exits.exit import Exit, ReadCounts
from phloem.exits.sending import SentCounts
from sapflow.runtime.each import TaskEach


class Exits:
    """A task for each exit; `run` owns them."""

    def __init__(self, exits: Sequence[Exit]) -> None:
        self._exits = {f"{one.config.org}/{one.config.name}": one for one in exits}
        self._tasks = TaskEach(self._keep)
        self._here: dict[str, Exit] = {}
        self.hold(None)

    def hold(self, orgs: Set[str] | None) -> None:
        """Publish for these orgs, and no others; None: for all."""
        self._here = {key: one for key, one in self._exits.items() if orgs is None or one.config.org in orgs}
        self._tasks.of(dict.fromkeys(self._here, ""))

    async def run(self) -> None:
        """Publish until cancelled."""
        await self._tasks.run()

    async def _keep(self, name: str, _address: str) -> None:
        await self._exits[name].run()

    def figures(self) -> list[dict[str, Any]]:
        """What the status tells of each that is this node's work now."""
        return [one.figures() for one in self._here.values()]

    def counts(self) -> dict[str, int]:
        """Of all exits together; never goes down."""
        every = self._exits.values()
        return {**_sums(SentCounts, [one.sent for one in every]), **_sums(ReadCounts, [one.read for one in every])}

    def flow(self) -> dict[str, dict[str, int]]:
        """Out of the log, and acknowledged by topics."""
        counts = self.counts()
        read = {"entries": counts["read_entries"], "records": counts["read_records"]}
        return {"in": read, "out": {unit: counts[unit] for unit in ("messages", "bytes", "records")}}

    def gauges(self) -> dict[str, int]:
        """How many are here, how many of them wait for their Kafka, and what is on its way."""
        here = self._here.values()
        return {
            "exits": len(here),
            "exits_waiting": sum(one.state == "waiting" for one in here),
            "exit_waiting_bytes": sum(one.waiting_bytes for one in here),
        }


def _sums(kind: type, of: Sequence[object]) -> dict[str, int]:
    return {item.name: sum(getattr(one, item.name) for one in of) for item in attrs.fields(kind)}
