"""A fault proxy: a TCP door in front of another, whose connections can be cut, reset, half-opened, slowed and sliced.

This kernel may have no netem; a proxy needs nothing of it, and its faults hit chosen connections at chosen moments.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import trio
from attrs import define, field

from sapflow.errors import Unreachable
from sapflow.runtime.dial import dial
from sapflow.runtime.serve import address_of, listen

READ_BYTES = 64 << 10
SLICE_BYTES = 7
_RESET = struct.pack("ii", 1, 0)


Way = Literal["in", "out"]
"""To the server behind the proxy, or back from it."""


@define(eq=False)
class _Pair:
    client: trio.SocketStream
    upstream: trio.SocketStream
    scope: trio.CancelScope = field(factory=trio.CancelScope)


class FaultProxy:
    """Carries connections to `upstream`; its methods are the faults. `run()` is its task tree."""

    def __init__(self, upstream: str) -> None:
        self.address = ""
        self._upstream = upstream
        self._pairs: set[_Pair] = set()
        self._delay_s = 0.0
        self._frozen = False
        self._thawed = trio.Event()
        self._deaf: set[Way] = set()
        self._slice = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `address` is where, once started."""
        listener = await listen("127.0.0.1:0", what="the fault proxy")
        self.address = address_of(listener)
        task_status.started()
        await trio.serve_listeners(self._carry, [listener])

    def cut(self, share: float = 1.0) -> int:
        """End connections as a process's death would: how many."""
        return self._end(share, reset=False)

    def reset(self, share: float = 1.0) -> int:
        """End connections with RST: how many."""
        return self._end(share, reset=True)

    async def half_open(self, seconds: float) -> None:
        """Deliver nothing either way for a while, with nobody told; then cut, as a route that came back would find."""
        self._frozen = True
        await trio.sleep(seconds)
        self._frozen = False
        self.cut()
        self._thaw()

    @contextmanager
    def one_way(self, lost: Way) -> Iterator[None]:
        """Within, nothing is delivered that way, on old connections and new, with nobody told; the other way all is.

        Afterwards what was held back is delivered, as TCP would send it again.
        """
        self._deaf.add(lost)
        try:
            yield
        finally:
            self._deaf.discard(lost)
            self._thaw()

    async def slow(self, seconds: float, *, delay_s: float = 0.2) -> None:
        """Delay each read, and cut what is passed on into slices, for a while."""
        self._delay_s, self._slice = delay_s, True
        await trio.sleep(seconds)
        self._delay_s, self._slice = 0.0, False

    def _thaw(self) -> None:
        """Have those who hold something back look again."""
        self._thawed.set()
        self._thawed = trio.Event()

    def _end(self, share: float, *, reset: bool) -> int:
        chosen = [pair for pair in self._pairs if random.random() < share]
        for pair in chosen:
            if reset:
                for side in (pair.client, pair.upstream):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            pair.scope.cancel()
        return len(chosen)

    async def _carry(self, client: trio.SocketStream) -> None:
        try:
            upstream = await dial(self._upstream, timeout_s=5.0)
        except Unreachable:
            await trio.aclose_forcefully(client)
            return
        assert isinstance(upstream, trio.SocketStream)
        pair = _Pair(client, upstream)
        self._pairs.add(pair)
        try:
            with pair.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_on, client, upstream, "in", nursery.cancel_scope)
                    nursery.start_soon(self._carry_on, upstream, client, "out", nursery.cancel_scope)
        finally:
            self._pairs.discard(pair)
            await trio.aclose_forcefully(client)
            await trio.aclose_forcefully(upstream)

    async def _carry_on(
        self, source: trio.SocketStream, to: trio.SocketStream, way: Way, both: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(READ_BYTES):
                while self._frozen or way in self._deaf:
                    await self._thawed.wait()
                if self._delay_s:
                    await trio.sleep(random.uniform(0, self._delay_s))
                if self._slice:
                    head, data = data[:SLICE_BYTES], data[SLICE_BYTES:]
                    await to.send_all(head)
                await to.send_all(data)
            while way in self._deaf:
                await self._thawed.wait()
            await to.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            both.cancel()
