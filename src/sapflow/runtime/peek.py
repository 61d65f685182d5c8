"""What a connection begins with, looked at without taking it: whoever reads it next finds it all."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import trio

Found = TypeVar("Found")


async def peek(stream: trio.SocketStream, read: Callable[[bytes], Found | None], most_bytes: int) -> Found | None:
    """What `read` finds in the first bytes, once they are enough; None when the other end closes before.

    Its deadline is the caller's; `read` is given at most `most_bytes`, and is to find something by then.
    """
    seen = 0
    try:
        while True:
            data = await stream.socket.recv(most_bytes, socket.MSG_PEEK)
            if len(data) <= seen:
                return None
            found = read(data)
            if found is not None:
                return found
            seen = len(data)
            # A peek finds the same bytes again at once: the socket is to be readable when there are more.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
            await trio.lowlevel.wait_readable(stream.socket)
    finally:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
