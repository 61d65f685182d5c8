"""ZooKeeper's nodes as seen through one kazoo client: raw requests, each with a deadline and counted, and watches.

Rule 1: a kazoo callback, which runs in a thread of kazoo's, only wakes the Trio loop; what it wakes marks paths dirty.
Rule 2: a path has at most one watch, ever: it is set with a read and set again by the read after it fired. Two watches
on a path are equal, so that even a read whose answer was lost sets no second one, here or in kazoo.
Rule 3: every path that is followed is either armed or dirty; a change of the connection makes them all dirty.

Kazoo's recipes are not used: they retry without end in its one callback thread, and start threads on reconnects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import structlog
import trio
from attrs import field, frozen
from kazoo.client import KazooState
from kazoo.exceptions import ConnectionLoss, KazooException, NoNodeError
from kazoo.protocol.states import KeeperState

from sapflow.cluster.kazoo_client import Answer, Client

log = structlog.get_logger()

T = TypeVar("T")

MAX_CHILDREN = 10_000
"""Of a folder whose values are followed: one watch each."""
MAX_IN_FLIGHT = 128
"""Requests sent before the first of them is answered: what waits behind them waits for milliseconds."""


@frozen
class _Watch:
    """Equal to every other on its path, so that kazoo keeps one."""

    path: str
    _mark_dirty: Callable[[str], None] = field(eq=False)
    _token: trio.lowlevel.TrioToken = field(eq=False)

    def __call__(self, _event: object) -> None:
        self._token.run_sync_soon(self._mark_dirty, self.path, idempotent=True)


class ZNodes:
    """`on_session(ended)` is called after each change of the connection, `wake()` when something is dirty."""

    def __init__(self, *, timeout_s: float, on_session: Callable[[bool], None], wake: Callable[[], None]) -> None:
        self.operations = 0
        """Requests sent."""
        self.changes = 0
        """Reasons to send one: watches that fired, nodes found, reports due, orgs wanted and let go of."""
        self.dirty: set[str] = set()
        self.armed: set[str] = set()
        self.session: int | None = None
        self._timeout_s = timeout_s
        self._on_session = on_session
        self._wake = wake
        self._client: Client | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def client(self) -> Client:
        """The client in use; only while it is open."""
        assert self._client is not None, "no client is open"
        return self._client

    @property
    def connected(self) -> bool:
        """Whether requests would be sent now."""
        return self._client is not None and self._client.connected

    @property
    def closed(self) -> bool:
        """Whether the client has ended, or has not begun, to connect: it will not come back by itself."""
        return self.client.client_state in (KeeperState.CLOSED, KeeperState.AUTH_FAILED)

    def open(self, client: Client) -> None:
        """Use this client, which is not started yet, from the running Trio loop."""
        self._client = client
        self._token = token = trio.lowlevel.current_trio_token()
        client.add_listener(lambda _state: token.run_sync_soon(self._state_changed, idempotent=True))

    def follow(self, path: str) -> None:
        """Have a path read, with a watch, by whoever reads what is dirty."""
        if path not in self.armed and path not in self.dirty:
            self.changes += 1
            self.dirty.add(path)

    def forget(self, path: str) -> None:
        """A path is followed no more; its watch fired when its node went."""
        self.dirty.discard(path)
        self.armed.discard(path)

    async def ask(self, request: Callable[[], Answer]) -> Any:
        """Send a request: its answer. Raises KazooException, and TooSlowError when there is none in time."""
        (answer,) = await self.ask_all([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask_all(self, requests: Sequence[Callable[[], Answer]]) -> list[Any]:
        """Send some requests together: the answer to each, or the KazooException or TooSlowError that it ended with."""
        answers: list[Any] = []
        for start in range(0, len(requests), MAX_IN_FLIGHT):
            batch = requests[start : start + MAX_IN_FLIGHT]
            if not self._is_current():
                answers += [ConnectionLoss("not connected") for _ in batch]
                continue
            sent = [self._send(request) for request in batch]
            with trio.move_on_after(self._timeout_s):
                for _answer, done in sent:
                    await done.wait()
            answers += [_outcome(answer, done) for answer, done in sent]
        return answers

    async def children(self, path: str) -> list[str]:
        """The names of a followed path's children, with a watch on them. Raises KazooException, TooSlowError."""
        watch = self._arm(path)
        try:
            return list(await self.ask(lambda: self.client.get_children_async(path, watch=watch)))
        except (KazooException, trio.TooSlowError):
            self._disarm(path)
            raise

    async def values(self, paths: Iterable[str], found: Callable[[str, bytes | None], None]) -> None:
        """Tell the data of each followed path, with a watch on it; None for one that is no more, and is forgotten.

        Raises KazooException, TooSlowError, after all were tried; those that failed stay dirty.
        """
        watches = {path: self._arm(path) for path in paths}
        requests = [partial(self.client.get_async, path, watch=watch) for path, watch in watches.items()]
        failure: Exception | None = None
        for path, answer in zip(watches, await self.ask_all(requests), strict=True):
            if isinstance(answer, NoNodeError):
                self.forget(path)
                found(path, None)
            elif isinstance(answer, Exception):
                self._disarm(path)
                failure = answer
            else:
                found(path, answer[0])
        if failure is not None:
            raise failure

    def _is_current(self) -> bool:
        # kazoo keeps what is sent without a connection, and would send it in whatever session comes next.
        identity = self.client.client_id
        return identity is not None and identity[0] == self.session

    def _arm(self, path: str) -> _Watch:
        # Armed before it is asked for, so that whatever happens in between finds it armed.
        assert self._token is not None
        self.dirty.discard(path)
        self.armed.add(path)
        return _Watch(path, self._mark_dirty, self._token)

    def _disarm(self, path: str) -> None:
        self.armed.discard(path)
        self.dirty.add(path)

    def _mark_dirty(self, path: str) -> None:
        if path in self.armed:
            self.changes += 1
            self._disarm(path)
            self._wake()

    def _state_changed(self) -> None:
        identity = self.client.client_id
        lost = self.client.state == KazooState.LOST
        # Compared by its number too: an expiry and the session after it may be told of as one change.
        ended = lost or (identity is not None and identity[0] != self.session)
        if ended:
            self.session = None
        if identity is not None:
            self.session = identity[0]
        self.dirty |= self.armed
        self.armed.clear()
        self.changes += len(self.dirty)
        self._on_session(ended)
        self._wake()

    def _send(self, request: Callable[[], Answer]) -> tuple[Answer, trio.Event]:
        token = self._token
        assert token is not None
        self.operations += 1
        done = trio.Event()
        answer = request()
        answer.rawlink(lambda _answer: token.run_sync_soon(done.set))
        return answer, done


def _outcome(answer: Answer, done: trio.Event) -> Any:
    if not done.is_set():
        return trio.TooSlowError("ZooKeeper did not answer in time")
    try:
        return answer.get_nowait()
    except KazooException as error:
        return error


class Folder(Generic[T]):
    """A node whose children each hold a value: one watch on it, and one on each child.

    A child that `parse` makes None of is followed, and left out of `values`.
    """

    def __init__(self, znodes: ZNodes, path: str, parse: Callable[[str, bytes], T | None]) -> None:
        self.values: dict[str, T] = {}
        """By the children's node names."""
        self._znodes = znodes
        self._path = path
        self._parse = parse
        self._names: set[str] = set()

    async def refresh(self) -> None:
        """Read again what is dirty. Raises KazooException, TooSlowError; what was not read stays dirty."""
        dirty = self._znodes.dirty
        if self._path in dirty:
            self._listed(set(await self._znodes.children(self._path)))
        stale = [path for path in map(self._child, self._names) if path in dirty]
        if stale:
            await self._znodes.values(stale, self._found)

    def _child(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _listed(self, names: set[str]) -> None:
        if len(names) > MAX_CHILDREN:
            log.warning("nodes left out", path=self._path, nodes=len(names), limit=MAX_CHILDREN)
            names = set(sorted(names)[:MAX_CHILDREN])
        for name in self._names - names:
            self._znodes.forget(self._child(name))
            self.values.pop(name, None)
        for name in names - self._names:
            self._znodes.follow(self._child(name))
        self._names = names

    def _found(self, path: str, data: bytes | None) -> None:
        name = path.rpartition("/")[2]
        value = None if data is None else self._parse(name, data)
        if value is None:
            self.values.pop(name, None)
        else:
            self.values[name] = value
        if data is None:
            # Gone since it was listed: the watch on the folder tells of it, should it come back.
            self._names.discard(name)
