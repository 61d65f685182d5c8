"""A member's side of the local coordinator: joins, reports, claims, and keeps what it was last told.

When the coordinator is gone everyone goes on with the last view; this task comes back to it with jittered back-off.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import structlog
import trio

from sapflow.cluster.lines import receive_lines, send_line
from sapflow.cluster.view import Member, View, converter
from sapflow.errors import LinkError, Unreachable

log = structlog.get_logger()

MAX_CLAIMS = 5000
"""Orgs claimed in one report: a line has its limit, and so has the pace of claims."""


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
        self.wanted: set[str] = set()
        """Orgs that this member would do the work of; `want` adds, `release` takes away."""
        self.held: set[str] = set()
        """Those it was told are its own, in this session with the coordinator."""
        self._released: set[str] = set()
        self._fleet_token = fleet_token
        self._dial = dial
        self._report_interval_s = report_interval_s
        self._load = load
        self._on_change = on_change

    def want(self, org: str) -> None:
        """Claim an org with the next report, and again whenever the coordinator comes back. Never waits."""
        self.wanted.add(org)
        self._released.discard(org)

    def release(self, org: str) -> None:
        """Let go of an org with the next report. Never waits."""
        self.wanted.discard(org)
        self.held.discard(org)
        self._released.add(org)

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
            self.held.clear()
            await send_line(stream, {"token": self._fleet_token, "join": converter.unstructure(self.member)})
            nursery.start_soon(self._report, stream)
            async for fields in receive_lines(stream):
                self.held |= self.wanted & set(fields.get("held", ()))
                self.view = converter.structure(fields.get("view"), View)
                self._on_change(self.view)
            nursery.cancel_scope.cancel()

    async def _report(self, stream: trio.abc.Stream) -> None:
        while True:
            self.operations += 1
            report: dict[str, Any] = {"load": self._load()}
            claim = list(islice(self.wanted - self.held, MAX_CLAIMS))
            if claim:
                report["claim"] = claim
            if self._released:
                report["release"] = list(self._released)
                self._released.clear()
            with trio.fail_after(self._report_interval_s * 2):
                await send_line(stream, report)
            await trio.sleep(self._report_interval_s)
