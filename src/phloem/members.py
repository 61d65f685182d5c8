"""One member of a consumer group: it waits for its turn, takes the group's next generation, is fed, and commits."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import structlog
import trio
from attrs import define

from phloem.engine.groups import Commit, Declined, Group
from phloem.engine.layout import Place
from phloem.feed import Feed, Shelf
from phloem.groups import Groups
from phloem.places import Found
from phloem.turns import Seat
from sapflow.errors import LinkError, StorageError
from sapflow.link import Close
from sapflow.runtime.session import LinkSession

log = structlog.get_logger()


@define
class _Asked:
    """What the member wants committed; what it asks for meanwhile takes its place."""

    number: int
    position: int
    state: bytes
    quarantined: int


class Member:
    """A member, from its seat on."""

    def __init__(self, shelf: Shelf, groups: Groups, session: LinkSession, org: str, name: str) -> None:
        self._shelf = shelf
        self._groups = groups
        self._session = session
        self._org = org
        self._name = name
        self._asked: _Asked | None = None
        self._asking = trio.Event()
        self._feed: Feed | None = None
        self._group = Group(Place())
        self._seat = 0
        self._stands_by = False

    def granted(self) -> None:
        """The member gave credit."""
        if self._feed is not None:
            self._feed.granted()

    def asks(self, fields: dict[str, Any]) -> None:
        """The member wants to commit; it is answered when that is durable. Raises LinkError."""
        asked = _asked(fields)
        if len(asked.state) > self._groups.settings.state_bytes:
            self._answer(asked, "state", f"{len(asked.state):,} bytes of state (limit {self._limit():,})")
            return
        if self._asked is not None:
            asked.quarantined += self._asked.quarantined
        self._asked = asked
        self._asking.set()

    async def run(self, fields: dict[str, Any]) -> None:
        """Be a member, until cancelled. Raises LinkError, Overloaded, StorageError."""
        self._session.idle_timeout_s = self._groups.settings.member_timeout_s
        with self._groups.seat(self._org, self._name) as seat:
            self._seat = seat.number
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_dismissed, seat)
                await self._wait(seat)
                options = bool(fields.get("options"))
                self._feed = await self._take(fields.get("at", "earliest"), seat, options=options)
                nursery.start_soon(self._commit)
                await self._feed.run(follow=bool(fields.get("follow", True)))
                # What it was given last is still to be committed; it goes when it has done so.
                await trio.sleep_forever()

    async def _wait(self, seat: Seat) -> None:
        if not seat.turn.is_set():
            self._stand_by()
            await seat.turn.wait()

    def _stand_by(self) -> None:
        if not self._stands_by:
            self._stands_by = True
            self._notice(kind="standby")

    async def _until_dismissed(self, seat: Seat) -> None:
        await seat.dismissed.wait()
        await self._session.finish(Close.GOING_AWAY, f"group '{self._name}' was reset, or taken over; come back")

    async def _take(self, at: object, seat: Seat, *, options: bool) -> Feed:
        known = await self._groups.known(self._org, self._name)
        first = Found(Place()) if known else await self._groups.places.find_measured(self._org, at)
        group = await self._groups.take(self._org, self._name, first.place, seat)
        while isinstance(group, Declined) and group.kind == "held":
            self._stand_by()
            await self._groups.until_free(self._org, self._name)
            group = await self._groups.take(self._org, self._name, first.place, seat)
        if isinstance(group, Declined):
            raise LinkError(group.reason, code=Close.OVERLOADED)
        assert group is not None, self._name
        self._group = group
        found = Found(group.place, measured=self._shelf.engine.measures)
        feed = Feed(self._shelf, self._session, self._org, found, options=options)
        self._notice(
            kind="start",
            position=group.place.position,
            ahead=group.ahead or first.ahead,
            generation=group.generation,
            resets=group.resets,
            state=base64.b64encode(group.state).decode(),
            state_bytes=self._limit(),
        )
        if group.ahead:
            log.warning(
                "group ahead of the log",
                org=self._org,
                group=self._name,
                ahead=group.ahead,
                position=group.place.position,
                meaning="the log is another one, or has lost its end; the group reads again from its first entry",
            )
        return feed

    async def _commit(self) -> None:
        while True:
            await self._asking.wait()
            self._asking = trio.Event()
            asked, self._asked = self._asked, None
            if asked is not None:
                await self._make(asked)

    async def _make(self, asked: _Asked) -> None:
        group = self._group
        try:
            if asked.position < group.place.position:
                self._answer(asked, "fenced", f"the group is at position {group.place.position} already")
                return
            place = await self._groups.places.walk(self._org, group.place, asked.position)
            outcome = await self._groups.commit(
                Commit(self._org, self._name, group.generation, place, asked.state, asked.quarantined, self._seat)
            )
        except StorageError as error:
            self._answer(asked, "storage", str(error))
            return
        if isinstance(outcome, Group):
            self._group = outcome
            self._notice(kind="committed", number=asked.number, position=outcome.place.position)
        elif isinstance(outcome, Declined) and outcome.kind == "state":
            self._answer(asked, "state", outcome.reason)
        else:
            self._answer(asked, "fenced", outcome.reason if outcome is not None else "the group is no more")

    def _answer(self, asked: _Asked, why: str, reason: str) -> None:
        self._notice(kind="uncommitted", number=asked.number, why=why, reason=reason)

    def _notice(self, **fields: object) -> None:
        self._session.send(self._session.connection.notice(**fields))

    def _limit(self) -> int:
        return self._groups.settings.state_bytes


def _asked(fields: dict[str, Any]) -> _Asked:
    numbers = [fields.get(key) for key in ("number", "position", "quarantined")]
    try:
        state = base64.b64decode(str(fields.get("state", "")), validate=True)
    except binascii.Error:
        state = None
    if state is None or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise LinkError("a commit has a number, a position, a count and a state in base64", code=Close.PROTOCOL)
    number, position, quarantined = numbers
    return _Asked(number, position, state, quarantined)  # type: ignore[arg-type]
