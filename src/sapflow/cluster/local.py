"""A member's side of the local coordinator: joins, reports, claims, and keeps what it was last told.

When the coordinator is gone everyone goes on with the last view, and with the work that they had; this task comes back
to it with jittered back-off. One that finds the same coordinator again was itself what was gone, paused or cut off: its
claims ended with its connection, so it lets go of its work until it has claimed again. Which orgs to claim is decided
in `reconciler.py`, as with ZooKeeper. Of others' claims a member knows those that it met when it claimed, until it is
told that they are free.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any

import structlog
import trio

from sapflow.cluster.growth import Growth, note
from sapflow.cluster.lines import receive_lines, send_line
from sapflow.cluster.reconciler import Reconciler, Work
from sapflow.cluster.shares import peers_in
from sapflow.cluster.view import Member, View, converter
from sapflow.errors import LinkError, Unreachable

log = structlog.get_logger()

MAX_CLAIMS = 1000
"""Orgs claimed in one report: a line has its limit, and so has the pace of claims."""
UNLIMITED = 1 << 62


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
        work: Work | None = None,
        pegs: Mapping[str, str] | None = None,
    ) -> None:
        self.member = Member(name, role, secrets.token_hex(8), os.getpid(), addresses)
        self.view = View()
        self.held: Set[str] = frozenset()
        """Orgs whose work this member should do now, as it was last told."""
        self._reconciler = Reconciler(name, 0, random.Random(), UNLIMITED)
        self._reconciler.pegs = pegs or {}
        self._work = work or Work()
        self._operations = self._changes = 0
        self._failures = 0
        """To reach the coordinator, in a row."""
        self._growth = Growth()
        self._claim_from = 0.0
        self._server: object = None
        """Which process last told of the fleet."""
        self._is_back = False
        """This session has told nothing yet."""
        self._fleet_token = fleet_token
        self._dial = dial
        self._report_interval_s = report_interval_s
        self._load = load
        self._on_change = on_change

    @property
    def wanted(self) -> set[str]:
        """Orgs that this member would do the work of; `want` adds, `release` takes away."""
        return self._reconciler.wanted

    def want(self, org: str) -> None:
        """Claim an org when it is free and this member's share allows. Never waits."""
        self._reconciler.want(org)

    def release(self, org: str) -> None:
        """Let go of an org with the next report. Never waits."""
        self.wanted.discard(org)
        self._tell_claims(self.held - {org})

    def leave(self) -> None:
        """Claim nothing more, and hand all orgs over with the next reports. Never waits."""
        self._reconciler.is_leaving = True

    @property
    def has_left(self) -> bool:
        """Whether no org is this member's any more, and each that it had is claimed by another."""
        return self._reconciler.has_left

    def counts(self) -> dict[str, int]:
        """Operations, and the changes that they were for, since the start."""
        return {"operations": self._operations, "changes": self._changes}

    def gauges(self) -> dict[str, float]:
        """Watches (none: the server tells), claims held, operations per change, and whether those are an alarm."""
        return {"coordinator_watches": 0, "claims_held": len(self.held), **self._growth.gauges()}

    async def run(self) -> None:
        """Stay a member until cancelled."""
        while True:
            try:
                self._operations += 1
                await self._session(await self._dial())
                self._failed("it ended the session; its log says why")
            except* (Unreachable, LinkError, trio.BrokenResourceError, trio.TooSlowError) as group:
                error = group.exceptions[0]
                self._failed(str(error) or type(error).__name__)
            note(self._growth, self._operations, self._changes, self.member.name)
            await trio.sleep(random.uniform(0, min(1.0, 0.05 * 2 ** min(self._failures, 10))))

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures > 1:
            return
        if self.view.members:
            log.warning("coordinator lost", reason=reason, meaning="going on as last told")
        else:
            # In a fleet that starts it may be the last to be there.
            log.info("coordinator not there yet", reason=reason)

    def _went_well(self) -> None:
        if self._failures:
            self._failures = 0
            log.info("coordinator back", member=self.member.name)

    async def _session(self, stream: trio.abc.Stream) -> None:
        async with stream, trio.open_nursery() as nursery:
            self._changes += 1
            self._reconciler.disown_all()
            self._reconciler.claimed.clear()
            self._is_back = True
            # Those that start together, or come back together, know of each other before they claim.
            self._claim_from = trio.current_time() + random.uniform(2, 3) * self._report_interval_s
            await send_line(stream, {"token": self._fleet_token, "join": converter.unstructure(self.member)})
            nursery.start_soon(self._report, stream)
            async for fields in receive_lines(stream):
                self._told(fields)
            nursery.cancel_scope.cancel()

    def _told(self, fields: Mapping[str, Any]) -> None:
        self._went_well()
        now, reconciler = trio.current_time(), self._reconciler
        if self._is_back and fields.get("server") == self._server:
            reconciler.before.clear()
        self._is_back, self._server = False, fields.get("server")
        if fields.get("forget"):
            reconciler.claimed &= reconciler.mine
        reconciler.claimed.difference_update(fields.get("freed", ()))
        reconciler.claimed.update(fields.get("others", ()))
        for org in fields.get("held", ()):
            reconciler.own(org, now)
        self.view = converter.structure(fields.get("view"), View)
        reconciler.hear(peers_in(self.view.members, self.view.loads, self.member), self._work.rates(), now)
        self._tell_claims(reconciler.mine | reconciler.incoming | reconciler.before)
        self._on_change(self.view)

    def _tell_claims(self, held: Set[str]) -> None:
        held = held & self.wanted
        if held != self.held:
            self.held = held
            self._work.on_claims()

    async def _report(self, stream: trio.abc.Stream) -> None:
        while True:
            now = trio.current_time()
            report: dict[str, Any] = {"load": self._load() | self._reconciler.tell(self._work.is_begun)}
            plan = self._reconciler.plan(MAX_CLAIMS if now >= self._claim_from else 0, now)
            for org in plan.release:
                self._reconciler.disown(org)
                self._reconciler.claimed.discard(org)
            self._tell_claims(self.held - set(plan.release))
            report |= {key: list(orgs) for key, orgs in (("claim", plan.claim), ("release", plan.release)) if orgs}
            self._operations += 1
            self._changes += 1
            with trio.fail_after(self._report_interval_s * 2):
                await send_line(stream, report)
            note(self._growth, self._operations, self._changes, self.member.name)
            await trio.sleep(self._report_interval_s)
