"""A balancer that is restarted under load, on real processes: exporters over TCP keep the connections that they have,
and every record is in the log once."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from tools.chaos.account import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

from sapflow.cli.fleet_file import read_fleet, read_status
from sapflow.client.ledger import ledger as accounts
from tests.chaos.test_balance import stored_of_exporters

COMMAND = (sys.executable, "-m", "sapflow")
EXPORTERS, METERS = 12, 4


def restart(fleet: Fleet) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "restart", "balancer", "--within", "10", "--data", str(fleet.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def balancer(fleet: Fleet) -> dict[str, Any]:
    """Its intake's counts, and what it holds; of no other process is anything asked, which may stand still."""
    control = {"balancer": read_fleet(str(fleet.data))["control"]["balancer"]}
    status = read_status({"control": control})["balancer"]
    if "error" in status:
        return {"intake": {}, "held": 0}
    return {"intake": status["counts"]["intake"], "held": status["gauges"]["unacknowledged_bytes"]}


def intake(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = balancer(fleet)["intake"]
    return found


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(60):
        while not await trio.to_thread.run_sync(holds):
            await trio.sleep(0.2)


async def restart_while(fleet: Fleet, kill: Callable[[int], Awaitable[None]]) -> None:
    """Restart the balancer while `kill`, which is given the process that is to go, does its work."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill, fleet.processes()["balancer"])
        await trio.to_thread.run_sync(restart, fleet)
    await until(lambda: intake(fleet).get("exporters") == EXPORTERS)


async def under_load(fleet: Fleet, during: Any, ledger: Ledger) -> Account:
    """Exporters and meters send while `during` runs; all that was sent over connections that were not cut is there."""
    account, stop = Account(), trio.Event()
    tokens = {"org-0": fleet.token("org-0")}
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as nursery:
        sending = partial(load, fleet.doors["link"], tokens, ledger, stop, meters=METERS, interval_s=0.1, records=50)
        nursery.start_soon(partial(sending, exporters=EXPORTERS, exporter_door=fleet.doors["ipfix_tcp"]))
        await until(lambda: intake(fleet).get("exporters") == EXPORTERS)
        await during()
        await trio.sleep(1.0)
        stop.set()
    if not ledger.exporters_cut:
        assert await stored_of_exporters(fleet, ledger.exported_records) == (ledger.exported_records, 0)
    await until(lambda: not balancer(fleet)["held"])
    told = await accounts(f"link://{fleet.doors['consume']}", "default", fleet.fleet_token())
    its = told.total.account
    assert (its.lost, its.repeated) == (0, 0)
    assert told.closes, told.differences()
    assert ledger.exporters_cut or (its.exported, told.streams) == (ledger.exported_records, EXPORTERS)
    # What a process that was killed had read, and nobody had been told was kept, went with it.
    assert told.total.stored > 0.5 * ledger.exported_records
    await count(fleet, ledger, account)
    return account


@pytest.mark.timeout(300)
@pytest.mark.parametrize("spool", ["false", "true"], ids=["in memory", "in a spool"])
def test_exporters_keep_their_connections_over_restarts_and_no_record_is_lost_or_doubled(
    tmp_path: Path, spool: str
) -> None:
    config, ledger = tmp_path / "fleet.toml", Ledger()
    config.write_text(f"[balancer]\nspool = {spool}\n")
    with running(tmp_path / "data", collectors=2, config=config) as fleet:
        held: list[int] = []

        async def during() -> None:
            for _ in range(3):
                done = await trio.to_thread.run_sync(restart, fleet)
                assert done.returncode == 0, done.stderr
                assert "with all handed on" in done.stdout
                await until(lambda: intake(fleet).get("resumed") == EXPORTERS)
                held.append(descriptors(fleet.processes()["balancer"]))

        account = trio.run(partial(under_load, fleet, during, ledger))
        counts = intake(fleet)
    assert ledger.exporters_cut == 0
    assert (counts["sessions"], counts["resumed"], counts["lost_records"]) == (0, EXPORTERS, 0)
    assert max(held) <= min(held) + 3
    assert account.clean, account
    assert ledger.exported_records > 5_000


@pytest.mark.timeout(300)
def test_meters_whose_links_are_relayed_keep_them_too(tmp_path: Path) -> None:
    config, ledger = tmp_path / "fleet.toml", Ledger()
    # A meter that were moved for balance would come to the door anew.
    config.write_text("[balancer]\nrebalance_start = 1000.0\n[collector]\nhandoff = false\n")
    with running(tmp_path / "data", collectors=2, config=config) as fleet:

        async def during() -> None:
            for _ in range(2):
                done = await trio.to_thread.run_sync(restart, fleet)
                assert done.returncode == 0, done.stderr
                assert "with all handed on" in done.stdout
                await until(lambda: intake(fleet).get("resumed") == EXPORTERS)
            door = fleet.status()["balancer"]["counts"]["link_door"]
            assert (door["resumed"], door["accepted"], door["open"]) == (METERS, 0, METERS)
            before = ledger.acknowledged_records
            await until(lambda: ledger.acknowledged_records > before + 1000)

        account = trio.run(partial(under_load, fleet, during, ledger))
    assert ledger.exporters_cut == 0
    assert account.acknowledged_records == account.sent_records == account.stored_records
    assert account.clean, account


@pytest.mark.timeout(300)
def test_what_is_not_durable_goes_with_the_sessions_when_nothing_can_be_stored(tmp_path: Path) -> None:
    """Phloem stands still from before the restart until after it."""
    ledger = Ledger()
    with running(tmp_path / "data", collectors=2) as fleet:

        async def during() -> None:
            phloem = fleet.processes()["phloem-1"]
            os.kill(phloem, signal.SIGSTOP)
            try:
                await trio.sleep(1.0)
                async with trio.open_nursery() as nursery:
                    # It waits for Phloem to answer again.
                    nursery.start_soon(trio.to_thread.run_sync, restart, fleet)
                    await until(lambda: balancer(fleet)["intake"].get("resumed") == EXPORTERS)
                    assert balancer(fleet)["held"] > 0
                    os.kill(phloem, signal.SIGCONT)
            finally:
                os.kill(phloem, signal.SIGCONT)

        account = trio.run(partial(under_load, fleet, during, ledger))
    assert ledger.exporters_cut == 0
    assert account.clean, account


@pytest.mark.timeout(300)
def test_a_successor_that_is_killed_before_it_took_up_the_sessions_costs_none_of_them(tmp_path: Path) -> None:
    """It stands still from the moment in which it is there, and dies so; what was left waits for the one after it."""
    ledger = Ledger()
    with running(tmp_path / "data", collectors=2) as fleet:

        async def kill_the_successor(old: int) -> None:
            with trio.fail_after(60):
                while (new := fleet.processes().get("balancer", old)) == old:
                    await trio.sleep(0.005)
            os.kill(new, signal.SIGSTOP)
            with trio.move_on_after(20):
                while is_there(old):
                    await trio.sleep(0.05)
            os.kill(new, signal.SIGKILL)

        account = trio.run(partial(under_load, fleet, partial(restart_while, fleet, kill_the_successor), ledger))
        counts = intake(fleet)
    # It may have taken some up before it stood still; none of those was lost unnoticed by its exporter.
    assert counts["resumed"] + ledger.exporters_cut >= EXPORTERS
    assert account.clean, account


@pytest.mark.timeout(300)
@pytest.mark.parametrize("spool", ["false", "true"], ids=["in memory", "in a spool"])
def test_one_that_is_killed_while_it_leaves_its_sessions_doubles_nothing_and_all_exporters_go_on(
    tmp_path: Path, spool: str
) -> None:
    """Those that it had left are its successor's; the others connect again."""
    config, ledger = tmp_path / "fleet.toml", Ledger()
    config.write_text(f"[balancer]\nspool = {spool}\n")
    with running(tmp_path / "data", collectors=2, config=config) as fleet:

        def is_draining() -> bool:
            return '"draining"' in (fleet.data / "up.out").read_text()

        async def kill_the_old_one(old: int) -> None:
            with trio.fail_after(60):
                while not await trio.to_thread.run_sync(is_draining):
                    await trio.sleep(0.005)
            await trio.sleep(0.02)
            if is_there(old):
                os.kill(old, signal.SIGKILL)

        account = trio.run(partial(under_load, fleet, partial(restart_while, fleet, kill_the_old_one), ledger))
        counts = intake(fleet)
    assert counts["resumed"] + counts["sessions"] >= EXPORTERS
    assert account.clean, account
