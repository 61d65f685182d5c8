"""What to claim and what to let go of, where members divide the orgs among themselves; pure.

Nobody assigns: each member compares what is with what should be, and takes its part.
Rule 1: a member claims what it wants and nobody holds, up to its share by weight and a tenth (`shares.py`).
Rule 2: an org that is still free after a whole round of patience is wanted by nobody else: it is claimed beyond the
share, so that no work is left undone.
Rule 3: a member with much more than its share hands over to those that have less, with overlap (`handover.py`).
Rule 4: a pegged org is claimed by, and handed over to, the member that it is pegged to, whatever its share. A peg to a
member that is not there, or does not want the org, keeps nobody else from doing the work.
Rule 5: a member that is about to end claims nothing and offers all it has, which others take whatever their share is.
Rule 6: the claims of one session never exceed `max_bytes`: a ZooKeeper ends a session in one transaction that lists
all its paths, and one larger than jute.maxbuffer stops the whole ensemble (ZOOKEEPER-4306).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from attrs import frozen

from sapflow.cluster.handover import Handover
from sapflow.cluster.paths import encode
from sapflow.cluster.shares import Shares, Told

MAX_CLAIM_BYTES = 900_000
"""Under jute.maxbuffer's default of 1,048,575, with room for what else such a transaction holds."""
PATIENCE_S = 10.0
"""An org that nobody has claimed in one to two of these is wanted by nobody else."""


def _nothing() -> None:
    pass


@frozen
class Work:
    """What a member's claims are for, asked and told by whoever divides them."""

    rates: Callable[[], Mapping[str, float]] = dict
    """Bytes per second by org, of those that bring any."""
    is_begun: Callable[[str], bool] = lambda _org: True
    """Whether the work of an org is being done here, so that its old owner may let go."""
    on_claims: Callable[[], None] = _nothing
    """Called when `held` may have changed."""


@frozen
class Plan:
    """What to do next. `more`: only the budget ended it. `full`: only `max_bytes` did."""

    claim: tuple[str, ...]
    release: tuple[str, ...]
    more: bool
    full: bool


class Reconciler:
    """One member's claims: what it wants, what it has, and what it should have. The clock is the caller's."""

    def __init__(self, name: str, path_bytes: int, rng: random.Random, max_bytes: int = MAX_CLAIM_BYTES) -> None:
        self.wanted: set[str] = set()
        self.mine: set[str] = set()
        """Orgs that this member has claimed in this session."""
        self.claimed: set[str] = set()
        """Orgs that anybody is known to have claimed, `mine` among them."""
        self.before: set[str] = set()
        """Orgs held in the session before this, not known to be another's: claimed first, so that work stays there."""
        self.is_leaving = False
        """It is about to end: it claims nothing, and offers all that it has to others."""
        self.pegs: Mapping[str, str] = {}
        self.mine_bytes = 0
        self.shares = Shares()
        self.handover = Handover(name, rng)
        self._name = name
        self._path_bytes = path_bytes
        self._rng = rng
        self._max_bytes = max_bytes
        self._peers: Mapping[str, Told | None] = {}
        self._waited: set[str] = set()
        self._overdue: set[str] = set()
        self._round_until = float("-inf")
        self._rounds_to_leave = 0

    @property
    def has_left(self) -> bool:
        """Whether it is about to end, and all that it had is claimed by others."""
        return self.is_leaving and not self.mine and not self.handover.offers

    @property
    def incoming(self) -> frozenset[str]:
        """Orgs to work on though another still holds them."""
        return self.handover.incoming

    def want(self, org: str) -> None:
        """Claim it when it is free and this member's share allows."""
        if org not in self.wanted:
            self.wanted.add(org)
            if org not in self.claimed:
                self.shares.appeared()

    def own(self, org: str, now: float) -> None:
        """A claim is this session's."""
        if org not in self.mine:
            self.mine.add(org)
            self.mine_bytes += self._cost(org)
            self.shares.claimed(org, now)
            self.handover.claimed(org, now)
        self.claimed.add(org)

    def disown(self, org: str) -> None:
        """A claim is not, or no more; it may be another's."""
        if org in self.mine:
            self.mine.discard(org)
            self.mine_bytes -= self._cost(org)
            self.shares.gone(org)
            self.handover.gone(org)

    def disown_all(self) -> None:
        """The session ended, and its claims with it."""
        self.before |= self.mine
        for org in list(self.mine):
            self.disown(org)
        # For a round what was others' is left to them, and nothing that waited before is late.
        self._rounds_to_leave = 2 if self.before else 0
        self._waited, self._overdue = set(), set()
        self._round_until = float("-inf")

    def hear(self, peers: Mapping[str, Told | None], rates: Mapping[str, float], now: float) -> None:
        """What the others of the role have told, None for one that has told nothing yet; and what was measured here."""
        self._peers = peers
        told = [peer.wanted for peer in peers.values() if peer is not None]
        orgs = max(len(self.claimed | self.wanted), *told, 0)
        self.shares.measure(rates, self.mine, orgs, peers, now)
        pegged = {org for org, name in self.pegs.items() if name == self._name}
        self.handover.hear(peers, self._is_acceptable, pegged, self.shares.room(()))

    def tell(self, is_begun: Callable[[str], bool]) -> dict[str, Any]:
        """What the others are to be told, as `told_in` reads it; empty for a member that has to do with no org."""
        if not self.wanted and not self.mine:
            return {}
        return {
            "claims": {
                "wanted": len(self.wanted),
                "held": len(self.mine),
                "weight": self.shares.weight,
                "typical": self.shares.mine_typical,
                "offers": self.handover.told(),
                "taking": [org for org in self.incoming if is_begun(org)],
                **({"leaving": True} if self.is_leaving else {}),
            }
        }

    def plan(self, budget: int, now: float) -> Plan:
        """What to claim, at most `budget` orgs, and what to let go of; makes offers, which the next report tells."""
        if now >= self._round_until:
            self._round_until = now + PATIENCE_S
            self._round_over()
        self.handover.tidy(now)
        self.before = (self.before & self.wanted) - self.claimed
        release = self.mine - self.wanted | self.handover.taken() & self.mine
        candidates = self._candidates(self.shares.room(release), release)
        claim = self._affordable(candidates, budget)
        if self.is_leaving:
            self.handover.offer_all(self.mine, self.shares, now)
            return Plan((), tuple(release), more=False, full=False)
        self.handover.offer(self.mine, self._pegged_to, self.pegs, self.shares, now)
        cut = min(budget, len(candidates))
        return Plan(tuple(claim), tuple(release), more=cut < len(candidates), full=len(claim) < cut)

    def _round_over(self) -> None:
        # What was free at the round's start and still is has waited long enough.
        free = self.wanted - self.claimed - self.handover.reserved
        self._overdue = self._waited & free
        self._waited = free
        self._rounds_to_leave = max(0, self._rounds_to_leave - 1)

    def _is_acceptable(self, org: str) -> bool:
        return org in self.wanted and org not in self.mine and not self.is_leaving

    def _pegged_to(self, org: str) -> str | None:
        name = self.pegs.get(org)
        if name == self._name:
            return None if self.is_leaving else name
        peer = self._peers.get(name) if name is not None else None
        return name if name in self._peers and not (peer is not None and peer.leaving) else None

    def _candidates(self, room: int, release: set[str]) -> list[str]:
        free = self.wanted - self.claimed - self.handover.reserved - self.handover.offers.keys() - release
        pegged = [org for org, name in self.pegs.items() if name == self._name and org in free]
        given = [org for org in self.incoming & free if self._pegged_to(org) is None]
        open_to_all = [org for org in free.difference(given) if self._pegged_to(org) is None]
        chosen = [org for org in open_to_all if org in self.before][:room]
        if len(chosen) < room and not self._rounds_to_leave:
            rest = [org for org in open_to_all if org not in self.before]
            # In an order of this member's own, so that members who start together seldom want the same org next.
            chosen += self._rng.sample(rest, min(room - len(chosen), len(rest)))
        late = (self._overdue & free).difference(pegged, given, chosen)
        return list(chain(pegged, given, chosen, late))

    def _affordable(self, candidates: Sequence[str], budget: int) -> list[str]:
        claim: list[str] = []
        free_bytes = self._max_bytes - self.mine_bytes
        for org in candidates[:budget]:
            cost = self._cost(org)
            if cost <= free_bytes:
                free_bytes -= cost
                claim.append(org)
        return claim

    def _cost(self, org: str) -> int:
        return self._path_bytes + len(encode(org))
