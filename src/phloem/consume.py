"""The consume door: who a consumer is, and what it wants.

It reads an org's log from a position (`feed.py`), or as a member of a consumer group (`members.py`), or asks about
the org's groups and changes them (`requests.py`), or asks for its ledger (`telling.py`).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from typing import Any

import structlog
import trio
from attrs import Factory, frozen

from phloem.engine.engine import Engine
from phloem.feed import ConsumeCounts, Feed, Shelf
from phloem.groups import Groups, GroupSettings
from phloem.members import Member
from phloem.places import find
from phloem.requests import answer
from phloem.telling import tell_ledger
from sapflow.errors import LinkError, Overloaded, Refused, StorageError, first_of
from sapflow.link import Close, Connection, CreditGranted, Event, HelloReceived, Noticed, Side, Subscribed
from sapflow.runtime.session import LinkSession
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

RESERVED = "exit."
"""Groups whose names begin so are exits': nobody else reads for them, or an exit would stand by."""


@frozen
class ConsumeSettings:
    """Bounds of the consume door."""

    fleet_token: str
    feed_bytes: int = 512 << 10
    feed_entries: int = 4096
    hello_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    reading_threads: int = 4
    groups: GroupSettings = Factory(GroupSettings)


class Consumers:
    """The consume door of one Phloem node. `storage` is the thread that writes its log."""

    def __init__(
        self,
        engine: Engine,
        settings: ConsumeSettings,
        authenticate: Callable[[str], str | None],
        is_org: Callable[[str], bool],
        storage: ThreadKind,
    ) -> None:
        self.settings = settings
        self.authenticate = authenticate
        self.is_org = is_org
        self.reading = ThreadKind("reading", settings.reading_threads)
        self.counting = ThreadKind("ledger", 1)
        """Ledgers are asked for in a thread of their own: where they are counted first, that takes a while."""
        self.shelf = Shelf(engine, self.reading, self.counting, settings.feed_bytes, settings.feed_entries)
        self.groups = Groups(engine, storage, self.reading, settings.groups)

    @property
    def counts(self) -> ConsumeCounts:
        """What consumers were given."""
        return self.shelf.counts

    def stored(self, orgs: set[str]) -> None:
        """Wake the consumers that follow these orgs."""
        self.shelf.stored(orgs)

    def followed(self) -> set[str]:
        """Orgs whose next commit somebody waits for."""
        return self.shelf.followed()

    async def run(self) -> None:
        """What groups need: their commits written, and those that nobody uses forgotten."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.groups.run)
            nursery.start_soon(self.groups.keep)

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """One consumer from its hello to its end."""
        session = LinkSession(
            stream,
            Connection(Side.SERVER),
            peer=peer,
            idle_timeout_s=self.settings.idle_timeout_s,
            max_unsent_bytes=16 << 20,
        )
        self.counts.consumers += 1
        try:
            async with session.open():
                await _Consumer(self, session).run()
        except* (LinkError, Overloaded, Refused, StorageError) as group:
            log.warning("consumer cut off", peer=peer, reason=str(first_of(group)))
        finally:
            self.counts.consumers -= 1


class _Consumer:
    """One consumer's link."""

    def __init__(self, door: Consumers, session: LinkSession) -> None:
        self._door = door
        self._session = session
        self._org: str | None = None
        self._fleet = False
        self._reader: Feed | Member | None = None
        self._busy = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self._door.settings.hello_timeout_s) as hello:
                async for events in self._session.events():
                    for event in events:
                        match event:
                            case HelloReceived():
                                if not await self._greet(event.fields):
                                    return
                                hello.deadline = float("inf")
                            case Subscribed(fields) | Noticed({"kind": "groups"} as fields) if not self._busy:
                                self._busy = True
                                org = str(fields.get("org", ""))
                                await self._check(org)
                                nursery.start_soon(self._serve, event, org, fields)
                            case _:
                                self._hear(event)
            if hello.cancelled_caught:
                await self._session.finish(Close.TIMEOUT, "no hello in time")
            nursery.cancel_scope.cancel()

    def _hear(self, event: Event) -> None:
        match event, self._reader:
            case CreditGranted(), Feed() | Member() as reader:
                reader.granted()
            case Noticed({"kind": "commit"} as fields), Member() as member:
                member.asks(fields)
            case _:
                raise LinkError(f"{type(event).__name__} from a consumer", code=Close.PROTOCOL)

    async def _check(self, org: str) -> None:
        """Raises LinkError, after telling the consumer, for an org that is not its own, or that nobody has."""
        door = self._door
        if not self._fleet and org != self._org:
            code, reason = Close.FORBIDDEN, "this credential does not name that org"
        elif self._fleet and not door.is_org(org) and not await door.reading.run(lambda: door.shelf.engine.holds(org)):
            code, reason = Close.UNKNOWN, f"no org '{org}'; see 'sapflow orgs list'"
        else:
            return
        await self._refuse(LinkError(f"a consumer asked for another org: {reason}", code=code), reason)

    async def _greet(self, fields: dict[str, Any]) -> bool:
        door = self._door
        token = str(fields.get("token", ""))
        self._fleet = hmac.compare_digest(token.encode(), door.settings.fleet_token.encode())
        if not self._fleet:
            self._org = door.authenticate(token)
            if self._org is None:
                door.counts.unauthorized += 1
                log.warning("consumer refused", peer=self._session.peer, reason="credential not accepted")
                await self._session.finish(
                    Close.UNAUTHORIZED,
                    "credential not accepted; check the token, or issue one with 'sapflow orgs token'",
                )
                return False
        self._session.send(self._session.connection.welcome(org=self._org))
        return True

    async def _serve(self, event: Event, org: str, fields: dict[str, Any]) -> None:
        """Do what it wants. Raises LinkError, after telling the consumer why."""
        try:
            name = fields.get("group")
            if name is not None and not (isinstance(name, str) and GROUP_NAME.fullmatch(name)):
                raise LinkError(
                    f"{name!r:.80} is no group's name: lower-case letters, digits, '.', '_' and '-', up to 63, a "
                    "letter or digit first",
                    code=Close.PROTOCOL,
                )
            groups = self._door.groups
            if (
                isinstance(name, str)
                and name.startswith(RESERVED)
                and isinstance(event, Subscribed)
                and not self._fleet
            ):
                raise LinkError(
                    f"groups named {RESERVED}… are the exits' of this fleet; choose another name", code=Close.FORBIDDEN
                )
            if fields.get("ledger"):
                await tell_ledger(self._session, self._door.shelf.engine, groups, self._door.counting, org, fields)
            elif name is None and isinstance(event, Subscribed):
                await self._feed(org, fields)
            elif isinstance(event, Noticed):
                await answer(groups, self._session, org, name, fields)
            else:
                assert name is not None
                self._reader = member = Member(self._door.shelf, groups, self._session, org, name)
                await member.run(fields)
        except* (LinkError, Overloaded) as group:
            error = first_of(group)
            await self._refuse(LinkError(str(error), code=getattr(error, "code", Close.OVERLOADED)), str(error))

    async def _feed(self, org: str, fields: dict[str, Any]) -> None:
        shelf = self._door.shelf
        found = await find(shelf.engine, shelf.reading, org, fields.get("at", "latest"))
        session = self._session
        self._reader = feed = Feed(shelf, session, org, found, options=bool(fields.get("options")))
        session.send(session.connection.notice(kind="start", position=found.place.position, ahead=found.ahead))
        await feed.run(follow=bool(fields.get("follow", True)))
        await session.finish(Close.NORMAL, "all that is stored was sent", deadline_s=30.0)

    async def _refuse(self, error: LinkError, reason: str) -> None:
        await self._session.finish(error.code, reason)
        raise error
