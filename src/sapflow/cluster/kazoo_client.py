"""The part of kazoo that is used, and its client as this fleet needs it.

Kazoo's threads connect, resolve and wait; nothing of it is called in the Trio thread but its `*_async` requests, which
only queue.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

from kazoo.client import KazooClient
from kazoo.retry import KazooRetry
from kazoo.security import make_digest_acl

USER = "sapflow"
_RECONNECT_MOST_S = 1.0


class Answer(Protocol):
    """What kazoo's `*_async` calls return."""

    def rawlink(self, callback: Callable[[Any], None]) -> None: ...
    def get_nowait(self) -> Any: ...


class Client(Protocol):
    """The part of kazoo's client that is used."""

    @property
    def state(self) -> str: ...
    @property
    def client_state(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def client_id(self) -> tuple[int, bytes] | None: ...
    @property
    def agreed_timeout_s(self) -> float: ...
    def add_listener(self, listener: Callable[[str], None]) -> None: ...
    def start_async(self) -> Any: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def get_async(self, path: str, watch: Callable[[Any], None] | None = None) -> Answer: ...
    def get_children_async(self, path: str, watch: Callable[[Any], None] | None = None) -> Answer: ...
    def create_async(self, path: str, value: bytes, acl: Any = None, ephemeral: bool = False) -> Answer: ...
    def set_async(self, path: str, value: bytes) -> Answer: ...
    def delete_async(self, path: str, version: int = -1) -> Answer: ...
    def sync_async(self, path: str) -> Answer: ...


def credential(fleet_token: str) -> str:
    """The password of the fleet's nodes. Kazoo sends it in the clear, so the token cannot be told from it."""
    return hashlib.sha256(f"sapflow in zookeeper: {fleet_token}".encode()).hexdigest()


def kazoo_client(hosts: str, fleet_token: str, session_timeout_s: float) -> Client:
    """A client, not started, whose nodes only those who have the fleet's token may read or write."""
    logger = logging.getLogger("sapflow.kazoo")
    # What it has to say we say ourselves, once; without a handler Python would print each of its retries.
    logger.addHandler(logging.NullHandler())
    password = credential(fleet_token)
    return _Kazoo(
        hosts,
        timeout=session_timeout_s,
        auth_data=[("digest", f"{USER}:{password}")],
        default_acl=[make_digest_acl(USER, password, all=True)],
        connection_retry=KazooRetry(max_tries=-1, delay=0.1, max_delay=min(_RECONNECT_MOST_S, session_timeout_s / 6)),
        logger=logger,
    )


class _Kazoo(KazooClient):  # type: ignore[misc]
    """Kazoo's client, which also knows the session's timeout.

    The servers may agree to a shorter one than was asked for. Kazoo keeps what they say to itself, so it is caught
    where a connection is made: before any request is answered in it.
    """

    def __init__(self, hosts: str, *, timeout: float, **options: Any) -> None:
        super().__init__(hosts, timeout=timeout, **options)
        self.agreed_timeout_s = timeout
        connect = self._connection._connect

        def noted(host: str, address: str, port: int) -> tuple[float, float]:
            read_timeout_ms, connect_timeout_ms = connect(host, address, port)
            self.agreed_timeout_s = read_timeout_ms * 1.5 / 1000
            return read_timeout_ms, connect_timeout_ms

        self._connection._connect = noted
