"""The only place that opens outbound connections. The timeout has no default, and covers name, TCP and TLS together."""

from __future__ import annotations

import ssl

import trio

from sapflow.errors import Unreachable
from sapflow.runtime.addresses import join_address, split_address

BULK_LOW_WATER_BYTES = 1 << 20
"""Trio's SocketStream sets TCP_NOTSENT_LOWAT to 16 KiB, a scheduler pass for every 16 KiB sent."""


def tune_bulk(stream: trio.SocketStream) -> None:
    """Let a socket that carries batches take more than 16 KiB at a time."""
    if stream.socket.family == trio.socket.AF_UNIX:
        return
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, BULK_LOW_WATER_BYTES)


async def dial(address: str, *, timeout_s: float, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A connected stream to `host:port`. Raises Unreachable within `timeout_s` seconds, whatever hangs."""
    host, port = split_address(address)
    try:
        with trio.fail_after(timeout_s):
            tcp = await trio.open_tcp_stream(host, port)
            tune_bulk(tcp)
            if tls is None:
                return tcp
            secured = trio.SSLStream(tcp, tls, server_hostname=host, https_compatible=True)
            await secured.do_handshake()
            return secured
    except trio.TooSlowError:
        raise Unreachable(f"{join_address(host, port)} did not answer within {timeout_s:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise Unreachable(f"{join_address(host, port)} cannot be reached: {error.__cause__ or error}") from error
