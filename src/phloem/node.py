"""A Phloem node's tree of tasks.

nursery ── control plane (own listener)
        ├─ coordinator: which collectors there are
        ├─ claims, where nodes share the log: which orgs are this one's
        ├─ connections ── a task a collector: connects, reads, grants credit of `budget_bytes`
        │       └─ byte-bounded channel ─▶
        ├─ committer: group commit in the one storage thread, then acknowledgements
        ├─ upkeep of the log: bounded steps, each in a storage thread's turn
        ├─ news of what other nodes stored, where there may be others
        ├─ the ledger, where it is counted from the log: in steps, in a thread of its own
        ├─ consume listener ── a task a consumer, fed from the log under its own credit
        ├─ groups: what consumers commit, written together in the storage thread's turns
        ├─ exits ── a task each, a consumer of the log that publishes to an org's own Kafka from a thread of its own
        └─ figures, org table
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import structlog
import trio

from phloem.claims import OrgClaims
from phloem.commits import Committer
from phloem.connections import Connections, ConnectionSettings
from phloem.consume import Consumers, ConsumeSettings
from phloem.draining import drain_node
from phloem.engine.engine import Engine, SharedLedger
from phloem.engine.opening import open_engine
from phloem.exits.opening import open_exits
from phloem.groups import GroupSettings
from sapflow.cluster.coordinator import coordinator
from sapflow.cluster.view import View
from sapflow.config import Config, PhloemConfig
from sapflow.errors import StorageError
from sapflow.link import Traffic
from sapflow.monitor.control import drain_action
from sapflow.monitor.machine import REAL, Machine
from sapflow.orgs import OrgTable, keep_fresh
from sapflow.runtime.dial import dial
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.serve import address_of, listen, serve
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

FEED_BYTES = 512 << 10
"""Of the log for a consumer at a time, of which it holds up to four."""
SHARED_FEED_BYTES = 192 << 10
"""Where what reads the log takes memory too, and a turn of it takes longer than its bytes."""

_DONE = object()

Announce = Callable[[dict[str, Any]], None]


async def run(config: Config, name: str, fleet_token: str, announce: Announce, machine: Machine = REAL) -> None:
    """Be a Phloem node until cancelled, or drained."""
    engine = open_engine(config, name)
    try:
        await _run(config, name, fleet_token, announce, engine, machine)
    finally:
        engine.close()


async def _run(
    config: Config, name: str, fleet_token: str, announce: Announce, engine: Engine, machine: Machine
) -> None:
    mine = config.phloem
    orgs = OrgTable(config.data_path / "orgs.json")
    committer = Committer(
        engine,
        channel_bytes=mine.budget_bytes,
        commit_bytes=mine.commit_bytes,
        backlog_rest=mine.backlog_rest,
        on_stored=lambda orgs: consumers.stored(orgs),
    )
    consumers = Consumers(
        engine,
        ConsumeSettings(
            fleet_token=fleet_token,
            feed_bytes=SHARED_FEED_BYTES if engine.is_shared else FEED_BYTES,
            hello_timeout_s=mine.hello_timeout_s,
            idle_timeout_s=mine.idle_timeout_s,
            groups=_group_settings(mine),
        ),
        orgs.authenticate,
        lambda org: org in orgs.names(),
        committer.storage,
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
        chooses_orgs=_divides_orgs(config, engine),
        always=(exit_.org for exit_ in mine.exits),
    )
    exits = open_exits(mine.exits, consumers.serve, fleet_token)
    claims = None
    if _divides_orgs(config, engine):
        claims = OrgClaims(engine, connections, exits.hold if exits is not None else None)
    figures = machine.figures()
    listener = await listen(mine.consume, what="consumers")

    def load() -> dict[str, Any]:
        return {"held_bytes": connections.pool.used_bytes, "budget_bytes": mine.budget_bytes, **figures.read()}

    def status() -> dict[str, Any]:
        taken, counted, groups = connections.taken.bytes, consumers.counts, consumers.groups
        shown = groups.shown
        read = Traffic(counted.entries_out, counted.bytes_out, counted.messages_out, counted.records_out)
        return {
            "name": name,
            "role": "phloem",
            "flow": {
                "link": {"in": attrs.asdict(connections.taken)},
                "channel": {"in": attrs.asdict(committer.channelled), "out": attrs.asdict(committer.drawn)},
                "engine": {"in": attrs.asdict(committer.stored), "out": attrs.asdict(read)},
                **({"exit": exits.flow()} if exits is not None else {}),
            },
            "counts": {
                "link": attrs.asdict(connections.counts),
                "commit": attrs.asdict(committer.counts),
                "consume": attrs.asdict(consumers.counts),
                "engine": engine.counts(),
                "groups": attrs.asdict(groups.counts),
                **({"exit": exits.counts()} if exits is not None else {}),
                "coordinator": member.counts(),
            },
            "gauges": {
                **(exits.gauges() if exits is not None else {}),
                "held_bytes": connections.pool.used_bytes,
                "channel_bytes": committer.channel.fill_bytes,
                "budget_bytes": mine.budget_bytes,
                "orgs": len(connections.orgs),
                "groups": len(shown),
                "group_lag_entries": max((one["lag"]["positions"] for one in shown), default=0),
                **member.gauges(),
                **figures.read(),
            },
            "groups": shown,
            "exits": exits.figures() if exits is not None else [],
            "ratio": {
                "measured": round(committer.stored.bytes / taken, 3) if taken else None,
                "expected": 1.0,
            },
        }

    def on_change(view: View) -> None:
        connections.collectors({member.name: member.addresses["link"] for member in view.of_role("collector")})

    addresses = {"consume": address_of(listener)}
    member = coordinator(
        config,
        name=name,
        role="phloem",
        addresses=addresses,
        fleet_token=fleet_token,
        load=load,
        on_change=on_change,
        work=claims.work if claims is not None else None,
    )
    async with trio.open_nursery() as nursery:
        addresses["control"] = await nursery.start(
            partial(machine.serve_control, actions=drain_action(machine.drain, fleet_token, config.fleet.drain_s)),
            mine.control,
            "phloem",
            status,
        )
        nursery.start_soon(figures.run)
        nursery.start_soon(keep_fresh, orgs)
        nursery.start_soon(committer.run)
        nursery.start_soon(connections.run)
        nursery.start_soon(consumers.run)
        if exits is not None:
            nursery.start_soon(exits.run)
        if claims is not None:
            nursery.start_soon(claims.run, member)
        nursery.start_soon(member.run)
        nursery.start_soon(_upkeep, config, engine, committer, orgs)
        nursery.start_soon(_interrupt_at_the_end, engine)
        if engine.is_shared:
            nursery.start_soon(_hear_news, config, engine, consumers)
        if engine.shared_ledger is not None:
            nursery.start_soon(_keep_ledger, config, engine.shared_ledger, connections, consumers)
        nursery.start_soon(
            partial(serve, max_connections=mine.max_consumers, what="consume"), listener, consumers.serve
        )
        announce({"event": "ready", "name": name, "role": "phloem", "addresses": addresses})
        await machine.drain.asked()
        clean = await drain_node(name, claims, member, machine.drain)
        announce({"event": "drained", "name": name, "clean": clean})
        nursery.cancel_scope.cancel()


def _group_settings(mine: PhloemConfig) -> GroupSettings:
    return GroupSettings(
        max_groups_per_org=mine.max_groups_per_org,
        max_members=mine.max_group_members,
        state_bytes=mine.group_state_bytes,
        member_timeout_s=mine.group_member_timeout_s,
        idle_s=mine.group_idle_s,
    )


def _divides_orgs(config: Config, engine: Engine) -> bool:
    """Whether there may be other nodes to divide orgs with: else all are this one's, and claims would only cost."""
    return engine.is_shared and (config.phloems > 1 or config.fleet.coordinator == "zookeeper")


async def _upkeep(config: Config, engine: Engine, committer: Committer, orgs: OrgTable) -> None:
    """What the log needs now and then, a bounded step at a time, in turn with commits."""
    while True:
        await trio.sleep(config.phloem.retention_interval_s)
        if not engine.is_open:
            continue
        try:
            steps = engine.upkeep(frozenset(orgs.names()))
            removed = 0
            while (step := await committer.storage.run(lambda: next(steps, None))) is not None:  # noqa: B023
                removed += step
        except StorageError as error:
            log.error("upkeep of the log failed", reason=str(error), retry_s=config.phloem.retention_interval_s)
        else:
            if removed:
                log.info("retention removed", entries=removed)


async def _hear_news(config: Config, engine: Engine, consumers: Consumers) -> None:
    """Wake consumers for what other nodes stored. Its thread is its own: reading may take all of theirs."""
    threads = ThreadKind("news", 1)
    told = Seldom()
    while True:
        await trio.sleep(config.phloem.kafka_news_interval_s)
        followed = consumers.followed()
        if not followed:
            continue
        try:
            consumers.stored(set(await threads.run(lambda: engine.news(followed))))  # noqa: B023
        except StorageError as error:
            if times := told.again(str(error)):
                log.warning("no news of the log", reason=str(error), times=times)
        else:
            told = Seldom()


async def _keep_ledger(config: Config, ledger: SharedLedger, connections: Connections, consumers: Consumers) -> None:
    """Have what this node's orgs have stored counted, a bounded step at a time, in turn with those who ask for it."""
    interval_s = config.phloem.kafka_ledger_interval_s
    told = Seldom()
    while True:
        # Not in step with other nodes, or two would always do the same work at the same time.
        await trio.sleep(interval_s * random.uniform(0.75, 1.25))
        orgs = connections.orgs if connections.held is None else connections.held
        steps = ledger.keep(frozenset(orgs))
        try:
            while await consumers.counting.run(lambda: next(steps, _DONE)) is not _DONE:  # noqa: B023
                pass
        except StorageError as error:
            if times := told.again(str(error)):
                log.warning("ledger not counted", reason=str(error), times=times, retry_s=interval_s)
        else:
            told = Seldom()


async def _interrupt_at_the_end(engine: Engine) -> None:
    """So that a thread which waits for others does not hold up the end."""
    try:
        await trio.sleep_forever()
    finally:
        engine.interrupt()
