"""A rolling restart: one process at a time, the next one when the last is ready and the load even again.

What is asked of the fleet is done by `sapflow up`; here it is only decided what comes next, so who stops in between
leaves all processes running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define

from sapflow.cli.fleet_control import ask_fleet
from sapflow.cli.fleet_file import read_fleet, read_status
from sapflow.errors import SapflowError

LOOK_S = 0.5
EVEN = 1.25
"""The most that one collector may have, in multiples of the mean; or what it was before, where that was more."""
LEAST_BYTES_PER_S = 10_000
"""Collectors that have less than this on average are even."""
_ORDER = ("collector", "phloem", "balancer")


def order_of(fleet: dict[str, Any]) -> list[str]:
    """All processes of a fleet: balancers last, for what they know of streams helps with the others."""
    names = [*fleet["control"], *fleet.get("drained", ())]
    return sorted(names, key=lambda name: (_ORDER.index(name.partition("-")[0]), name))


def unevenness(statuses: dict[str, dict[str, Any]]) -> float:
    """What the most loaded collector has, in multiples of the mean; 1 where there is next to nothing."""
    rates = [one["gauges"]["bytes_per_s"] for one in statuses.values() if one.get("role") == "collector"]
    mean = sum(rates) / len(rates) if rates else 0.0
    return max(rates) / mean if mean >= LEAST_BYTES_PER_S else 1.0


def unsettled(statuses: dict[str, dict[str, Any]], even: float) -> str:
    """Why the fleet is not as it should be: "" when it is."""
    for name, status in statuses.items():
        if "error" in status:
            return f"{name} does not answer: {status['error']}"
    collectors = {name for name, one in statuses.items() if one["role"] == "collector"}
    for name, status in statuses.items():
        if status["role"] == "phloem" and status["counts"]["link"]["links"] < len(collectors):
            return f"{name} has {status['counts']['link']['links']} of {len(collectors)} links to collectors"
        if status["role"] == "balancer" and (missing := collectors - status["loads"].keys()):
            return f"{name} does not know of {', '.join(sorted(missing))}"
    if (now := unevenness(statuses)) > even:
        return f"one collector has {now:.2f} times the mean of all, and {even:.2f} is the most"
    return ""


@define
class Roll:
    """`say` is called with each step."""

    data: str
    within_s: float | None
    balanced_within_s: float
    say: Callable[[dict[str, Any]], None]

    def run(self, names: Sequence[str]) -> None:
        """Restart these, one after the other. Raises SapflowError that says what is in what state."""
        began = time.monotonic()
        even = max(EVEN, 1.05 * unevenness(self._statuses()))
        for number, name in enumerate(names):
            self.say({"event": "restarting", "name": name, "number": number + 1, "of": len(names)})
            try:
                done = ask_fleet(self.data, "restart", name, self.within_s)
                self.say({"event": "restarted", **done})
                seconds = self._settle(name, even)
            except SapflowError as error:
                raise SapflowError(_stopped(str(error), names, number)) from error
            self.say({"event": "settled", "name": name, "seconds": round(seconds, 3)})
        self.say({"event": "done", "of": len(names), "seconds": round(time.monotonic() - began, 3)})

    def _settle(self, name: str, even: float) -> float:
        """Wait until the fleet is as it should be: for how long."""
        began = time.monotonic()
        while why := unsettled(self._statuses(), even):
            if time.monotonic() > began + self.balanced_within_s:
                raise SapflowError(f"{name} is up again, but after {self.balanced_within_s:g} s {why}")
            time.sleep(LOOK_S)
        return time.monotonic() - began

    def _statuses(self) -> dict[str, dict[str, Any]]:
        return read_status(read_fleet(self.data))


def _stopped(why: str, names: Sequence[str], at: int) -> str:
    done, left = ", ".join(names[:at]) or "none", ", ".join(names[at + 1 :]) or "none"
    return f"{why}. The roll has stopped at {names[at]}; restarted: {done}; as they were: {left}"
