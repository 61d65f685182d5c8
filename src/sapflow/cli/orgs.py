"""`sapflow orgs`: customers and their credentials."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sapflow.orgs import OrgTable

DATA = click.option("--data", default="sapflow-data", show_default=True, help="The fleet's data directory.")


def _table(data: str) -> OrgTable:
    return OrgTable(Path(data) / "orgs.json")


@click.group("orgs")
def orgs_group() -> None:
    """Customers and their credentials."""


@orgs_group.command("list")
@DATA
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_orgs(data: str, as_json: bool) -> None:
    """List the orgs and how many tokens each has."""
    table = _table(data)
    rows = {name: table.tokens(name) for name in table.names()}
    if as_json:
        click.echo(json.dumps({"orgs": [{"org": name, "tokens": count} for name, count in rows.items()]}))
        return
    for name, count in rows.items():
        click.echo(f"{name}\t{count} token{'' if count == 1 else 's'}")
    if not rows:
        click.echo("no orgs yet; add one with 'sapflow orgs add NAME'", err=True)


@orgs_group.command("add")
@click.argument("org")
@DATA
def add_org(org: str, data: str) -> None:
    """Add an org, and show its first token. The token is shown once, and stored as a hash."""
    table = _table(data)
    table.add(org)
    click.echo(table.issue_token(org))


@orgs_group.command("remove")
@click.argument("org")
@DATA
def remove_org(org: str, data: str) -> None:
    """Remove an org and its tokens; what is stored of it stays until its retention ends."""
    _table(data).remove(org)
    click.echo(f"org '{org}' removed")


@orgs_group.command("token")
@click.argument("org")
@click.option("--revoke", is_flag=True, help="Take away all tokens instead.")
@DATA
def token(org: str, revoke: bool, data: str) -> None:
    """Issue a new token for an org. It is shown once, and stored as a hash."""
    table = _table(data)
    if revoke:
        click.echo(f"{table.revoke_tokens(org)} token(s) of '{org}' revoked")
    else:
        click.echo(table.issue_token(org))
