"""One end of a link on a real transport: moves bytes, and gives the events of `sapflow.link.Connection`.

A session is one task tree: whoever runs it owns its nursery; the first of reader and writer to end ends the rest, and
so does a watch that hears nothing: a task of its own, or the one of a process that has many sessions. What is sent
collects in a buffer whose growth is bounded by credit; the writer joins it into few system calls, and takes orgs in
turns.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, nullcontext
from itertools import chain

import structlog
import trio

from sapflow.errors import LinkError, Overloaded, Refused
from sapflow.link import Close, Closed, Connection, Event
from sapflow.runtime.turns import Turns
from sapflow.runtime.watch import Watch

log = structlog.get_logger()

RECEIVE_BYTES = 256 << 10
SEND_JOIN_BYTES = 1 << 20
MAX_REPLY_BYTES = 1 << 20
_REFUSALS = {Close.UNAUTHORIZED, Close.FORBIDDEN, Close.UNKNOWN, Close.CONFLICT, Close.PROTOCOL}


class LinkSession:
    """A link over `stream`. Use `events()` inside `open()`; `send` never waits."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        connection: Connection,
        *,
        peer: str,
        idle_timeout_s: float,
        max_unsent_bytes: int,
        on_in: Callable[[int], None] | None = None,
        on_out: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.connection = connection
        self.peer = peer
        self._stream = stream
        self.idle_timeout_s = idle_timeout_s
        """A link of which nothing is heard for so long is cut; may be changed while it is open."""
        self._max_unsent_bytes = max_unsent_bytes
        self._unsent: Turns[tuple[bytes, ...]] = Turns()
        self._wake = trio.Event()
        self._flushed = trio.Event()
        self._last_heard = trio.current_time()
        self._scope = trio.CancelScope()
        self._on_in = on_in
        self._on_out = on_out
        self._watch = watch
        self._ask_from = 0.0

    @property
    def unsent_bytes(self) -> int:
        """Queued for the writer."""
        return self._unsent.bytes

    def send(self, *pieces: bytes, lane: Hashable = None) -> None:
        """Queue whole frames for the writer. Ends the session when the other end has not read for too much.

        Those of one lane leave in order; lanes take turns. All that is said of a stream of ours goes in its org's.
        """
        size = sum(map(len, pieces))
        if not size:
            return
        self._unsent.put(pieces, size, lane)
        if self._flushed.is_set():
            self._flushed = trio.Event()
        self._wake.set()
        if self.unsent_bytes > self._max_unsent_bytes:
            log.warning("link cut", peer=self.peer, reason="it does not read", unsent_bytes=self.unsent_bytes)
            self._scope.cancel()

    def cut(self) -> None:
        """End the session now."""
        self._scope.cancel()

    async def finish(self, code: int, reason: str, *, deadline_s: float = 1.0) -> None:
        """Say why, and give the bytes a moment to leave."""
        self.send(self.connection.close(code, reason))
        with trio.move_on_after(deadline_s, shield=True):
            await self._flushed.wait()
        self._scope.cancel()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[LinkSession]:
        """Run the writer, and be watched; leaving ends both and closes the transport."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write)
                if self._watch is None:
                    nursery.start_soon(self._look_often)
                try:
                    with self._watch.kept(self) if self._watch is not None else nullcontext():
                        yield self
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(self._stream)

    async def events(self) -> AsyncIterator[list[Event]]:
        """Events, all those of one read together, until the other end closes.

        Raises LinkError (after telling the other end) when it broke the protocol, Refused when it refused us.
        """
        connection = self.connection
        while True:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            self._last_heard = trio.current_time()
            if self._on_in is not None:
                self._on_in(len(data))
            try:
                events = connection.receive(bytes(data))
            except LinkError as error:
                await self.finish(error.code, str(error))
                raise
            replies = connection.take_replies()
            if replies and self.unsent_bytes < MAX_REPLY_BYTES:
                self.send(*replies)
            if events:
                yield events
                last = events[-1]
                if isinstance(last, Closed):
                    self._raise_for(last)
                    return

    def _raise_for(self, closed: Closed) -> None:
        if closed.code in _REFUSALS:
            raise Refused(f"{self.peer} refused: {closed.reason}", code=closed.code)
        if closed.code == Close.OVERLOADED:
            raise Overloaded(f"{self.peer} is full: {closed.reason}")

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while len(self._unsent):
                data = b"".join(chain.from_iterable(self._unsent.take(SEND_JOIN_BYTES)))
                if self._on_out is not None:
                    self._on_out(len(data))
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._scope.cancel()
                    return
            self._flushed.set()

    def look(self, patience: float = 1.0) -> None:
        """Ask for a sign when nothing was heard for long, and end when there was none: `Watch` calls it."""
        now, interval = trio.current_time(), self.idle_timeout_s / 3
        quiet = now - self._last_heard
        if quiet > self.idle_timeout_s:
            log.info("link cut", peer=self.peer, reason="nothing heard", quiet_s=round(quiet, 1))
            self._scope.cancel()
        elif quiet > interval * patience and now >= self._ask_from:
            self._ask_from = now + interval * random.uniform(0.5, 0.75)
            self.send(self.connection.ping(0))

    async def _look_often(self) -> None:
        while True:
            await trio.sleep(self.idle_timeout_s / 3 * random.uniform(0.8, 1.0))
            self.look()
