"""A listener before which a herd may stand: many are accepted at a time, and one that is done with at once has no task.

A task for each connection, with its stream, costs more than all that is done with one that is given away.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from sapflow.runtime.addresses import join_address
from sapflow.runtime.serve import AcceptErrors, Handler, cancel_when, serve_one

MOST_AT_ONCE = 32
"""Connections accepted between two passes of the scheduler."""


@define(eq=False)
class Fresh:
    """A connection that was accepted, and from which nothing was read. Whoever has it ends with `serve` or `close`."""

    sock: socket.socket
    """May block: whoever reads says that it is not to."""
    peer: str
    _accepting: _Accepting

    def serve(self, handler: Handler) -> None:
        """In a task of its own from now on; nothing, when its listener was cancelled meanwhile."""
        self._accepting.serve(self, handler)

    def close(self) -> None:
        """It is somebody else's: this process's descriptor is closed, without a word to the other end."""
        self._accepting.close(self)


AtOnce = Callable[[Fresh], Awaitable[bool]]
"""Whether a connection is done with, or will be: if not, it is served by a task. It may not wait for long."""


@define
class _Accepting:
    """Those that were accepted and have no task, each with the ticket for its slot."""

    nursery: trio.Nursery
    slots: trio.CapacityLimiter
    what: str
    _tickets: dict[Fresh, object] = field(factory=dict)
    _fewer: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def accept(self, listener: socket.socket) -> Fresh:
        """One that waits, once there is a slot. Raises OSError, BlockingIOError when none waits."""
        ticket = object()
        try:
            self.slots.acquire_on_behalf_of_nowait(ticket)
        except trio.WouldBlock:
            await self.slots.acquire_on_behalf_of(ticket)
        try:
            sock, address = listener.accept()
        except BaseException:
            self.slots.release_on_behalf_of(ticket)
            raise
        fresh = Fresh(sock, join_address(*address[:2]), self)
        self._tickets[fresh] = ticket
        return fresh

    def serve(self, fresh: Fresh, handler: Handler) -> None:
        ticket = self._tickets.pop(fresh, None)
        if ticket is None:
            return
        fresh.sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(fresh.sock))
        self.nursery.start_soon(serve_one, stream, fresh.peer, handler, self.what, self.slots, ticket, name=self.what)
        self._fewer.unpark_all()

    def close(self, fresh: Fresh) -> None:
        ticket = self._tickets.pop(fresh, None)
        if ticket is None:
            return
        fresh.sock.close()
        self.slots.release_on_behalf_of(ticket)
        self._fewer.unpark_all()

    async def until_none(self) -> None:
        """Wait until it is known of each what becomes of it."""
        while self._tickets:
            await self._fewer.park()

    def close_all(self) -> None:
        for fresh in list(self._tickets):
            self.close(fresh)


async def serve_fresh(
    listener: trio.SocketListener,
    handler: Handler,
    at_once: AtOnce,
    *,
    max_connections: int,
    what: str,
    until: trio.Event | None = None,
) -> None:
    """As `serve` does, with `at_once` asked first; `handler` is for what it does not want.

    It needs a socket of the kernel's, which a simulation does not have.
    """
    async with trio.open_nursery() as nursery:
        accepting = _Accepting(nursery, trio.CapacityLimiter(max_connections), what)
        try:
            with socket.socket(fileno=os.dup(listener.socket.fileno())) as ours, trio.CancelScope() as scope:
                if until is not None:
                    nursery.start_soon(cancel_when, until, scope)
                await _accept(ours, accepting, handler, at_once)
            # Whoever comes now is refused, and not kept waiting for nobody; one that shares the socket accepts it.
            listener.socket.close()
            await accepting.until_none()
        finally:
            accepting.close_all()


async def _accept(listener: socket.socket, accepting: _Accepting, handler: Handler, at_once: AtOnce) -> None:
    errors = AcceptErrors(accepting.what)
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            for _ in range(MOST_AT_ONCE):
                fresh = await accepting.accept(listener)
                errors.over()
                if not await _is_done(fresh, handler, at_once):
                    fresh.serve(handler)
        except BlockingIOError:
            continue
        except OSError as error:
            await errors.after(error)


async def _is_done(fresh: Fresh, handler: Handler, at_once: AtOnce) -> bool:
    try:
        return await at_once(fresh)
    except BaseException:
        # It was accepted: a listener that ends serves it to its end.
        fresh.serve(handler)
        raise
