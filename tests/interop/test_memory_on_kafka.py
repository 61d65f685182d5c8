"""What a Phloem node on Kafka takes while its broker is paused: its budget, and what it is without any record."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from tools.chaos.account import until_open
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import kafka
from tools.peers.server import Server

from sapflow.client import subscribe
from sapflow.errors import Unreachable
from tests.peers import needs

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]

BUDGET = 32 << 20
MARGIN = 16 << 20
"""Measured: 53 MiB idle, 96 MiB at most (93 without a ledger) with all of the budget held, the same after 10 s and
after 60 s of a pause, and when the broker is back. The promise is 96 MiB."""
PAUSE_S = 10.0
CONSUMERS_BYTES = (64 << 20) + MARGIN
"""Of a node that holds nothing of its budget. Measured: 56 MiB before, 72 at most; 75 and more with readers of 1 MiB
and feeds of 512 KiB."""
ORGS = ("acme", "globex", "initech")


def rss_bytes(fleet: Fleet) -> int:
    lines = Path(f"/proc/{fleet.processes()['phloem-1']}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


async def most_in_a_pause(fleet: Fleet, broker: Server) -> int:
    """The most that the node took while all of its budget was held, and after the broker came back."""
    tokens = {org: fleet.token(org) for org in ORGS}
    await trio.sleep(1.5)  # collectors read the org table once a second
    ledger, stop = Ledger(), trio.Event()
    most = 0

    async def look(seconds: float) -> None:
        nonlocal most
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            most = max(most, rss_bytes(fleet))
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        pace = {"meters": 60, "interval_s": 0.02, "records": 600}
        nursery.start_soon(partial(load, fleet.doors["link"], tokens, ledger, stop, **pace))  # type: ignore[arg-type]
        with trio.fail_after(30):
            while not ledger.acknowledged_records:
                await trio.sleep(0.1)
        broker.pause()
        try:
            with trio.fail_after(60):
                while fleet.status()["phloem-1"]["gauges"]["held_bytes"] < 0.9 * BUDGET:
                    await look(0.2)
            await look(PAUSE_S)
        finally:
            broker.resume()
        before = ledger.acknowledged_records
        with trio.fail_after(60):
            while ledger.acknowledged_records == before:
                await look(0.2)
        await look(3)
        stop.set()
        nursery.cancel_scope.cancel()
    return most


STORED_BYTES = 64 << 20


async def most_with_consumers(fleet: Fleet) -> int:
    """The most that the node took while six consumers read all that there is, each at its own place, and follow it."""
    tokens = {org: fleet.token(org) for org in ORGS}
    await trio.sleep(1.5)  # collectors read the org table once a second
    ledger, stop = Ledger(), trio.Event()
    async with trio.open_nursery() as nursery:
        pace = {"meters": 30, "interval_s": 0.02, "records": 600}
        nursery.start_soon(partial(load, fleet.doors["link"], tokens, ledger, stop, **pace))  # type: ignore[arg-type]
        with trio.fail_after(120):
            while stored_bytes(fleet) < STORED_BYTES:
                await trio.sleep(0.2)
        stop.set()
    fleet.kill("phloem-1")  # a new one, that has held nothing of its budget yet
    with trio.fail_after(60):
        while "error" in await trio.to_thread.run_sync(lambda: fleet.status()["phloem-1"]):
            await trio.sleep(0.2)
        await until_open(fleet.consume[0])
    most, given = 0, [0] * 6

    async def read(number: int) -> None:
        org, at = ORGS[number % 3], 0
        while True:
            try:
                async with subscribe(f"link://{fleet.consume[0]}", org, fleet.fleet_token(), at=at) as batches:
                    async for batch in batches:
                        at, given[number] = batch.position, given[number] + batch.records
                        # Apart from one another.
                        await trio.sleep(0.001 * (1 + number))
            except Unreachable:
                await trio.sleep(0.2)  # on a busy machine the broker may not answer in time

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(read, number)
        with trio.fail_after(120):
            while sum(given) < 2 * ledger.acknowledged_records:
                most = max(most, rss_bytes(fleet))
                await trio.sleep(0.05)
        for _ in range(20):
            most = max(most, rss_bytes(fleet))
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    return most


def stored_bytes(fleet: Fleet) -> int:
    return int(fleet.status()["phloem-1"]["flow"]["engine"]["in"]["bytes"])


def test_six_consumers_take_little(tmp_path: Path) -> None:
    with kafka.broker(tmp_path / "kafka") as broker:
        config = tmp_path / "fleet.toml"
        config.write_text(
            f'[phloem]\nengine = "kafka"\nkafka = "{broker.address}"\nbudget_bytes = {BUDGET}\n'
            "kafka_ledger_interval_s = 1.0\n"
        )
        with running(tmp_path / "fleet", collectors=1, config=config) as fleet:
            most = trio.run(most_with_consumers, fleet)
    assert most < CONSUMERS_BYTES, f"{most / 2**20:.1f} MiB"


def test_c10_a_node_whose_broker_is_paused_takes_its_budget_and_what_it_was_before(tmp_path: Path) -> None:
    with kafka.broker(tmp_path / "kafka") as broker:
        config = tmp_path / "fleet.toml"
        config.write_text(
            f'[phloem]\nengine = "kafka"\nkafka = "{broker.address}"\nbudget_bytes = {BUDGET}\n'
            "kafka_ledger_interval_s = 1.0\n"
            f"[collector]\nbudget_bytes = {2 * BUDGET}\n"
        )
        with running(tmp_path / "fleet", collectors=1, config=config) as fleet:
            most = trio.run(most_in_a_pause, fleet, broker)
    assert most < BUDGET + (64 << 20) + MARGIN, f"{most / 2**20:.1f} MiB"
