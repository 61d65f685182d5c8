"""A task for each of those that there are now, by name and address: begun when one comes, ended when it goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio


class TaskEach:
    """`keep(name, address)` runs for as long as somebody of that name is at that address. `run()` owns the tasks."""

    def __init__(self, keep: Callable[[str, str], Awaitable[None]]) -> None:
        self._keep = keep
        self._wanted: dict[str, str] = {}
        self._changed = trio.Event()

    def of(self, addresses: Mapping[str, str]) -> None:
        """Those that there are now: addresses by name."""
        if addresses != self._wanted:
            self._wanted = dict(addresses)
            self._changed.set()

    async def run(self) -> None:
        """Hold a task for each until cancelled."""
        running: dict[str, tuple[str, trio.CancelScope]] = {}
        async with trio.open_nursery() as nursery:
            while True:
                for name, (address, scope) in list(running.items()):
                    if self._wanted.get(name) != address:
                        scope.cancel()
                        del running[name]
                for name, address in self._wanted.items():
                    if name not in running:
                        scope = trio.CancelScope()
                        running[name] = (address, scope)
                        nursery.start_soon(self._one, name, address, scope)
                await self._changed.wait()
                self._changed = trio.Event()

    async def _one(self, name: str, address: str, scope: trio.CancelScope) -> None:
        with scope:
            await self._keep(name, address)
