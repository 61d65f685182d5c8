"""A meter's tree of tasks.

run
├─ control plane
├─ process figures, watchdog
├─ uplink ── a task a link: connects, sends under credit, moves streams make before break
├─ spooling ── one transaction at a time, in a thread: what comes ─▶ disk ─▶ what may go to the uplink
├─ TCP and Unix listeners ── a task a session: reads, batches; waits for room in the spool
├─ UDP door ── reads many datagrams at a time; a stream for each exporter; what has no room is dropped, counted
└─ drop directory ── one file after the other
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import attrs
import structlog
import trio
from attrs import define, frozen

from meter.datagrams import DatagramIntake, DatagramSettings
from meter.doors import ExporterDoors, Sources, listen_unix
from meter.drop import DropDirectory
from meter.flowing import exporters_flow
from meter.intake import Intake, IntakeSettings
from meter.keeping_settings import KeepingSettings
from meter.spool import Spool
from meter.spooling import Spooling
from meter.systemd import notify, watchdog
from meter.targets import Targets
from meter.templates import TemplateStore
from meter.udp import UdpDoor, bind_udp
from meter.uplink import Target, Uplink, UplinkSettings
from sapflow.config import Config, MeterConfig
from sapflow.errors import ConfigurationError, SapflowError, Unreachable
from sapflow.link.frames import Hint
from sapflow.monitor.machine import REAL, Figures, Machine
from sapflow.runtime import websocket
from sapflow.runtime.serve import address_of, listen, serve
from sapflow.runtime.transport import LinkUrl, client_tls, dial_link, link_url

log = structlog.get_logger()

METER_FILE = "meter.json"
COLLECTORS_NOTE = "collectors"
LAST_WRITE_S = 10.0


async def run(config: Config, announce: Callable[[dict[str, Any]], None], machine: Machine = REAL) -> None:
    """Be a meter until cancelled; what was taken by then is in the spool when this returns."""
    mine = config.meter
    if not (mine.ipfix_tcp or mine.udp or mine.unix or mine.drop):
        raise ConfigurationError("a meter needs a door for exporters: meter.ipfix_tcp, udp, unix or drop")
    spool = Spool.open(Path(mine.spool), spool_bytes=mine.spool_bytes)
    try:
        meter = _Meter.made(config, spool, machine)
        try:
            async with trio.open_nursery() as nursery:
                await meter.start(nursery, announce)
        finally:
            with trio.move_on_after(LAST_WRITE_S, shield=True):
                await meter.spooling.flush()
            (Path(mine.spool) / METER_FILE).unlink(missing_ok=True)
    finally:
        spool.close()


@frozen
class _Link:
    """How links are dialled: the door, or a collector's own address in the same way."""

    url: LinkUrl
    hint: Hint
    tls: ssl.SSLContext | None
    timeout_s: float
    mine: MeterConfig
    hello: dict[str, Any]

    async def dial(self, target: Target) -> trio.abc.Stream:
        """A stream to a target. Raises Unreachable."""
        try:
            # Each time anew: a token that was replaced in its file needs no restart.
            self.hello["token"] = _token(self.mine)
        except ConfigurationError as error:
            raise Unreachable(str(error)) from error
        hint = {"org": self.hint.org, "name": self.hint.name, "want": target.want}
        path = f"{websocket.PATH}?{urlencode(hint)}"
        url = LinkUrl(self.url.scheme, target.address)
        return await dial_link(url, timeout_s=self.timeout_s, tls=self.tls, target=path)


@define
class _Meter:
    config: Config
    name: str
    uplink: Uplink
    targets: Targets
    spooling: Spooling
    intake: Intake
    doors: ExporterDoors
    machine: Machine
    figures: Figures
    drop: DropDirectory | None
    udp: UdpDoor | None = None
    datagrams: DatagramIntake | None = None

    @classmethod
    def made(cls, config: Config, spool: Spool, machine: Machine) -> _Meter:
        mine, intake = config.meter, config.intake
        name = mine.name or socket.gethostname()
        uplink, targets = _uplink(config, name)
        spooling = Spooling(
            spool,
            uplink,
            KeepingSettings(
                window_bytes=mine.window_bytes,
                pending_bytes=mine.pending_bytes,
                segment_bytes=min(1 << 20, spool.limit_bytes // 16),
                max_streams=mine.max_streams,
                when_full=mine.when_full,
            ),
        )
        targets.remember(spool.note(COLLECTORS_NOTE))
        targets.changed = partial(_remember, spooling)
        settings = IntakeSettings(
            batch_bytes=intake.batch_bytes,
            flush_interval_s=intake.flush_interval_s,
            message_timeout_s=intake.message_timeout_s,
            idle_timeout_s=intake.idle_timeout_s,
        )
        sessions = Intake(spooling.waiting, settings)
        drop = None
        if mine.drop:
            drop = DropDirectory(Path(mine.drop), spooling, mine.org, mine.settle_s, intake.batch_bytes)
            drop.prepare()
        doors = ExporterDoors(sessions, spooling, Sources(mine.sources), mine.org)
        meter = cls(config, name, uplink, targets, spooling, sessions, doors, machine, machine.figures(), drop)
        if mine.udp:
            meter._open_udp(mine)
        return meter

    def _open_udp(self, mine: MeterConfig) -> None:
        intake = self.config.intake
        templates = TemplateStore(Path(mine.spool) / "templates", lifetime_s=intake.template_lifetime_s)
        settings = DatagramSettings(
            batch_bytes=intake.batch_bytes,
            flush_interval_s=intake.flush_interval_s,
            max_exporters=mine.max_udp_exporters,
            idle_timeout_s=intake.idle_timeout_s,
        )
        self.datagrams = DatagramIntake(self.spooling.dropping, settings, self._org_of, remembered=templates.load())
        self.udp = UdpDoor(self.datagrams, templates, bind_udp(mine.udp))

    def _org_of(self, address: str) -> str | None:
        return self.config.meter.org if self.doors.sources.allows(address) else None

    async def start(self, nursery: trio.Nursery, announce: Callable[[dict[str, Any]], None]) -> None:
        """Start every task; then say so."""
        mine = self.config.meter
        addresses = {"control": await nursery.start(self.machine.serve_control, mine.control, "meter", self.status)}
        nursery.start_soon(self.figures.run)
        await nursery.start(self.uplink.run)
        await nursery.start(self.spooling.run)
        serving = partial(serve, max_connections=mine.max_connections, what="exporter")
        if mine.ipfix_tcp:
            listener = await listen(mine.ipfix_tcp, what="exporters (IPFIX over TCP)")
            addresses["ipfix_tcp"] = address_of(listener)
            nursery.start_soon(serving, listener, self.doors.tcp)
        if mine.unix:
            addresses["unix"] = mine.unix
            nursery.start_soon(serving, listen_unix(mine.unix), self.doors.unix)
        if self.udp is not None:
            addresses["udp"] = self.udp.address
            nursery.start_soon(self.udp.run)
        if self.drop is not None:
            addresses["drop"] = mine.drop
            nursery.start_soon(self.drop.run)
        nursery.start_soon(watchdog, self.answers)
        _write_file(mine, addresses)
        announce({"event": "ready", "name": self.name, "role": "meter", "addresses": addresses})
        notify("READY=1")

    def answers(self, within_s: float) -> bool:
        """Whether the spool's thread is not stuck in a transaction for longer than that."""
        since = self.spooling.busy_since
        return since is None or trio.current_time() - since < within_s

    def status(self) -> dict[str, Any]:
        """What this meter knows of itself."""
        spooling, spool = self.spooling, self.spooling.spool
        keeping, totals = spooling.keeping, spool.totals
        oldest_us = spool.oldest_us
        counts: dict[str, Any] = {
            "intake": attrs.asdict(self.intake.counts),
            "spool": {
                **attrs.asdict(totals),
                "refused_batches": keeping.refused_batches,
                "refused_records": keeping.refused_records,
                "transactions": spooling.transactions,
            },
            "door": {"refused": self.doors.refused},
            "quarantined": attrs.asdict(self.uplink.quarantined),
        }
        if self.udp is not None and self.datagrams is not None:
            counts["udp"] = {
                **attrs.asdict(self.datagrams.counts),
                "lost_units": self.datagrams.lost_units,
                "kernel_drops": self.udp.kernel_drops(),
            }
        if self.drop is not None:
            counts["drop"] = attrs.asdict(self.drop.counts)
        return {
            "name": self.name,
            "role": "meter",
            "flow": {
                **exporters_flow(self.intake.counts, self.datagrams.counts if self.datagrams is not None else None),
                "link": {"in": attrs.asdict(self.uplink.taken), "out": attrs.asdict(self.uplink.given)},
            },
            "counts": counts,
            "gauges": {
                "held_bytes": spool.held_bytes,
                "held_batches": totals.held_batches,
                "held_records": totals.held_records,
                "limit_bytes": spool.limit_bytes,
                "oldest_s": round(time.time() - oldest_us / 1e6, 3) if oldest_us else 0.0,
                "pending_bytes": keeping.pending.used_bytes,
                "pending_limit_bytes": keeping.settings.pending_bytes,
                "window_bytes": keeping.window.used_bytes,
                "window_limit_bytes": keeping.settings.window_bytes,
                "streams": len(keeping.streams),
                "links_up": len(self.uplink.up),
                **self.figures.read(),
            },
            "link": {
                "to": self.config.meter.to,
                "up": self.uplink.up,
                "collectors": self.targets.collectors,
                "last_error": self.uplink.last_error,
            },
            "spool": {"path": str(spool.path), "when_full": keeping.settings.when_full, "error": spooling.last_error},
        }


def _uplink(config: Config, name: str) -> tuple[Uplink, Targets]:
    mine = config.meter
    url = link_url(mine.to)
    hint = Hint(org=mine.org, name=name)
    targets = Targets(url.address, trio.current_time)
    hello = {"role": "meter", "token": _token(mine), "name": name}
    link = _Link(url, hint, _tls(mine) if url.secure else None, config.fleet.connect_timeout_s, mine, hello)
    settings = UplinkSettings(hello=hello, hint=hint, backoff_most_s=mine.backoff_most_s)
    uplink = Uplink(targets, link.dial, settings)

    def welcomed(target: str, fields: dict[str, Any]) -> None:
        uplink.last_error = ""
        targets.welcomed(target)
        targets.heard(fields.get("collectors"), all_of_them=True)

    uplink.on_welcomed = welcomed
    uplink.on_moved = lambda name, address: targets.heard({name: address}, all_of_them=False)
    return uplink, targets


def _remember(spooling: Spooling, text: str) -> None:
    spooling.keeping.note(COLLECTORS_NOTE, text)
    spooling.wake(urgent=False)


def _token(mine: MeterConfig) -> str:
    if not mine.token_file:
        return ""
    try:
        return Path(mine.token_file).read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"the token file {mine.token_file} cannot be read: {error.strerror}") from error


def _tls(mine: MeterConfig) -> ssl.SSLContext:
    context = client_tls(mine.authority or None)
    if mine.certificate:
        try:
            context.load_cert_chain(mine.certificate, mine.certificate_key or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"client certificate {mine.certificate}: {error}") from error
    return context


def _write_file(mine: MeterConfig, addresses: dict[str, str]) -> None:
    """Where this meter listens, for `sapflow meter status`."""
    path = Path(mine.spool) / METER_FILE
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"pid": os.getpid(), "addresses": addresses}))
    new.replace(path)


def read_file(spool: str) -> dict[str, Any]:
    """What a running meter wrote of itself. Raises SapflowError."""
    try:
        found = json.loads((Path(spool) / METER_FILE).read_text())
    except (OSError, ValueError) as error:
        raise SapflowError(f"no meter runs over the spool in {spool} ({error}); name another with --spool") from error
    assert isinstance(found, dict)
    return found
