"""Exporters' sessions from one balancer's process to the next: what is left at a restart, and taken up again.

A session goes on as the same stream, on the collector that it was on if that will have it, and weighs what it weighed
before anything is measured. Whose its exporter is is asked anew: the configuration may be another.
"""

from __future__ import annotations

from collections import deque
from functools import partial

import structlog
import trio
from attrs import define, evolve

from balancer.places import Places
from meter.exporter_door import ExporterDoor
from meter.left import LeftSession
from sapflow.errors import LinkError
from sapflow.runtime.drain import Drain
from sapflow.runtime.serve import serve_one
from sapflow.runtime.succession import LeftConnection, Succession

log = structlog.get_logger()

LEFT_BY_S = 2.0
"""So long before the deadline of a drain a session is left, or else ended as one is that cannot be left."""


@define(eq=False)
class Inheriting:
    """One process's part: it takes up what was left until it is drained, and then it leaves."""

    succession: Succession
    places: Places
    door: ExporterDoor
    slots: trio.CapacityLimiter
    """Those of the door's listener."""
    unread: int = 0
    """Sessions that were left and could not be read; their exporters connect again."""

    async def leave(self, drain: Drain, stream: trio.SocketStream, session: LeftSession) -> bool:
        """Leave a session: whether it is the successor's now."""
        left = session.stream
        rate = self.places.policy.rates.predict(left.id, session.org)
        state = evolve(session, stream=evolve(left, rate=rate)).encode()
        deadline = max(drain.deadline - LEFT_BY_S, trio.current_time() + drain.left_s / 2)
        return await self.succession.leave(stream.socket, state, deadline)

    async def take(self, nursery: trio.Nursery) -> None:
        """Take up what is left, each session in a task of the nursery."""
        while True:
            found = deque(await self.succession.take())
            try:
                while found:
                    await self._take_up(found.popleft(), nursery)
            finally:
                for connection in found:
                    connection.sock.close()

    async def _take_up(self, connection: LeftConnection, nursery: trio.Nursery) -> None:
        try:
            session = LeftSession.decode(connection.state)
        except LinkError as error:
            connection.sock.close()
            self.unread += 1
            log.warning("session not taken up", reason=str(error), meaning="its exporter must connect again")
            return
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection.sock))
        ticket = object()
        try:
            await self.slots.acquire_on_behalf_of(ticket)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        left = session.stream
        self.places.expect(left.id, session.org, left.target, left.rate)
        handler = partial(self._resume, session)
        nursery.start_soon(serve_one, stream, session.peer, handler, "exporter (left)", self.slots, ticket)

    async def _resume(self, session: LeftSession, stream: trio.SocketStream, _peer: str) -> None:
        await self.door.resume(stream, session)
