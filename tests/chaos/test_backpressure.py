"""Whoever stops taking is waited for, and memory stays within its bound."""

import signal
from functools import partial
from os import kill
from pathlib import Path

import pytest
import trio
from tools.chaos import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

from sapflow.client import subscribe
from sapflow.flows.reference import reference_work

BUDGET = 16 << 20
SLACK = 64 << 20
CONFIG = f"""
[balancer]
budget_bytes = {BUDGET}
[collector]
budget_bytes = {BUDGET}
[phloem]
budget_bytes = {BUDGET}
"""


def rss(fleet: Fleet, *names: str) -> dict[str, int]:
    pids = fleet.processes()
    found = {}
    for name in names:
        lines = Path(f"/proc/{pids[name]}/status").read_text().splitlines()
        found[name] = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))
    return found


async def push(address: str, work: bytes, sent: list[int]) -> None:
    host, port = address.split(":")
    async with await trio.open_tcp_stream(host, int(port)) as exporter:
        for at in range(0, len(work), 1 << 16):
            await exporter.send_all(work[at : at + (1 << 16)])
            sent[0] += 1 << 16
        await exporter.send_eof()
        await exporter.receive_some(1)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(CONFIG)
    return path


def test_a_stopped_phloem_pushes_back_to_the_exporter_and_memory_is_bounded(tmp_path: Path, config: Path) -> None:
    work = reference_work(100_000)
    names = ("balancer", "collector-1")
    with running(tmp_path / "data", collectors=1, config=config) as fleet:
        base = rss(fleet, *names)

        async def scenario() -> None:
            sent = [0]
            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    stopped = fleet.processes()["phloem-1"]
                    kill(stopped, signal.SIGSTOP)
                    nursery.start_soon(push, fleet.doors["ipfix_tcp"], work, sent)
                    before = -1
                    while sent[0] != before:
                        before = sent[0]
                        await trio.sleep(2)
                    assert sent[0] < len(work) / 2
                    for name, size in rss(fleet, *names).items():
                        assert size < base[name] + BUDGET + SLACK, (name, size)
                    kill(stopped, signal.SIGCONT)
                while fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"] < 2_400_000:
                    await trio.sleep(0.2)

        trio.run(scenario)
        for name, size in rss(fleet, *names, "phloem-1").items():
            assert size < BUDGET + 2 * SLACK, (name, size)


def test_with_many_exporters_a_stopped_phloem_leaves_the_balancer_within_its_budget(
    tmp_path: Path, config: Path
) -> None:
    exporters, work = 150, reference_work(1500)
    with running(tmp_path / "data", collectors=1, config=config) as fleet:
        base = rss(fleet, "balancer")["balancer"]

        async def scenario() -> None:
            sent = [0]
            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    stopped = fleet.processes()["phloem-1"]
                    kill(stopped, signal.SIGSTOP)
                    for _ in range(exporters):
                        nursery.start_soon(push, fleet.doors["ipfix_tcp"], work, sent)
                    before = -1
                    while sent[0] != before:
                        before = sent[0]
                        await trio.sleep(2)
                    size = rss(fleet, "balancer")["balancer"]
                    gauges = fleet.status()["balancer"]["gauges"]
                    kill(stopped, signal.SIGCONT)
                    assert size < base + BUDGET + SLACK, size
                    assert gauges["waiting_exporters"] > 100
                    assert gauges["unacknowledged_bytes"] <= gauges["budget_bytes"] == BUDGET
                while fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"] < exporters * 36_000:
                    await trio.sleep(0.2)

        trio.run(scenario)


def test_w11_a_consumer_that_never_reads_costs_no_memory(tmp_path: Path, config: Path) -> None:
    work = reference_work(60_000)
    with running(tmp_path / "data", collectors=1, config=config) as fleet:

        async def scenario() -> None:
            with trio.fail_after(90):
                url = f"link://{fleet.doors['consume']}"
                async with subscribe(url, "default", fleet.fleet_token(), at="earliest"):
                    await push(fleet.doors["ipfix_tcp"], work, [0])
                    while fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"] < 1_440_000:
                        await trio.sleep(0.2)

        trio.run(scenario)
        assert rss(fleet, "phloem-1")["phloem-1"] < BUDGET + 2 * SLACK


@pytest.mark.timeout(120)
def test_c02_every_pair_of_roles_killed_at_once_loses_nothing(tmp_path: Path) -> None:
    pairs = [("balancer", "collector-1"), ("balancer", "phloem-1"), ("collector-1", "phloem-1")]
    with running(tmp_path, collectors=1) as fleet:
        ledger, account = Ledger(), Account()
        token = fleet.token("acme")

        async def scenario() -> None:
            stop = trio.Event()
            await trio.sleep(1.5)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(
                        load, fleet.doors["link"], {"acme": token}, ledger, stop, meters=10, interval_s=0.1, records=8
                    )
                )
                for pair in pairs:
                    await trio.sleep(4)
                    for name in pair:
                        fleet.kill(name)
                await trio.sleep(4)
                stop.set()
                nursery.cancel_scope.deadline = trio.current_time() + 40
            await count(fleet, ledger, account)

        trio.run(scenario)
    assert account.clean, account
    assert account.acknowledged_records == account.sent_records == account.stored_records > 1000
