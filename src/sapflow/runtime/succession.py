"""Connections that a process leaves to its successor, with their state: in a queue of the kernel's, between the two.

Whoever keeps the processes running makes the queue (a pair of Unix sockets, SOCK_SEQPACKET), holds both of its ends,
and gives them to each of the processes. So it does not matter whether the successor is there already: what was left
waits for it, and outlives whoever left it.

Rule 1: a connection is the queue's from the moment in which it was sent, and its taker's from that in which it was
        read. The kernel gives each message to one reader, whole; what nobody read is closed when the queue is no more.
Rule 2: the state goes in a file that has no name (memfd), so that it may be larger than what the queue may hold. A
        message is that file and the connections that it tells of, no more than the kernel lets pass at once.
Rule 3: only processes of whoever made the queue have its ends. A state that cannot be read costs its connection.
"""

from __future__ import annotations

import array
import errno
import itertools
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence

import structlog
import trio
from attrs import define, field, frozen

from sapflow.runtime.sockets import given_socket

log = structlog.get_logger()

INTO, OUT_OF = "succession_into", "succession_out_of"
"""What the two ends are called among the sockets that a process is given."""
MOST_AT_ONCE = 64
"""Sockets in a message."""
MOST_BYTES_AT_ONCE = 8 << 20
"""Of the states in a message, if they are more than one."""
RETRY_S = 0.02
PAUSE_S = 1.0
_HEAD = struct.Struct("!4sH")
_MAGIC = b"sfl1"
_SIZE = struct.Struct("!HQ")
"""Of what was left together: how many sockets, and how long its state is."""
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


@frozen
class LeftConnection:
    """A connection that was left, or two that belong together, and what was said of it."""

    socks: tuple[socket.socket, ...]
    state: bytes

    def close(self) -> None:
        """Let go of it."""
        for sock in self.socks:
            sock.close()


@define(eq=False)
class _Item:
    descriptors: list[int]
    state: bytes
    is_sent: bool = False


def succession_sockets() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new queue: what is left goes into the first, and comes out of the second."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


@define(eq=False)
class Succession:
    """One process's ends of the queue."""

    into: socket.socket
    out_of: socket.socket
    unread: int = 0
    """Messages of which nothing could be made; their connections are closed."""
    _waiting: deque[_Item] = field(factory=deque)
    _turn: trio.Lock = field(factory=trio.Lock)

    @classmethod
    def given(cls) -> Succession | None:
        """That which this process was given, if any."""
        into, out_of = given_socket(INTO), given_socket(OUT_OF)
        if into is None or out_of is None:
            return None
        into.setblocking(False)
        out_of.setblocking(False)
        return cls(into, out_of)

    async def leave(self, socks: Sequence[trio.socket.SocketType], state: bytes, deadline: float) -> bool:
        """Leave a connection: whether it is a successor's, or the queue's, now. Then its own end here is to be closed.

        Known at the deadline, whoever is cancelled meanwhile.
        """
        item = _Item([sock.fileno() for sock in socks], state)
        self._waiting.append(item)
        with trio.CancelScope(shield=True, deadline=deadline):
            async with self._turn:
                while not item.is_sent:
                    await self._send_some()
        if not item.is_sent:
            self._waiting.remove(item)
        return item.is_sent

    async def _send_some(self) -> None:
        items: list[_Item] = []
        size = 0
        descriptors: list[int] = []
        for item in self._waiting:
            size += len(item.state)
            if items and (len(descriptors) + len(item.descriptors) > MOST_AT_ONCE or size > MOST_BYTES_AT_ONCE):
                break
            items.append(item)
            descriptors += item.descriptors
        try:
            file = _file_of(items)
            try:
                passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file, *descriptors]))]
                self.into.sendmsg([_HEAD.pack(_MAGIC, len(descriptors))], passed, socket.MSG_NOSIGNAL)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            # Full of messages, or of descriptors on their way: which of them, the kernel does not say.
            await trio.sleep(RETRY_S)
            return
        for item in items:
            item.is_sent = True
            self._waiting.remove(item)
        await trio.lowlevel.checkpoint()

    async def take(self) -> list[LeftConnection]:
        """Some of what others left, when there is any; whoever takes it closes it."""
        while True:
            await trio.lowlevel.wait_readable(self.out_of)
            try:
                if found := self._take():
                    return found
            except OSError as error:
                log.warning("connections not taken over", reason=error.strerror or str(error), retry_s=PAUSE_S)
                await trio.sleep(PAUSE_S)

    def _take(self) -> list[LeftConnection]:
        try:
            data, descriptors, flags = _receive(self.out_of)
        except BlockingIOError:
            return []
        try:
            found = _read(data, descriptors, cut=bool(flags & socket.MSG_CTRUNC))
        except (OSError, ValueError, struct.error) as error:
            self.unread += 1
            for descriptor in descriptors:
                os.close(descriptor)
            log.warning("connections not taken over", connections=len(descriptors), reason=str(error))
            return []
        return found


def _receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    """A message, its descriptors, its flags. (`socket.recv_fds` of Python 3.11 takes flags and does not heed them.)"""
    numbers = array.array("i")
    room = socket.CMSG_LEN((MOST_AT_ONCE + 1) * numbers.itemsize)
    data, passed, flags, _ = sock.recvmsg(_HEAD.size, room, socket.MSG_CMSG_CLOEXEC)
    for _level, _kind, payload in passed:
        numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
    return data, list(numbers), flags


def _file_of(items: Sequence[_Item]) -> int:
    """A file without a name that holds their states, each behind what `_SIZE` says."""
    file = os.memfd_create("sapflow-succession", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as out:
            for item in items:
                out.write(_SIZE.pack(len(item.descriptors), len(item.state)))
                out.write(item.state)
    except BaseException:
        os.close(file)
        raise
    return file


def _read(data: bytes, descriptors: list[int], *, cut: bool) -> list[LeftConnection]:
    """The connections of a message; only when all is in order is any descriptor taken. Raises OSError, ValueError."""
    magic, count = _HEAD.unpack(data)
    if magic != _MAGIC:
        raise ValueError("it is of another version")
    if cut or len(descriptors) != count + 1:
        raise ValueError("this process may not have so many descriptors")
    size = os.fstat(descriptors[0]).st_size
    states: list[tuple[int, bytes]] = []
    with mmap.mmap(descriptors[0], size, prot=mmap.PROT_READ) as file:
        at = 0
        while sum(sockets for sockets, _ in states) < count:
            sockets, length = _SIZE.unpack_from(file, at)
            at += _SIZE.size
            if not sockets or length > size - at:
                raise ValueError("a state is cut off")
            states.append((sockets, file[at : at + length]))
            at += length
    if sum(sockets for sockets, _ in states) != count:
        raise ValueError("it has not as many sockets as its states tell of")
    os.close(descriptors.pop(0))
    socks: list[socket.socket] = []
    try:
        for descriptor in descriptors:
            socks.append(socket.socket(fileno=descriptor))
            socks[-1].setblocking(False)
    except OSError:
        for sock in socks:
            sock.detach()
        raise
    each = iter(socks)
    return [LeftConnection(tuple(itertools.islice(each, sockets)), state) for sockets, state in states]
