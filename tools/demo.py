"""`make demo`: a fleet under load on this machine, one collector killed, every record counted at the end."""

from __future__ import annotations

import io
import re
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
from attrs import frozen
from rich.console import Console
from rich.live import Live

from sapflow.cli import start_log
from sapflow.cli.exits import run
from sapflow.client import subscribe
from sapflow.client.ledger import ledger as ask_ledger
from tools.chaos import Account, count
from tools.demo_view import View
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.number import Number
from tools.peers import find

ORGS = ("acme", "globex", "initech")
VICTIM = "collector-1"
LINE_EVERY_S = 5
PICTURE_COLUMNS = 96


STATUS = trio.CapacityLimiter(4)
"""Threads that ask the processes how they are."""


@frozen
class Plan:
    """What the demo is to do."""

    seconds: float = 60
    keep: bool = False
    meters: int = 200
    kill_after_s: float = 15


async def demo(fleet: Fleet, console: Console, plan: Plan, view: View) -> Account:
    """Load, kill, count."""
    tokens = {org: fleet.token(org) for org in ORGS}
    ledger, account = view.ledger, Account()
    stop = trio.Event()
    await trio.sleep(1.5)  # collectors read the org table once a second
    async with _softflowd(fleet.doors["ipfix_tcp"], fleet.data) as said:
        console.print(said)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(load, fleet.doors["link"], tokens, ledger, stop, meters=plan.meters, interval_s=0.5, records=48)
            )
            async with trio.open_nursery() as shown:
                shown.start_soon(_kill, fleet, view, account, plan.kill_after_s)
                await _show(fleet, view, console, seconds=float("inf") if plan.keep else plan.seconds)
                shown.cancel_scope.cancel()
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + 30
    console.print("load has ended; reading the whole log back …")
    await count(fleet, ledger, account)
    exported = await _stored(fleet, "default")
    told = await ask_ledger(f"link://{fleet.doors['consume']}", "default", fleet.fleet_token())
    if not told.closes:
        account.ledger_differences["default"] = told.differences()
    numbers = told.total.account
    console.print(
        f"softflowd's flow records in the log, of org default: {exported:,}; its numbers say {numbers.exported:,} sent "
        f"and {numbers.lost:,} lost, and leave out {numbers.repeated + numbers.uncounted:,} that came"
    )
    return account


async def _show(fleet: Fleet, view: View, console: Console, *, seconds: float) -> None:
    """A new view each second, until the time is over or Ctrl-C; not on a terminal, a line each few seconds."""
    began = trio.current_time()
    with trio.open_signal_receiver(signal.SIGINT) as interrupts, trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:

            async def until_interrupted() -> None:
                async for _ in interrupts:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(until_interrupted)
            if not console.is_terminal:
                while True:
                    for _ in range(LINE_EVERY_S):
                        await trio.sleep(1)
                        view.read(await _statuses(fleet))
                    console.print(view.line(trio.current_time() - began), soft_wrap=True, highlight=False)
            view.read(await _statuses(fleet))
            with Live(view.table(), console=console, auto_refresh=False) as live:
                while True:
                    await trio.sleep(1)
                    view.read(await _statuses(fleet))
                    live.update(view.table(), refresh=True)


async def _statuses(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return await trio.to_thread.run_sync(fleet.status, limiter=STATUS)


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


async def _kill(fleet: Fleet, view: View, account: Account, after_s: float) -> None:
    """Kill a collector, and say when it is back."""
    await trio.sleep(after_s)
    before = fleet.processes()[VICTIM]
    await trio.to_thread.run_sync(fleet.kill, VICTIM, limiter=STATUS)
    killed_at = trio.current_time()
    account.faults.append(VICTIM)
    view.shares.phase = "during"
    view.news = f"{VICTIM} was killed with -9; its meters go on through the others"
    while fleet.processes()[VICTIM] == before or "error" in (await _statuses(fleet))[VICTIM]:
        await trio.sleep(0.05)
    view.shares.phase = "after"
    view.news = f"{VICTIM} was killed with -9, and back {trio.current_time() - killed_at:.1f} s later"


@click.command("demo")
@click.option("--seconds", type=Number(1), default=60.0, show_default=True)
@click.option("--keep", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--meters", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--kill-after", type=Number(0), default=15.0, show_default=True, help="Seconds until a collector dies.")
@click.option("--picture", type=click.Path(path_type=Path), help="Save the last view and the summary there, as SVG.")
def main(seconds: float, keep: bool, meters: int, kill_after: float, picture: Path | None) -> None:
    """Show a fleet under load, with one collector killed. Exits 1 if a record is missing.

    Ctrl-C ends the load; what was sent is counted all the same.
    """
    start_log("error")
    console = Console()
    plan = Plan(seconds=seconds, keep=keep, meters=meters, kill_after_s=kill_after)
    view = View(Ledger(), meters)
    with tempfile.TemporaryDirectory(prefix="sapflow-demo-") as directory, running(Path(directory)) as fleet:
        console.print(f"fleet of {len(fleet.processes())} processes; plain exporters: {fleet.doors['ipfix_tcp']}")
        account = trio.run(demo, fleet, console, plan, view)
    summary = _summary(account, view)
    console.print(summary, soft_wrap=True)
    if picture is not None:
        _save(picture, view, summary)
    sys.exit(0 if account.clean and account.stored_records == account.sent_records else 1)


def _summary(account: Account, view: View) -> str:
    counted = (
        f"sent {account.sent_records:,} records, acknowledged {account.acknowledged_records:,}, "
        f"found in the log {account.stored_records:,}\n"
        f"killed {', '.join(account.faults) or 'nothing'}; lost {account.lost_batches}, "
        f"stored twice {account.duplicated_batches}, out of order {account.disordered_batches}, "
        f"foreign {account.foreign_batches}; the ledgers {_ledgers(account)}"
    )
    return "\n".join([counted, *(view.shares.lines() if account.faults else [])])


def _ledgers(account: Account) -> str:
    if not account.ledger_differences:
        return "close, to the record"
    return f"do not close: {account.ledger_differences}"


def _save(picture: Path, view: View, summary: str) -> None:
    paper = Console(record=True, file=io.StringIO(), width=PICTURE_COLUMNS, force_terminal=True)
    paper.print(view.table())
    paper.print(summary)
    # Rich has the picture ask a server for its font; any monospaced one will do.
    picture.write_text(re.sub(r"\s*@font-face \{.*?\}", "", paper.export_svg(title="make demo"), flags=re.DOTALL))


if __name__ == "__main__":
    run(main, "demo")
