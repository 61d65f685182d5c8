"""The balancer's tree of tasks.

nursery ── control plane (own listener), coordinator server (own listener; with the local coordinator only)
        ├─ coordinator: which collectors there are, and what they report ─▶ placement
        ├─ steering ── a control link a collector: its load and its meters' streams ─▶ placement, moves ─▶ it
        ├─ rounds: each second what goes where ─▶ who does no work is left; streams are moved
        ├─ exporter listeners (plain; TLS where configured) ── a task an exporter: intake, batches, its stream
        ├─ inheriting ── sessions and links that the process before left ─▶ a task each, as above and below
        ├─ exporters' UDP door ── one task reads, another flushes; a stream for each exporter, which drops when full
        ├─ spooling, with `spool` ── one transaction at a time, in a thread: what comes ─▶ disk ─▶ what may go on
        ├─ uplink ── a task a collector: connects, sends under credit, re-homes streams
        ├─ giving ── a connection to each collector of this host: accepted sockets ─▶ it
        └─ link listener ── a task a link: peek, place; give the socket and be done, or relay
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import trio

from balancer.door_spool import DoorSpool, door_spool
from balancer.doors import LinkDoor
from balancer.draining import BalancerDrain
from balancer.exporter_carry import ExporterCarry
from balancer.idle import IdleCollectors, IdleSettings
from balancer.inheriting import Inheriting
from balancer.placement import Placement, PlacementSettings
from balancer.places import Places
from balancer.rebalancing import Rebalancing, RebalancingSettings
from balancer.rounds import Rounds
from balancer.steering import Steering
from meter.backoff import Backoff, BackoffSettings
from meter.datagrams import DatagramIntake, DatagramSettings
from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.exporter_tls import ExporterTls
from meter.flowing import exporters_flow
from meter.intake import Intake, IntakeSettings
from meter.templates import TemplateStore
from meter.udp import UdpDoor, bind_udp
from meter.uplink import Uplink, UplinkSettings
from sapflow.cluster.coordinator import Coordinator, coordinator
from sapflow.cluster.server import CoordinatorServer
from sapflow.cluster.view import View
from sapflow.config import Config
from sapflow.link.frames import Hint
from sapflow.monitor.control import drain_action
from sapflow.monitor.machine import REAL, Machine
from sapflow.runtime.dial import dial
from sapflow.runtime.fresh import serve_fresh
from sapflow.runtime.giving import Giving
from sapflow.runtime.proxied import Networks, Proxied
from sapflow.runtime.serve import address_of, listen, serve
from sapflow.runtime.sockets import given_socket
from sapflow.runtime.succession import Succession

Announce = Callable[[dict[str, Any]], None]


async def run(config: Config, name: str, fleet_token: str, announce: Announce, machine: Machine = REAL) -> None:
    """Be a balancer until cancelled, or drained."""
    mine = config.balancer
    places = Places(name, Placement(PlacementSettings(ramp_s=mine.ramp_s, links_per_s=mine.links_per_s)))
    connect = partial(dial, timeout_s=config.fleet.connect_timeout_s)
    uplink = Uplink(
        places,
        lambda target: connect(target.address),
        UplinkSettings(
            hello={"role": "intake", "token": fleet_token, "name": name},
            hint=Hint(name=name),
            max_unacknowledged_bytes=config.intake.max_unacknowledged_bytes,
            budget_bytes=mine.budget_bytes,
            org_share=mine.org_share,
        ),
    )
    async with door_spool(config, name, uplink) as spool:
        await _run(config, name, fleet_token, announce, machine, places, uplink, spool)


async def _run(
    config: Config,
    name: str,
    fleet_token: str,
    announce: Announce,
    machine: Machine,
    places: Places,
    uplink: Uplink,
    spool: DoorSpool | None,
) -> None:
    mine, fleet = config.balancer, config.fleet
    connect = partial(dial, timeout_s=fleet.connect_timeout_s)
    intake = Intake(
        spool.spooling.waiting if spool is not None else uplink,
        IntakeSettings(
            batch_bytes=config.intake.batch_bytes,
            flush_interval_s=config.intake.flush_interval_s,
            message_timeout_s=config.intake.message_timeout_s,
            idle_timeout_s=config.intake.idle_timeout_s,
        ),
    )
    bindings = SourceBindings(SourceBinding(source.prefix, source.org) for source in mine.sources)
    backoff = Backoff(
        BackoffSettings(
            after=mine.malformed_sessions,
            first_s=mine.malformed_backoff_first_s,
            most_s=mine.malformed_backoff_most_s,
        ),
        random.random,
    )
    exporter_door = ExporterDoor(intake, bindings, backoff=backoff)
    tls_door = None
    if mine.ipfix_tls:
        tls = ExporterTls.load(mine.tls_certificate, mine.tls_key, mine.tls_handshake_timeout_s, mine.tls_names)
        tls_door = ExporterDoor(intake, bindings, tls, backoff=backoff)
    templates = TemplateStore(config.data_path / "templates", lifetime_s=config.intake.template_lifetime_s)
    datagrams = DatagramIntake(
        spool.spooling.dropping if spool is not None else uplink,
        DatagramSettings(
            batch_bytes=config.intake.batch_bytes,
            flush_interval_s=config.intake.flush_interval_s,
            max_exporters=config.intake.max_udp_exporters,
            max_parked_bytes=config.intake.max_parked_bytes,
            idle_timeout_s=config.intake.idle_timeout_s,
            max_unacknowledged_bytes=config.intake.max_unacknowledged_bytes,
        ),
        bindings.org_of,
        remembered=templates.load(),
        faults=intake.faults,
    )
    udp_door = (
        UdpDoor(datagrams, templates, given_socket("udp") or bind_udp(mine.udp, mine.udp_buffer_bytes))
        if mine.udp
        else None
    )
    proxied = Proxied(Networks(mine.proxy_from), mine.preamble_timeout_s)
    giving = Giving(mine.handoff_timeout_s)
    link_door = LinkDoor(
        place=places.place_link,
        dial=connect,
        left=places.link_left,
        give=giving.give,
        offer=giving.offer,
        handed_off=places.link_handed_off,
        name=name,
        preamble_timeout_s=mine.preamble_timeout_s,
        place_timeout_s=mine.place_timeout_s,
        max_unplaced=mine.max_unplaced_links,
    )
    carry = partial(
        ExporterCarry,
        place=places.place_link,
        beyond=lambda: {one for one in places.addresses if not giving.reaches(one)},
        give=giving.give,
        handed_off=places.link_handed_off,
        left=places.link_left,
        name=name,
    )
    plain = carry("exporter", exporter_door)
    secured = carry("exporter-tls", tls_door) if tls_door is not None else None
    carries = mine.exporters == "carry"
    steering = Steering(name, fleet_token, connect, places.on_told)
    rebalancing = Rebalancing(
        RebalancingSettings(
            start=mine.rebalance_start,
            stop=mine.rebalance_stop,
            cooldown_s=fleet.move_cooldown_s,
            settle_s=mine.rebalance_settle_s,
            bytes_per_minute=mine.rebalance_bytes_per_minute,
            least_bytes_per_s=mine.rebalance_least_bytes_per_s,
        ),
        random.random,
    )
    idle = IdleCollectors(IdleSettings(mine.idle_collector_s, mine.idle_pause_s))
    rounds = Rounds(places, uplink, link_door, steering, rebalancing, idle, fleet.report_interval_s, mine.moves_direct)

    exporter_slots = trio.CapacityLimiter(mine.max_connections)
    succession = Succession.given()
    inheriting = None
    if succession is not None:
        links_taken_up = trio.CapacityLimiter(mine.max_connections)
        inheriting = Inheriting(succession, places, exporter_door, exporter_slots, link_door, links_taken_up)
    drain = BalancerDrain(
        *(intake, link_door, steering, uplink, lambda: len(places.balancers) > 1),
        spooling=spool.spooling if spool is not None else None,
        inheriting=inheriting,
    )

    def on_change(view: View) -> None:
        places.on_change(view)
        steering.collectors(places.addresses)
        giving.takers(places.takers if mine.handoff else {})

    figures = machine.figures()
    exporter_listener = await listen(mine.ipfix_tcp, what="exporters (IPFIX over TCP)", given="ipfix_tcp")
    tls_listener = None
    if mine.ipfix_tls:
        tls_listener = await listen(mine.ipfix_tls, what="exporters (IPFIX over TLS)", given="ipfix_tls")
    link_listener = await listen(mine.link, what="meters' links", given="link")

    def load() -> dict[str, Any]:
        return {"unacknowledged_bytes": uplink.unacknowledged_bytes, **figures.read()}

    def status() -> dict[str, Any]:
        carried = link_door.counts
        taken, given = uplink.taken.bytes + carried.bytes_in, uplink.given.bytes + carried.bytes_out
        return {
            "name": name,
            "role": "balancer",
            "flow": {
                **exporters_flow(intake.counts, datagrams.counts),
                "link": {"in": attrs.asdict(uplink.taken), "out": attrs.asdict(uplink.given)},
                "link_door": {"in": {"bytes": carried.bytes_in}, "out": {"bytes": carried.bytes_out}},
                "link_door_back": {"out": {"bytes": carried.bytes_back}},
            },
            "counts": {
                "intake": attrs.asdict(intake.counts),
                "udp": {
                    **attrs.asdict(datagrams.counts),
                    "lost_units": datagrams.lost_units,
                    "kernel_drops": udp_door.kernel_drops() if udp_door is not None else 0,
                },
                "faults": dict(intake.faults.by_reason),
                "exporter_door": {
                    **attrs.asdict(exporter_door.counts),
                    "handed": plain.handed + (secured.handed if secured is not None else 0),
                    "turned_away": backoff.turned_away,
                    "shut_out": backoff.shut,
                },
                **({"tls_door": attrs.asdict(tls_door.counts)} if tls_door is not None else {}),
                **({"spool": spool.counts()} if spool is not None else {}),
                "quarantined": attrs.asdict(uplink.quarantined),
                "link_door": attrs.asdict(link_door.counts),
                "handoff": attrs.asdict(giving.counts),
                "proxy_header": attrs.asdict(proxied.counts),
                "moves": attrs.asdict(rounds.counts),
                "coordinator": member.counts(),
                **({"coordinator_server": {"operations": server.operations}} if server is not None else {}),
            },
            "gauges": {
                "unacknowledged_bytes": uplink.unacknowledged_bytes,
                "budget_bytes": mine.budget_bytes,
                "waiting_exporters": spool.spooling.waiting_exporters if spool is not None else uplink.budget.waiting,
                "streams": len(uplink.streams),
                **(spool.gauges() if spool is not None else {}),
                "unplaced_links": link_door.unplaced,
                "udp_buffer_bytes": udp_door.buffer_bytes if udp_door is not None else 0,
                "udp_parked_bytes": datagrams.parked.held_bytes,
                **member.gauges(),
                **figures.read(),
            },
            "faulty_exporters": {name: dict(reasons) for name, reasons in intake.faults.by_exporter.items()},
            **({"spool": spool.state()} if spool is not None else {}),
            "ratio": {"measured": round(given / taken, 3) if taken else None, "expected": 1.0},
            "loads": places.policy.loads(trio.current_time()),
            "claims": {name: load["claims"]["held"] for name, load in member.view.loads.items() if "claims" in load},
            "members": [attrs.asdict(one) for one in member.view.members],
        }

    addresses = {
        "ipfix_tcp": address_of(exporter_listener),
        "link": address_of(link_listener),
    }
    if udp_door is not None:
        addresses["udp"] = udp_door.address
    if tls_listener is not None:
        addresses["ipfix_tls"] = address_of(tls_listener)
    server: CoordinatorServer | None = None
    server_listener: trio.SocketListener | None = None
    if fleet.coordinator == "local" and mine.serves_coordinator:
        server = CoordinatorServer(fleet_token, lease_s=fleet.lease_s, tell_interval_s=fleet.report_interval_s)
        server_listener = await listen(fleet.coordinator_address, what="the coordinator", given="coordinator")
        addresses["coordinator"] = address_of(server_listener)
        config = attrs.evolve(config, fleet=attrs.evolve(fleet, coordinator_address=addresses["coordinator"]))
    member = coordinator(
        config,
        name=name,
        role="balancer",
        addresses=addresses,
        fleet_token=fleet_token,
        load=load,
        on_change=on_change,
        reads_loads=True,
    )
    async with trio.open_nursery() as nursery:
        addresses["control"] = await nursery.start(
            partial(
                machine.serve_control,
                pages={"/why": places.why},
                actions=drain_action(machine.drain, fleet_token, fleet.drain_s),
            ),
            mine.control,
            "balancer",
            status,
        )
        nursery.start_soon(figures.run)
        nursery.start_soon(uplink.run)
        if spool is not None:
            nursery.start_soon(spool.spooling.run)
        nursery.start_soon(steering.run)
        nursery.start_soon(giving.run)
        nursery.start_soon(rounds.run)
        announce({"event": "ready", "name": name, "role": "balancer", "addresses": addresses})
        if not await _begins(machine):
            announce({"event": "drained", "name": name, "clean": True})
            nursery.cancel_scope.cancel()
            return
        nursery.start_soon(_first_to_end, drain, member, server, server_listener, udp_door, inheriting, nursery)
        doors = partial(serve, max_connections=mine.max_connections, until=drain.doors_shut)
        nursery.start_soon(
            partial(doors, what="exporter", slots=exporter_slots),
            exporter_listener,
            proxied.required(plain.serve if carries else exporter_door.serve),
        )
        if tls_door is not None and tls_listener is not None and secured is not None:
            nursery.start_soon(
                partial(doors, what="exporter (TLS)"),
                tls_listener,
                proxied.required(secured.serve if carries else tls_door.serve),
            )
        if mine.handoff and not proxied.trusted:
            of_links = partial(serve_fresh, at_once=link_door.at_once, max_connections=mine.max_connections)
            nursery.start_soon(partial(of_links, what="link", until=drain.doors_shut), link_listener, link_door.serve)
        else:
            nursery.start_soon(partial(doors, what="link"), link_listener, proxied.required(link_door.serve))
        await machine.drain.asked()
        clean = await drain.run(name, machine.drain)
        announce({"event": "drained", "name": name, "clean": clean})
        nursery.cancel_scope.cancel()


async def _begins(machine: Machine) -> bool:
    """Wait until a successor may take up its work; False when it is to end before that, and has none."""
    async with trio.open_nursery() as nursery:
        for event in (machine.may_begin.wait, machine.drain.asked):

            async def first(event: Callable[[], Awaitable[None]] = event) -> None:
                await event()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first)
    return machine.may_begin.is_set()


async def _first_to_end(
    drain: BalancerDrain,
    member: Coordinator,
    server: CoordinatorServer | None,
    server_listener: trio.SocketListener | None,
    udp_door: UdpDoor | None,
    inheriting: Inheriting | None,
    sessions: trio.Nursery,
) -> None:
    """What a successor does from its first moment: no two do it."""
    with drain.first:
        async with trio.open_nursery() as nursery:
            if server is not None and server_listener is not None:
                nursery.start_soon(server.run)
                coordinators = partial(serve, max_connections=1000, what="coordinator")
                nursery.start_soon(coordinators, server_listener, server.serve)
            nursery.start_soon(member.run)
            if inheriting is not None:
                nursery.start_soon(inheriting.take, sessions)
            try:
                if udp_door is not None:
                    await udp_door.run()
            finally:
                drain.datagrams_ended.set()
