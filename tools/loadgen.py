"""Load: simulated meters of many orgs in one process, each with a link through the balancer's door.

python -m tools.loadgen --data DIR --meters 200 --orgs 3 --seconds 30 --rate 500
"""

from __future__ import annotations

import json
import random
import time
from functools import partial
from pathlib import Path

import click
import trio
from attrs import define, field

from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings, UplinkStream
from sapflow.cli.fleet import read_fleet, start_log
from sapflow.flows.encode import Encoder
from sapflow.flows.reference import reference_records, reference_template
from sapflow.link import Batch
from sapflow.link.frames import Hint
from sapflow.orgs import OrgTable
from sapflow.runtime.dial import dial


@define
class Ledger:
    """What was sent, and what the fleet said is durable."""

    sent_records: int = 0
    sent_batches: int = 0
    acknowledged_records: int = 0
    acknowledged: dict[str, dict[bytes, int]] = field(factory=dict)
    """By org and stream: the highest number acknowledged."""
    sent: dict[str, dict[bytes, int]] = field(factory=dict)
    latencies_s: list[float] = field(factory=list)

    def quantiles(self) -> dict[str, float]:
        """Seconds from putting a batch to its acknowledgement."""
        found = sorted(self.latencies_s)
        if not found:
            return {}
        return {f"p{q}": round(found[min(len(found) - 1, int(len(found) * q / 100))], 4) for q in (50, 99)}


class Meter:
    """One simulated meter: its own link and one stream, a batch each `interval_s`."""

    def __init__(self, name: str, org: str, token: str, address: str, ledger: Ledger, records: bytes) -> None:
        self.org = org
        self.uplink = Uplink(
            FixedTarget(Target("the door", address)),
            lambda target: dial(target.address, timeout_s=5.0),
            UplinkSettings(
                hello={"role": "meter", "token": token, "name": name}, hint=Hint(org=org, name=name), backoff_most_s=1.0
            ),
        )
        self._name = name
        self._ledger = ledger
        self._template = reference_template()
        self._records = records
        self._put_at: dict[int, float] = {}

    async def run(self, stop: trio.Event, *, interval_s: float, records: int) -> None:
        """Send until `stop`, then wait until all is durable."""
        encoder = Encoder(domain=1)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.uplink.run)
            stream = self.uplink.open_stream(self.org, self._name)
            stream.on_acknowledged = partial(self._acknowledged, stream)
            mine = self._ledger.sent.setdefault(self.org, {})
            await trio.sleep(random.uniform(0, interval_s))
            while not stop.is_set():
                due = trio.current_time() + interval_s
                size = self._template.record_bytes
                rows = [self._records[at : at + size] for at in range(0, records * size, size)]
                now = int(time.time())
                payload = encoder.templates([self._template], export_time=now)
                payload += encoder.records(self._template, rows, export_time=now)
                seq = await stream.put(Draft(2, records, payload))
                self._put_at[seq] = trio.current_time()
                mine[stream.id] = seq
                self._ledger.sent_batches += 1
                self._ledger.sent_records += records
                with trio.move_on_at(due):
                    await stop.wait()
            await stream.drained()
            nursery.cancel_scope.cancel()

    def _acknowledged(self, stream: UplinkStream, batch: Batch) -> None:
        ledger = self._ledger
        ledger.acknowledged_records += batch.records
        ledger.acknowledged.setdefault(self.org, {})[stream.id] = batch.seq
        put_at = self._put_at.pop(batch.seq, None)
        if put_at is not None and len(ledger.latencies_s) < 200_000:
            ledger.latencies_s.append(trio.current_time() - put_at)


async def load(
    door: str,
    tokens: dict[str, str],
    ledger: Ledger,
    stop: trio.Event,
    *,
    meters: int,
    interval_s: float,
    records: int,
) -> None:
    """`meters` meters spread over the orgs of `tokens`, until `stop` and all is durable."""
    orgs = list(tokens)
    rows = reference_records(records)
    async with trio.open_nursery() as nursery:
        for number in range(meters):
            org = orgs[number % len(orgs)]
            meter = Meter(f"meter-{number}", org, tokens[org], door, ledger, rows)
            nursery.start_soon(partial(meter.run, stop, interval_s=interval_s, records=records))


@click.command()
@click.option("--data", default="sapflow-data", show_default=True, help="The data directory of a fleet on this host.")
@click.option("--meters", default=200, show_default=True)
@click.option("--orgs", default=3, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--rate", default=24.0, show_default=True, help="Records per second of each meter.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between a meter's batches.")
def main(data: str, meters: int, orgs: int, seconds: float, rate: float, interval: float) -> None:
    """Load a running fleet, and report what was sent and what was acknowledged, as JSON."""
    start_log()
    table = OrgTable(Path(data) / "orgs.json")
    tokens = {}
    for number in range(1, orgs + 1):
        org = f"load-{number}"
        if org not in table.names():
            table.add(org)
        tokens[org] = table.issue_token(org)
    ledger = Ledger()

    async def work() -> None:
        await trio.sleep(1.5)  # collectors read the org table once a second
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            door = read_fleet(data)["doors"]["link"]
            records = max(1, int(rate * interval))
            nursery.start_soon(
                partial(load, door, tokens, ledger, stop, meters=meters, interval_s=interval, records=records)
            )
            await trio.sleep(seconds)
            stop.set()

    trio.run(work)
    click.echo(
        json.dumps(
            {
                "meters": meters,
                "sent_records": ledger.sent_records,
                "acknowledged_records": ledger.acknowledged_records,
                "latency_s": ledger.quantiles(),
            }
        )
    )


if __name__ == "__main__":
    main()
