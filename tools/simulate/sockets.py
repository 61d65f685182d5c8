"""TCP sockets that the kernel does not know: what Trio's streams and listeners call, over a simulated network.

As with the kernel's: a sender that is not read from stands still once a window is full; a close with bytes unread is a
reset; a process that dies has its sockets closed by its host; a host that loses its power says nothing to anybody, and
answers with resets once it is up again. What had arrived before a reset can still be read.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib
from collections import deque
from typing import Any

import trio

from tools.simulate.hosts import Host, current
from tools.simulate.wires import Network

WINDOW_BYTES = 256 << 10
"""Of one direction of a connection: on its way, or not read yet."""
PEEK = int(stdlib.MSG_PEEK)
"""As the enumeration that it is, it would take longer to look at than the data."""
SYN_AGAIN_S = 1.0
SENT_AGAIN_S = 1.0
"""To a host that does not answer: its answer, when it does, is a reset."""
KEEP_ALIVE_S = 60.0
"""Until a host that is gone is found to be (runtime/dial.py: 30 s, and three probes 10 s apart)."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class SimulatedSocket(trio.socket.SocketType):
    """One end of a connection, or a listener."""

    family = stdlib.AF_INET
    type = stdlib.SOCK_STREAM
    proto = 0
    did_shutdown_SHUT_WR = False  # noqa: N815

    def __init__(self, network: Network, host: Host) -> None:
        self.host = host
        self.local: tuple[str, int] = ("0.0.0.0", 0)
        self.remote: tuple[str, int] | None = None
        self.peer: SimulatedSocket | None = None
        self.closed = False
        self.orphaned = False
        """Its process is dead: no call of it returns any more."""
        self.vanished = False
        """Its host lost its power: nobody is told."""
        self.listening = False
        self.accepts: deque[SimulatedSocket] = deque()
        self._network = network
        self._backlog = 0
        self._error = 0
        self._arrived: deque[memoryview] = deque()
        self._unread = 0
        self._flight = 0
        """Bytes of ours that the other end has not read."""
        self._ended = False
        """The other end sends no more."""
        self._last_arrival = 0.0
        self._least = 1
        """SO_RCVLOWAT."""
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        host.sockets[self] = None

    # --- what is asked of it ----------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self.closed else 1 << 20

    def getsockname(self) -> Any:
        self._check_open()
        return self.local

    def getpeername(self) -> Any:
        self._check_open()
        if self.remote is None:
            raise _error(errno.ENOTCONN)
        return self.remote

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        if (level, optname) == (stdlib.SOL_SOCKET, stdlib.SO_ACCEPTCONN):
            return int(self.listening)
        return 0

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        self._check_open()
        if (level, optname) == (stdlib.SOL_SOCKET, stdlib.SO_RCVLOWAT):
            self._least = value

    async def bind(self, address: Any) -> None:
        host, port = address[0], address[1] or self.host.next_port()
        if host != self.host.address:
            raise _error(errno.EADDRNOTAVAIL)
        if (host, port) in self._network.listeners:
            raise _error(errno.EADDRINUSE)
        self.local = (host, port)

    def listen(self, backlog: int = 128) -> None:
        self._network.listeners[self.local] = self
        self.listening, self._backlog = True, backlog

    async def accept(self) -> tuple[SimulatedSocket, Any]:
        while True:
            await self._check_alive()
            if self.accepts and self.host.running:
                found = self.accepts.popleft()
                if self.host.accept_s:
                    self.host.busy_until = max(self.host.busy_until, trio.current_time()) + self.host.accept_s
                await self._network.step()
                return found, found.remote
            await self._readers.park()

    async def connect(self, address: Any) -> None:
        self._check_open()
        self.remote = (address[0], address[1])
        if not self.local[1]:
            self.local = (self.host.address, self.host.next_port())
        self._send_syn()
        while self.peer is None:
            await self._readers.park()
            await self._check_alive()
            if self._error:
                raise _error(self._error)

    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        waited = False
        keep = bool(flags & PEEK)
        paid = keep or self.host.bytes_per_s == float("inf")
        while True:
            await self._check_alive()
            if self.host.running and self.host.reads:
                if self._unread and not paid:
                    # Before it takes anything: what a cancelled call has taken would be lost.
                    await self.host.work(min(buflen, self._unread) / self.host.bytes_per_s)
                    waited = paid = True
                    continue
                if self._unread:
                    data = self._take(buflen, keep=keep)
                    break
                if self._ended or self._error:
                    if self._error:
                        raise _error(self._error)
                    data = b""
                    break
            await self._readers.park()
            waited = True
        if not waited:
            await self._network.step()
        return data

    async def send(self, data: Any, flags: int = 0, /) -> int:
        while True:
            await self._check_alive()
            if self._error or self.did_shutdown_SHUT_WR:
                raise _error(self._error or errno.EPIPE)
            room = WINDOW_BYTES - self._flight
            if room > 0 and self.host.running:
                break
            await self._writers.park()
        piece = memoryview(bytes(data[:room]))
        self._flight += len(piece)
        self._transmit(len(piece), lambda peer: peer._receive(piece))
        self._network.on_sent(self, piece)
        await self._network.step()
        return len(piece)

    async def wait_writable(self) -> None:
        while not self.closed and self._flight >= WINDOW_BYTES and not self._error:
            await self._writers.park()
        await self._check_alive()
        await trio.lowlevel.checkpoint()

    async def wait_readable(self) -> None:
        """What `trio.lowlevel.wait_readable` is for a socket of the kernel's."""
        while not self.closed and self._unread < self._least and not self._ended and not self._error:
            await self._readers.park()
        await self._check_alive()
        await trio.lowlevel.checkpoint()

    def shutdown(self, flag: int) -> None:
        self._check_open()
        if self.peer is None or self._error:
            raise _error(errno.ENOTCONN)
        if not self.did_shutdown_SHUT_WR:
            self.did_shutdown_SHUT_WR = True
            self._transmit(0, SimulatedSocket._end)

    def close(self) -> None:
        if self.closed:
            return
        self._forget()
        for one in self.accepts:
            one.close()
        if self.peer is not None and not self._error:
            if self._unread:
                self._transmit(0, SimulatedSocket._reset)
            elif not self.did_shutdown_SHUT_WR:
                self._transmit(0, SimulatedSocket._end)

    def orphan(self) -> None:
        """Its process died, and its host closes it."""
        self.orphaned = True
        self.close()

    def vanish(self) -> None:
        """Its host lost its power."""
        if not self.closed:
            self.orphaned = True
            self._forget()
            self.vanished = True
            peer = self.peer
            for one in self.accepts:
                one.vanish()
            if peer is not None and not peer.closed:
                self._network.at(trio.current_time() + KEEP_ALIVE_S, lambda: peer._reset(errno.ETIMEDOUT))

    def cut(self) -> None:
        """Somebody between the two ends resets the connection."""
        self._reset()
        if self.peer is not None:
            self.peer._reset()

    def wake(self) -> None:
        """Whoever waits looks again."""
        self._readers.unpark_all()
        self._writers.unpark_all()

    # --- what arrives -----------------------------------------------------------------------------------------

    def _receive(self, piece: memoryview) -> None:
        if self.closed or self._error:
            self._refuse()
            return
        self._arrived.append(piece)
        self._unread += len(piece)
        self._readers.unpark_all()

    def _end(self) -> None:
        self._ended = True
        self._readers.unpark_all()

    def _reset(self, number: int = errno.ECONNRESET) -> None:
        if not self.closed and not self._error:
            self._error = number
            self.wake()

    def _refuse(self) -> None:
        """What came for a connection that this host knows no more."""
        peer = self.peer
        if peer is None or peer.closed:
            return
        if self.host.powered:
            self._network.send(self.host, peer.host, 0, 0.0, peer._reset)
        else:
            # Nobody answers; it is sent again.
            self._network.at(trio.current_time() + SENT_AGAIN_S, self._refuse)

    def _syn(self, client: SimulatedSocket) -> None:
        """A listener is asked for a connection."""
        if len(self.accepts) >= self._backlog:
            self._network.at(trio.current_time() + SYN_AGAIN_S, client._send_syn)
            return
        server = SimulatedSocket(self._network, self.host)
        server.local, server.remote, server.peer = self.local, client.local, client
        self.accepts.append(server)
        self._readers.unpark_all()
        server._transmit(0, lambda client: client._established(server))

    def _established(self, server: SimulatedSocket) -> None:
        if self.closed:
            server._reset()
            return
        self.peer = server
        self._readers.unpark_all()

    def _send_syn(self) -> None:
        if self.closed:
            return
        assert self.remote is not None
        to = self._network.hosts.get(self.remote[0])
        if to is None:
            self._reset(errno.EHOSTUNREACH)
            return
        self._network.send(self.host, to, 0, 0.0, lambda: self._ask(to))

    def _ask(self, to: Host) -> None:
        """The wish for a connection has come to the host."""
        assert self.remote is not None
        if not to.powered:
            self._network.at(trio.current_time() + SYN_AGAIN_S, self._send_syn)
            return
        listener = self._network.listeners.get(self.remote)
        if listener is None:
            self._network.send(to, self.host, 0, 0.0, lambda: self._reset(errno.ECONNREFUSED))
        else:
            listener._syn(self)

    # --- what it does -----------------------------------------------------------------------------------------

    def _transmit(self, size: int, what: Any) -> None:
        peer = self.peer
        assert peer is not None
        self._last_arrival = self._network.send(self.host, peer.host, size, self._last_arrival, lambda: what(peer))

    def _take(self, most: int, *, keep: bool) -> bytes:
        taken: list[memoryview] = []
        size = 0
        for piece in self._arrived:
            if size >= most:
                break
            taken.append(piece[: most - size])
            size += len(taken[-1])
        data = bytes(taken[0]) if len(taken) == 1 else b"".join(taken)
        if not keep:
            self._drop(size)
        return data

    def _drop(self, size: int) -> None:
        self._unread -= size
        left = size
        while left:
            piece = self._arrived[0]
            if len(piece) <= left:
                self._arrived.popleft()
                left -= len(piece)
            else:
                self._arrived[0] = piece[left:]
                left = 0
        peer = self.peer
        if peer is not None:
            peer._flight -= size
            peer._writers.unpark_all()

    def _forget(self) -> None:
        self.closed = True
        del self.host.sockets[self]
        if self.listening:
            self.listening = False
            del self._network.listeners[self.local]
        self.wake()

    async def _check_alive(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.orphaned:
            await trio.sleep_forever()
        self._check_open()

    def _check_open(self) -> None:
        if self.closed:
            raise _error(errno.EBADF)


class Factory(trio.abc.SocketFactory):
    """Gives Trio its sockets: each belongs to the host that the calling task runs on."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, family: Any = None, type: Any = None, proto: Any = None) -> trio.socket.SocketType:
        """A socket of the current host."""
        return SimulatedSocket(self._network, current())
