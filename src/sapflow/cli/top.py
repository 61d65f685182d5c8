"""`sapflow top`: the fleet, or one org of it, live in the terminal; into a pipe, once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.live import Live

from sapflow.cli.draining import DATA
from sapflow.cli.fleet_file import read_fleet, read_status
from sapflow.cli.top_view import Reading, Top
from sapflow.client.ledger import ledger
from sapflow.errors import SapflowError
from sapflow.orgs import OrgTable

PIPED_WIDTH = 120
LEDGER_TIMEOUT_S = 2.0


@click.command("top")
@click.argument("org", required=False)
@DATA
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two readings.",
)
def top_command(org: str | None, data: str, interval_s: float) -> None:
    """Show what goes through the fleet, or through one org of it: loads, ratios, backlogs, loss, alarms.

    Live in a terminal until Ctrl-C; where the output is no terminal, once, over one interval.
    """
    if org is not None and org not in OrgTable(Path(data) / "orgs.json").names():
        read_fleet(data)
        raise SapflowError(f"there is no org '{org}'; 'sapflow orgs list --data {data}' shows those that there are")
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    top, before = Top(org), _read(data)
    if not console.is_terminal:
        time.sleep(interval_s)
        console.print(top.view(before, _read(data), _lost(data, org)))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                now = _read(data)
                live.update(top.view(before, now, _lost(data, org)), refresh=True)
                before = now
    except KeyboardInterrupt:
        return


def _read(data: str) -> Reading:
    fleet = read_fleet(data)
    return Reading(time.monotonic(), read_status(fleet), tuple(fleet.get("drained", ())))


def _lost(data: str, org: str | None) -> Mapping[str, Any] | None:
    """What an org's ledger says of all of its records; None while it cannot be asked."""
    if org is None:
        return None
    door = read_fleet(data)["doors"]["consume"]
    token = (Path(data) / "fleet.token").read_text().strip()

    async def ask() -> Mapping[str, Any] | None:
        with trio.move_on_after(LEDGER_TIMEOUT_S):
            found = (await ledger(f"link://{door}", org, token)).total
            account = found.account
            refused = sum(account.refused.values())
            return {"received": account.received, "lost": account.lost, "refused": refused, "stored": found.stored}
        return None

    try:
        return trio.run(ask)
    except SapflowError:
        return None
