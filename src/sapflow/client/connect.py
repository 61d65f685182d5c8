"""How a user's program connects: the client's own place for it, on anyio, with a timeout that covers TCP and TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

import anyio
import anyio.abc

from sapflow.errors import ConfigurationError, LinkError, Refused, Unreachable
from sapflow.link import Close, Closed, Connection, Side, Welcomed
from sapflow.link.frames import Hint, LinkLimits

MAX_FEED_BYTES = 4 << 20

Connect: TypeAlias = Callable[[], Awaitable[anyio.abc.ByteStream]]
"""Makes a connection to a door. Raises Unreachable."""


async def connect(url: str, *, timeout_s: float) -> anyio.abc.ByteStream:
    """A byte stream to `link://host:port` or, by TLS, `links://host:port`. Raises Unreachable, ConfigurationError."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in ("link", "links") or host is None or port is None:
        raise ConfigurationError(f"'{url}' is not a place to read from; write link://HOST:PORT or links://HOST:PORT")
    try:
        with anyio.fail_after(timeout_s):
            if parts.scheme == "link":
                return await anyio.connect_tcp(host, port)
            return await anyio.connect_tcp(host, port, tls=True, ssl_context=ssl.create_default_context())
    except TimeoutError:
        raise Unreachable(f"{host}:{port} did not answer within {timeout_s:g} s") from None
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        what = str(error) or "closed in the midst of the TLS handshake"
        raise Unreachable(f"{host}:{port} cannot be reached: {what}") from error


@asynccontextmanager
async def greeted(
    url: str, org: str, token: str, *, connect_timeout_s: float, dial: Connect | None = None
) -> AsyncIterator[tuple[anyio.abc.ByteStream, Connection]]:
    """A connection on which the door has greeted; `dial` makes it where the door is at no URL.

    Raises Refused, Unreachable, LinkError.
    """
    stream = await (dial or partial(connect, url, timeout_s=connect_timeout_s))()
    async with stream:
        connection = Connection(Side.CLIENT, LinkLimits(max_batch_bytes=MAX_FEED_BYTES))
        try:
            with anyio.fail_after(connect_timeout_s):
                await stream.send(connection.hello(Hint(org=org), role="consumer", token=token))
                await welcomed(stream, connection)
        except (TimeoutError, anyio.BrokenResourceError):
            raise Unreachable(f"{url} did not greet within {connect_timeout_s:g} s; is it a consume door?") from None
        yield stream, connection


async def welcomed(stream: anyio.abc.ByteStream, connection: Connection) -> None:
    """Wait for the door's greeting. Raises Refused, Unreachable, LinkError."""
    while True:
        try:
            events = connection.receive(await stream.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise Unreachable("the consume door closed without a word") from None
        for event in events:
            match event:
                case Welcomed():
                    return
                case Closed(code, reason):
                    raise Refused(f"the consume door refused: {reason}", code=code)
                case _:
                    raise LinkError("the consume door did not greet", code=Close.PROTOCOL)
