"""Connections that come by way of a load balancer, or of our own: their header is read before anything else is.

Whose header is believed is a list of networks. In front of the doors those there must send one (a receiver that guesses
can be told anything); on a collector one may come, since its other links come to the same listener without.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

import structlog
import trio
from attrs import define, field

from sapflow.errors import ConfigurationError
from sapflow.runtime.addresses import split_address
from sapflow.runtime.proxy_header import SIGNATURE, NoProxyHeader, ProxyHeader, decode, missing
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.serve import Handler

log = structlog.get_logger()


class Networks:
    """Which addresses are in any of some networks."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._networks = [ip_network(prefix) for prefix in prefixes]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def hold(self, peer: str) -> bool:
        """Whether a peer, given as HOST:PORT, is in one; never one whose address is not known."""
        try:
            source = ip_address(split_address(peer)[0])
        except (ConfigurationError, ValueError):
            return False
        if isinstance(source, IPv6Address) and source.ipv4_mapped is not None:
            source = source.ipv4_mapped
        return any(source.version == network.version and source in network for network in self._networks)


@define
class ProxiedCounts:
    """Headers; never goes down."""

    read: int = 0
    refused: int = 0
    """Connections from those that must send one, and did not."""


@define
class Proxied:
    """Handlers that know the real other end of what comes through `trusted`."""

    trusted: Networks
    timeout_s: float
    counts: ProxiedCounts = field(factory=ProxiedCounts)
    _refusals: Seldom = field(factory=Seldom)

    def required(self, handler: Handler) -> Handler:
        """From those trusted each connection begins with a header; from elsewhere none is looked for."""
        if not self.trusted:
            return handler

        async def serve(stream: trio.SocketStream, peer: str) -> None:
            if not self.trusted.hold(peer):
                await handler(stream, peer)
            elif (header := await self._header(stream, peer)) is not None:
                await handler(stream, header.source or peer)

        return serve

    def possible(self, handler: Handler) -> Handler:
        """Any connection may begin with a header; from elsewhere it is read over, and not believed."""

        async def serve(stream: trio.SocketStream, peer: str) -> None:
            first = b""
            with trio.move_on_after(self.timeout_s):
                first = await stream.socket.recv(1, socket.MSG_PEEK)
            if first != SIGNATURE[:1]:
                await handler(stream, peer)
            elif (header := await self._header(stream, peer)) is not None:
                await handler(stream, header.source if header.source and self.trusted.hold(peer) else peer)

        return serve

    async def _header(self, stream: trio.SocketStream, peer: str) -> ProxyHeader | None:
        try:
            with trio.fail_after(self.timeout_s):
                header = await _read(stream)
        except (NoProxyHeader, trio.TooSlowError) as error:
            self.counts.refused += 1
            reason = str(error) or f"no PROXY header within {self.timeout_s:g} s"
            if times := self._refusals.again(reason):
                log.warning(
                    "connection refused",
                    peer=peer,
                    reason=reason,
                    times=times,
                    advice="have the load balancer there send PROXY protocol v2, or take it out of proxy_from",
                )
            return None
        self.counts.read += 1
        return header


async def _read(stream: trio.SocketStream) -> ProxyHeader:
    data = b""
    while (found := decode(data)) is None:
        more = bytes(await stream.receive_some(missing(data)))
        if not more:
            raise NoProxyHeader("closed before its PROXY header")
        data += more
    return found[0]
