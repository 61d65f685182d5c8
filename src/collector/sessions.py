"""A collector: what the links that it ends share, and their transport's beginning and end. `links` is one of them.

A fault of a link ends it alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

import structlog
import trio
from attrs import define, field, frozen

from collector.carried import Carried, CarriedSettings
from collector.endpoints import Endpoint
from collector.links import Link
from collector.presence import Presence
from collector.subscriber import Subscriber
from collector.telling import Room
from sapflow.errors import LinkError, Overloaded, Refused, first_of
from sapflow.flows.limits import FlowLimits
from sapflow.link import Close, Connection, CreditPool, Side
from sapflow.runtime.drain import Drain
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.session import LinkSession
from sapflow.runtime.transport import accept_link
from sapflow.runtime.watch import Watch

log = structlog.get_logger()


OWN_EXPORTERS = "its own exporters"
"""The peer of the link that a collector has with itself, for exporters' connections that it was given."""
DRAINED = "this collector is being drained"


@frozen
class CollectorSettings:
    """Bounds of a collector."""

    name: str
    fleet_token: str
    budget_bytes: int = 256 << 20
    org_share: float = 0.5
    hello_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    limits: FlowLimits = FlowLimits()
    tls: ssl.SSLContext | None = None
    carried: CarriedSettings = CarriedSettings()
    options_bytes: int = 16 << 20


@define
class CollectorCounts:
    """What this collector's links have done; never goes down, but for the numbers of what is open."""

    links: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    unauthorized: int = 0
    malformed: int = 0
    """Batches that are not what they say."""
    link_errors: int = 0
    conflicts: int = 0


@define
class Collector:
    """The state that a collector's links share: endpoints by org, and the budget."""

    settings: CollectorSettings
    authenticate: Callable[[str], str | None]
    counts: CollectorCounts = field(factory=CollectorCounts)
    endpoints: dict[str, Endpoint] = field(factory=dict)
    pool: CreditPool = field(init=False)
    wildcard: dict[int, Subscriber] = field(factory=dict)
    refusals: Seldom = field(factory=Seldom)
    """Of batches, by org."""
    told: dict[int, Subscriber] = field(factory=dict)
    """Those who are told of every org, and choose."""
    room: Room = field(init=False)
    carried: Carried = field(init=False)
    """Meters' streams."""
    presence: Presence = field(factory=Presence)
    watchers: dict[int, LinkSession] = field(factory=dict)
    """Balancers' control links."""
    sessions: dict[int, LinkSession] = field(factory=dict)
    """All of them, by number."""
    drain: Drain | None = None
    """Set when this collector is to end: whoever comes with streams is told to go away by its deadline."""
    carrying: dict[int, LinkSession] = field(factory=dict)
    """Links of meters and intakes."""
    watch: Watch | None = None
    """Looks after all links, if somebody runs it; else each has a task for that."""
    _emptier: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    """Unparked when a stream is no more."""
    _next_session: int = 1
    _granting: bool = False

    def __attrs_post_init__(self) -> None:
        self.pool = CreditPool(self.settings.budget_bytes, org_share=self.settings.org_share)
        self.room = Room(self.settings.options_bytes)
        self.carried = Carried(self.settings.carried)

    def endpoint(self, org: str) -> Endpoint:
        """The org's endpoint, made when first asked for; subscribers of all orgs are on it from the start."""
        endpoint = self.endpoints.get(org)
        if endpoint is None:
            endpoint = self.endpoints[org] = Endpoint(org, self.pool, self.grant, self.room, self._look_if_empty)
            for subscriber in self.wildcard.values():
                subscriber.subscribe(endpoint)
            for subscriber in self.told.values():
                subscriber.tell([org])
        return endpoint

    def note_gone(self, now: float) -> None:
        """Tell those who choose their orgs of those that have had no stream for long."""
        orgs = ((org, bool(endpoint.streams)) for org, endpoint in self.endpoints.items())
        if gone := self.presence.look(orgs, now):
            for subscriber in self.told.values():
                subscriber.tell(gone, here=False)

    @property
    def streams(self) -> int:
        """That are here: of links, or held since the log does not have all of them."""
        return sum(len(endpoint.streams) for endpoint in self.endpoints.values())

    def _look_if_empty(self) -> None:
        self._emptier.unpark_all()

    async def until_empty(self) -> None:
        """Wait until no stream is here."""
        while self.streams:
            await self._emptier.park()

    @property
    def is_draining(self) -> bool:
        """Whether nothing more is to come here."""
        return self.drain is not None

    def send_away(self) -> None:
        """Tell all links that bring streams to take them elsewhere by the drain's deadline."""
        assert self.drain is not None
        for session in self.carrying.values():
            session.send(session.connection.go_away(round(self.drain.left_s, 3), DRAINED))

    def send_away_from(self, fields: Mapping[str, Any]) -> None:
        """A balancer that is to end has links carried here that are seen to come from these addresses."""
        peers, deadline_s = fields.get("peers"), fields.get("deadline_s")
        if not isinstance(peers, list) or not isinstance(deadline_s, int | float):
            raise LinkError("links are not told as they should be", code=Close.PROTOCOL)
        wanted = set(map(str, peers))
        for session in self.carrying.values():
            if session.peer in wanted:
                session.send(session.connection.go_away(float(deadline_s), "its balancer is being drained"))

    def carries(self, number: int, session: LinkSession) -> None:
        """A link of a meter or intake was welcomed; one that comes while this is drained is sent away at once."""
        if session.peer == OWN_EXPORTERS:
            return  # it has nowhere else to go
        self.carrying[number] = session
        if self.drain is not None:
            session.send(session.connection.go_away(round(self.drain.left_s, 3), DRAINED))

    def grant(self) -> None:
        """Tell senders what the budget allows them now."""
        if self._granting:
            return
        self._granting = True
        try:
            for key, limit in self.pool.turn():
                assert isinstance(key, tuple)
                session = self.sessions[key[0]]
                session.send(session.connection.grant(key[1], limit))
        finally:
            self._granting = False

    async def serve_link(self, stream: trio.abc.Stream, peer: str) -> None:
        """One link from its first byte to its last. A fault of its ends it alone."""
        try:
            with trio.fail_after(self.settings.hello_timeout_s):
                link = await accept_link(stream, self.settings.tls)
        except (LinkError, trio.TooSlowError, trio.BrokenResourceError) as error:
            self.counts.link_errors += 1
            log.warning("link closed", peer=peer, reason=str(error) or "no hello in time")
            await trio.aclose_forcefully(stream)
            return
        await self._serve(link, peer)

    async def _serve(self, stream: trio.abc.Stream, peer: str) -> None:
        connection = Connection(Side.SERVER)
        session = LinkSession(
            stream,
            connection,
            peer=peer,
            idle_timeout_s=self.settings.idle_timeout_s,
            max_unsent_bytes=2 * self.settings.budget_bytes,
            on_in=self._count_in,
            on_out=self._count_out,
            watch=self.watch,
        )
        number, self._next_session = self._next_session, self._next_session + 1
        self.counts.links += 1
        try:
            async with session.open():
                await Link(self, session, number).run()
        except* LinkError as group:
            self.counts.link_errors += 1
            log.warning("link closed", peer=peer, reason=str(first_of(group)))
        except* (Refused, Overloaded) as group:
            log.info("link refused", peer=peer, reason=str(first_of(group)))
        finally:
            self.counts.links -= 1

    def _count_in(self, size: int) -> None:
        self.counts.bytes_in += size

    def _count_out(self, size: int) -> None:
        self.counts.bytes_out += size
