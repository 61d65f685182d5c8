"""Servers whose accept loop never dies of a connection, and stops accepting at its bounds instead of failing."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import define, field

from sapflow.errors import ConfigurationError
from sapflow.runtime.addresses import join_address, split_address
from sapflow.runtime.dial import tune_bulk
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.sockets import given_socket

log = structlog.get_logger()

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
ACCEPT_PAUSE_S = 0.1
UNKNOWN_PEER = "?"
BACKLOG = 4096
"""Connections in the kernel's accept queue, where net.core.somaxconn allows; of a herd those beyond it try again after
a second."""


@define
class AcceptErrors:
    """What an accept loop does about errors: it never ends of one, and waits a moment where nothing else helps."""

    what: str
    _told: Seldom = field(factory=Seldom)

    async def after(self, error: OSError) -> None:
        """Of a connection that is gone already, nothing; without free descriptors or memory, wait."""
        if error.errno in _OUT_OF_FILES:
            if times := self._told.again(self.what):
                reason, retry_s = str(error), ACCEPT_PAUSE_S
                log.warning("accept paused", listener=self.what, reason=reason, retry_s=retry_s, times=times)
            await trio.sleep(ACCEPT_PAUSE_S)

    def over(self) -> None:
        """One was accepted."""
        self._told.over(self.what)


Handler = Callable[[trio.SocketStream, str], Awaitable[None]]
"""What a connection's task runs: its stream and the peer's address."""


async def listen(address: str, *, what: str, given: str = "", backlog: int = BACKLOG) -> trio.SocketListener:
    """A listening socket on `host:port` (port 0: any free one). Raises ConfigurationError that says what to do.

    A name that has several addresses is listened on at its first one. The socket that this process was `given` under
    that name is taken instead, if there is one.
    """
    if (ours := given_socket(given)) is not None:
        return trio.SocketListener(trio.socket.from_stdlib_socket(ours))
    host, port = split_address(address)
    try:
        listener, *others = await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    except OSError as error:
        hint = {
            errno.EADDRINUSE: "another process has it; stop that one, or choose another port in the configuration",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
            errno.EADDRNOTAVAIL: "no interface of this host has that address",
        }.get(error.errno or 0, str(error))
        raise ConfigurationError(f"cannot listen on {address} for {what}: {hint}") from error
    for other in others:
        other.socket.close()
    return listener


def address_of(listener: trio.SocketListener) -> str:
    """Where a listener really listens."""
    host, port = listener.socket.getsockname()[:2]
    return join_address(host, port)


def own_address(stream: trio.SocketStream) -> str:
    """This end's address, as the other end sees it; "?" when the connection has gone already."""
    try:
        host, port = stream.socket.getsockname()[:2]
    except (OSError, ValueError):
        return UNKNOWN_PEER
    return join_address(host, port)


def peer_of(stream: trio.SocketStream) -> str:
    """The other end's address; "?" when it has gone already, or has none (a Unix socket)."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except (OSError, ValueError):
        return UNKNOWN_PEER
    return join_address(host, port)


async def serve(
    listener: trio.SocketListener,
    handler: Handler,
    *,
    max_connections: int,
    what: str,
    until: trio.Event | None = None,
    slots: trio.CapacityLimiter | None = None,
) -> None:
    """Accept for ever, each connection in a task of this function's nursery, at most `max_connections` at a time.

    With `slots` it is those, which others may share.

    A handler's exception ends that connection only and is logged once. At the bound, or without free file
    descriptors, the rest wait in the kernel's accept queue. Once `until` is set the listener is closed; it returns
    when the last connection has ended.
    """
    slots = slots or trio.CapacityLimiter(max_connections)
    errors = AcceptErrors(what)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as accepting:
            if until is not None:
                nursery.start_soon(cancel_when, until, accepting)
            while True:
                ticket = object()
                await slots.acquire_on_behalf_of(ticket)
                try:
                    stream = await listener.accept()
                except OSError as error:
                    slots.release_on_behalf_of(ticket)
                    await errors.after(error)
                    continue
                errors.over()
                nursery.start_soon(serve_one, stream, peer_of(stream), handler, what, slots, ticket, name=what)
        # Whoever comes now is refused, and not kept waiting for nobody; one that shares the socket accepts it.
        listener.socket.close()


async def cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel a scope once an event is set."""
    await event.wait()
    scope.cancel()


async def serve_one(
    stream: trio.SocketStream, peer: str, handler: Handler, what: str, slots: trio.CapacityLimiter, ticket: object
) -> None:
    """One connection, which has its ticket for a slot. Raises nothing of its handler's."""
    try:
        tune_bulk(stream)
        await handler(stream, peer)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as group:
        log.info("connection lost", listener=what, peer=peer, reason=str(group.exceptions[0]))
    except* Exception as group:
        log.exception("connection failed", listener=what, peer=peer, exc_info=group)
    finally:
        slots.release_on_behalf_of(ticket)
        await trio.aclose_forcefully(stream)
