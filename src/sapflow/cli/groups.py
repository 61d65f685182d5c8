"""`sapflow groups`: consumer groups, how far behind they are, and setting them elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from sapflow.cli.consuming import DATA, TOKEN_FILE, consume_door, position_of
from sapflow.cli.extents import batches, mebibytes, not_read, records
from sapflow.client import Ahead, GroupFigures, list_groups, remove_group, reset_group

DOOR = click.option("--to", "url", help="The consume door, link://HOST:PORT; else that of the fleet in --data.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def _door(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which door, given to a command as one argument `door`: URL and token."""

    @wraps(command)
    def wrapped(*args: Any, url: str | None, token_file: Path | None, data: str, **kwargs: Any) -> Any:
        return command(*args, door=consume_door(url, token_file, data), **kwargs)

    for option in (DATA, TOKEN_FILE, DOOR):
        wrapped = option(wrapped)
    return wrapped


@click.group("groups")
def groups_group() -> None:
    """Consumer groups: where each has come to in its org's log."""


@groups_group.command("list")
@click.argument("org")
@_door
@JSON
def list_command(org: str, door: tuple[str, str], as_json: bool) -> None:
    """List an org's groups, and how far behind each is."""
    url, token = door
    groups = trio.run(list_groups, url, org, token)
    if as_json:
        click.echo(json.dumps({"org": org, "groups": [attrs.asdict(group) for group in groups]}))
        return
    if groups:
        show(groups)
    else:
        click.echo(f"no groups yet; one is made with 'sapflow tail {org} --group NAME'", err=True)


@groups_group.command("show")
@click.argument("org")
@click.argument("name")
@_door
@JSON
def show_command(org: str, name: str, door: tuple[str, str], as_json: bool) -> None:
    """Show one group."""
    group = trio.run(_one, *door, org, name)
    if as_json:
        click.echo(json.dumps(attrs.asdict(group)))
        return
    rows = {
        "position": f"{group.position:,} of {group.last:,}",
        "lag": str(group.lag),
        "past retention": "nothing" if group.gap is None else f"{group.gap} were not read",
        "members": f"{group.members} (generation {group.generation})",
        "quarantined": f"{group.quarantined:,} batches could not be used",
        "state": f"{group.state_bytes:,} bytes",
        "made": _time(group.made_us),
        "last read": _time(group.touched_us),
    }
    for name, text in rows.items():
        click.echo(f"{name:<16}{text}")


@groups_group.command("reset")
@click.argument("org")
@click.argument("name")
@click.option("--at", required=True, help="earliest, latest, a position, or a time (ISO 8601).")
@_door
@JSON
def reset_command(org: str, name: str, at: str, door: tuple[str, str], as_json: bool) -> None:
    """Have a group read on from elsewhere. What it kept beside its position is forgotten."""
    url, token = door
    group, ahead = trio.run(reset_group, url, org, token, name, position_of(at, "--at"))
    if ahead:
        click.echo(f"sapflow: {Ahead(ahead, group.position)}", err=True)
    if as_json:
        click.echo(json.dumps(attrs.asdict(group)))
        return
    click.echo(
        f"group '{name}' of '{org}' reads on after position {group.position:,}; {batches(group.lag)} batches to read"
    )


@groups_group.command("remove")
@click.argument("org")
@click.argument("name")
@_door
@JSON
def remove_command(org: str, name: str, door: tuple[str, str], as_json: bool) -> None:
    """Forget a group that has no members."""
    url, token = door
    trio.run(remove_group, url, org, token, name)
    click.echo(json.dumps({"removed": name}) if as_json else f"group '{name}' of '{org}' removed")


async def _one(url: str, token: str, org: str, name: str) -> GroupFigures:
    return (await list_groups(url, org, token, group=name))[0]


def show(groups: Sequence[GroupFigures]) -> None:
    """A line for each."""
    click.echo(f"{'group':<24}{'position':>12}{'lag batches':>14}{'records':>14}{'MiB':>10}{'members':>9}  ")
    for group in groups:
        lag = group.lag
        click.echo(
            f"{group.group:<24}{group.position:>12,}{batches(lag):>14}{records(lag):>14}"
            f"{mebibytes(lag):>10}{group.members:>9}{not_read(group.gap)}"
        )


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")
