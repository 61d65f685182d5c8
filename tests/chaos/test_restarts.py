"""Processes that are drained and restarted under load, on real processes; every record counted afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from tools.chaos.account import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

COMMAND = (sys.executable, "-m", "sapflow")


@define
class Ratios:
    """Bytes out for each byte in, of balancer and collectors, read again and again.

    What a process still holds has not gone out yet, and what it sent again has gone out twice: neither may be more than
    5 % of what came in.
    """

    read: int = 0
    apart: list[tuple[str, int, int, int]] = field(factory=list)
    """Readings that were further from it: of which process, bytes in, out and held."""

    async def watch(self, fleet: Fleet, every_s: float = 3.0) -> None:
        while True:
            await trio.sleep(every_s)
            for status in (await trio.to_thread.run_sync(fleet.status)).values():
                if "error" not in status and status["role"] in ("balancer", "collector"):
                    self._note(status)

    def _note(self, status: dict[str, Any]) -> None:
        """Over its life so far: of a process that has taken little, what is between in and out is too much of it."""
        flow = status["flow"]["link"]
        flow, gauges = status["flow"]["link"], status["gauges"]
        taken, given = flow["in"]["bytes"], flow["out"]["bytes"]
        held = gauges.get("held_bytes", gauges.get("unacknowledged_bytes"))
        if taken > 500_000:
            self.read += 1
            if given > 1.05 * taken or given + held < 0.95 * taken:
                self.apart.append((status["name"], taken, given, held))


async def restarting(
    fleet: Fleet, arguments: list[str], *, meters: int, exporters: int = 0, after_s: float = 5.0
) -> tuple[Account, Ratios, "subprocess.CompletedProcess[str]"]:
    """Load a fleet, restart as said, and count every record."""
    account, ledger, ratios = Account(), Ledger(), Ratios()
    tokens = {org: fleet.token(org) for org in ("org-0", "org-1", "org-2")}
    stop = trio.Event()
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with trio.open_nursery() as watching:
        watching.start_soon(ratios.watch, fleet)
        async with trio.open_nursery() as nursery:
            sending = partial(
                load, fleet.doors["link"], tokens, ledger, stop, meters=meters, interval_s=0.2, records=24
            )
            nursery.start_soon(partial(sending, exporters=exporters, exporter_door=fleet.doors["ipfix_tcp"]))
            await trio.sleep(after_s)
            done = await trio.to_thread.run_sync(
                partial(subprocess.run, [*COMMAND, *arguments], capture_output=True, text=True, timeout=400)
            )
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + 60
        watching.cancel_scope.cancel()
    await count(fleet, ledger, account)
    return account, ratios, done


def events(fleet: Fleet) -> list[dict[str, object]]:
    return [json.loads(line) for line in (fleet.data / "up.out").read_text().splitlines()[1:]]


@pytest.mark.timeout(500)
@pytest.mark.parametrize("handoff", ["true", "false"], ids=["handed off", "relayed"])
def test_c21_a_rolling_restart_of_every_role_loses_and_doubles_nothing(tmp_path: Path, handoff: str) -> None:
    config = tmp_path / "sapflow.toml"
    config.write_text(f"[collector]\nhandoff = {handoff}\n")
    with running(tmp_path, collectors=3, config=config) as fleet:
        before = fleet.processes()
        arguments = ["restart", "--all", "--within", "10", "--json", "--data", str(tmp_path)]
        account, ratios, done = trio.run(partial(restarting, fleet, arguments, meters=40))
        assert done.returncode == 0, done.stderr
        after, told = fleet.processes(), events(fleet)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    roll = ["collector-1", "collector-2", "collector-3", "phloem-1", "balancer"]
    assert [step["name"] for step in steps if step["event"] == "settled"] == roll
    assert [step["clean"] for step in steps if step["event"] == "restarted"] == [True] * 5
    assert all(before[name] != after[name] for name in roll)
    assert [event["name"] for event in told if event["event"] == "drained"] == roll
    assert not [event for event in told if event["event"] == "died"]
    assert account.acknowledged_records == account.sent_records == account.stored_records > 20_000
    assert account.clean, account
    assert ratios.read > 20
    assert not ratios.apart


def test_a_drained_collector_stays_away_and_the_last_of_a_role_is_not_drained_unasked(tmp_path: Path) -> None:
    def sapflow(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*COMMAND, *arguments, "--data", str(tmp_path)]
        return subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)

    with running(tmp_path, collectors=2) as fleet:
        pids = fleet.processes()
        done = sapflow("drain", "collector-1")
        assert done.returncode == 0, done.stderr
        assert "collector-1 is drained, with all handed on" in done.stdout
        assert set(fleet.processes()) == {"balancer", "collector-2", "phloem-1"}
        for name in ("collector-2", "phloem-1", "balancer"):
            refused = sapflow("drain", name)
            assert refused.returncode == 1
            assert f"{name} is the only {name.split('-')[0]} that runs" in refused.stderr
        unknown = sapflow("restart", "collector-7")
        assert unknown.returncode == 1
        assert "there is no process 'collector-7'; there are balancer, collector-1" in unknown.stderr
        assert "as they were: none" in unknown.stderr
        assert sapflow("restart").returncode == 2
        assert sapflow("restart", "--all", "collector-1").returncode == 2
        status = sapflow("status")
        assert status.returncode == 0
        assert "collector-1     drained" in status.stdout
        assert sapflow("restart", "collector-1").returncode == 0
        assert fleet.processes()["collector-1"] != pids["collector-1"]
        assert fleet.processes()["collector-2"] == pids["collector-2"]


def test_sigterm_drains_and_the_supervisor_knows_that_it_is_no_death(tmp_path: Path) -> None:
    with running(tmp_path, collectors=2) as fleet:
        pid = fleet.processes()["collector-1"]
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 20
        while fleet.processes()["collector-1"] == pid and time.monotonic() < until:
            time.sleep(0.05)
        kinds = [event["event"] for event in events(fleet) if event["name"] == "collector-1"]
        assert kinds == ["drained", "restarted"]


def test_nobody_drains_without_the_fleets_token(tmp_path: Path) -> None:
    with running(tmp_path, collectors=2) as fleet:
        found = json.loads((tmp_path / "fleet.json").read_text())
        control = found["control"]["collector-1"].removesuffix("/status")
        for url in (f"{found['fleet_control']}/drain?name=collector-1", f"{control}/drain"):
            for header in ("x: y", "authorization: Bearer wrong"):
                command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-H", header, url]
                assert subprocess.run(command, timeout=20, capture_output=True, text=True, check=True).stdout == "401"
        assert "collector-1" in fleet.processes()
