"""Threads, each kind of work with a limiter of its own, so that hung look-ups can never stall a sync.

Where time is virtual there are no threads: what simulates a process sets `instead` in its context.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import trio

T = TypeVar("T")


class Doing(Protocol):
    """Does work of a kind as a thread would: what it returns or raises is the work's own."""

    async def __call__(self, kind: str, work: Callable[[], Any], *, abandon: bool) -> Any: ...


instead: ContextVar[Doing | None] = ContextVar("instead", default=None)
"""Who does this context's blocking work, if not threads."""


class ThreadKind:
    """One kind of blocking work, at most `threads` of it at a time in this process."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self._threads = threads
        self._limiter: trio.CapacityLimiter | None = None

    async def run(self, work: Callable[[], T], *, abandon: bool = False) -> T:
        """Run `work` in a thread of this kind. What storage began, it ends: only `abandon` makes it cancellable."""
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self._threads)
        if (doing := instead.get()) is not None:
            async with self._limiter:
                done: T = await doing(self.name, work, abandon=abandon)
            return done
        return await trio.to_thread.run_sync(
            work, limiter=self._limiter, thread_name=f"sapflow-{self.name}", abandon_on_cancel=abandon
        )
