"""A collector's tree of tasks.

nursery ── control plane (own listener)
        ├─ coordinator: joins, reports load each second
        ├─ figures: event-loop lag; reporting: rates each second, told to each balancer's control link
        ├─ watch: ends links of which nothing is heard
        ├─ org table: read again when its file changes
        ├─ link listener ── a task a link, at most `max_links`; batches bounded by `budget_bytes` of credit
        ├─ taking ── sockets that balancers of this host accepted, each a link among those, or an exporter's (`carry`)
        ├─ exporters, with `carry` ── their uplink: a link within the process
        └─ live listener ── a task a subscriber; each bounded by `live_buffer_bytes`, then sheds
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import structlog
import trio

from collector.carried import CarriedSettings
from collector.draining import drain_collector
from collector.exporters import Exporters
from collector.live import LiveDoor, LiveSettings
from collector.reporting import Reporting
from collector.sessions import Collector, CollectorSettings
from sapflow.cluster.coordinator import coordinator
from sapflow.config import Config
from sapflow.errors import ConfigurationError
from sapflow.link import Traffic
from sapflow.monitor.control import drain_action
from sapflow.monitor.machine import REAL, Machine
from sapflow.orgs import OrgTable, keep_fresh
from sapflow.runtime.handoff import Door, announced
from sapflow.runtime.proxied import Networks, Proxied
from sapflow.runtime.serve import Handler, address_of, listen, serve
from sapflow.runtime.taking import Taking, listen_handoff
from sapflow.runtime.transport import server_tls
from sapflow.runtime.watch import Watch

log = structlog.get_logger()

Announce = Callable[[dict[str, Any]], None]


async def run(config: Config, name: str, fleet_token: str, announce: Announce, machine: Machine = REAL) -> None:
    """Be a collector until cancelled, or drained."""
    mine = config.collector
    orgs = OrgTable(config.data_path / "orgs.json")
    settings = CollectorSettings(
        name=name,
        fleet_token=fleet_token,
        budget_bytes=mine.budget_bytes,
        org_share=mine.org_share,
        options_bytes=mine.options_bytes,
        hello_timeout_s=mine.hello_timeout_s,
        idle_timeout_s=mine.idle_timeout_s,
        tls=server_tls(mine.tls_certificate, mine.tls_key) if mine.tls_certificate else None,
        carried=CarriedSettings(config.fleet.move_cooldown_s, mine.move_timeout_s, mine.moves_ignored),
    )
    watch = Watch()
    collector = Collector(settings, orgs.authenticate, watch=watch)
    live = LiveDoor(LiveSettings(buffer_bytes=mine.live_buffer_bytes), orgs.authenticate, collector.endpoint)
    figures = machine.figures()
    link_listener = await listen(mine.link, what="links")
    live_listener = await listen(mine.live, what="live subscribers")
    links = trio.CapacityLimiter(mine.max_links)
    relayed = Proxied(Networks(mine.proxy_from), mine.hello_timeout_s)
    exporters = Exporters(config, collector, name, fleet_token) if config.balancer.exporters == "carry" else None
    given: dict[Door, Handler] = {"link": collector.serve_link, **(exporters.handlers if exporters is not None else {})}
    taking = Taking(given, links)
    reporting = Reporting(collector, figures, config.fleet.report_interval_s)

    def status() -> dict[str, Any]:
        endpoints = collector.endpoints.values()
        taken = sum((e.taken for e in endpoints), Traffic())
        given = sum((e.given for e in endpoints), Traffic())
        expected = sum(e.taken.bytes * (e.receivers + len(e.live)) for e in endpoints)
        return {
            "name": name,
            "role": "collector",
            "flow": {
                "link": {"in": attrs.asdict(taken), "out": attrs.asdict(given)},
                "endpoint": {"in": attrs.asdict(taken), "out": attrs.asdict(given + live.given)},
                "live": {"out": attrs.asdict(live.given)},
                **(exporters.flow() if exporters is not None else {}),
            },
            "counts": {
                "link": attrs.asdict(collector.counts),
                "endpoint": {"repeats": sum(e.repeats for e in endpoints)},
                "live": attrs.asdict(live.counts),
                "options": {"not_kept": collector.room.not_kept},
                "handoff": attrs.asdict(taking.counts),
                **(exporters.counts() if exporters is not None else {}),
                "proxy_header": attrs.asdict(relayed.counts),
                "coordinator": member.counts(),
                "moves": {"asked": collector.carried.moves_asked, "ignored": collector.carried.moves_ignored},
            },
            "gauges": {
                "held_bytes": collector.pool.used_bytes,
                "budget_bytes": mine.budget_bytes,
                "options_bytes": collector.room.used_bytes,
                "bytes_per_s": reporting.bytes_per_s,
                "flow_out_in": round(reporting.ratio.measured, 3),
                "flow_alarm": int(reporting.ratio.is_alarming),
                **member.gauges(),
                **figures.read(),
            },
            "ratio": {
                "measured": round((given + live.given).bytes / taken.bytes, 3) if taken.bytes else None,
                "expected": round(expected / taken.bytes, 3) if taken.bytes else None,
            },
            "orgs": {
                e.org: {
                    "in": attrs.asdict(e.taken),
                    "out": attrs.asdict(e.given),
                    "held_bytes": e.held_bytes,
                    "streams": len(e.streams),
                    "durable": len(e.durable),
                    "live": len(e.live),
                }
                for e in endpoints
            },
        }

    addresses = {"link": address_of(link_listener), "live": address_of(live_listener)}
    handoff = _listen_handoff(config, name) if mine.handoff else None
    if handoff is not None:
        addresses["handoff"] = announced(handoff[1])
    member = coordinator(
        config, name=name, role="collector", addresses=addresses, fleet_token=fleet_token, load=reporting.load
    )
    async with trio.open_nursery() as nursery:
        addresses["control"] = await nursery.start(
            partial(machine.serve_control, actions=drain_action(machine.drain, fleet_token, config.fleet.drain_s)),
            mine.control,
            "collector",
            status,
        )
        nursery.start_soon(figures.run)
        nursery.start_soon(watch.run)
        nursery.start_soon(reporting.run)
        nursery.start_soon(keep_fresh, orgs)
        nursery.start_soon(
            partial(serve, max_connections=mine.max_links, what="link", slots=links),
            link_listener,
            relayed.possible(collector.serve_link),
        )
        if exporters is not None:
            nursery.start_soon(exporters.run)
        if handoff is not None:
            nursery.start_soon(taking.run, *handoff)
        nursery.start_soon(partial(serve, max_connections=mine.max_live, what="live"), live_listener, live.serve)
        nursery.start_soon(member.run)
        announce({"event": "ready", "name": name, "role": "collector", "addresses": addresses})
        await machine.drain.asked()
        clean = await drain_collector(collector, reporting, machine.drain, exporters)
        announce({"event": "drained", "name": name, "clean": clean})
        nursery.cancel_scope.cancel()


def _listen_handoff(config: Config, name: str) -> tuple[socket.socket, Path] | None:
    """Where sockets are taken over; a collector works without it."""
    try:
        return listen_handoff((config.data_path / "handoff").absolute(), name)
    except ConfigurationError as error:
        log.warning("no hand-off", reason=str(error))
        return None
