"""Exporters' sessions and meters' links from one balancer's process to the next: what is left, and taken up again.

A session goes on as the same stream, on the collector that it was on if that will have it, and weighs what it weighed
before anything is measured. Whose its exporter is is asked anew: the configuration may be another. A link that is
carried goes on between the same two sockets, and neither end sees anything of it.
"""

from __future__ import annotations

import socket
from collections import deque
from functools import partial

import structlog
import trio
from attrs import define, evolve

from balancer.carried_link import CarriedLink
from balancer.doors import LinkDoor
from balancer.left_link import LeftLink
from balancer.places import Places
from meter.exporter_door import ExporterDoor
from meter.left import LeftSession
from sapflow.errors import LinkError
from sapflow.link.frames import Close
from sapflow.runtime.dial import tune_bulk
from sapflow.runtime.drain import Drain
from sapflow.runtime.serve import Handler, peer_of, serve_one
from sapflow.runtime.succession import LeftConnection, Succession

log = structlog.get_logger()

LEFT_BY_S = 2.0
"""So long before the deadline of a drain a session is left, or else ended as one is that cannot be left."""
SESSION, LINK = b"S", b"L"
"""What a state begins with."""


@define(eq=False)
class Inheriting:
    """One process's part: it takes up what was left until it is drained, and then it leaves."""

    succession: Succession
    places: Places
    door: ExporterDoor
    slots: trio.CapacityLimiter
    """Those of the door's listener."""
    links: LinkDoor
    link_slots: trio.CapacityLimiter
    unread: int = 0
    """What was left and could not be read; whoever is at the other end connects again."""

    async def leave_session(self, drain: Drain, stream: trio.SocketStream, session: LeftSession) -> bool:
        """Leave a session: whether it is the successor's now."""
        left = session.stream
        rate = self.places.policy.rates.predict(left.id, session.org)
        state = evolve(session, stream=evolve(left, rate=rate)).encode()
        return await self.succession.leave([stream.socket], SESSION + state, _left_by(drain))

    async def leave_link(
        self, drain: Drain, link: CarriedLink, stream: trio.SocketStream, upstream: trio.SocketStream
    ) -> bool:
        """Leave a link that is carried: whether it is the successor's now."""
        left = LeftLink(link.collector, link.hint, peer_of(stream), link.seen_as, link.into, link.back)
        return await self.succession.leave([stream.socket, upstream.socket], LINK + left.encode(), _left_by(drain))

    async def take(self, nursery: trio.Nursery) -> None:
        """Take up what is left, each session in a task of the nursery."""
        while True:
            found = deque(await self.succession.take())
            try:
                while found:
                    await self._take_up(found.popleft(), nursery)
            finally:
                for connection in found:
                    connection.close()

    async def _take_up(self, connection: LeftConnection, nursery: trio.Nursery) -> None:
        try:
            handler, peer, slots, what = self._understood(connection)
        except LinkError as error:
            connection.close()
            self.unread += 1
            log.warning("connection not taken up", reason=str(error), meaning="its other end must connect again")
            return
        ticket = object()
        try:
            await slots.acquire_on_behalf_of(ticket)
        except BaseException:
            connection.close()
            raise
        nursery.start_soon(serve_one, _stream(connection.socks[0]), peer, handler, what, slots, ticket)

    def _understood(self, connection: LeftConnection) -> tuple[Handler, str, trio.CapacityLimiter, str]:
        """Who goes on with it, the address at its other end, whose slot it takes, and what it is. Raises LinkError."""
        kind, data = connection.state[:1], connection.state[1:]
        if (kind, len(connection.socks)) == (SESSION, 1):
            session = LeftSession.decode(data)
            return partial(self._resume_session, session), session.peer, self.slots, "exporter (left)"
        if (kind, len(connection.socks)) == (LINK, 2):
            link = LeftLink.decode(data)
            return partial(self._resume_link, link, connection.socks[1]), link.peer, self.link_slots, "link (left)"
        raise LinkError(f"{len(connection.socks)} sockets of kind {kind!r} were left", code=Close.PROTOCOL)

    async def _resume_session(self, session: LeftSession, stream: trio.SocketStream, _peer: str) -> None:
        left = session.stream
        self.places.expect(left.id, session.org, left.target, left.rate)
        await self.door.resume(stream, session)

    async def _resume_link(
        self, left: LeftLink, upstream: socket.socket, stream: trio.SocketStream, _peer: str
    ) -> None:
        link, hint = object(), left.hint
        self.places.policy.reserve(link, hint.org, left.collector, trio.current_time())
        carried = CarriedLink(left.collector, hint, seen_as=left.seen_as, into=left.into, back=left.back)
        tune_bulk(onward := _stream(upstream))
        await self.links.resume(link, carried, stream, onward)


def _left_by(drain: Drain) -> float:
    return max(drain.deadline - LEFT_BY_S, trio.current_time() + drain.left_s / 2)


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
