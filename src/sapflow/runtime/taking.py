"""Sockets taken from other processes of this host, and served as if accepted here. `handoff` has the rules.

Whoever gives more than may be served at a time is told so at once, and keeps them: nothing waits here.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import structlog
import trio
from attrs import define, field

from sapflow.errors import ConfigurationError, LinkError
from sapflow.link.frames import Close
from sapflow.runtime.handoff import MAX_MESSAGE_BYTES, REFUSED, TAKEN, Door, Handed, is_mine, short_path
from sapflow.runtime.serve import AcceptErrors, Handler, serve_one

log = structlog.get_logger()

MAX_GIVERS = 64
MOST_AT_ONCE = 64
"""Sockets taken between two passes of the scheduler."""
_SEQPACKET = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


@define
class TakingCounts:
    """What became of sockets that were given; never goes down, but for `givers`."""

    givers: int = 0
    taken: int = 0
    no_room: int = 0
    malformed: int = 0
    strangers: int = 0
    """Connections by other users."""


def listen_handoff(directory: Path, name: str) -> tuple[socket.socket, Path]:
    """A listening socket in a directory that only this user may enter. Raises ConfigurationError.

    Each process has a path of its own, so that one that ends and its successor are told apart; what dead ones of this
    name left goes.
    """
    path = directory / f"{name}.{os.getpid()}.sock"
    listener = socket.socket(socket.AF_UNIX, _SEQPACKET)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is another user's")
        if stat.S_IMODE(found.st_mode) != 0o700:
            directory.chmod(0o700)
        for other in directory.glob(f"{name}.*.sock"):
            if not _is_served(other):
                other.unlink(missing_ok=True)
        with short_path(path) as short:
            listener.bind(short)
        path.chmod(0o600)
        listener.listen(MAX_GIVERS)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"sockets cannot be taken over at {path}: {error.strerror or error}; balancers on this host relay to "
            f"{name} instead, which costs more CPU. Mend the directory, or set collector.handoff = false"
        ) from error
    return listener, path


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, _SEQPACKET) as probe:
        try:
            with short_path(path) as short:
                probe.connect(short)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _unlisten(listener: socket.socket, path: Path) -> None:
    listener.close()
    path.unlink(missing_ok=True)


@define
class Taking:
    """Serves what is given, each kind by its handler; `slots` are those of this process's own listeners."""

    handlers: dict[Door, Handler]
    slots: trio.CapacityLimiter
    counts: TakingCounts = field(factory=TakingCounts)

    async def run(self, listener: socket.socket, path: Path) -> None:
        """Until cancelled; closes the listener, and removes its path."""
        errors = AcceptErrors("hand-off")
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    try:
                        giver, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        await errors.after(error)
                        continue
                    errors.over()
                    self._admit(giver, nursery)
        finally:
            _unlisten(listener, path)

    def _admit(self, giver: socket.socket, nursery: trio.Nursery) -> None:
        if not is_mine(giver):
            self.counts.strangers += 1
            giver.close()
            log.warning("hand-off refused", reason="the process at the other end is another user's")
        elif self.counts.givers >= MAX_GIVERS:
            giver.close()
            log.warning("hand-off refused", reason=f"{MAX_GIVERS} processes give sockets already")
        else:
            self.counts.givers += 1
            nursery.start_soon(self._serve, giver, nursery)

    async def _serve(self, giver: socket.socket, nursery: trio.Nursery) -> None:
        giver.setblocking(False)
        try:
            with giver:
                while True:
                    await trio.lowlevel.wait_readable(giver)
                    if not self._take_some(giver, nursery):
                        return
        except OSError as error:
            log.info("giver lost", reason=str(error))
        except LinkError as error:
            self.counts.malformed += 1
            log.warning(
                "giver cut off", reason=str(error), meaning="what it gave and was not answered is still its own"
            )
        finally:
            self.counts.givers -= 1

    def _take_some(self, giver: socket.socket, nursery: trio.Nursery) -> bool:
        """Those that are there, up to a bound: a pass of the scheduler for each would be felt in a herd."""
        try:
            return all(self._take(giver, nursery) for _ in range(MOST_AT_ONCE))
        except BlockingIOError:
            return True

    def _take(self, giver: socket.socket, nursery: trio.Nursery) -> bool:
        """One socket; False when the giver is gone. Raises OSError, LinkError: what was not answered is its own."""
        data, descriptors = _receive(giver)
        with ExitStack() as closing:
            for descriptor in descriptors:
                closing.callback(os.close, descriptor)
            if not data:
                return False
            handed, ticket = Handed.decode(data), object()
            # Without a free descriptor in this process the message comes without.
            if not descriptors or handed.door not in self.handlers or not self._is_room(ticket):
                self.counts.no_room += 1
                _answer(giver, REFUSED)
                return True
            try:
                check_tcp(descriptors[0])
                # From here on it is ours, unless the giver waits no longer: then this raises.
                _answer(giver, TAKEN)
            except BaseException:
                self.slots.release_on_behalf_of(ticket)
                raise
            closing.pop_all()
        self.counts.taken += 1
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        nursery.start_soon(serve_one, stream, handed.peer, self.handlers[handed.door], handed.door, self.slots, ticket)
        return True

    def _is_room(self, ticket: object) -> bool:
        try:
            self.slots.acquire_on_behalf_of_nowait(ticket)
        except trio.WouldBlock:
            return False
        return True


def _answer(giver: socket.socket, answer: bytes) -> None:
    """Raises OSError when the giver waits no longer, LinkError when it does not read: the next would pass for it."""
    try:
        giver.send(answer, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        raise LinkError("it does not read what it is answered", code=Close.OVERLOADED) from None


def _receive(giver: socket.socket) -> tuple[bytes, list[int]]:
    """A message, and the descriptor that came with it. The kernel closes others that were sent beside it."""
    data, passed, flags, _ = giver.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for _level, _kind, payload in passed:
        descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    # What was cut off may still look whole.
    return data if not flags & socket.MSG_TRUNC else b"too long", list(descriptors)


def check_tcp(descriptor: int) -> None:
    """Whether it is a TCP connection's socket; it stays open. Raises LinkError."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise LinkError(f"a descriptor that is no socket: {error.strerror}", code=Close.PROTOCOL) from None
    family, kind = sock.family, sock.type
    sock.detach()
    if family not in (socket.AF_INET, socket.AF_INET6) or kind != socket.SOCK_STREAM:
        raise LinkError("a socket that is no TCP connection", code=Close.PROTOCOL)
