"""A meter's doors for exporters that can be made to wait: IPFIX over TCP, and over a Unix socket.

Default deny: over TCP only from the networks in `meter.sources`; who may use the Unix socket is its file's affair.
While the spool is full a new session is not read, so it can bring nothing.
"""

from __future__ import annotations

import socket
import stat
import struct
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path

import structlog
import trio
from attrs import define

from meter.intake import Intake
from meter.spooling import Spooling
from sapflow.errors import ConfigurationError
from sapflow.runtime.addresses import split_address

log = structlog.get_logger()

_CREDENTIALS = struct.Struct("3i")
_PEERCRED = 17


class Sources:
    """The networks that exporters may be in."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        try:
            self._networks = [ip_network(prefix) for prefix in prefixes]
        except ValueError as error:
            raise ConfigurationError(f"meter.sources: {error}") from error

    def allows(self, address: str) -> bool:
        """Whether an exporter there is one of ours."""
        source = ip_address(address.partition("%")[0])
        if isinstance(source, IPv6Address) and source.ipv4_mapped is not None:
            source = source.ipv4_mapped
        return any(source.version == network.version and source in network for network in self._networks)


@define
class ExporterDoors:
    """Sessions of exporters, each in a task of its listener."""

    intake: Intake
    spooling: Spooling
    sources: Sources
    org: str
    refused: int = 0

    async def tcp(self, stream: trio.SocketStream, peer: str) -> None:
        """One exporter over TCP."""
        if not self.sources.allows(split_address(peer)[0]):
            self.refused += 1
            log.warning("exporter refused", peer=peer, advice="add its network to meter.sources in the configuration")
            return
        await self._session(stream, peer)

    async def unix(self, stream: trio.SocketStream, _peer: str) -> None:
        """One exporter over the Unix socket, called by its process."""
        found = stream.socket.getsockopt(socket.SOL_SOCKET, _PEERCRED, _CREDENTIALS.size)
        await self._session(stream, f"unix:{_CREDENTIALS.unpack(found)[0]}")

    async def _session(self, stream: trio.SocketStream, peer: str) -> None:
        await self.spooling.room(self.org)
        await self.intake.session(stream, peer, self.org)


def listen_unix(path: str) -> trio.SocketListener:
    """A listening socket in the file system; one that a dead process left there goes. Raises ConfigurationError."""
    sock = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        if Path(path).exists() and stat.S_ISSOCK(Path(path).stat().st_mode):
            Path(path).unlink()
        # trio's bind is for names that must be resolved; this one is none.
        plain = socket.socket(fileno=socket.dup(sock.fileno()))
        plain.bind(path)
        plain.close()
        Path(path).chmod(0o660)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"cannot listen on the Unix socket {path}: {error.strerror}; choose another with meter.unix"
        ) from error
    return trio.SocketListener(sock)
