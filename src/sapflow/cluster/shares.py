"""How much of the work is this member's, by what it measures and what the others of its role have told; pure.

An org weighs what its records bring in bytes per second, and `IDLE_BYTES_PER_S` for being there at all, so never 0. One
that nobody has measured yet is taken to weigh what the typical org does: a median, for an elephant says nothing of the
others. A fleet that has measured nothing divides its orgs by their number, whoever starts first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from sapflow.cluster.view import Member

IDLE_BYTES_PER_S = 1000.0
MEASURE_S = 30.0
"""A claimed org that was not measured for so long is idle."""
SLACK = 0.1
"""A member claims up to its share and a tenth, and hands over what is above that, once it is above `UNEVEN`."""
UNEVEN = 1.25


@frozen
class Told:
    """What a member tells the others of its role with each report."""

    wanted: int = 0
    held: int = 0
    weight: float = 0.0
    typical: float = IDLE_BYTES_PER_S
    """What half of its orgs weigh at most."""
    offers: dict[str, str] = field(factory=dict)
    """Orgs that it would hand over, and to whom."""
    taking: frozenset[str] = frozenset()
    """Orgs that it was offered, and whose work it has begun."""
    leaving: bool = False
    """It is about to end: it offers all that it has, and takes nothing."""


def told_in(load: Mapping[str, Any]) -> Told | None:
    """What a report says of claims; None when it says nothing that can be understood."""
    try:
        claims = load["claims"]
        offers = {str(org): str(name) for org, name in claims["offers"].items()}
        taking = frozenset(map(str, claims["taking"]))
        weight, typical = float(claims["weight"]), float(claims["typical"])
        if not (math.isfinite(weight) and IDLE_BYTES_PER_S <= typical < math.inf):
            return None
        return Told(
            int(claims["wanted"]), int(claims["held"]), weight, typical, offers, taking, claims.get("leaving") is True
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def peers_in(members: Iterable[Member], loads: Mapping[str, Mapping[str, Any]], mine: Member) -> dict[str, Told | None]:
    """The others of a member's role by name; None for one that has told nothing yet."""
    others = [member for member in members if member.role == mine.role and member.name != mine.name]
    return {member.name: told_in(loads.get(member.name, {})) for member in others}


class Shares:
    """Weights of this member's orgs, and the share that it should have of all."""

    def __init__(self) -> None:
        self.weight = 0.0
        """What this member's orgs weigh together."""
        self.typical = IDLE_BYTES_PER_S
        """What half of the measured orgs of all members weigh at most."""
        self.mine_typical = IDLE_BYTES_PER_S
        """The same of this member's."""
        self.mean = 0.0
        """What a member should have, in weight."""
        self._members = 0
        """Among whom orgs are shared; 0 before anything was heard of them."""
        self._rates: Mapping[str, float] = {}
        self._fresh: dict[str, float] = {}

    def appeared(self) -> None:
        """There is an org more than were when all was measured."""
        if self._members:
            self.mean += self.typical / self._members

    def claimed(self, org: str, now: float) -> None:
        """An org has become this member's."""
        self._fresh[org] = now + MEASURE_S
        self.weight += self.typical

    def gone(self, org: str) -> None:
        """An org is this member's no more."""
        self.weight -= self.of(org)
        self._fresh.pop(org, None)

    def of(self, org: str) -> float:
        """What one org weighs."""
        if org in self._fresh:
            return self.typical
        return IDLE_BYTES_PER_S + self._rates.get(org, 0.0)

    def measure(
        self, rates: Mapping[str, float], mine: set[str], orgs: int, peers: Mapping[str, Told | None], now: float
    ) -> None:
        """Weigh again: `rates` are bytes per second of the orgs that bring any, `orgs` how many there are in all."""
        self._rates = rates
        fresh = {org: until for org, until in self._fresh.items() if org not in rates and until > now}
        self._fresh = fresh
        measured = len(mine) - len(fresh)
        active = sorted(rate for org, rate in rates.items() if org in mine)
        middle = (measured - 1) // 2 - (measured - len(active))
        self.mine_typical = IDLE_BYTES_PER_S + (active[middle] if 0 <= middle < len(active) else 0.0)
        told = [peer for peer in peers.values() if peer is not None]
        theirs, held = sum(peer.weight for peer in told), sum(peer.held for peer in told)
        self.typical = _middle([(peer.typical, peer.held) for peer in told] + [(self.mine_typical, measured)])
        self.weight = sum(active) + IDLE_BYTES_PER_S * measured + self.typical * len(fresh)
        free = max(0, orgs - len(mine) - held)
        self._members = 1 + len(peers)
        self.mean = (self.weight + theirs + free * self.typical) / self._members

    def limit(self) -> int:
        """How many typical orgs this member claims at most."""
        share = math.ceil(self.mean / self.typical - 1e-9)
        return share + int(share * SLACK)

    def room(self, leaving: Iterable[str]) -> int:
        """How many orgs more may be claimed, when some are let go of."""
        kept = self.weight - sum(map(self.of, leaving))
        return max(0, int(self.limit() - kept / self.typical + 1e-9))

    def most(self) -> float:
        """The weight above which orgs are handed over until it is reached again."""
        return max(self.limit() * self.typical, (1 + SLACK) * self.mean)

    def is_uneven(self, weight: float) -> bool:
        """Whether a member with such a weight should begin to hand over."""
        return weight > max(self.most(), UNEVEN * self.mean)


def _middle(weighted: list[tuple[float, int]]) -> float:
    """The median of values that each count as often as is said with it."""
    half = sum(count for _, count in weighted) / 2
    for value, count in sorted(weighted):
        half -= count
        if half <= 0 and count > 0:
            return value
    return IDLE_BYTES_PER_S
