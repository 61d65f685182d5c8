"""A relay's one direction for sockets that the kernel does not know: read and written, where the product splices."""

from __future__ import annotations

import trio

from balancer.carry import Count, Counters, Keep, Rest


async def copy_one_way(
    source: trio.SocketStream,
    destination: trio.SocketStream,
    counters: Counters,
    read: Count,
    wrote: Count,
    pipe_bytes: int,
    both: trio.CancelScope,
    first: bytes,
    _rest: Rest,
    _keep: Keep,
) -> None:
    """As `balancer.carry.splice_one_way`; nothing is left to a successor here, so nothing is kept for one."""
    assert not first
    try:
        while data := await source.receive_some(pipe_bytes):
            read(counters, len(data))
            await destination.send_all(data)
            wrote(counters, len(data))
        await destination.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        both.cancel()
