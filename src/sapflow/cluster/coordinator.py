"""What a member asks of its coordinator, whichever it is, and the choice between them.

`local` is served by the balancer of one host, `zookeeper` by an ensemble for more than one. Nothing of it is awaited
but `run`, so no task that carries data can come to wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from typing import Any, Protocol

from sapflow.cluster.local import LocalCoordinator
from sapflow.cluster.reconciler import Work
from sapflow.cluster.view import Member, View
from sapflow.config import Config
from sapflow.runtime.dial import dial


class Coordinator(Protocol):
    """`view` is the fleet as last told; the `on_change` that it was made with is called with each new one."""

    @property
    def member(self) -> Member: ...
    @property
    def view(self) -> View: ...

    @property
    def held(self) -> Set[str]:
        """Orgs whose work this member should do now: its claims, and what it is being handed."""

    def want(self, org: str) -> None:
        """Claim an org when it is free and this member's share allows. Never waits."""

    def release(self, org: str) -> None:
        """Let go of an org. Never waits."""

    def leave(self) -> None:
        """Claim nothing more, and hand all orgs over to others of this role. Never waits."""

    @property
    def has_left(self) -> bool:
        """Whether no org is this member's any more, and each that it had is claimed by another."""

    def counts(self) -> dict[str, int]:
        """Operations, and the changes that they were for, since the start."""

    def gauges(self) -> dict[str, float]:
        """Watches, claims held, operations per change, and whether those are an alarm."""

    async def run(self) -> None:
        """Stay a member until cancelled."""


def coordinator(
    config: Config,
    *,
    name: str,
    role: str,
    addresses: dict[str, str],
    fleet_token: str,
    load: Callable[[], dict[str, Any]],
    on_change: Callable[[View], None] = lambda _view: None,
    reads_loads: bool = False,
    work: Work | None = None,
) -> Coordinator:
    """The member of a fleet that its configuration says. `reads_loads`: the view has what each member reports."""
    fleet = config.fleet
    pegs = {peg.org: peg.member for peg in fleet.pegs}
    if fleet.coordinator == "zookeeper":
        # kazoo is loaded where it is used, and nowhere else.
        from sapflow.cluster.zookeeper import ZooKeeperCoordinator

        return ZooKeeperCoordinator(
            name=name,
            role=role,
            addresses=addresses,
            fleet=fleet.name,
            fleet_token=fleet_token,
            hosts=fleet.zookeeper,
            session_timeout_s=fleet.session_timeout_s,
            report_interval_s=fleet.report_interval_s,
            load=load,
            on_change=on_change,
            reads_loads=reads_loads,
            work=work or Work(),
            pegs=pegs,
        )
    return LocalCoordinator(
        name=name,
        role=role,
        addresses=addresses,
        fleet_token=fleet_token,
        dial=partial(dial, fleet.coordinator_address, timeout_s=fleet.connect_timeout_s),
        report_interval_s=fleet.report_interval_s,
        load=load,
        on_change=on_change,
        work=work or Work(),
        pegs=pegs,
    )
