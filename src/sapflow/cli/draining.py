"""`sapflow drain` and `sapflow restart`: processes that end gently, and are started anew."""

from __future__ import annotations

import json
from typing import Any

import click

from sapflow.cli.fleet_control import ask_fleet
from sapflow.cli.fleet_file import read_fleet
from sapflow.cli.rolling import Roll, order_of

DATA = click.option("--data", default="sapflow-data", show_default=True, help="The fleet's data directory.")
WITHIN = click.option(
    "--within",
    "within_s",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="The deadline of each drain; if none is given, fleet.drain_s of the configuration.",
)


@click.command("drain")
@click.argument("name")
@DATA
@WITHIN
@click.option("--force", is_flag=True, help="Also when it is the last of its role, and the fleet stands still then.")
@click.option("--json", "as_json", is_flag=True, help="What became of it, as one JSON object.")
def drain_command(name: str, data: str, within_s: float | None, force: bool, as_json: bool) -> None:
    """Have a process hand on all it has and end, without losing a record; it stays away until it is restarted."""
    done = ask_fleet(data, "drain", name, within_s, force=force)
    if as_json:
        click.echo(json.dumps(done))
    else:
        click.echo(f"{name} is drained, {told(done)}; 'sapflow restart {name}' starts it again")


@click.command("restart")
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option("--all", "everything", is_flag=True, help="All processes, one at a time.")
@DATA
@WITHIN
@click.option(
    "--balanced-within",
    "balanced_within_s",
    type=click.FloatRange(0, 86_400),
    default=90.0,
    show_default=True,
    metavar="SECONDS",
    help="The load must be even again so long after each restart, or the roll stops.",
)
@click.option("--json", "as_json", is_flag=True, help="Each step as JSON, one object a line.")
def restart_command(
    names: tuple[str, ...],
    everything: bool,
    data: str,
    within_s: float | None,
    balanced_within_s: float,
    as_json: bool,
) -> None:
    """Drain processes and start them anew, without losing a record: one at a time, each when the last is ready.

    One that was drained is started. A failure ends the roll, and says what is in what state.
    """
    if everything == bool(names):
        raise click.UsageError("name processes, or say --all")
    fleet = read_fleet(data)
    wanted = order_of(fleet) if everything else list(names)

    def say(step: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(step))
        else:
            click.echo(_as_text(step))

    Roll(data, within_s, balanced_within_s, say).run(wanted)


def told(done: dict[str, Any]) -> str:
    """How a drain went."""
    if done.get("clean"):
        return f"with all handed on, in {done['seconds']:.1f} s" if "seconds" in done else "and was away before"
    return f"at its deadline after {done['seconds']:.1f} s; what it still had is sent again by those who have it"


def _as_text(step: dict[str, Any]) -> str:
    match step["event"]:
        case "restarting":
            return f"{step['name']}  restarts ({step['number']} of {step['of']})"
        case "restarted":
            return f"{step['name']}  is up again as process {step['pid']}, {told(step)}"
        case "settled":
            return f"{step['name']}  has its part again after {step['seconds']:.1f} s"
        case _:
            return f"{step['of']} restarted, in {step['seconds']:.1f} s"
