"""A Phloem node that ends gently: its orgs go to others that share its log, each when its new owner works on it.

A node that has the log for itself has nobody to hand them to, and nothing to hand on: what it has not stored its
collectors have, and they keep it until it, or its successor, is there.
"""

from __future__ import annotations

import structlog
import trio

from phloem.claims import OrgClaims
from sapflow.cluster.coordinator import Coordinator
from sapflow.runtime.drain import Drain

log = structlog.get_logger()


async def drain_node(name: str, claims: OrgClaims | None, member: Coordinator, drain: Drain) -> bool:
    """Hand over all orgs; whether all were, before the deadline."""
    log.info("drain begins", phloem=name, orgs=len(member.held), deadline_s=drain.left_s)
    with trio.move_on_at(drain.deadline) as scope:
        if claims is not None:
            member.leave()
            await claims.until_handed_over()
    log.info("drain ends", phloem=name, orgs=len(member.held))
    return not scope.cancelled_caught
