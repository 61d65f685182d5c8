"""Orgs on their way from one member to another, with overlap: the new owner works before the old one lets go; pure.

    owner: offers ──▶ (sees it taken) lets go of the claim ──▶ (sees that it is not taken any more) forgets the offer
    taker: works ──▶ tells that it is taking ──▶ (sees it free) claims ──▶ tells that it is not taking any more

All of it is told in reports and seen again with each: a report that is lost costs an interval. An offer that is not
taken in `OFFER_S` is withdrawn, and nothing has changed. Nobody else claims an org that is on offer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

from attrs import define

from sapflow.cluster.shares import Shares, Told

MAX_OFFERS = 100
"""Offers at a time: what is told is bounded, and so is the pace."""
MAX_COMPARED = 500
"""Orgs of which those to be offered are chosen, at random, in one plan."""
OFFER_S = 20.0
REST_S = 60.0
"""An org that came or was offered is not offered again for so long, but for a new peg."""


@define
class _Offer:
    to: str
    weight: float
    until: float
    is_given: bool = False


class Handover:
    """What this member offers, and what it is offered."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.offers: dict[str, _Offer] = {}
        self.incoming: frozenset[str] = frozenset()
        """Orgs offered to this member that it wants: it works on them, and claims them when they are free."""
        self.reserved: frozenset[str] = frozenset()
        """Orgs that others offer to others."""
        self._name = name
        self._rng = rng
        self._peers: Mapping[str, Told | None] = {}
        self._resting: dict[str, float] = {}
        self._declined: dict[tuple[str, str], float] = {}
        """Orgs and those who did not take them when they were offered."""
        self._is_shedding = False

    def hear(
        self, peers: Mapping[str, Told | None], acceptable: Callable[[str], bool], pegged: set[str], room: int
    ) -> None:
        """What the others have told; `room` is for how many orgs may come in beside those pegged to this one."""
        self._peers = peers
        offered = [offer for told in peers.values() if told is not None for offer in told.offers.items()]
        mine = {org for org, to in offered if to == self._name and acceptable(org)}
        # Of one that is about to end all is taken: who has too much then hands over again.
        ending = [told.offers for told in peers.values() if told is not None and told.leaving]
        kept = mine & self.incoming.union(pegged, *ending)
        # Several may have offered at once, none knowing of the others: what is too much is not taken.
        new = sorted(mine - kept)[: max(0, room - len(kept - pegged))]
        self.incoming = frozenset(kept.union(new))
        self.reserved = frozenset(org for org, to in offered if to != self._name)

    def claimed(self, org: str, now: float) -> None:
        """An org has become this member's."""
        if org in self.incoming:
            self.incoming -= {org}
            self._resting[org] = now + REST_S

    def gone(self, org: str) -> None:
        """An org is this member's no more."""
        offer = self.offers.get(org)
        if offer is not None and not offer.is_given:
            del self.offers[org]

    def told(self) -> dict[str, str]:
        """The offers, for the next report."""
        return {org: offer.to for org, offer in self.offers.items()}

    def taken(self) -> set[str]:
        """Orgs whose new owner works on them: they are let go of."""
        taken = {org for org, offer in self.offers.items() if self._is_taking(org, offer.to)}
        for org in taken:
            self.offers[org].is_given = True
        return taken

    def tidy(self, now: float) -> None:
        """Forget what is over: offers that were carried out, that nobody took, or whose taker is no more."""
        for org, offer in list(self.offers.items()):
            is_done = offer.is_given and not self._is_taking(org, offer.to)
            is_late = offer.until <= now
            if is_late and not offer.is_given:
                self._declined[org, offer.to] = now + REST_S
            if is_done or is_late or offer.to not in self._peers:
                del self.offers[org]
        self._resting = {org: until for org, until in self._resting.items() if until > now}
        self._declined = {key: until for key, until in self._declined.items() if until > now}

    def offer(
        self, mine: set[str], pegged_to: Callable[[str], str | None], pegs: Iterable[str], shares: Shares, now: float
    ) -> None:
        """Offer orgs pegged to others, and what this member has too much of."""
        for org in pegs:
            to = pegged_to(org)
            if to is not None and to != self._name and org in mine:
                self._offer(org, to, shares.of(org), now)
        weight = shares.weight - sum(offer.weight for org, offer in self.offers.items() if org in mine)
        self._is_shedding = shares.is_uneven(weight) or (self._is_shedding and weight > shares.most())
        if self._is_shedding and len(self.offers) < MAX_OFFERS:
            orgs = [org for org in self._chosen(mine) if pegged_to(org) is None]
            self._shed(weight, orgs, shares, now)

    def offer_all(self, mine: set[str], shares: Shares, now: float) -> None:
        """Offer everything, each to whom has least then."""
        weights, places = self._peers_when_all_is_taken()
        for org in sorted(mine - self.offers.keys(), key=shares.of, reverse=True):
            able = [name for name in weights if places[name] > 0 and (org, name) not in self._declined]
            if able:
                to = min(able, key=weights.__getitem__)
                self._offer(org, to, shares.of(org), now)
                weights[to], places[to] = weights[to] + shares.of(org), places[to] - 1

    def _offer(self, org: str, to: str, weight: float, now: float) -> None:
        if org not in self.offers and (org, to) not in self._declined and len(self.offers) < MAX_OFFERS:
            self.offers[org] = _Offer(to, weight, now + OFFER_S)
            self._resting[org] = now + REST_S

    def _chosen(self, mine: set[str]) -> list[str]:
        rested = [org for org in mine if org not in self.offers and org not in self._resting]
        return self._rng.sample(rested, min(len(rested), MAX_COMPARED))

    def _shed(self, weight: float, orgs: list[str], shares: Shares, now: float) -> None:
        weights, places = self._peers_when_all_is_taken()

        def lightest_peer() -> str | None:
            return min((name for name in weights if places[name] > 0), key=weights.__getitem__, default=None)

        orgs.sort(key=shares.of, reverse=True)
        begun = len(self.offers)
        for org in orgs:
            to = lightest_peer()
            if to is None or weight <= shares.most() or len(self.offers) >= MAX_OFFERS:
                return
            size = shares.of(org)
            if 2 * size <= weight - weights[to] and (org, to) not in self._declined:
                self._offer(org, to, size, now)
                weight, weights[to], places[to] = weight - size, weights[to] + size, places[to] - 1
        to = lightest_peer()
        if len(self.offers) == begun == 0 and to is not None and orgs:
            # None is so light that this member still has the more of it: the lightest, where that is an improvement.
            size = shares.of(orgs[-1])
            if weights[to] + size < weight:
                self._offer(orgs[-1], to, size, now)

    def _peers_when_all_is_taken(self) -> tuple[dict[str, float], dict[str, int]]:
        """What those who have told weigh, and how many orgs more they want, once they have what they are offered."""
        told = {name: peer for name, peer in self._peers.items() if peer is not None and not peer.leaving}
        weights = {name: peer.weight for name, peer in told.items()}
        places = {name: peer.wanted - peer.held for name, peer in told.items()}
        offers = [(offer.to, offer.weight) for offer in self.offers.values()]
        offers += [(to, peer.typical) for peer in told.values() for to in peer.offers.values()]
        for to, weight in offers:
            if to in told:
                weights[to] += weight
                places[to] -= 1
        return weights, places

    def _is_taking(self, org: str, name: str) -> bool:
        told = self._peers.get(name)
        return told is not None and org in told.taking
