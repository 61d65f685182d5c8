"""Consumer groups of this node: who reads for each, and what they commit.

A group is read for by one member at a time, so that its order is kept; the others stand by, and the one that has
waited for longest takes over as soon as the one before it is gone. Where nodes share a log, `turns.py` keeps that among
all of them. What may become of a group is `engine/groups.py`; here changes wait for one another, are written together
by one thread, and answered when that is durable.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
import trio
from attrs import define, field, frozen

from phloem.engine.engine import Engine
from phloem.engine.groups import Commit, Declined, Group, Remove, Reset, SharedChange, Take
from phloem.engine.layout import Place, Tail
from phloem.places import CountedPlaces
from phloem.turns import Seat, Turns
from sapflow.errors import Overloaded, StorageError
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

UPKEEP_S = 2.0
"""How often all groups are looked at: for the status, and for those that are idle."""
MOST_SHOWN = 1000
"""Groups that the status shows, those that are furthest behind."""


@frozen
class GroupSettings:
    """Bounds of consumer groups."""

    max_groups_per_org: int = 100
    max_members: int = 16
    state_bytes: int = 32 << 10
    member_timeout_s: float = 300.0
    idle_s: float = 30 * 86_400.0


@define
class GroupCounts:
    """What became of groups and commits; never goes down."""

    commits: int = 0
    takeovers: int = 0
    fenced: int = 0
    resets: int = 0
    idle_removed: int = 0
    failures: int = 0


@define(eq=False)
class _Waiting:
    change: SharedChange
    done: trio.Event = field(factory=trio.Event)
    outcome: Group | Declined | None = None
    error: StorageError | None = None


def _now_us() -> int:
    return int(time.time() * 1e6)


class Groups:
    """The groups of all orgs. `run` writes their changes."""

    def __init__(
        self,
        engine: Engine,
        storage: ThreadKind,
        reading: ThreadKind,
        settings: GroupSettings,
        now_us: Callable[[], int] = _now_us,
    ) -> None:
        self.counts = GroupCounts()
        self.settings = settings
        self.shown: list[dict[str, Any]] = []
        """What the status tells of groups: as `figures`, renewed by `keep`."""
        self.places = CountedPlaces(engine, reading)
        self._engine = engine
        self._shared = engine.shared_groups
        self._thread = storage if self._shared is None else ThreadKind("groups", 1)
        """Writes them. Where it waits for others, it holds up nothing else."""
        self._reading = reading
        self._now_us = now_us
        self._seats: dict[tuple[str, str], list[Seat]] = {}
        self._numbers = itertools.count(1)
        self._turns = Turns(self._shared, self._thread, self._seats, self._make) if self._shared is not None else None
        self._waiting: list[_Waiting] = []
        self._wake = trio.Event()

    # --- members ----------------------------------------------------------------------------------------------

    def members(self, org: str, name: str) -> int:
        """How many members a group has now: at this node, and the one that reads at another."""
        elsewhere = self._shared is not None and self._shared.reader(org, name)
        return len(self._seats.get((org, name), ())) + bool(elsewhere)

    @contextmanager
    def seat(self, org: str, name: str) -> Iterator[Seat]:
        """Be a member, as long as the context lasts. Raises Overloaded when the group has as many as it may."""
        seats = self._seats.setdefault((org, name), [])
        if len(seats) >= self.settings.max_members:
            raise Overloaded(f"group '{name}' has {len(seats)} members, as many as it may (phloem.max_group_members)")
        seat = Seat(next(self._numbers))
        seats.append(seat)
        seats[0].turn.set()
        try:
            yield seat
        finally:
            if seats[0] is seat and len(seats) > 1:
                self.counts.takeovers += 1
                seats[1].turn.set()
            seats.remove(seat)
            if not seats:
                del self._seats[org, name]
            if self._turns is not None:
                self._turns.left()

    async def until_free(self, org: str, name: str) -> None:
        """Wait until a group that was held may be taken, perhaps."""
        assert self._turns is not None
        await self._turns.until_free(org, name)

    async def known(self, org: str, name: str) -> bool:
        """Whether there is such a group. Raises StorageError."""
        await self._refresh()
        return await self._reading.run(lambda: self._engine.group(org, name)) is not None

    # --- changes ----------------------------------------------------------------------------------------------

    async def take(self, org: str, name: str, first: Place, seat: Seat) -> Group | Declined | None:
        """Begin to read for a group; one that is new begins behind `first`. Raises StorageError."""
        outcome = await self._make(Take(org, name, first, self.settings.max_groups_per_org, seat.number))
        if isinstance(outcome, Group):
            seat.generation = outcome.generation
        return outcome

    async def commit(self, commit: Commit) -> Group | Declined | None:
        """Say how far a group has come. Durable when this returns; raises StorageError when it is not."""
        outcome = await self._make(commit)
        if isinstance(outcome, Declined):
            self.counts.fenced += 1
        else:
            self.counts.commits += 1
        return outcome

    async def reset(self, org: str, name: str, place: Place) -> Group | Declined | None:
        """Have a group read from another place; its member begins again there. Raises StorageError."""
        outcome = await self._make(Reset(org, name, place))
        if isinstance(outcome, Group):
            self.counts.resets += 1
            self._dismiss(org, name)
        return outcome

    async def remove(self, org: str, name: str) -> Group | Declined | None:
        """Forget a group that has no members. Raises StorageError."""
        await self._refresh()
        if count := self.members(org, name):
            return Declined("in use", f"group '{name}' has {count} members; stop them first, or reset it instead")
        return await self._make(Remove(org, name))

    def _dismiss(self, org: str, name: str) -> None:
        for seat in self._seats.get((org, name), ()):
            seat.dismissed.set()

    async def _make(self, change: SharedChange) -> Group | Declined | None:
        # Bounded by the connections of the consume door: each waits for one change at a time.
        waiting = _Waiting(change)
        self._waiting.append(waiting)
        self._wake.set()
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.outcome

    async def run(self) -> None:
        """Write the changes that wait, all of them together, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._turns is not None:
                nursery.start_soon(self._turns.run)
            await self._write_all()

    async def _write_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            together, self._waiting = self._waiting, []
            if not together:
                continue
            try:
                outcomes = await self._thread.run(lambda: self._write([one.change for one in together]))  # noqa: B023
                for one, outcome in zip(together, outcomes, strict=True):
                    one.outcome = outcome
            except StorageError as error:
                self.counts.failures += 1
                log.error(
                    "groups not committed",
                    reason=str(error),
                    data="no record is affected; consumers commit again, or read again what they had not committed",
                )
                for one in together:
                    one.error = error
            for one in together:
                one.done.set()

    def _write(self, changes: list[SharedChange]) -> list[Group | Declined | None]:
        """In the thread. A log of our own that failed to sync is opened anew before anything else is written to it."""
        try:
            return self._engine.change_groups(changes, self._now_us())
        except StorageError:
            if not self._engine.is_shared:
                self._engine.reopen()
            raise

    # --- what is told of them ---------------------------------------------------------------------------------

    async def figures(self, org: str) -> list[dict[str, Any]]:
        """An org's groups as they are now. Raises StorageError."""
        await self._refresh()
        groups, tail = await self._reading.run(lambda: (self._engine.groups(org), self._engine.tail(org)))
        return [self._figures(org, name, group, tail) for name, group in groups.items()]

    def _figures(self, org: str, name: str, group: Group, tail: Tail) -> dict[str, Any]:
        return figures(org, name, group, tail, self.members(org, name), measured=self._engine.measures)

    async def keep(self) -> None:
        """Look at all groups now and then: what the status shows, and which are to be forgotten."""
        told = Seldom()
        while True:
            try:
                await self._refresh()
                self.shown, idle = await self._reading.run(self._look)
                for org, name in idle:
                    await self._remove_idle(org, name)
            except StorageError as error:
                if times := told.again(str(error)):
                    log.error("groups not looked at", reason=str(error), times=times, retry_s=UPKEEP_S)
            else:
                told = Seldom()
            await trio.sleep(UPKEEP_S)

    async def _refresh(self) -> None:
        if self._turns is not None:
            await self._turns.refresh()

    def _look(self) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
        idle: list[tuple[str, str]] = []

        def each() -> Iterator[dict[str, Any]]:
            for org in self._engine.orgs_with_groups():
                tail = self._engine.tail(org)
                for name, group in self._engine.groups(org).items():
                    if group.touched_us < self._idle_since() and not self.members(org, name):
                        idle.append((org, name))
                    yield self._figures(org, name, group, tail)

        shown = heapq.nlargest(MOST_SHOWN, each(), key=lambda one: one["lag"]["positions"])
        return sorted(shown, key=lambda one: (one["org"], one["group"])), idle[:MOST_SHOWN]

    def _idle_since(self) -> int:
        return self._now_us() - int(self.settings.idle_s * 1e6)

    async def _remove_idle(self, org: str, name: str) -> None:
        if self.members(org, name):
            return
        if await self._make(Remove(org, name, unless_after_us=self._idle_since())) is None:
            self.counts.idle_removed += 1
            log.info(
                "group removed", org=org, group=name, reason="no member and no commit", idle_s=self.settings.idle_s
            )


def figures(org: str, name: str, group: Group, tail: Tail, members: int, *, measured: bool) -> dict[str, Any]:
    """A group in figures: where it is, how far behind, and what of that is gone.

    `lag` counts what is still to be read, `gap` what retention removed before it was: in positions, and in entries,
    bytes and records, which are None where the log is not measured and positions may be other orgs' too.
    """
    between = partial(_between, measured=measured)
    place, start, end = group.place, tail.start, tail.end
    missed = place.position < start.position
    since = start if missed else place
    behind = end.position > since.position
    return {
        "org": org,
        "group": name,
        "position": place.position,
        "last": end.position,
        "lag": between(since, end) if behind else between(end, end),
        "gap": between(place, start) if missed else None,
        "members": members,
        "generation": group.generation,
        "quarantined": group.quarantined,
        "state_bytes": len(group.state),
        "made_us": group.made_us,
        "touched_us": group.touched_us,
    }


def _between(first: Place, second: Place, *, measured: bool) -> dict[str, int | None]:
    positions = second.position - first.position
    return {
        "positions": positions,
        "entries": positions if measured else None,
        "bytes": second.bytes - first.bytes if measured else None,
        "records": second.records - first.records if measured else None,
    }
