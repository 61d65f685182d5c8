"""Threads, each kind of work with a limiter of its own, so that hung look-ups can never stall a sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


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
        return await trio.to_thread.run_sync(
            work, limiter=self._limiter, thread_name=f"sapflow-{self.name}", abandon_on_cancel=abandon
        )
