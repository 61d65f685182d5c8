"""What an incident is: a timeline of loads and faults, what must hold, what is plotted; and what came of playing it.

A scenario is declared in a file of its own. How its timeline is played on the real fleet is `stage.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from zlib import crc32

from attrs import define, field, frozen

if TYPE_CHECKING:
    from tools.incident.stage import Stage

Progress = Callable[[str, float, float], None]
"""Told what is played, how many virtual seconds of it are done, and of how many."""


@frozen
class Options:
    """How large, for how long, from which seed."""

    seed: int = 1
    meters: int = 5000
    minutes: float = 5.0
    progress: Progress = lambda _what, _done, _all: None

    @property
    def seconds(self) -> float:
        """Virtual seconds, from when the fleet is ready."""
        return self.minutes * 60


@frozen
class Plot:
    """One plot of the report: lines over time, of every recording that has them."""

    key: str
    title: str
    unit: str
    limit: float | None = None
    """A line that must not be crossed, in the unit."""
    limit_is: str = ""


@frozen
class Cue:
    """Something happens at a part of the scenario's time."""

    at: float
    """From 0, when all is ready, to 1, its end."""
    what: str
    do: Callable[[Stage], Awaitable[None]]


@define
class Recording:
    """What came of one playing."""

    name: str
    times: list[float] = field(factory=list)
    """Virtual seconds of each sample."""
    series: dict[str, dict[str, list[float]]] = field(factory=dict)
    """By plot and by line: a value for each sample."""
    events: list[tuple[float, str]] = field(factory=list)
    facts: dict[str, str] = field(factory=dict)
    """Rows of the table."""
    wrong: list[str] = field(factory=list)
    """Invariants that did not hold."""
    trace: int = 0
    """A checksum of all that happened: the same seed gives the same."""
    cpu_s: float = 0.0

    def sample(self, now: float, values: dict[str, dict[str, float]]) -> None:
        """Values of every plot at a time; a line that is not there is 0."""
        self.times.append(round(now, 3))
        before = len(self.times) - 1
        for key, lines in values.items():
            plot = self.series.setdefault(key, {})
            for line, value in lines.items():
                found = plot.setdefault(line, [])
                found += [0.0] * (before - len(found)) + [round(value, 4)]
        for plot in self.series.values():
            for found in plot.values():
                found += [0.0] * (len(self.times) - len(found))

    def event(self, now: float, what: str) -> None:
        """Something happened."""
        self.events.append((round(now, 1), what))

    def require(self, holds: bool, otherwise: str) -> None:
        """An invariant: what is wrong when it does not hold."""
        if not holds:
            self.wrong.append(otherwise)

    def checksum(self) -> int:
        """Of all samples and events."""
        return crc32(repr((self.times, self.series, self.events)).encode())


@frozen
class Scenario:
    """One incident."""

    name: str
    title: str
    story: tuple[str, ...]
    """Paragraphs: what happened then, and what is played."""
    plots: tuple[Plot, ...]
    play: Callable[[Options], list[Recording]]
    meters: int = 200
    """When nothing else is said."""
    minutes: float = 3.0
