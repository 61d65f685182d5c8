"""The local coordinator's server, on the balancer's control plane.

A member joins, then reports each second; everyone is told of each change at once, and of loads once a second. A claim
of orgs is answered at once, to the one who claims. On one host a connection that ends is a process that ended, so its
lease and its claims end with it; leases cover what hangs.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from typing import Any

import structlog
import trio

from sapflow.cluster.claims import Claims
from sapflow.cluster.lines import receive_lines, send_line
from sapflow.cluster.view import Member, Membership, converter
from sapflow.errors import LinkError

log = structlog.get_logger()

SEND_TIMEOUT_S = 2.0
HELLO_TIMEOUT_S = 2.0
MAX_FREED = 5000
"""Orgs told to be free in one line; where it is more, all are said to be perhaps."""


class CoordinatorServer:
    """Membership and claims for one host."""

    def __init__(self, fleet_token: str, *, lease_s: float, tell_interval_s: float) -> None:
        self.membership = Membership(lease_s)
        self.claims = Claims()
        self.operations = 0
        self.generation = secrets.token_hex(8)
        """By which a member that comes back knows whether its claims were given up, or are not known any more."""
        self._fleet_token = fleet_token
        self._tell_interval_s = tell_interval_s
        self._changed = trio.lowlevel.ParkingLot()
        self._sessions: dict[tuple[str, str], _MemberSession] = {}

    async def run(self) -> None:
        """End leases that ran out, until cancelled."""
        while True:
            await trio.sleep(self.membership.lease_s / 6)
            for member in self.membership.expire(trio.current_time()):
                log.warning("member silent", member=member.name, lease_s=self.membership.lease_s)
                # Cut off, so that one which wakes up again knows that its claims are gone.
                self._sessions[member.name, member.generation].cut()

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """One member's connection."""
        session = _MemberSession(self, stream)
        try:
            await session.run()
        except* (LinkError, trio.TooSlowError, trio.BrokenResourceError) as group:
            log.warning("coordinator client cut off", peer=peer, reason=str(group.exceptions[0]))
        finally:
            if session.member is not None:
                self._left(session.member)

    def joined(self, session: _MemberSession, fields: dict[str, object]) -> Member:
        """A member says who it is. Raises LinkError when its credential is not the fleet's."""
        token = str(fields.get("token", ""))
        if not hmac.compare_digest(token.encode(), self._fleet_token.encode()):
            raise LinkError("the fleet's credential is not accepted", code=4401)
        member = converter.structure(fields.get("join"), Member)
        self.membership.join(member, trio.current_time())
        self._sessions[member.name, member.generation] = session
        log.info("member joined", member=member.name, role=member.role, pid=member.pid)
        self._changed.unpark_all()
        return member

    def _left(self, member: Member) -> None:
        key = member.name, member.generation
        del self._sessions[key]
        self.membership.leave(*key)
        freed = self.claims.left(*key)
        log.info("member left", member=member.name, pid=member.pid, claims=len(freed))
        self.freed(freed)

    async def news(self) -> None:
        """Until something changed, or loads are due to be told."""
        with trio.move_on_after(self._tell_interval_s):
            await self._changed.park()

    def answered(self) -> None:
        """An answer waits to be told."""
        self._changed.unpark_all()

    def freed(self, orgs: list[str]) -> None:
        """Orgs are nobody's: all who have met claims are told."""
        for session in self._sessions.values():
            session.answer.freed_of(orgs)
        self._changed.unpark_all()


class _Answer:
    """What a member is still to be told of claims: of each org the latest only."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._others: set[str] = set()
        self._freed: set[str] = set()
        self._forget = False
        self._has_claimed = False

    def claimed(self, held: Iterable[str], others: Iterable[str]) -> None:
        self._has_claimed = True
        self._held.update(held)
        self._others.update(others)
        self._freed.difference_update(self._held, self._others)

    def released(self, orgs: Iterable[str]) -> None:
        self._held.difference_update(orgs)

    def freed_of(self, orgs: Iterable[str]) -> None:
        if self._has_claimed:
            self._others.difference_update(orgs)
            self._freed.update(orgs)
            if len(self._freed) > MAX_FREED:
                self._freed.clear()
                self._forget = True

    def take(self) -> dict[str, object]:
        """The fields of the next line."""
        fields = {"held": list(self._held), "others": list(self._others), "freed": list(self._freed)}
        found: dict[str, object] = {key: orgs for key, orgs in fields.items() if orgs}
        if self._forget:
            found["forget"] = True
        self._held, self._others, self._freed, self._forget = set(), set(), set(), False
        return found

    def __bool__(self) -> bool:
        return bool(self._held or self._others or self._freed or self._forget)


class _MemberSession:
    """One member's connection: a task that reads it, and one that tells it."""

    def __init__(self, server: CoordinatorServer, stream: trio.abc.Stream) -> None:
        self.member: Member | None = None
        self._server = server
        self._stream = stream
        self._scope = trio.CancelScope()
        self.answer = _Answer()

    def cut(self) -> None:
        """End it."""
        self._scope.cancel()

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(HELLO_TIMEOUT_S) as hello:
                    async for fields in receive_lines(self._stream):
                        self._server.operations += 1
                        if self.member is None:
                            self.member = self._server.joined(self, fields)
                            hello.deadline = float("inf")
                            nursery.start_soon(self._tell)
                        else:
                            self._reported(self.member, fields)
                nursery.cancel_scope.cancel()

    def _reported(self, member: Member, fields: dict[str, Any]) -> None:
        server = self._server
        if not server.membership.renew(member.name, member.generation, fields.get("load", {}), trio.current_time()):
            raise LinkError(f"another process has joined as {member.name}", code=4409)
        claim, release = _names(fields, "claim"), _names(fields, "release")
        if release:
            self.answer.released(release)
            server.freed(server.claims.release(release, member.name, member.generation))
        if claim:
            held, others = server.claims.claim(claim, member.name, member.generation)
            self.answer.claimed(held, others)
            server.answered()

    async def _tell(self) -> None:
        while True:
            view = converter.unstructure(self._server.membership.view())
            line = {"server": self._server.generation, "view": view, **self.answer.take()}
            self._server.operations += 1
            with trio.fail_after(SEND_TIMEOUT_S):
                await send_line(self._stream, line)
            if not self.answer:
                await self._server.news()


def _names(fields: dict[str, Any], key: str) -> list[str]:
    found = fields.get(key, [])
    if not isinstance(found, list):
        raise LinkError(f"'{key}' is not a list of orgs", code=1002)
    return [str(org) for org in found]
