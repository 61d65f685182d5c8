"""Which orgs this node works for, where several share a log: those that it has claimed, or is being handed.

It wants every org that a collector tells of, for as long as one does, and subscribes to those that it holds. A node
that has not reached the log for a while wants none, so that others, which may reach it, do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import structlog
import trio

from phloem.connections import Connections
from phloem.engine.engine import Engine
from sapflow.cluster.coordinator import Coordinator
from sapflow.cluster.reconciler import Work

log = structlog.get_logger()

YIELD_S = 10.0
"""Without a log for so long, a node lets go of its orgs."""
LOOK_S = 1.0


class OrgClaims:
    """Between the coordinator, which divides orgs, and the links, which carry them. `run()` is its task."""

    def __init__(
        self, engine: Engine, connections: Connections, on_held: Callable[[Set[str]], None] | None = None
    ) -> None:
        self._on_held = on_held
        self._engine = engine
        self._connections = connections
        self._member: Coordinator | None = None
        self._is_yielding = False
        self._changes = trio.lowlevel.ParkingLot()
        connections.on_org = self.told
        if on_held is not None:
            on_held(frozenset())

    @property
    def work(self) -> Work:
        """What the coordinator asks and tells."""
        rates = self._connections.rates
        return Work(lambda: rates.at(trio.current_time()), self._connections.is_begun, self.changed)

    def told(self, org: str) -> None:
        """A collector has this org."""
        if self._member is not None and not self._is_yielding:
            self._member.want(org)

    def changed(self) -> None:
        """What this node holds may be other than before."""
        assert self._member is not None
        before, held = self._connections.held or frozenset(), self._member.held
        self._connections.hold(held)
        if self._on_held is not None:
            self._on_held(held)
        for org in before - held:
            self._engine.forget(org)
        self._changes.unpark_all()

    async def until_handed_over(self) -> None:
        """Wait until every org is another node's, or there is no other to take them."""
        while self._member is not None and not self._member.has_left and self._has_peers(self._member):
            with trio.move_on_after(LOOK_S):
                await self._changes.park()

    def _has_peers(self, member: Coordinator) -> bool:
        mine = member.member
        return any(other.role == mine.role and other.name != mine.name for other in member.view.members)

    async def run(self, member: Coordinator) -> None:
        """Want what there is while the log is reached, until cancelled."""
        self._member = member
        for org in self._connections.orgs:
            self.told(org)
        open_at = trio.current_time()
        while True:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            self._let_go_of_gone(member, now)
            if self._engine.is_open:
                open_at = now
                if self._is_yielding:
                    self._is_yielding = False
                    log.info("orgs wanted again", orgs=len(self._connections.orgs))
                    for org in self._connections.orgs:
                        member.want(org)
            elif now - open_at > YIELD_S and not self._is_yielding:
                self._is_yielding = True
                log.warning("orgs let go of", orgs=len(member.held), reason="the log is not reached", for_s=YIELD_S)
                for org in self._connections.orgs:
                    member.release(org)

    def _let_go_of_gone(self, member: Coordinator, now: float) -> None:
        gone = self._connections.gone(now)
        for org in gone:
            member.release(org)
        if gone:
            log.info("orgs gone", orgs=len(gone), first=gone[0], reason="no collector has a stream of theirs")
