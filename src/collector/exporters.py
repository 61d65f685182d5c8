"""Exporters' connections that a balancer gave to this collector: read here, with the meter's own intake.

Which org they are of is decided here, by the same `balancer.sources` and `balancer.tls_names`; what the balancer
placed them by is not trusted. What is read goes to this collector's own endpoints over a link within the process, so
that numbers, credit and acknowledgements are what they are everywhere. When the collector dies its exporters must
connect again: that is the price of a balancer that does not read them.
"""

from __future__ import annotations

import math
import random
import socket
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import trio

from collector.sessions import OWN_EXPORTERS, Collector
from meter.backoff import Backoff, BackoffSettings
from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.exporter_tls import ExporterTls
from meter.flowing import exporters_flow
from meter.intake import Intake, IntakeSettings
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.config import Config
from sapflow.runtime.handoff import Door
from sapflow.runtime.serve import Handler, serve_one

PART_OF_BUDGET = 4
"""What the exporters of a collector may have unacknowledged is this part of its budget, beside it."""


class Exporters:
    """Their doors, by what balancers call them. `run()` is the task tree behind these."""

    def __init__(self, config: Config, collector: Collector, name: str, fleet_token: str) -> None:
        mine, intake = config.balancer, config.intake
        budget_bytes = config.collector.budget_bytes // PART_OF_BUDGET
        self._collector = collector
        self._nursery: trio.Nursery | None = None
        # One link at a time is asked for, after a pause.
        self._slots = trio.CapacityLimiter(math.inf)
        self.uplink = Uplink(
            FixedTarget(Target(name, "this process")),
            self._link,
            UplinkSettings(
                hello={"role": "intake", "token": fleet_token, "name": name},
                max_unacknowledged_bytes=min(intake.max_unacknowledged_bytes, budget_bytes),
                budget_bytes=budget_bytes,
                org_share=mine.org_share,
            ),
        )
        self.intake = Intake(
            self.uplink,
            IntakeSettings(
                batch_bytes=intake.batch_bytes,
                flush_interval_s=intake.flush_interval_s,
                message_timeout_s=intake.message_timeout_s,
                idle_timeout_s=intake.idle_timeout_s,
            ),
        )
        backoff = Backoff(
            BackoffSettings(
                after=mine.malformed_sessions,
                first_s=mine.malformed_backoff_first_s,
                most_s=mine.malformed_backoff_most_s,
            ),
            random.random,
        )
        bindings = SourceBindings(SourceBinding(source.prefix, source.org) for source in mine.sources)
        door = partial(ExporterDoor, self.intake, bindings, backoff=backoff)
        self.doors: dict[Door, ExporterDoor] = {"exporter": door()}
        if mine.ipfix_tls:
            tls = ExporterTls.load(mine.tls_certificate, mine.tls_key, mine.tls_handshake_timeout_s, mine.tls_names)
            self.doors["exporter-tls"] = door(tls)

    @property
    def handlers(self) -> Mapping[Door, Handler]:
        """What serves a socket that was given, by its door."""
        return {kind: door.serve for kind, door in self.doors.items()}

    def flow(self) -> dict[str, Any]:
        """By transport: what they brought."""
        return exporters_flow(self.intake.counts, None)

    def counts(self) -> dict[str, Any]:
        """Of the intake and its doors."""
        return {
            "intake": attrs.asdict(self.intake.counts),
            **{f"{kind.replace('-', '_')}_door": attrs.asdict(door.counts) for kind, door in self.doors.items()},
        }

    async def drain(self) -> None:
        """End all sessions, and wait until what was read is durable."""
        await self.intake.stop()
        await self.uplink.until_durable()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self.uplink.run()

    async def _link(self, _target: Target) -> trio.abc.Stream:
        """Both ends of a link are in this process."""
        assert self._nursery is not None
        ours, theirs = (trio.SocketStream(one) for one in trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        ticket = object()
        self._slots.acquire_on_behalf_of_nowait(ticket)
        own, serve = OWN_EXPORTERS, self._collector.serve_link
        self._nursery.start_soon(serve_one, theirs, own, serve, own, self._slots, ticket)
        await trio.lowlevel.checkpoint()
        return ours
