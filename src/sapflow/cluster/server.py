"""The local coordinator's server, on the balancer's control plane.

A member joins, then reports each second; everyone is told of each change at once, and of loads once a second. On one
host a connection that ends is a process that ended, so its lease ends with it; leases cover what hangs.
"""

from __future__ import annotations

import hmac

import structlog
import trio

from sapflow.cluster.lines import receive_lines, send_line
from sapflow.cluster.view import Member, Membership, converter
from sapflow.errors import LinkError

log = structlog.get_logger()

SEND_TIMEOUT_S = 2.0
HELLO_TIMEOUT_S = 2.0


class CoordinatorServer:
    """Membership for one host."""

    def __init__(self, fleet_token: str, *, lease_s: float, tell_interval_s: float) -> None:
        self.membership = Membership(lease_s)
        self.operations = 0
        self._fleet_token = fleet_token
        self._tell_interval_s = tell_interval_s
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """End leases that ran out, until cancelled."""
        while True:
            await trio.sleep(self.membership.lease_s / 6)
            for name in self.membership.expire(trio.current_time()):
                log.warning("member silent", member=name, lease_s=self.membership.lease_s)
                self._changed.unpark_all()

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """One member's connection."""
        member: Member | None = None
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(HELLO_TIMEOUT_S) as hello:
                    async for fields in receive_lines(stream):
                        self.operations += 1
                        if member is None:
                            member = self._join(fields)
                            hello.deadline = float("inf")
                            nursery.start_soon(self._tell, stream)
                        elif not self.membership.renew(
                            member.name, member.generation, fields.get("load", {}), trio.current_time()
                        ):
                            self.membership.join(member, trio.current_time())
                            self._changed.unpark_all()
                nursery.cancel_scope.cancel()
        except* (LinkError, trio.TooSlowError, trio.BrokenResourceError) as group:
            log.warning("coordinator client cut off", peer=peer, reason=str(group.exceptions[0]))
        finally:
            if member is not None:
                self.membership.leave(member.name, member.generation)
                log.info("member left", member=member.name, pid=member.pid)
                self._changed.unpark_all()

    def _join(self, fields: dict[str, object]) -> Member:
        token = str(fields.get("token", ""))
        if not hmac.compare_digest(token.encode(), self._fleet_token.encode()):
            raise LinkError("the fleet's credential is not accepted", code=4401)
        member = converter.structure(fields.get("join"), Member)
        self.membership.join(member, trio.current_time())
        log.info("member joined", member=member.name, role=member.role, pid=member.pid)
        self._changed.unpark_all()
        return member

    async def _tell(self, stream: trio.abc.Stream) -> None:
        while True:
            with trio.fail_after(SEND_TIMEOUT_S):
                await send_line(stream, {"view": converter.unstructure(self.membership.view())})
            with trio.move_on_after(self._tell_interval_s):
                await self._changed.park()
