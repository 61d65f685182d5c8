"""A member's side of the local coordinator: joins, reports, and keeps what it was last told.

When the coordinator is gone everyone goes on with the last view; this task comes back to it with jittered back-off.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from sapflow.cluster.lines import receive_lines, send_line
from sapflow.cluster.view import Member, View, converter
from sapflow.errors import LinkError, Unreachable

log = structlog.get_logger()


class LocalCoordinator:
    """`view` is the fleet as last told, `on_change` is called with each new one. `run()` is its task."""

    def __init__(
        self,
        *,
        name: str,
        role: str,
        addresses: dict[str, str],
        fleet_token: str,
        dial: Callable[[], Awaitable[trio.abc.Stream]],
        report_interval_s: float,
        load: Callable[[], dict[str, Any]],
        on_change: Callable[[View], None],
    ) -> None:
        self.member = Member(name, role, secrets.token_hex(8), os.getpid(), addresses)
        self.view = View()
        self.operations = 0
        self._fleet_token = fleet_token
        self._dial = dial
        self._report_interval_s = report_interval_s
        self._load = load
        self._on_change = on_change

    async def run(self) -> None:
        """Stay a member until cancelled."""
        failures = 0
        while True:
            try:
                await self._session(await self._dial())
                failures = 1
            except* (Unreachable, LinkError, trio.BrokenResourceError, trio.TooSlowError) as group:
                failures += 1
                if failures == 1:
                    log.warning("coordinator lost", reason=str(group.exceptions[0]), meaning="going on as last told")
            await trio.sleep(random.uniform(0, min(1.0, 0.05 * 2 ** min(failures, 10))))

    async def _session(self, stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            await send_line(stream, {"token": self._fleet_token, "join": converter.unstructure(self.member)})
            nursery.start_soon(self._report, stream)
            async for fields in receive_lines(stream):
                self.view = converter.structure(fields.get("view"), View)
                self._on_change(self.view)
            nursery.cancel_scope.cancel()

    async def _report(self, stream: trio.abc.Stream) -> None:
        while True:
            self.operations += 1
            with trio.fail_after(self._report_interval_s * 2):
                await send_line(stream, {"load": self._load()})
            await trio.sleep(self._report_interval_s)
