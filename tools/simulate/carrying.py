"""A relay's one direction for sockets that the kernel does not know: read and written, where the product splices."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def copy_one_way(
    source: trio.SocketStream,
    destination: trio.SocketStream,
    read: Callable[[int], None],
    wrote: Callable[[int], None],
    pipe_bytes: int,
    both: trio.CancelScope,
    first: bytes,
    _keep: Callable[[bytes], None],
) -> None:
    """As `balancer.carry.splice_one_way`; nothing is left to a successor here, so nothing is kept for one."""
    assert not first
    try:
        while data := await source.receive_some(pipe_bytes):
            read(len(data))
            await destination.send_all(data)
            wrote(len(data))
        await destination.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        both.cancel()
