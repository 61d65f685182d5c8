"""The only place that opens outbound connections. The timeout has no default, and covers name, TCP and TLS together."""

from __future__ import annotations

import errno
import os
import ssl

import trio

from sapflow.errors import Unreachable
from sapflow.runtime.addresses import join_address, split_address

BULK_LOW_WATER_BYTES = 1 << 20
"""Trio's SocketStream sets TCP_NOTSENT_LOWAT to 16 KiB, a scheduler pass for every 16 KiB sent."""


KEEP_ALIVE = {
    trio.socket.TCP_KEEPIDLE: 30,
    trio.socket.TCP_KEEPINTVL: 10,
    trio.socket.TCP_KEEPCNT: 3,
}
"""Seconds of silence before the first probe, between probes, and how many go unanswered: a host that is gone is found
within a minute, also where the protocol has no ping of its own (IPFIX has none)."""


def tune_bulk(stream: trio.SocketStream) -> None:
    """Let a socket that carries batches take more than 16 KiB at a time, and find out when its other end is gone."""
    if stream.socket.family == trio.socket.AF_UNIX:
        return
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        stream.setsockopt(trio.socket.IPPROTO_TCP, option, value)
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, BULK_LOW_WATER_BYTES)


async def dial(address: str, *, timeout_s: float, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A connected stream to `host:port`. Raises Unreachable within `timeout_s` seconds, whatever hangs."""
    host, port = split_address(address)
    try:
        with trio.fail_after(timeout_s):
            tcp = await trio.open_tcp_stream(host, port)
            if tcp.socket.getsockname() == tcp.socket.getpeername():
                # Nobody listens there, and the kernel gave this socket the very port that it was to connect to.
                await trio.aclose_forcefully(tcp)
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            tune_bulk(tcp)
            if tls is None:
                return tcp
            secured = trio.SSLStream(tcp, tls, server_hostname=host, https_compatible=True)
            await secured.do_handshake()
            return secured
    except trio.TooSlowError:
        raise Unreachable(f"{join_address(host, port)} did not answer within {timeout_s:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise Unreachable(f"{join_address(host, port)} cannot be reached: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the system said, out of what Trio made of it."""
    cause = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    # TLS has numbers of its own.
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)
    return str(cause)
