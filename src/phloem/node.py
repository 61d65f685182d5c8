"""A Phloem node's tree of tasks.

nursery ── control plane (own listener)
        ├─ coordinator: which collectors there are
        ├─ connections ── a task a collector: connects, reads, grants credit of `budget_bytes`
        │       └─ byte-bounded channel ─▶
        ├─ committer: group commit in the one storage thread, then acknowledgements
        ├─ retention: bounded steps, each in a storage thread's turn
        ├─ consume listener ── a task a consumer, fed from the log under its own credit
        └─ figures, org table
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import structlog
import trio

from phloem.commits import Committer
from phloem.connections import Connections, ConnectionSettings
from phloem.consume import Consumers, ConsumeSettings
from phloem.engine.embedded import EmbeddedLog
from sapflow.cluster.coordinator import coordinator
from sapflow.cluster.view import View
from sapflow.config import Config
from sapflow.errors import StorageError
from sapflow.link import Traffic
from sapflow.monitor.control import serve_control
from sapflow.monitor.process import ProcessFigures
from sapflow.orgs import OrgTable, keep_fresh
from sapflow.runtime.dial import dial
from sapflow.runtime.serve import address_of, listen, serve

log = structlog.get_logger()

RETAIN_STEP = 50
"""Entries removed in one transaction, between commits."""

Announce = Callable[[dict[str, Any]], None]


async def run(config: Config, name: str, fleet_token: str, announce: Announce) -> None:
    """Be a Phloem node until cancelled."""
    mine = config.phloem
    engine = EmbeddedLog.open(config.data_path / "log", map_bytes=mine.map_bytes)
    try:
        await _run(config, name, fleet_token, announce, engine)
    finally:
        engine.close()


async def _run(config: Config, name: str, fleet_token: str, announce: Announce, engine: EmbeddedLog) -> None:
    mine = config.phloem
    orgs = OrgTable(config.data_path / "orgs.json")
    consumers = Consumers(
        engine,
        ConsumeSettings(
            fleet_token=fleet_token, hello_timeout_s=mine.hello_timeout_s, idle_timeout_s=mine.idle_timeout_s
        ),
        orgs.authenticate,
        lambda org: org in orgs.names(),
    )
    committer = Committer(
        engine, channel_bytes=mine.budget_bytes, commit_bytes=mine.commit_bytes, on_stored=consumers.stored
    )
    connections = Connections(
        ConnectionSettings(
            name=name,
            fleet_token=fleet_token,
            budget_bytes=mine.budget_bytes,
            org_share=mine.org_share,
            connect_timeout_s=config.fleet.connect_timeout_s,
            idle_timeout_s=mine.idle_timeout_s,
        ),
        committer,
        partial(dial, timeout_s=config.fleet.connect_timeout_s),
    )
    figures = ProcessFigures()
    listener = await listen(mine.consume, what="consumers")

    def load() -> dict[str, Any]:
        return {"held_bytes": connections.pool.used_bytes, "budget_bytes": mine.budget_bytes, **figures.read()}

    def status() -> dict[str, Any]:
        taken, counted = connections.taken.bytes, consumers.counts
        read = Traffic(counted.entries_out, counted.bytes_out, counted.messages_out, counted.records_out)
        return {
            "name": name,
            "role": "phloem",
            "flow": {
                "link": {"in": attrs.asdict(connections.taken)},
                "channel": {"in": attrs.asdict(committer.channelled), "out": attrs.asdict(committer.drawn)},
                "engine": {"in": attrs.asdict(committer.stored), "out": attrs.asdict(read)},
            },
            "counts": {
                "link": attrs.asdict(connections.counts),
                "commit": attrs.asdict(committer.counts),
                "consume": attrs.asdict(consumers.counts),
                "coordinator": member.counts(),
            },
            "gauges": {
                "held_bytes": connections.pool.used_bytes,
                "channel_bytes": committer.channel.fill_bytes,
                "budget_bytes": mine.budget_bytes,
                "orgs": len(connections.orgs),
                **member.gauges(),
                **figures.read(),
            },
            "ratio": {
                "measured": round(committer.stored.bytes / taken, 3) if taken else None,
                "expected": 1.0,
            },
        }

    def on_change(view: View) -> None:
        connections.collectors({member.name: member.addresses["link"] for member in view.of_role("collector")})

    addresses = {"consume": address_of(listener)}
    # It wants no org: the embedded engine has one node, whose work they all are, and claims would only cost.
    member = coordinator(
        config,
        name=name,
        role="phloem",
        addresses=addresses,
        fleet_token=fleet_token,
        load=load,
        on_change=on_change,
    )
    async with trio.open_nursery() as nursery:
        addresses["control"] = await nursery.start(serve_control, mine.control, "phloem", status)
        nursery.start_soon(figures.run)
        nursery.start_soon(keep_fresh, orgs)
        nursery.start_soon(committer.run)
        nursery.start_soon(connections.run)
        nursery.start_soon(member.run)
        nursery.start_soon(_retain, config, engine, committer)
        nursery.start_soon(
            partial(serve, max_connections=mine.max_consumers, what="consume"), listener, consumers.serve
        )
        announce({"event": "ready", "name": name, "role": "phloem", "addresses": addresses})


async def _retain(config: Config, engine: EmbeddedLog, committer: Committer) -> None:
    """Remove what is past its retention, a bounded step at a time, in turn with commits."""
    while True:
        await trio.sleep(config.phloem.retention_interval_s)
        try:
            for org in await committer.storage.run(engine.orgs):
                await _retain_org(config, engine, committer, org)
        except StorageError as error:
            log.error("retention failed", reason=str(error), retry_s=config.phloem.retention_interval_s)


async def _retain_org(config: Config, engine: EmbeddedLog, committer: Committer, org: str) -> None:
    mine = config.phloem
    before_us = int((time.time() - mine.retention_s) * 1e6)
    step = partial(
        engine.remove_oldest, org, before_us=before_us, keep_bytes=mine.retention_bytes_per_org, at_most=RETAIN_STEP
    )
    removed = total = await committer.storage.run(step)
    while removed == RETAIN_STEP:
        removed = await committer.storage.run(step)
        total += removed
    if total:
        log.info("retention removed", org=org, entries=total)
