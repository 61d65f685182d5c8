"""Whose turn it is among the members of several nodes, which share a log.

On one node members queue; the first of each node's queue tries to take the group, and waits while another node's member
has it. Here a task hears what became of groups everywhere: it wakes who waits once a group is free, sends away who was
taken from, gives back what a member of this node had when it left, and gives a sign of life while members read, so that
other nodes leave them alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import structlog
import trio
from attrs import define, field

from phloem.engine.engine import SharedGroups
from phloem.engine.groups import Beat, Leave, SharedChange
from sapflow.errors import StorageError
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

WATCH_S = 0.25
"""How often the groups' topic is looked at while there are members."""
BEAT_S = 1.5
"""How often a node whose members read says that it is there; `kafka.group_log.LEASE_S` is four times that."""

Key = tuple[str, str]
"""Org and group."""


@define(eq=False)
class Seat:
    """A member's place in its group's queue."""

    number: int = 0
    turn: trio.Event = field(factory=trio.Event)
    """Set when it is the first of its node."""
    dismissed: trio.Event = field(factory=trio.Event)
    """Set when the group was reset, or taken over: what is under way for it counts no more."""
    generation: int | None = None
    """With which it reads."""


class Turns:
    """Of one node. `run()` is its task; `seats` are those of its members, and `change` writes."""

    def __init__(
        self,
        shared: SharedGroups,
        thread: ThreadKind,
        seats: Mapping[Key, Sequence[Seat]],
        change: Callable[[SharedChange], Awaitable[object]],
    ) -> None:
        self._shared = shared
        self._thread = thread
        self._seats = seats
        self._change = change
        self._waiting: dict[Key, list[trio.Event]] = {}
        self._nudged = trio.Event()
        self._is_reading = False
        """Whether a group may be this node's by what was last heard."""
        self._next_beat = 0.0

    async def refresh(self) -> None:
        """Hear what other nodes did by now. Raises StorageError."""
        await self._thread.run(self._shared.refresh)

    async def until_free(self, org: str, name: str) -> None:
        """Wait until a member of this node may try to take a group."""
        event = trio.Event()
        waiting = self._waiting.setdefault((org, name), [])
        waiting.append(event)
        try:
            await event.wait()
        finally:
            waiting.remove(event)
            if not waiting:
                self._waiting.pop((org, name), None)

    def left(self) -> None:
        """A member is gone; others need not wait."""
        self._is_reading = True
        self._nudged.set()

    async def run(self) -> None:
        """Look at what became of groups, until cancelled."""
        told = Seldom()
        while True:
            with trio.move_on_after(WATCH_S):
                await self._nudged.wait()
            self._nudged = trio.Event()
            if not self._seats and not self._is_reading:
                continue
            try:
                await self._look()
            except StorageError as error:
                if times := told.again(str(error)):
                    log.error("consumer groups not heard of", reason=str(error), times=times, retry_s=WATCH_S)
                await trio.sleep(WATCH_S)
            else:
                told = Seldom()

    async def _look(self) -> None:
        await self.refresh()
        self._dismiss()
        mine = self._shared.mine()
        there = {seat.number for seats in self._seats.values() for seat in seats}
        for number, (org, name) in mine.items():
            if number not in there:
                await self._change(Leave(org, name, number))
        self._is_reading = bool(mine.keys() & there)
        if self._is_reading and trio.current_time() >= self._next_beat:
            self._next_beat = trio.current_time() + BEAT_S
            await self._change(Beat())
        for key in [key for key in self._waiting if self._shared.is_free(*key)]:
            for event in self._waiting[key]:
                event.set()

    def _dismiss(self) -> None:
        for (org, name), seat in self._reading():
            if self._shared.generation(org, name) != seat.generation:
                seat.dismissed.set()

    def _reading(self) -> Iterator[tuple[Key, Seat]]:
        for key, seats in self._seats.items():
            for seat in seats:
                if seat.generation is not None:
                    yield key, seat
