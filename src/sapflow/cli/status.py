"""`sapflow status`: the processes, consumer groups, exits, why a stream is where it is, an org's ledger."""

from __future__ import annotations

import json
from typing import Any

import click

from sapflow.cli.extents import batches, groups_of, mebibytes, not_read, records
from sapflow.cli.fleet_file import read_fleet, read_status
from sapflow.cli.ledger import asked_for, ledger_options, show_ledger
from sapflow.cli.why import say_why
from sapflow.client import Extent
from sapflow.errors import SapflowError


@click.command("status")
@click.option("--data", default="sapflow-data", show_default=True, help="The fleet's data directory.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
@click.option("--why", metavar="STREAM", help="Why a stream is where it is: its id, its exporter or its meter's name.")
@ledger_options
def status_command(data: str, as_json: bool, why: str | None, **ledger: Any) -> None:
    """Show the processes: memory, CPU, what is held, and the ratio out/in beside what it should be."""
    asked = asked_for(data, **ledger)
    if asked is not None and why is not None:
        raise click.UsageError("--why and --ledger are two questions; ask one at a time")
    if why is not None:
        say_why(data, why, as_json)
        return
    if asked is not None:
        show_ledger(asked, as_json=as_json)
        return
    fleet = read_fleet(data)
    statuses = read_status(fleet)
    if as_json:
        click.echo(json.dumps(statuses))
        return
    click.echo(f"{'process':<14}{'RSS MiB':>9}{'CPU':>7}{'lag ms':>8}{'held MiB':>10}{'out/in':>9}{'expected':>10}")
    for name, status in statuses.items():
        if "error" in status:
            click.echo(f"{name:<14}  does not answer: {status['error']}")
            continue
        gauges, ratio = status["gauges"], status["ratio"]
        held = gauges.get("held_bytes", gauges.get("unacknowledged_bytes", 0))
        click.echo(
            f"{name:<14}{gauges['rss_bytes'] / 2**20:>9.1f}{gauges['cpu']:>7.0%}{gauges['lag_s'] * 1000:>8.1f}"
            f"{held / 2**20:>10.2f}{_figure(ratio['measured']):>9}{_figure(ratio['expected']):>10}"
        )
    for name in fleet.get("drained", ()):
        click.echo(f"{name:<14}  drained; 'sapflow restart {name}' starts it")
    _show_groups(statuses)
    _show_exits(statuses)
    if any("error" in status for status in statuses.values()):
        raise SapflowError("a process does not answer; see above")


def _show_groups(statuses: dict[str, dict[str, Any]]) -> None:
    """Consumer groups by org, and how far behind they are, as of two seconds ago at most."""
    groups = groups_of(statuses.values())
    if not groups:
        return
    click.echo(f"\n{'org':<14}{'group':<24}{'members':>8}{'position':>12}{'lag batches':>13}{'records':>13}{'MiB':>9}")
    for group in groups:
        lag, gap = Extent(**group["lag"]), Extent(**group["gap"]) if group["gap"] else None
        click.echo(
            f"{group['org']:<14}{group['group']:<24}{group['members']:>8}{group['position']:>12,}"
            f"{batches(lag):>13}{records(lag):>13}{mebibytes(lag):>9}{not_read(gap)}"
        )


def _show_exits(statuses: dict[str, dict[str, Any]]) -> None:
    """What is published to orgs' own Kafkas, and why it is not, where it waits."""
    every = list(statuses.values())
    exits = [one for status in every for one in status.get("exits", ())]
    if not exits:
        return
    lags = {(group["org"], group["group"]): group["lag"] for status in every for group in status.get("groups", ())}
    click.echo(f"\n{'org':<14}{'exit':<16}{'topic':<24}{'published':>14}{'MiB':>9}{'left out':>10}{'lag records':>13}")
    for one in exits:
        lag = lags.get((one["org"], one["group"]))
        # A shared log does not count an org's records.
        behind = f"{lag['records']:,}" if lag is not None and lag["records"] is not None else "-"
        click.echo(
            f"{one['org']:<14}{one['name']:<16}{one['topic']:<24}{one['records']:>14,}{one['bytes'] / 2**20:>9.1f}"
            f"{one['refused_records']:>10,}{behind:>13}"
        )
        if one["state"] == "waiting":
            click.echo(f"{'':<14}  waits, and is tried again: {one['reason']}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
