"""Links that this collector ends: meters', intakes' and Phloem's.

A link says who it is within the hello timeout, or is closed. A meter's org is what its token names, whatever it
claims; only a process with the fleet's token may carry other orgs' streams or subscribe. Every batch is walked before
it is published: a malformed one closes its link, with the peer, the org and the byte named.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import structlog
import trio
from attrs import define, evolve, field, frozen

from collector.carried import Carried, CarriedSettings
from collector.endpoints import DurableSubscription, Endpoint, Handles, StreamState
from collector.presence import Presence
from collector.telling import Room
from sapflow.errors import LinkError, Overloaded, Refused, first_of
from sapflow.flows.ipfix.session import Session
from sapflow.flows.limits import FlowLimits
from sapflow.link import (
    Acknowledged,
    BatchReceived,
    Close,
    Connection,
    CreditGranted,
    CreditPool,
    CreditWanted,
    Event,
    HelloReceived,
    Noticed,
    Opened,
    Rewound,
    Side,
    StreamEnded,
    Subscribed,
)
from sapflow.link.account import decode_account
from sapflow.runtime.session import LinkSession
from sapflow.runtime.transport import accept_link

log = structlog.get_logger()

ALL_ORGS = "*"
ORGS_TOLD = 500
"""In one notice: it must fit a control frame."""


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
    told: dict[int, Subscriber] = field(factory=dict)
    """Those who are told of every org, and choose."""
    room: Room = field(init=False)
    carried: Carried = field(init=False)
    """Meters' streams."""
    presence: Presence = field(factory=Presence)
    watchers: dict[int, LinkSession] = field(factory=dict)
    """Balancers' control links."""
    _sessions: dict[int, LinkSession] = field(factory=dict)
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
            endpoint = self.endpoints[org] = Endpoint(org, self.pool, self.grant, self.room)
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

    def grant(self) -> None:
        """Tell senders what the budget allows them now."""
        if self._granting:
            return
        self._granting = True
        try:
            for key, limit in self.pool.turn():
                assert isinstance(key, tuple)
                session = self._sessions[key[0]]
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
        )
        number, self._next_session = self._next_session, self._next_session + 1
        self.counts.links += 1
        try:
            async with session.open():
                await _Link(self, session, number).run()
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


class Subscriber:
    """A Phloem node on its link: its subscription to each endpoint."""

    def __init__(self, session: LinkSession, name: str) -> None:
        self.name = name
        self.handles: Handles = {}
        self._session = session
        self._subscriptions: dict[str, DurableSubscription] = {}

    def subscribe(self, endpoint: Endpoint) -> None:
        """Everything of this org, from now until the link ends."""
        if endpoint.org not in self._subscriptions:
            subscription = DurableSubscription(endpoint, self._session, self.handles, self.name)
            self._subscriptions[endpoint.org] = subscription
            endpoint.subscribe(subscription)

    def unsubscribe(self, org: str) -> None:
        """No more of this org: its streams end on this link. Another subscriber has them, or they wait."""
        subscription = self._subscriptions.pop(org, None)
        if subscription is not None:
            subscription.close()

    def tell(self, orgs: Sequence[str], *, here: bool = True) -> None:
        """There are these orgs, or they are gone."""
        for at in range(0, len(orgs), ORGS_TOLD):
            told = {"orgs" if here else "gone": orgs[at : at + ORGS_TOLD]}
            self._session.send(self._session.connection.notice(kind="orgs", **told))

    def close(self) -> None:
        """The link ended, and every subscription with it."""
        for subscription in self._subscriptions.values():
            subscription.endpoint.unsubscribe(subscription)
        self._subscriptions.clear()


class _Link:
    """One link after another event: who it is, its streams, its subscriptions."""

    def __init__(self, collector: Collector, session: LinkSession, number: int) -> None:
        self._collector = collector
        self._session = session
        self._number = number
        self._org: str | None = None
        self._fleet = False
        self._meter = ""
        self._came_by_move = False
        self._streams: dict[int, tuple[Endpoint, StreamState]] = {}
        self._subscriber: Subscriber | None = None

    async def run(self) -> None:
        session, collector = self._session, self._collector
        collector._sessions[self._number] = session
        try:
            with trio.move_on_after(collector.settings.hello_timeout_s) as hello:
                async for events in session.events():
                    for event in events:
                        if isinstance(event, HelloReceived):
                            if not await self._greet(event):
                                return
                            hello.deadline = float("inf")
                        else:
                            await self._handle(event)
                    collector.grant()
            if hello.cancelled_caught:
                await session.finish(Close.TIMEOUT, "no hello in time")
                log.info("link closed", peer=session.peer, reason="no hello in time")
        finally:
            self._leave()

    def _leave(self) -> None:
        collector = self._collector
        if self._subscriber is not None:
            collector.wildcard.pop(self._number, None)
            collector.told.pop(self._number, None)
            self._subscriber.close()
        collector.watchers.pop(self._number, None)
        for handle, (endpoint, state) in self._streams.items():
            collector.pool.close(self._key(handle))
            collector.carried.ended(self._key(handle))
            endpoint.detach(state, self._session)
        del collector._sessions[self._number]
        collector.grant()

    def _key(self, handle: int) -> Hashable:
        return (self._number, handle)

    async def _greet(self, hello: HelloReceived) -> bool:
        collector = self._collector
        token = str(hello.fields.get("token", ""))
        role = hello.fields.get("role")
        self._meter = str(hello.fields.get("name", ""))
        self._came_by_move = hello.hint.want == collector.settings.name
        if role in ("intake", "phloem", "balancer"):
            self._fleet = hmac.compare_digest(token.encode(), collector.settings.fleet_token.encode())
        else:
            self._org = collector.authenticate(token)
        if not self._fleet and self._org is None:
            collector.counts.unauthorized += 1
            log.warning("link refused", peer=self._session.peer, reason="credential not accepted")
            await self._session.finish(
                Close.UNAUTHORIZED, "credential not accepted; check the token, or issue one with 'sapflow orgs token'"
            )
            return False
        self._session.send(self._session.connection.welcome(name=collector.settings.name, org=self._org))
        if role == "phloem":
            self._subscriber = Subscriber(self._session, self._meter)
        elif role == "balancer":
            collector.watchers[self._number] = self._session
        return True

    async def _handle(self, event: Event) -> None:
        collector = self._collector
        match event:
            case BatchReceived():
                self._batch(event)
            case CreditWanted(handle, limit):
                collector.pool.want(self._key(handle), limit)
            case Opened():
                await self._opened(event)
            case StreamEnded(handle):
                endpoint, state = self._streams.pop(handle)
                collector.pool.close(self._key(handle))
                collector.carried.ended(self._key(handle))
                endpoint.detach(state, self._session)
            case Acknowledged(handle, through):
                if (found := self._find(handle)) is not None:
                    found[0].endpoint.acknowledged(found[1], through)
            case CreditGranted(handle, _):
                if (found := self._find(handle)) is not None:
                    found[0].pump(found[1])
            case Rewound(handle, mark):
                if (found := self._find(handle)) is not None:
                    found[0].endpoint.rewound(found[0], found[1], mark)
            case Subscribed(fields):
                await self._subscribe(fields)
            case Noticed(fields) if fields.get("kind") == "conflict":
                await self._conflict(fields)
            case Noticed(fields) if fields.get("kind") == "move" and self._number in collector.watchers:
                self._move(fields)
            case _:
                log.debug("event not for a collector", peer=self._session.peer, got=type(event).__name__)

    def _find(self, handle: int) -> tuple[DurableSubscription, StreamState] | None:
        return self._subscriber.handles.get(handle) if self._subscriber is not None else None

    async def _opened(self, event: Opened) -> None:
        if self._subscriber is not None:
            raise LinkError("a subscriber opened a stream", code=Close.PROTOCOL)
        org = event.org if self._fleet else self._org
        if not org or (not self._fleet and event.org not in ("", org)):
            await self._session.finish(Close.FORBIDDEN, "this credential does not name that org")
            raise LinkError(f"a stream for org '{event.org}' with a credential of another", code=Close.FORBIDDEN)
        endpoint = self._collector.endpoint(org)
        self._collector.pool.open(self._key(event.handle), org)
        state = endpoint.attach(event.stream, event.exporter, (self._session, event.handle))
        if self._collector.presence.came(org):
            for subscriber in self._collector.told.values():
                subscriber.tell([org])
        self._streams[event.handle] = (endpoint, state)
        if not self._fleet:
            key, now = self._key(event.handle), trio.current_time()
            self._collector.carried.opened(
                key, state, self._session, event.handle, self._meter, now, moved=self._came_by_move
            )

    def _move(self, fields: dict[str, object]) -> None:
        stream, to, address = (str(fields.get(key, "")) for key in ("stream", "to", "address"))
        try:
            refused = self._collector.carried.ask(bytes.fromhex(stream), to, address, trio.current_time())
        except ValueError:
            refused = "it is no stream's id"
        if refused:
            log.info("move not asked for", stream=stream, destination=to, reason=refused)
        else:
            log.info("move asked for", stream=stream, destination=to)

    def _batch(self, event: BatchReceived) -> None:
        endpoint, state = self._streams[event.handle]
        batch = event.batch
        self._collector.pool.received(self._key(event.handle), batch.size)
        walk = Session(self._collector.settings.limits).walk(batch.payload)
        if walk.fault is not None or walk.taken != len(batch.payload) or walk.records != batch.records:
            self._collector.counts.malformed += 1
            self._collector.pool.release(endpoint.org, batch.size)
            what = str(walk.fault) if walk.fault is not None else f"{walk.records} records, not {batch.records}"
            raise LinkError(
                f"{state.exporter} (org {endpoint.org}): batch {batch.seq} of stream {state.id.hex()} is not what it "
                f"says: {what}; link closed, nothing of this batch was taken",
                code=Close.PROTOCOL,
            )
        try:
            decode_account(batch.account, batch.records)
        except LinkError:
            self._collector.counts.malformed += 1
            self._collector.pool.release(endpoint.org, batch.size)
            raise
        if batch.seq != state.outbox.last + 1:
            state.told.interrupted()
        tells = walk.may_tell and state.told.hears(batch.payload)
        endpoint.publish(state, evolve(batch, tells=tells) if tells != batch.tells else batch)

    async def _subscribe(self, fields: dict[str, Any]) -> None:
        """To `orgs`, and no more to those in `leave`; with `tell`, be told which there are, now and later."""
        collector, subscriber = self._collector, self._subscriber
        orgs, leave = fields.get("orgs", []), fields.get("leave", [])
        if subscriber is None or not isinstance(orgs, list) or not isinstance(leave, list):
            await self._session.finish(Close.FORBIDDEN, "only a fleet's Phloem subscribes here")
            raise LinkError("a link without the fleet's credential asked to subscribe", code=Close.FORBIDDEN)
        if fields.get("tell") and self._number not in collector.told:
            collector.told[self._number] = subscriber
            subscriber.tell([org for org in collector.endpoints if org not in collector.presence.gone])
        if ALL_ORGS in orgs:
            collector.wildcard[self._number] = subscriber
            orgs = list(collector.endpoints)
        for org in orgs:
            subscriber.subscribe(collector.endpoint(str(org)))
        for org in leave:
            subscriber.unsubscribe(str(org))

    async def _conflict(self, fields: dict[str, object]) -> None:
        handle = fields.get("handle")
        found = self._find(handle) if isinstance(handle, int) else None
        if found is None:
            return
        subscription, state = found
        self._collector.counts.conflicts += 1
        subscription.endpoint.drop(state)
        log.error("stream in conflict", org=state.org, stream=state.id.hex(), exporter=state.exporter)
        if state.upstream is not None:
            reason = "a batch came again with the same number and other content; its stream cannot go on"
            await state.upstream[0].finish(Close.CONFLICT, reason)
