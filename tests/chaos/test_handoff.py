"""Real processes: links are handed to collectors with their sockets, and outlive the balancer that took them in."""

import os
from functools import partial
from pathlib import Path

import pytest
import trio
from tools.chaos.account import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

from tests.chaos.test_balance import stored_of_exporters

METERS = 40


def descriptors(fleet: Fleet, name: str) -> int:
    return len(os.listdir(f"/proc/{fleet.processes()[name]}/fd"))


def links(fleet: Fleet) -> dict[str, int]:
    return {
        name: its["counts"]["link"]["links"]
        for name, its in fleet.status().items()
        if name.startswith("collector") and "error" not in its
    }


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(60):
        while not await trio.to_thread.run_sync(holds):
            await trio.sleep(0.2)


@pytest.mark.timeout(200)
def test_handed_links_outlive_their_balancer_and_nothing_is_lost_or_left_open(tmp_path: Path) -> None:
    ledger, account = Ledger(), Account()
    with running(tmp_path, collectors=2) as fleet:

        async def scenario() -> None:
            tokens = {f"org-{number}": fleet.token(f"org-{number}") for number in range(4)}
            await trio.sleep(1.5)  # collectors read the org table once a second
            stop = trio.Event()
            idle_links, before = sum(links(fleet).values()), descriptors(fleet, "balancer")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(load, fleet.doors["link"], tokens, ledger, stop, meters=METERS, interval_s=0.5, records=100)
                )
                await until(lambda: sum(links(fleet).values()) >= idle_links + METERS)
                counts = fleet.status()["balancer"]["counts"]
                assert counts["link_door"]["handed"] >= METERS
                assert counts["link_door"]["open"] == counts["link_door"]["bytes_in"] == 0
                assert counts["handoff"]["given"] == counts["link_door"]["handed"]
                assert descriptors(fleet, "balancer") <= before + 2
                taken = links(fleet)

                fleet.kill("balancer")
                durable = ledger.acknowledged_records
                await until(lambda: ledger.acknowledged_records >= durable + 2 * METERS * 100)
                await until(lambda: "error" not in fleet.status()["balancer"])
                # They are where they were: no meter had to come back.
                assert fleet.status()["balancer"]["counts"]["link_door"]["accepted"] == 0
                assert min(links(fleet).values()) >= min(taken.values()) - 3

                fleet.kill("collector-1")
                await until(lambda: fleet.status()["balancer"]["counts"]["link_door"]["handed"] > 0)
                await until(lambda: "error" not in fleet.status()["collector-1"])
                await trio.sleep(3)
                stop.set()

            await count(fleet, ledger, account)

        trio.run(scenario)
    assert account.stored_records == account.acknowledged_records == account.sent_records > 10_000
    assert account.clean, account


@pytest.mark.timeout(200)
def test_links_are_relayed_where_no_socket_may_be_given_and_collectors_know_who_they_are(tmp_path: Path) -> None:
    ledger, account = Ledger(), Account()
    config = tmp_path / "fleet.toml"
    config.write_text("[collector]\nhandoff = false\n")
    with running(tmp_path / "data", collectors=2, config=config) as fleet:

        async def scenario() -> None:
            stop = trio.Event()
            tokens = {"org-0": fleet.token("org-0")}
            await trio.sleep(1.5)  # collectors read the org table once a second
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(load, fleet.doors["link"], tokens, ledger, stop, meters=6, interval_s=0.2, records=100)
                )
                await until(lambda: ledger.acknowledged_records > 3_000)
                status = fleet.status()
                counts = status["balancer"]["counts"]
                assert (counts["link_door"]["open"], counts["link_door"]["handed"]) == (6, 0)
                headers = [its["counts"]["proxy_header"] for name, its in status.items() if "collector" in name]
                assert sum(one["read"] for one in headers) == 6
                stop.set()
            await count(fleet, ledger, account)

        trio.run(scenario)
    assert account.stored_records == account.acknowledged_records == account.sent_records > 3_000
    assert account.clean, account


@pytest.mark.timeout(200)
def test_exporters_that_are_carried_are_read_by_collectors_and_all_that_they_sent_is_stored(tmp_path: Path) -> None:
    ledger = Ledger()
    config = tmp_path / "fleet.toml"
    config.write_text('[balancer]\nexporters = "carry"\n')
    with running(tmp_path / "data", collectors=2, config=config) as fleet:

        async def scenario() -> None:
            stop = trio.Event()
            tokens = {"org-0": fleet.token("org-0")}
            await trio.sleep(1.5)  # collectors read the org table once a second
            async with trio.open_nursery() as nursery:
                senders = partial(
                    load, fleet.doors["link"], tokens, ledger, stop, meters=1, interval_s=0.5, records=100
                )
                nursery.start_soon(partial(senders, exporters=8, exporter_door=fleet.doors["ipfix_tcp"]))
                await until(lambda: ledger.exported_records > 3_000)
                status = fleet.status()
                assert status["balancer"]["counts"]["exporter_door"]["handed"] == 8
                assert status["balancer"]["counts"]["intake"]["sessions"] == 0
                sessions = [its["counts"]["intake"]["sessions"] for name, its in status.items() if "collector" in name]
                # Of one org, and on both.
                assert sum(sessions) == 8
                assert min(sessions) > 0
                stop.set()
            assert await stored_of_exporters(fleet, ledger.exported_records) == (ledger.exported_records, 0)

        trio.run(scenario)
    assert ledger.exporters_cut == 0
