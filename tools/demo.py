"""`make demo`: a fleet under load on this machine, one collector killed, every record counted at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sapflow.cli import start_log
from sapflow.client import subscribe
from tools.chaos import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import find

ORGS = ("acme", "globex", "initech")
METERS = 200
KILL_AFTER_S = 15


class View:
    """What the terminal shows, made anew each second."""

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._before: dict[str, int] = {}
        self.news = "load begins"

    async def table(self) -> Table:
        """One row a process: rate, load, what is held, its ratio out/in and what that should be."""
        statuses = await trio.to_thread.run_sync(self._fleet.status, limiter=_LIMITER)
        table = Table(title="sapflow", min_width=78)
        for name in ("process", "MB/s in", "CPU", "RSS MiB", "held MiB", "out/in", "expected"):
            table.add_column(name, justify="left" if name == "process" else "right")
        for name, status in statuses.items():
            if "error" in status:
                table.add_row(name, "down", style="red")
                continue
            gauges, ratio = status["gauges"], status["ratio"]
            held = gauges.get("held_bytes", gauges.get("unacknowledged_bytes", 0))
            table.add_row(
                name,
                f"{self._rate(name, status) / 1e6:.2f}",
                f"{gauges['cpu']:.0%}",
                f"{gauges['rss_bytes'] / 2**20:.0f}",
                f"{held / 2**20:.2f}",
                _figure(ratio["measured"]),
                _figure(ratio["expected"]),
            )
        ledger = self._ledger
        backlog = ledger.sent_records - ledger.acknowledged_records
        sent = f"{METERS} meters: {ledger.sent_records:,} records sent, {backlog:,} not yet durable"
        table.caption = f"{sent}\n{self.news}"
        return table

    def _rate(self, name: str, status: dict[str, Any]) -> float:
        total = status["flow"]["link_door" if name == "balancer" else "link"]["in"]["bytes"]
        rate = max(0, total - self._before.get(name, total))
        self._before[name] = total
        return float(rate)


_LIMITER = trio.CapacityLimiter(1)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


async def demo(fleet: Fleet, console: Console, *, seconds: float, keep: bool) -> Account:
    """Load, kill, count."""
    tokens = {org: fleet.token(org) for org in ORGS}
    ledger, account = Ledger(), Account()
    view = View(fleet, ledger)
    stop = trio.Event()
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with _softflowd(fleet.doors["ipfix_tcp"], fleet.data) as said:
        console.print(said)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(load, fleet.doors["link"], tokens, ledger, stop, meters=METERS, interval_s=0.5, records=48)
            )
            nursery.start_soon(_kill, fleet, view, account)
            with Live(await view.table(), console=console, auto_refresh=False) as live:
                await _show(view, live, seconds=float("inf") if keep else seconds)
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + 30
    console.print("load has ended; reading the whole log back …")
    await count(fleet, ledger, account)
    exported = await _stored(fleet, "default")
    console.print(f"softflowd's flow records in the log, of org default: {exported:,}")
    return account


async def _show(view: View, live: Live, *, seconds: float) -> None:
    """A new view each second, until the time is over or Ctrl-C."""
    with trio.open_signal_receiver(signal.SIGINT) as interrupts, trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:

            async def until_interrupted() -> None:
                async for _ in interrupts:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(until_interrupted)
            while True:
                await trio.sleep(1)
                live.update(await view.table(), refresh=True)


@asynccontextmanager
async def _softflowd(door: str, directory: Path) -> AsyncIterator[str]:
    """A real exporter on the loopback interface, when it is installed and allowed: what to say of it."""
    program = find("softflowd")
    if program is None:
        yield "softflowd is not installed; the demo goes on without a real exporter"
        return
    command = [program, "-d", "-i", "lo", "-n", door, "-v", "10", "-P", "tcp", "-c", "none"]
    command += ["-p", str(directory / "softflowd.pid"), "-t", "maxlife=5", "-t", "expint=2"]
    with (directory / "softflowd.log").open("wb") as out:
        process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        with trio.move_on_after(1.0):
            await process.wait()
        if process.returncode is None:
            yield "softflowd exports the flows of the loopback interface, as org default"
        else:
            reason = (directory / "softflowd.log").read_text().strip().splitlines()[-1:]
            yield f"softflowd may not capture here ({', '.join(reason) or process.returncode})"
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _stored(fleet: Fleet, org: str) -> int:
    """An org's records in the log, counted by reading them."""
    records = 0
    with trio.fail_after(60):
        url = f"link://{fleet.doors['consume']}"
        async with subscribe(url, org, fleet.fleet_token(), at="earliest", follow=False) as batches:
            async for batch in batches:
                records += batch.records
    return records


async def _kill(fleet: Fleet, view: View, account: Account) -> None:
    await trio.sleep(KILL_AFTER_S)
    fleet.kill("collector-1")
    account.faults.append("collector-1")
    view.news = "collector-1 was killed with -9; its meters went on through collector-2, and it is coming back"


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--keep", is_flag=True, help="Go on until Ctrl-C.")
def main(seconds: float, keep: bool) -> None:
    """Show a fleet under load, with one collector killed. Exits 1 if a record is missing."""
    start_log("error")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="sapflow-demo-") as directory, running(Path(directory)) as fleet:
        console.print(f"fleet of {len(fleet.processes())} processes; plain exporters: {fleet.doors['ipfix_tcp']}")
        account = trio.run(partial(demo, fleet, console, seconds=seconds, keep=keep))
    console.print(
        f"sent {account.sent_records:,} records, acknowledged {account.acknowledged_records:,}, "
        f"found in the log {account.stored_records:,}\n"
        f"killed {', '.join(account.faults) or 'nothing'}; lost {account.lost_batches}, "
        f"stored twice {account.duplicated_batches}, out of order {account.disordered_batches}, "
        f"foreign {account.foreign_batches}"
    )
    sys.exit(0 if account.clean and account.stored_records == account.sent_records else 1)


if __name__ == "__main__":
    main()
