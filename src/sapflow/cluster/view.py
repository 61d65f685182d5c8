"""What everyone knows of the fleet; pure."""

from __future__ import annotations

from typing import Any

import cattrs
from attrs import define, field, frozen


@frozen
class Member:
    """One process. `generation` differs each time it starts."""

    name: str
    role: str
    generation: str
    pid: int
    addresses: dict[str, str] = field(factory=dict)


@frozen
class View:
    """The fleet as last told; loads are what members reported, by name."""

    members: tuple[Member, ...] = ()
    loads: dict[str, dict[str, Any]] = field(factory=dict)

    def of_role(self, role: str) -> tuple[Member, ...]:
        """Members of one role."""
        return tuple(member for member in self.members if member.role == role)


converter = cattrs.Converter()


@define
class _Lease:
    member: Member
    until: float
    load: dict[str, Any] = field(factory=dict)


class Membership:
    """Leases: a member that is not heard of within `lease_s` seconds is no more. The clock is the caller's."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self.version = 0
        """Grows with each change of who is there."""
        self._leases: dict[str, _Lease] = {}

    def join(self, member: Member, now: float) -> None:
        """A member is there; one of the same name and another generation is no more."""
        self._leases[member.name] = _Lease(member, now + self.lease_s)
        self.version += 1

    def renew(self, name: str, generation: str, load: dict[str, Any], now: float) -> bool:
        """A sign of life with a report; False when that member has no lease, and must join anew."""
        lease = self._leases.get(name)
        if lease is None or lease.member.generation != generation:
            return False
        lease.until, lease.load = now + self.lease_s, load
        return True

    def leave(self, name: str, generation: str) -> None:
        """A member is no more."""
        lease = self._leases.get(name)
        if lease is not None and lease.member.generation == generation:
            del self._leases[name]
            self.version += 1

    def expire(self, now: float) -> list[Member]:
        """End the leases that ran out: whose they were."""
        gone = [lease.member for lease in self._leases.values() if lease.until <= now]
        for member in gone:
            del self._leases[member.name]
        self.version += bool(gone)
        return gone

    def view(self) -> View:
        """The fleet now."""
        return View(
            tuple(lease.member for lease in self._leases.values()),
            {name: lease.load for name, lease in self._leases.items()},
        )
