"""Where in an org's log: what consumers ask for (`at`) as a place, and how much lies between places.

Reads of the log that take more than a moment go in steps, each a turn of a reading thread.
"""

from __future__ import annotations

from attrs import frozen

from phloem.engine.engine import Engine
from phloem.engine.layout import Place
from sapflow.errors import LinkError
from sapflow.link import Close
from sapflow.runtime.threads import ThreadKind

STEP = 4096
"""Entries that are walked over at a time."""


@frozen
class Found:
    """A place to begin behind."""

    place: Place
    ahead: int = 0
    """How far that which was asked for lies beyond the log's end; the place is then the end."""
    measured: bool = True
    """Whether the place's bytes and records are known."""


async def find(engine: Engine, reading: ThreadKind, org: str, at: object) -> Found:
    """What "earliest", "latest", a position (behind it) or {"time_us": …} means.

    A position beyond the log's end is from another log, or from a time that this one has lost: reading begins at the
    end. Raises LinkError for what is no position, StorageError.
    """
    tail = await reading.run(lambda: engine.tail(org))
    start, end, measured = tail.start, tail.end, engine.measures
    if at == "earliest" or at == 0:
        return Found(start, measured=measured)
    if at == "latest":
        return Found(end, measured=measured)
    if isinstance(at, int) and not isinstance(at, bool) and at > 0:
        ahead = at - end.position
        return Found(end, ahead, measured) if ahead >= 0 else Found(Place(at), measured=False)
    if isinstance(at, dict) and isinstance(at.get("time_us"), int) and 0 <= at["time_us"] < 1 << 63:
        position = await reading.run(lambda: engine.position_at(org, at["time_us"]))
        return Found(Place(max(0, position - 1)), measured=False)
    raise LinkError(f"'{at!r:.80}' is no position: earliest, latest, a number or a time", code=Close.PROTOCOL)


class CountedPlaces:
    """Places with their bytes and records, where the log counts those."""

    def __init__(self, engine: Engine, reading: ThreadKind) -> None:
        self._engine = engine
        self._reading = reading

    async def find_measured(self, org: str, at: object) -> Found:
        """As `find`, with what lies before the place counted: takes time with the length of the log."""
        found = await find(self._engine, self._reading, org, at)
        if found.measured or not self._engine.measures:
            return found
        start = (await self._reading.run(lambda: self._engine.tail(org))).start
        return Found(await self.walk(org, start, found.place.position), found.ahead)

    async def walk(self, org: str, place: Place, through: int) -> Place:
        """The place at position `through`, counted from one before it; the log's end if that comes first."""
        while place.position < through:
            before = place
            place = await self._reading.run(
                lambda: self._engine.walk(org, before, through, at_most=STEP)  # noqa: B023
            )
            if place == before:
                break
        return place
