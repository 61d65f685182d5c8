"""A balancer that ends gently: what it carries goes to others, what it has read is made durable.

Rule 1: its doors take nothing more. Whoever shares their sockets, a successor or another balancer, does from then on.
Rule 2: the links that it carries are left to a successor, both sockets. Of others collectors are asked to send them
        away: their meters come back to a door, make before break. That is waited for when there is another to come to;
        else they come back to the next one. A link whose socket a collector has is none of its affair any more.
Rule 3: exporters' sessions are left to a successor, socket and all, if there is one or will be. What cannot be left
Rule 3: sessions of exporters are left to a successor, socket and all, if there is one or will be. What cannot be left
        then has the balancer ended, or at the deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog
import trio
from attrs import define, field

from balancer.doors import LinkDoor
from balancer.inheriting import Inheriting
from balancer.steering import Steering
from meter.intake import Intake
from meter.spooling import Spooling
from meter.uplink import Uplink
from sapflow.runtime.drain import Drain

log = structlog.get_logger()

ASK_AGAIN_S = 0.5
"""Links that were just being placed when others were sent away are sent away with the next turn."""


@define(eq=False)
class BalancerDrain:
    """What of a balancer ends first, and what is waited for."""

    intake: Intake
    door: LinkDoor
    steering: Steering
    uplink: Uplink
    has_others: Callable[[], bool]
    """Whether there are other balancers."""
    spooling: Spooling | None = None
    inheriting: Inheriting | None = None
    """How exporters' sessions are left to a successor, if they can be."""
    doors_shut: trio.Event = field(factory=trio.Event)
    """Set when the doors are to take nothing more."""
    datagrams_ended: trio.Event = field(factory=trio.Event)
    """Set when the UDP door has handed on what came, or there is none."""
    first: trio.CancelScope = field(factory=trio.CancelScope)
    """What ends at once: its membership, and the coordinator that it serves; its UDP door, which hands on what came."""

    async def run(self, name: str, drain: Drain) -> bool:
        """Hand on all; whether all was, before the deadline."""
        log.info(
            "drain begins",
            balancer=name,
            deadline_s=drain.left_s,
            links=len(self.door.links),
            exporters=self.intake.counts.exporters,
            unacknowledged_bytes=self.uplink.unacknowledged_bytes,
        )
        self.doors_shut.set()
        self.first.cancel()
        heir = self.inheriting if drain.successor != "none" else None
        with trio.move_on_at(drain.deadline) as scope:
            async with trio.open_nursery() as nursery:
                if heir is None:
                    nursery.start_soon(self._send_links_away, drain)
                    await self.intake.stop()
                else:
                    async with trio.open_nursery() as leaving:
                        leaving.start_soon(self.door.leave, partial(heir.leave_link, drain))
                        await self.intake.stop(partial(heir.leave_session, drain))
                    nursery.start_soon(self._send_links_away, drain)
                await self.datagrams_ended.wait()
                await self._until_safe(drain)
                if not (drain.successor == "there" or self.has_others()):
                    nursery.cancel_scope.cancel()
        log.info(
            "drain ends",
            balancer=name,
            exporters_left=self.intake.counts.left,
            links_left=self.door.counts.left,
            links=len(self.door.links),
            unacknowledged_bytes=self.uplink.unacknowledged_bytes,
        )
        return not scope.cancelled_caught

    async def _until_safe(self, drain: Drain) -> None:
        """Wait until all that was read is durable in the log, or where the next process of this name finds it."""
        if self.spooling is None:
            await self.uplink.until_durable()
        elif drain.successor == "none":
            await self.spooling.until_empty()
        else:
            await self.spooling.until_written()

    async def _send_links_away(self, drain: Drain) -> None:
        told: set[object] = set()
        while self.door.links or self.door.unplaced:
            new = [link for link in self.door.links if link not in told]
            for collector in dict.fromkeys(link.collector for link in new):
                links = [link for link in new if link.collector == collector]
                seen_as = [address for link in links for address in link.seen_as]
                # One without a control link now is asked the next time.
                if self.steering.send_away(collector, seen_as, drain.left_s):
                    told.update(links)
            await trio.sleep(ASK_AGAIN_S)
