"""One link that this collector ends: a meter's, an intake's, a balancer's or Phloem's.

A link says who it is within the hello timeout, or is closed. A meter's org is what its token names, whatever it
claims; only a process with the fleet's token may carry other orgs' streams or subscribe. Every batch is walked before
it is published. A malformed one is refused, and what follows it is not taken until another comes in its place; a
sender that cannot do that has its link closed, with the peer, the org and the byte named.
"""

from __future__ import annotations

import hmac
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import structlog
import trio
from attrs import define, evolve

from collector.checking import Unfit, check
from collector.endpoints import DurableSubscription, Endpoint, StreamState
from collector.subscriber import Subscriber
from sapflow.errors import LinkError
from sapflow.link import (
    Acknowledged,
    BatchReceived,
    Close,
    CreditGranted,
    CreditWanted,
    Event,
    HelloReceived,
    Noticed,
    Opened,
    Rewound,
    StreamEnded,
    Subscribed,
)
from sapflow.link.frames import CAN_REPLACE
from sapflow.runtime.session import LinkSession

if TYPE_CHECKING:
    from collector.sessions import Collector

log = structlog.get_logger()

ALL_ORGS = "*"


@define
class _Refused:
    seq: int
    replaced: bool = False


class Link:
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
        self._replaces = False
        self._refused: dict[int, _Refused] = {}
        """By handle: the last of its batches that was refused."""

    async def run(self) -> None:
        session, collector = self._session, self._collector
        collector.sessions[self._number] = session
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
        collector.carrying.pop(self._number, None)
        for handle, (endpoint, state) in self._streams.items():
            collector.pool.close(self._key(handle))
            collector.carried.ended(self._key(handle))
            endpoint.detach(state, self._session)
        del collector.sessions[self._number]
        collector.grant()

    def _key(self, handle: int) -> Hashable:
        return (self._number, handle)

    async def _greet(self, hello: HelloReceived) -> bool:
        collector = self._collector
        token = str(hello.fields.get("token", ""))
        role = hello.fields.get("role")
        can = hello.fields.get("can")
        self._replaces = isinstance(can, list) and CAN_REPLACE in can
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
        else:
            collector.carries(self._number, self._session)
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
                self._refused.pop(handle, None)
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
            case Noticed(fields) if fields.get("kind") == "away" and self._number in collector.watchers:
                collector.send_away_from(fields)
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
            leaves = fields.get("leaves") is True
            refused = self._collector.carried.ask(
                bytes.fromhex(stream), to, address, trio.current_time(), leaves=leaves
            )
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
        if self._comes_again(event):
            return
        found = check(batch, self._collector.settings.limits)
        if isinstance(found, Unfit):
            self._refuse(event, endpoint, state, found)
            return
        if batch.seq != state.outbox.last + 1:
            state.told.interrupted()
        tells = found.may_tell and state.told.hears(batch.payload)
        endpoint.publish(state, evolve(batch, tells=tells) if tells != batch.tells else batch)

    def _comes_again(self, event: BatchReceived) -> bool:
        """Whether a batch is behind one that was refused: it is not taken, and comes again."""
        refused = self._refused.get(event.handle)
        if refused is None or refused.replaced:
            return False
        if event.batch.seq > refused.seq:
            self._release(event)
            return True
        refused.replaced = event.batch.seq == refused.seq
        return False

    def _refuse(self, event: BatchReceived, endpoint: Endpoint, state: StreamState, why: Unfit) -> None:
        """Nothing of a batch is taken. Who can replace it is told to, once; any other link is closed."""
        collector, batch, handle = self._collector, event.batch, event.handle
        collector.counts.malformed += 1
        self._release(event)
        what = f"batch {batch.seq} of stream {state.id.hex()} is not what it says: {why.what}"
        before = self._refused.get(handle)
        if not self._replaces or (before is not None and before.seq == batch.seq):
            raise LinkError(
                f"{state.exporter} (org {endpoint.org}): {what}; link closed, nothing of this batch was taken",
                code=Close.PROTOCOL,
            )
        self._refused[handle] = _Refused(batch.seq)
        self._session.send(self._session.connection.refuse(handle, batch.seq, why.reason))
        if times := collector.refusals.again(endpoint.org):
            log.error(
                "batch refused",
                peer=self._session.peer,
                org=endpoint.org,
                stream=state.id.hex(),
                number=batch.seq,
                records=batch.records,
                reason=why.what,
                times=times,
                meaning="its sender puts one without records in its place, and the ledger says so",
            )

    def _release(self, event: BatchReceived) -> None:
        endpoint, _ = self._streams[event.handle]
        self._collector.pool.release(endpoint.org, event.batch.size)

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
