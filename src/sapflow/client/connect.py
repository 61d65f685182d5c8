"""How a user's program connects: the client's own place for it, on anyio, with a timeout that covers TCP and TLS."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import anyio
import anyio.abc

from sapflow.errors import ConfigurationError, Unreachable


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
