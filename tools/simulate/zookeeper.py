"""A ZooKeeper of our own for virtual time: nodes, sessions, watches, and the faults that befall a client."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import define, field, frozen
from kazoo.exceptions import BadVersionError, ConnectionLoss, NodeExistsError, NoNodeError

from sapflow.cluster.paths import Paths, decode

PATHS = Paths("test")


@define(eq=False)
class Answer:
    """What a request ended with; never told of, when it is silent."""

    value: Any = None
    error: Exception | None = None
    silent: bool = False

    def rawlink(self, callback: Callable[[Any], None]) -> None:
        if not self.silent:
            callback(self)

    def get_nowait(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


@frozen
class Stat:
    ephemeralOwner: int  # noqa: N815
    version: int


@define
class Node:
    data: bytes
    owner: int
    version: int = 0


@define(eq=False)
class Server:
    """Nodes, and the clients that have sessions."""

    nodes: dict[str, Node] = field(factory=dict)
    clients: list[FakeClient] = field(factory=list)
    watched_twice: list[str] = field(factory=list)
    """Paths on which a watch was set while one was."""
    longest_timeout_s: float = 60.0
    sessions: Any = field(factory=lambda: count(1))

    def connect(self, _hosts: str, _token: str, timeout_s: float) -> FakeClient:
        return FakeClient(self, min(timeout_s, self.longest_timeout_s))

    def children(self, path: str) -> list[str]:
        return [node.rpartition("/")[2] for node in self.nodes if node.rpartition("/")[0] == path]

    def fire(self, *paths: str) -> None:
        for client in self.clients:
            for path in paths:
                for watch in client.watches.pop(path, ()):
                    watch(None)

    def put(self, path: str, data: bytes, owner: int = 0) -> None:
        self.nodes[path] = Node(data, owner)
        self.fire(path, path.rpartition("/")[0])

    def remove(self, path: str) -> None:
        del self.nodes[path]
        self.fire(path, path.rpartition("/")[0])

    def end_session(self, session: int) -> None:
        for path in [path for path, node in self.nodes.items() if node.owner == session]:
            self.remove(path)

    def owners(self) -> dict[str, str]:
        """Members by the org that they have claimed."""
        return {
            org: json.loads(node.data)["name"]
            for path, node in self.nodes.items()
            if path.startswith(f"{PATHS.claims}/") and (org := decode(path.rpartition("/")[2]))
        }


class FakeClient:
    """What is used of kazoo's client, and the faults that befall it."""

    def __init__(self, server: Server, timeout_s: float) -> None:
        self.server = server
        self.state = "LOST"
        self.client_state = "CLOSED"
        self.client_id: tuple[int, bytes] | None = None
        self.agreed_timeout_s = timeout_s
        self.watches: dict[str, list[Callable[[Any], None]]] = {}
        self.answers_are_lost = False
        self._listeners: list[Callable[[str], None]] = []
        self._session = 0

    @property
    def connected(self) -> bool:
        return self.client_id is not None

    def add_listener(self, listener: Callable[[str], None]) -> None:
        self._listeners.append(listener)

    def start_async(self) -> None:
        self.server.clients.append(self)
        self.session_begins()

    def stop(self) -> None:
        self.server.clients.remove(self)
        self.watches.clear()
        self.server.end_session(self._session)
        self.client_id = None

    def close(self) -> None:
        pass

    def session_begins(self) -> None:
        self._session = next(self.server.sessions)
        self.comes_back()

    def comes_back(self) -> None:
        self.client_id = (self._session, b"")
        self._change("CONNECTED", "CONNECTED")

    def drops(self) -> None:
        self.client_id = None
        dropped, self.watches = self.watches, {}
        self._change("SUSPENDED", "CONNECTING")
        for watches in dropped.values():
            for watch in watches:
                watch(None)

    def expires(self) -> None:
        """Its session ends, and another begins at once."""
        if self.connected:
            self.drops()
        self.server.end_session(self._session)
        self._change("LOST", "EXPIRED_SESSION")
        self.session_begins()

    def dies(self) -> None:
        self.drops()
        self._change("LOST", "CLOSED")

    def _change(self, state: str, client_state: str) -> None:
        self.state, self.client_state = state, client_state
        for listener in self._listeners:
            listener(state)

    def get_async(self, path: str, watch: Callable[[Any], None] | None = None) -> Answer:
        return self._answer(lambda: self._get(path), path, watch)

    def get_children_async(self, path: str, watch: Callable[[Any], None] | None = None) -> Answer:
        return self._answer(lambda: self.server.children(self._there(path)), path, watch)

    def create_async(self, path: str, value: bytes, acl: Any = None, ephemeral: bool = False) -> Answer:
        return self._answer(lambda: self._create(path, value, ephemeral))

    def set_async(self, path: str, value: bytes) -> Answer:
        return self._answer(lambda: self._set(path, value))

    def delete_async(self, path: str, version: int = -1) -> Answer:
        return self._answer(lambda: self._delete(path, version))

    def sync_async(self, path: str) -> Answer:
        return self._answer(lambda: path)

    def _answer(self, work: Callable[[], Any], path: str = "", watch: Callable[[Any], None] | None = None) -> Answer:
        if not self.connected:
            return Answer(error=ConnectionLoss())
        try:
            value = work()
        except (NoNodeError, NodeExistsError, BadVersionError) as error:
            return Answer(error=error, silent=self.answers_are_lost)
        if watch is not None:
            if path in self.watches:
                self.server.watched_twice.append(path)
            self.watches.setdefault(path, []).append(watch)
        return Answer(value, silent=self.answers_are_lost)

    def _there(self, path: str) -> str:
        if path not in self.server.nodes:
            raise NoNodeError
        return path

    def _get(self, path: str) -> tuple[bytes, Stat]:
        node = self.server.nodes[self._there(path)]
        return node.data, Stat(node.owner, node.version)

    def _create(self, path: str, value: bytes, ephemeral: bool) -> str:
        if path in self.server.nodes:
            raise NodeExistsError
        if path.count("/") > 1:
            self._there(path.rpartition("/")[0])
        self.server.put(path, value, self._session if ephemeral else 0)
        return path

    def _set(self, path: str, value: bytes) -> None:
        node = self.server.nodes[self._there(path)]
        node.data, node.version = value, node.version + 1
        self.server.fire(path)

    def _delete(self, path: str, version: int) -> None:
        if version not in (-1, self.server.nodes[self._there(path)].version):
            raise BadVersionError
        self.server.remove(path)
