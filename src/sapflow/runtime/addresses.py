"""`host:port` as text and as a pair. No name is resolved here."""

from __future__ import annotations

from sapflow.errors import ConfigurationError


def split_address(address: str) -> tuple[str, int]:
    """("127.0.0.1", 4739) from "127.0.0.1:4739"; IPv6 in brackets. Raises ConfigurationError."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"'{address}' is not an address; write HOST:PORT, such as 127.0.0.1:4739")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The text form of a pair."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def are_hosts(hosts: str) -> bool:
    """Whether it is HOST:PORT,HOST:PORT,… as clients of Kafka and ZooKeeper take it."""
    for server in hosts.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
            return False
    return True
