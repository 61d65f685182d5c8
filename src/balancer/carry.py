"""Relay between two sockets by `os.splice`: the bytes never enter Python.

Each direction has a pipe of its own; an end of one direction is passed on as a half-close and does not cut the other.
But a collector that ended has ended the link: a client that does not follow, since its host is gone, is not waited for.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Protocol

import trio
from attrs import define

PIPE_BYTES = 1 << 20
BULK_BYTES = 16 << 10
"""A link that moves so much at once gets a larger pipe: one that is idle costs the kernel a small one."""
HALF_CLOSED_S = 5.0
"""So long a client may still speak when its collector has ended."""
F_SETPIPE_SZ = 1031
_GONE = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.EBADF}


@define
class Rest:
    """What was read of each side and not written to the other when a relay was stopped: that goes first later."""

    into: bytes = b""
    """For the upstream."""
    back: bytes = b""


class RelayCounts(Protocol):
    """Where bytes are counted: from the client, on to the upstream, and what went back."""

    bytes_in: int
    bytes_out: int
    bytes_back: int


async def relay(
    client: trio.SocketStream,
    upstream: trio.SocketStream,
    *counters: RelayCounts,
    pipe_bytes: int = PIPE_BYTES,
    rest: Rest | None = None,
) -> None:
    """Carry bytes both ways until both directions have ended, or one side was reset; all `counters` count them.

    `rest` goes before them, and what is on its way when this is cancelled is in it then.
    """

    def taken(size: int) -> None:
        for counts in counters:
            counts.bytes_in += size

    def given(size: int) -> None:
        for counts in counters:
            counts.bytes_out += size

    def back(size: int) -> None:
        for counts in counters:
            counts.bytes_back += size

    def nothing(_size: int) -> None: ...

    one_way, rest = carrier.get(), rest if rest is not None else Rest()

    def keep_into(data: bytes) -> None:
        rest.into = data

    def keep_back(data: bytes) -> None:
        rest.back = data

    async with trio.open_nursery() as nursery:
        both = nursery.cancel_scope
        nursery.start_soon(one_way, client, upstream, taken, given, pipe_bytes, both, rest.into, keep_into)
        await one_way(upstream, client, nothing, back, pipe_bytes, both, rest.back, keep_back)
        nursery.cancel_scope.deadline = trio.current_time() + HALF_CLOSED_S


async def splice_one_way(
    source: trio.SocketStream,
    destination: trio.SocketStream,
    read: Callable[[int], None],
    wrote: Callable[[int], None],
    pipe_bytes: int,
    both: trio.CancelScope,
    first: bytes,
    keep: Callable[[bytes], None],
) -> None:
    """Until `source` ends; `both` is cancelled when either is gone. `first` goes first; `keep` is told what is left."""
    out_end, in_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        from_fd, to_fd = source.socket.fileno(), destination.socket.fileno()
        while first:
            moved = _fill(in_end, first)
            first = first[moved:]
            await _empty(out_end, to_fd, moved, wrote)
        is_small = True
        while True:
            moved = await _splice(from_fd, in_end, pipe_bytes, wait_read=from_fd, wait_write=None)
            if not moved:
                break
            read(moved)
            if is_small and moved >= BULK_BYTES:
                is_small = False
                _widen(in_end, pipe_bytes)
            await _empty(out_end, to_fd, moved, wrote)
        await destination.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        both.cancel()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        both.cancel()
    finally:
        os.close(in_end)
        # What the pipe has is all that was read and not written, whenever this was cancelled.
        keep(_left_in(out_end) + first)
        os.close(out_end)


def _fill(in_end: int, data: bytes) -> int:
    """Put as much into a pipe, which is empty, as it takes: how much."""
    _widen(in_end, min(PIPE_BYTES, max(len(data), BULK_BYTES)))
    return os.write(in_end, data)


async def _empty(out_end: int, to_fd: int, size: int, wrote: Callable[[int], None]) -> None:
    """Have all that a pipe has written."""
    while size:
        gone = await _splice(out_end, to_fd, size, wait_read=None, wait_write=to_fd)
        wrote(gone)
        size -= gone


def _left_in(out_end: int) -> bytes:
    """What a pipe has whose other end is closed."""
    pieces = []
    while piece := os.read(out_end, PIPE_BYTES):
        pieces.append(piece)
    return b"".join(pieces)


def _widen(pipe: int, pipe_bytes: int) -> None:
    try:
        fcntl.fcntl(pipe, F_SETPIPE_SZ, pipe_bytes)
    except PermissionError:
        # The user has all the pages that pipes of one may have (fs.pipe-user-pages-soft): slower, and no less right.
        return


OneWay = Callable[
    [
        trio.SocketStream,
        trio.SocketStream,
        Callable[[int], None],
        Callable[[int], None],
        int,
        trio.CancelScope,
        bytes,
        Callable[[bytes], None],
    ],
    Awaitable[None],
]
carrier: ContextVar[OneWay] = ContextVar("carrier", default=splice_one_way)
"""How this context carries one direction: sockets that the kernel does not know, as in a simulation, need another."""


async def _splice(source: int, destination: int, size: int, *, wait_read: int | None, wait_write: int | None) -> int:
    while True:
        try:
            moved = os.splice(source, destination, size, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            if wait_read is not None:
                await trio.lowlevel.wait_readable(wait_read)
            if wait_write is not None:
                await trio.lowlevel.wait_writable(wait_write)
            continue
        await trio.lowlevel.checkpoint()
        return moved
