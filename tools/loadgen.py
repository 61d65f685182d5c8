"""Load: simulated meters and plain exporters of many orgs in one process.

A meter holds a link through the balancer's door and knows when each batch is durable; an exporter speaks plain IPFIX
over TCP and knows only what it sent.

python -m tools.loadgen --data DIR --meters 2000 --exporters 50 --orgs 20 --seconds 30 --rate 500 --ramp 10
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import trio
from attrs import define, field

from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings, UplinkStream
from sapflow.cli import start_log
from sapflow.cli.exits import run
from sapflow.cli.fleet_file import read_fleet
from sapflow.errors import Unreachable
from sapflow.flows.ipfix.encode import Encoder
from sapflow.flows.reference import reference_records, reference_template
from sapflow.flows.wire import MESSAGE_HEADER, VERSION
from sapflow.link import Batch
from sapflow.link.frames import Hint
from sapflow.orgs import OrgTable
from sapflow.runtime.dial import dial
from tools.number import Number

QUANTILES = (50, 90, 99, 99.9)
MAX_LATENCIES = 1_000_000
MAX_RECORDS = 1000
"""In a message of at most 65,535 bytes."""

Reach = Callable[[str], str]
"""The address at which meters of an org connect now."""


@define
class Ledger:
    """What was sent, and what the fleet said is durable."""

    sent_records: int = 0
    sent_batches: int = 0
    acknowledged_records: int = 0
    acknowledged: dict[str, dict[bytes, int]] = field(factory=dict)
    """By org and stream: the highest number acknowledged."""
    sent: dict[str, dict[bytes, int]] = field(factory=dict)
    exported_records: int = 0
    """Written to sockets by plain exporters, which are told nothing more."""
    exporters_cut: int = 0
    latencies_s: list[float] = field(factory=list)

    def quantiles(self) -> dict[str, float]:
        """Seconds from putting a batch to its acknowledgement."""
        found = sorted(self.latencies_s)
        if not found:
            return {}
        last = len(found) - 1
        return {
            **{f"p{q:g}": round(found[min(last, int(len(found) * q / 100))], 4) for q in QUANTILES},
            "max": round(found[last], 4),
        }


class Messages:
    """The same data records again and again, each time a message with its own time and sequence number."""

    def __init__(self, records: int, domain: int) -> None:
        self.records = records
        self.domain = domain
        self._sequence = 0
        self._templates, self._data = _bodies(records)

    def templates(self) -> bytes:
        return self._head(self._templates) + self._templates

    def next(self) -> bytes:
        head = self._head(self._data)
        self._sequence = (self._sequence + self.records) & 0xFFFFFFFF
        return head + self._data

    def _head(self, body: bytes) -> bytes:
        length = MESSAGE_HEADER.size + len(body)
        return MESSAGE_HEADER.pack(VERSION, length, int(time.time()), self._sequence, self.domain)


@cache
def _bodies(records: int) -> tuple[bytes, bytes]:
    """A message's template set, and its data set: the same for all that send so many records."""
    template = reference_template()
    size = template.record_bytes
    rows = reference_records(records)
    encoder = Encoder(domain=0)
    templates = encoder.templates([template], export_time=0)
    data = encoder.records(template, [rows[at : at + size] for at in range(0, records * size, size)], export_time=0)
    return templates[MESSAGE_HEADER.size :], data[MESSAGE_HEADER.size :]


@define
class Pace:
    """`records` in a batch, one each `interval_s`."""

    interval_s: float
    records: int

    async def begin(self) -> None:
        """Senders do not all send at the same moment."""
        await trio.sleep(random.uniform(0, self.interval_s))


class Meter:
    """One simulated meter: its own link and one stream."""

    def __init__(
        self, name: str, org: str, token: str, door: str | Reach, ledger: Ledger, *, idle_timeout_s: float = 30.0
    ) -> None:
        self.org = org
        reach = door if callable(door) else lambda org: door
        self.uplink = Uplink(
            FixedTarget(Target("the door", "")),
            lambda target: dial(reach(org), timeout_s=5.0),
            UplinkSettings(
                hello={"role": "meter", "token": token, "name": name},
                hint=Hint(org=org, name=name),
                backoff_most_s=1.0,
                idle_timeout_s=idle_timeout_s,
            ),
        )
        self.name = name
        self._ledger = ledger
        self._put_at: dict[int, float] = {}

    async def run(self, stop: trio.Event, pace: Pace) -> None:
        """Send until `stop`, then wait until all is durable."""
        messages = Messages(pace.records, domain=1)
        ledger = self._ledger
        async with trio.open_nursery() as nursery:
            await nursery.start(self.uplink.run)
            stream = self.uplink.open_stream(self.org, self.name)
            stream.on_acknowledged = partial(self._acknowledged, stream)
            mine = ledger.sent.setdefault(self.org, {})
            await pace.begin()
            while not stop.is_set():
                due = trio.current_time() + pace.interval_s
                if messages.records != pace.records:
                    messages = Messages(pace.records, domain=1)
                # Each batch stands alone, so its template comes with it.
                seq = await stream.put(Draft(2, pace.records, messages.templates() + messages.next()))
                self._put_at[seq] = trio.current_time()
                mine[stream.id] = seq
                ledger.sent_batches += 1
                ledger.sent_records += pace.records
                with trio.move_on_at(due):
                    await stop.wait()
            await stream.drained()
            nursery.cancel_scope.cancel()

    def _acknowledged(self, stream: UplinkStream, batch: Batch) -> None:
        ledger = self._ledger
        ledger.acknowledged_records += batch.records
        ledger.acknowledged.setdefault(self.org, {})[stream.id] = batch.seq
        put_at = self._put_at.pop(batch.seq, None)
        if put_at is not None and len(ledger.latencies_s) < MAX_LATENCIES:
            ledger.latencies_s.append(trio.current_time() - put_at)


async def export(number: int, address: str, ledger: Ledger, stop: trio.Event, pace: Pace) -> None:
    """One plain exporter until `stop`; it connects again when it is cut off."""
    await pace.begin()
    while not stop.is_set():
        messages = Messages(pace.records, domain=number)
        try:
            async with await dial(address, timeout_s=5.0) as connection:
                await connection.send_all(messages.templates())
                while not stop.is_set():
                    due = trio.current_time() + pace.interval_s
                    await connection.send_all(messages.next())
                    ledger.exported_records += pace.records
                    with trio.move_on_at(due):
                        await stop.wait()
        except (Unreachable, trio.BrokenResourceError):
            ledger.exporters_cut += 1
            await trio.sleep(random.uniform(0, 1.0))


async def load(
    door: str | Reach,
    tokens: dict[str, str],
    ledger: Ledger,
    stop: trio.Event,
    *,
    meters: int,
    interval_s: float,
    records: int,
    ramp_s: float = 0.0,
    exporters: int = 0,
    exporter_door: str = "",
    paces: Mapping[str, Pace] | None = None,
) -> None:
    """Meters spread over the orgs of `tokens`, and exporters, until `stop` and all that meters sent is durable.

    They start evenly over `ramp_s` seconds. Orgs that have a pace in `paces` keep that one, also as it changes.
    """
    orgs, paces = list(tokens), paces or {}
    pace = Pace(interval_s, records)
    async with trio.open_nursery() as nursery:
        for number in range(meters + exporters):
            if number < meters:
                org = orgs[number % len(orgs)]
                meter = Meter(f"meter-{number}", org, tokens[org], door, ledger)
                nursery.start_soon(meter.run, stop, paces.get(org, pace))
            else:
                nursery.start_soon(export, number, exporter_door, ledger, stop, pace)
            if ramp_s:
                with trio.move_on_after(ramp_s / (meters + exporters)):
                    await stop.wait()


async def _progress(ledger: Ledger) -> None:
    before = 0
    while True:
        await trio.sleep(1)
        rate, before = ledger.sent_records - before, ledger.sent_records
        waiting = ledger.sent_records - ledger.acknowledged_records
        line = f"\r{rate:>12,} records/s  {ledger.sent_records:>14,} sent  {waiting:>12,} not yet durable"
        print(line, end="", file=sys.stderr, flush=True)


def _tokens(data: str, orgs: int) -> dict[str, str]:
    table = OrgTable(Path(data) / "orgs.json")
    tokens = {}
    for number in range(1, orgs + 1):
        org = f"load-{number}"
        if org not in table.names():
            table.add(org)
        tokens[org] = table.issue_token(org)
    return tokens


COUNT = click.IntRange(min=0)
SECONDS = Number(0)


@click.command("loadgen")
@click.option("--data", default="sapflow-data", show_default=True, help="The data directory of a fleet on this host.")
@click.option("--meters", type=COUNT, default=200, show_default=True)
@click.option(
    "--exporters", type=COUNT, default=0, show_default=True, help="Plain IPFIX over TCP, for the default org."
)
@click.option("--orgs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=SECONDS, default=10.0, show_default=True, help="How long, once the ramp has begun.")
@click.option("--ramp", type=SECONDS, default=0.0, show_default=True, help="Seconds over which senders start.")
@click.option(
    "--rate", type=Number(0, more=True), default=24.0, show_default=True, help="Records per second of each sender."
)
@click.option(
    "--interval", type=Number(0, more=True), default=1.0, show_default=True, help="Seconds between a sender's batches."
)
@click.option(
    "--drain", type=SECONDS, default=60.0, show_default=True, help="Seconds to wait at the end for what is not durable."
)
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def main(
    data: str,
    meters: int,
    exporters: int,
    orgs: int,
    seconds: float,
    ramp: float,
    rate: float,
    interval: float,
    drain: float,
    as_json: bool,
) -> None:
    """Load a running fleet; report what was sent, what is durable and how long that took.

    Exits 1 when something that meters sent was not acknowledged by the end.
    """
    if not meters + exporters:
        raise click.UsageError("no meters and no exporters: nothing would be sent")
    if rate * interval > MAX_RECORDS:
        raise click.UsageError(f"--rate times --interval: at most {MAX_RECORDS} records fit into one message")
    start_log("error")
    doors = read_fleet(data)["doors"]
    tokens = _tokens(data, orgs)
    ledger = Ledger()

    async def work() -> None:
        await trio.sleep(1.5)  # collectors read the org table once a second
        stop = trio.Event()
        sending = partial(
            load,
            doors["link"],
            tokens,
            ledger,
            stop,
            meters=meters,
            interval_s=interval,
            records=max(1, int(rate * interval)),
            ramp_s=ramp,
            exporters=exporters,
            exporter_door=doors["ipfix_tcp"],
        )
        async with trio.open_nursery() as outer:
            if sys.stderr.isatty():
                outer.start_soon(_progress, ledger)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sending)
                await trio.sleep(seconds)
                stop.set()
                nursery.cancel_scope.deadline = trio.current_time() + drain
            outer.cancel_scope.cancel()

    trio.run(work)
    report: dict[str, Any] = {
        "meters": meters,
        "exporters": exporters,
        "orgs": orgs,
        "seconds": seconds,
        "sent_records": ledger.sent_records,
        "acknowledged_records": ledger.acknowledged_records,
        "exported_records": ledger.exported_records,
        "exporters_cut": ledger.exporters_cut,
        "latency_s": ledger.quantiles(),
    }
    click.echo(json.dumps(report) if as_json else _summary(report))
    sys.exit(0 if ledger.acknowledged_records == ledger.sent_records else 1)


def _summary(report: dict[str, Any]) -> str:
    sent, acknowledged = report["sent_records"], report["acknowledged_records"]
    lines = [
        f"{report['meters']:,} meters of {report['orgs']:,} orgs, {report['seconds']:g} s",
        f"  sent          {sent:>14,} records",
        f"  durable       {acknowledged:>14,} records",
        f"  not durable   {sent - acknowledged:>14,} records",
    ]
    if report["exporters"]:
        lines.append(f"{report['exporters']:,} exporters, cut off {report['exporters_cut']:,} times")
        lines.append(f"  written       {report['exported_records']:>14,} records")
    quantiles = "  ".join(f"{name} {seconds:g} s" for name, seconds in report["latency_s"].items())
    return "\n".join([*lines, f"until durable: {quantiles or 'nothing was acknowledged'}"])


if __name__ == "__main__":
    run(main, "loadgen")
