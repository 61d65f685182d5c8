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


class RelayCounts(Protocol):
    """Where bytes are counted: from the client, on to the upstream, and what went back."""

    bytes_in: int
    bytes_out: int
    bytes_back: int


class Rest(Protocol):
    """What was read of each side and not written to the other when a relay was stopped: that goes first later."""

    into: bytes
    """For the upstream."""
    back: bytes
    scope: trio.CancelScope | None
    """While it runs: by which it is stopped."""


@define
class NoRest:
    """Of a relay that nobody goes on with."""

    into: bytes = b""
    back: bytes = b""
    scope: trio.CancelScope | None = None


Counters = tuple[RelayCounts, ...]
Count = Callable[[Counters, int], None]
Keep = Callable[[Rest, bytes], None]


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
    one_way = carrier.get()
    rest = NoRest() if rest is None else rest
    async with trio.open_nursery() as nursery:
        both = rest.scope = nursery.cancel_scope
        into, back = rest.into, rest.back
        # A name of its own would be made anew for each.
        nursery.start_soon(
            one_way, client, upstream, counters, _taken, _given, pipe_bytes, both, into, rest, _keep_into, name="relay"
        )
        await one_way(upstream, client, counters, _nothing, _back, pipe_bytes, both, back, rest, _keep_back)
        nursery.cancel_scope.deadline = trio.current_time() + HALF_CLOSED_S


# An idle link is two frames that wait: what is the same for all links is not made for each.


def _taken(counters: Counters, size: int) -> None:
    for counts in counters:
        counts.bytes_in += size


def _given(counters: Counters, size: int) -> None:
    for counts in counters:
        counts.bytes_out += size


def _back(counters: Counters, size: int) -> None:
    for counts in counters:
        counts.bytes_back += size


def _nothing(_counters: Counters, _size: int) -> None: ...


def _keep_into(rest: Rest, data: bytes) -> None:
    rest.into = data


def _keep_back(rest: Rest, data: bytes) -> None:
    rest.back = data


async def splice_one_way(
    source: trio.SocketStream,
    destination: trio.SocketStream,
    counters: Counters,
    read: Count,
    wrote: Count,
    pipe_bytes: int,
    both: trio.CancelScope,
    first: bytes,
    rest: Rest,
    keep: Keep,
) -> None:
    """Until `source` ends; `both` is cancelled when either is gone. `first` goes first; what is left is in `rest`."""
    out_end, in_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        from_fd, to_fd = source.socket.fileno(), destination.socket.fileno()
        while first:
            moved = _fill(in_end, first)
            first = first[moved:]
            await _empty(out_end, to_fd, counters, moved, wrote)
        is_small = True
        while True:
            spliced = _splice(from_fd, in_end, pipe_bytes)
            if spliced is None:
                await trio.lowlevel.wait_readable(from_fd)
                continue
            if not spliced:
                break
            read(counters, spliced)
            if is_small and spliced >= BULK_BYTES:
                is_small = False
                _widen(in_end, pipe_bytes)
            await _empty(out_end, to_fd, counters, spliced, wrote)
            await trio.lowlevel.checkpoint()
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
        keep(rest, _left_in(out_end) + first)
        os.close(out_end)


def _fill(in_end: int, data: bytes) -> int:
    """Put as much into a pipe, which is empty, as it takes: how much."""
    _widen(in_end, min(PIPE_BYTES, max(len(data), BULK_BYTES)))
    return os.write(in_end, data)


async def _empty(out_end: int, to_fd: int, counters: Counters, size: int, wrote: Count) -> None:
    """Have all that a pipe has written."""
    while size:
        gone = _splice(out_end, to_fd, size)
        if gone is None:
            await trio.lowlevel.wait_writable(to_fd)
        else:
            wrote(counters, gone)
            size -= gone


def _left_in(out_end: int) -> bytes:
    """What a pipe has whose other end is closed."""
    pieces = []
    while piece := os.read(out_end, PIPE_BYTES):
        pieces.append(piece)
    return b"".join(pieces)


def _splice(source: int, destination: int, size: int) -> int | None:
    """How much went; None when nothing can now. Who waits does so outside: an error being handled keeps its frames."""
    try:
        return os.splice(source, destination, size, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return None


def _widen(pipe: int, pipe_bytes: int) -> None:
    try:
        fcntl.fcntl(pipe, F_SETPIPE_SZ, pipe_bytes)
    except PermissionError:
        # The user has all the pages that pipes of one may have (fs.pipe-user-pages-soft): slower, and no less right.
        return


OneWay = Callable[
    [trio.SocketStream, trio.SocketStream, Counters, Count, Count, int, trio.CancelScope, bytes, Rest, Keep],
    Awaitable[None],
]
carrier: ContextVar[OneWay] = ContextVar("carrier", default=splice_one_way)
"""How this context carries one direction: sockets that the kernel does not know, as in a simulation, need another."""
